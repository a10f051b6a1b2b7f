"""Several networks as one, which gives the mean of their probabilities."""

from pneumo_lib._startup import keras

import numpy as np

from pneumo_lib.models.fcn import split_fcn


def mean_network(models, backbone):
    """One network that gives the mean of several; a frozen part that all share is run once.

    Args:
        models: list of `keras.Model` of one architecture, with weights of their own.
        backbone: its name.

    Returns:
        `(model, encoder, head)`: `model` from images to softmax is `head` behind `encoder`;
        `encoder` is None, and `head` is `model`, where the members' own differ.
    """
    image, name = keras.Input(models[0].input.shape[1:], name="image"), f"mean_{backbone}"
    halves = [] if backbone == "small" else [split_fcn(model) for model in models]
    if not halves or not _equal([encoder for encoder, _ in halves]):
        model = keras.Model(image, _mean(models, image), name=name)
        return model, None, model
    encoder, heads = halves[0][0], [head for _, head in halves]
    features = keras.Input(encoder.output.shape[1:], name="features")
    head = keras.Model(features, _mean(heads, features), name="heads")
    return keras.Model(image, head(encoder(image)), name=name), encoder, head


def _mean(models, x):
    named = [
        keras.Model(model.input, model.output, name=f"member_{number}")
        for number, model in enumerate(models, start=1)
    ]
    return keras.layers.Average(name="mean", dtype="float32")([model(x) for model in named])


def _equal(encoders):
    """Whether all have the same weights."""
    first, *others = (encoder.get_weights() for encoder in encoders)
    return all(all(map(np.array_equal, first, weights)) for weights in others)
