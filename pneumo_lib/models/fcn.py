"""Fully convolutional networks: a pretrained backbone with a decoder, and a small FCN."""

import itertools
import math
from functools import partial

from pneumo_lib._startup import keras

import numpy as np
import pandas as pd
from keras import layers

from pneumo_lib._checks import check_name
from pneumo_lib.models import decoders
from pneumo_lib.models.backbones import SKIP_TAPS, TAPS, build_backbone
from pneumo_lib.models.names import DECODERS, check_size
from pneumo_lib.models.skips import align, half_view, project, skip_decoder


def build_fcn(
    backbone, *, decoder="deconvolution", size=128, weights="imagenet", dropout=0.5, seed=0
):
    """Frozen backbone, decoder to the size of the image, softmax, as one flat functional model.

    - "deconvolution" is the report's: a chain of transposed convolutions (`DECONVOLUTIONS`) with
      dropout and no activation between them, a linear map of the features. The strides for
      InceptionV3 multiply to 64, but its last feature map has `size / 32 - 2` pixels a side (2
      for 128): it is resized bilinearly to `size / 64`, rounded up, and the surplus is cropped
      evenly before the softmax.
    - "fcn32s", "fcn16s", "fcn8s" add the scores of one, two and three levels: `fuse_scores()`.
    - "skips" joins projected features of three or four levels and of two levels of the image at
      half its size: `skips.project()`, `skip_decoder()`.

    Args:
        backbone: one of `names.BACKBONES`.
        decoder: one of `DECODERS`.
        size: height and width in pixels, a multiple of 32 (96 at least for InceptionV3).
        weights: of the backbone, see `build_backbone()`.
        dropout: share dropped in training, in [0, 1): values after each deconvolution but the
            last, values of the coarsest tap, or channels of each tap of "skips".
        seed: of the decoder, the dropout and random backbone weights.

    Returns:
        `keras.Model`, `(batch, size, size, 3)` preprocessed float32 -> `(batch, size, size, 2)`
        float32 softmax, channel 1 is pneumothorax. `weights_used` as in `build_backbone()`.

    Raises:
        ValueError: for an unknown `decoder` and as `build_backbone()`.
        FileNotFoundError: as `build_backbone()`.

    Reference:
        Long, Shelhamer, Darrell (2015), arXiv:1411.4038.
    """
    check_name("decoder", decoder, DECODERS)
    encoder = build_backbone(backbone, size=size, weights=weights, seed=seed)
    random = {"dropout": dropout, "seed": seed}
    if decoder == "deconvolution":
        x = decoders.deconvolutions(encoder.output, backbone, size=size, **random)
    elif decoder == "skips":
        found = _taps(encoder, SKIP_TAPS[backbone])
        context = project(half_view(encoder, found), name="project_half")
        context = align(context, size=size, name="tap_half")
        x = skip_decoder(align(project(found), size=size), context, **random)
    else:
        names = {level: TAPS[backbone][level] for level in decoders.FCN_LEVELS[decoder]}
        x = decoders.fuse_scores(align(_taps(encoder, names), size=size), **random)
    x = layers.Softmax(dtype="float32", name="softmax")(x)  # float32 under mixed precision too
    model = keras.Model(encoder.input, x, name=f"fcn_{backbone}")
    model.weights_used = encoder.weights_used
    return model


def _taps(encoder, names):
    """Dict from level to the output of the named layer, the coarsest first."""
    return {level: encoder.get_layer(names[level]).output for level in sorted(names, reverse=True)}


def build_small_fcn(*, size=128, filters=32, seed=0):
    """Small U-Net trained from scratch, the baseline that transfer learning must beat.

    Its stem has stride 2 and its last layer writes 2 x 2 pixels: at full resolution a convolution
    waits for memory more than it computes. Three feature maps; the decoder adds to each the
    encoder's of equal size (`skip_*`).

    Args:
        size: height and width in pixels, a multiple of 32.
        filters: channels of the first feature map; 2 and 3 times as many in the others.
        seed: of the weights.

    Returns:
        `keras.Model` as of `build_fcn()`, for images preprocessed for "small"; `weights_used`
        is "from scratch".

    Raises:
        ValueError: if `size` is not a multiple of 32.

    Reference:
        Ronneberger, Fischer, Brox (2015), U-Net, arXiv:1505.04597.
    """
    check_size(size, "small")
    seeds = itertools.count(decoders.layer_seed(seed, 0))
    convolution = partial(decoders.convolution, seeds=seeds)
    image = keras.Input((size, size, 3), name="image")
    x = convolution(image, filters, "stem", kernel_size=4, strides=2)
    skips = []
    for number, channels in enumerate((2 * filters, 3 * filters), start=1):
        x = convolution(x, x.shape[-1], f"encode_{number}")
        skips.append(x)
        x = convolution(x, channels, f"halve_{number}", strides=2)
    x = convolution(x, x.shape[-1], "bottom_1")
    x = convolution(x, x.shape[-1], "bottom_2")
    upsampling = {"layer": layers.Conv2DTranspose, "kernel_size": 2, "strides": 2}
    for number, skip in zip((2, 1), reversed(skips), strict=True):
        x = convolution(x, skip.shape[-1], f"double_{number}", **upsampling)
        x = layers.Add(name=f"skip_{number}")([x, skip])
        x = convolution(x, skip.shape[-1], f"decode_{number}")
    x = decoders.rare_score(x, seed=next(seeds), scale=2)
    model = keras.Model(image, layers.Softmax(dtype="float32", name="softmax")(x), name="small")
    model.weights_used = "from scratch"
    return model


def split_fcn(model):
    """Encoder (backbone) and head (decoder) of a `build_fcn()` network, with shared weights.

    Features of a frozen encoder are computed once; training the head on them trains the network.

    Returns:
        `(encoder, head)`, two `keras.Model`: images -> features, and features -> softmax. For a
        decoder with several taps the features are one vector per image.

    Raises:
        ValueError: for a model that `build_fcn()` has not made.
    """
    names = [layer.name for layer in model.layers]
    starts = [name for name in names if name == "deconvolution_1" or name.startswith("tap_")]
    if not starts:
        raise ValueError(f"`model` must be made by build_fcn(). Received: model={model.name!r}")
    features = taps = [model.get_layer(name).input for name in starts]
    if len(taps) == 1:
        (features,) = taps
    head = keras.Model(features, model.output, name=f"{model.name}_head")
    if len(taps) > 1:
        shapes = [tap.shape[1:] for tap in taps]
        packed = keras.Input((sum(map(math.prod, shapes)),), name="packed")
        head = keras.Model(packed, head(unpack(packed, shapes)), name=head.name)
        # Named, because the checksum of cached features covers the names.
        flat = [layers.Flatten(name=f"flat_{number}")(tap) for number, tap in enumerate(taps)]
        features = layers.Concatenate(name="packed")(flat)
    encoder = keras.Model(model.input, features, name=f"{model.name}_encoder")
    return encoder, head


def unpack(features, shapes):
    """The taps in features of `split_fcn()`: list of `(n, height, width, channels)`.

    Args:
        features: `(n, ...)` NumPy array or `KerasTensor`.
        shapes: `(height, width, channels)` of each tap, see `tap_shapes()`.
    """
    if len(shapes) == 1:
        return [features]
    spans = itertools.pairwise(itertools.accumulate(map(math.prod, shapes), initial=0))
    return [
        features[:, start:end].reshape(-1, *shape)
        if isinstance(features, np.ndarray)
        else layers.Reshape(shape)(features[:, start:end])
        for shape, (start, end) in zip(shapes, spans, strict=True)
    ]


def tap_shapes(encoder):
    """Shape `(height, width, channels)` of each tap in the features of an encoder.

    Args:
        encoder: of `split_fcn()`.
    """
    flat = [layer.input for layer in encoder.layers if layer.name.startswith("flat_")]
    return [tuple(tap.shape[1:]) for tap in flat or [encoder.output]]


def unfreeze(model, part):
    """Set in place which layers of the backbone are trained; the decoder always is.

    Never trained are projections of taps and the backbone's batch normalization, which keeps the
    statistics of ImageNet (a frozen one ignores `training=True`): small batches would spoil them.
    The backbone's trained weights are `split_fcn(model)[0].trainable_weights`.

    Args:
        model: of `build_fcn()`.
        part: "none"; "last": the layers behind the tap of level 4 (`block5_*` of VGG, `conv5_*`
            of ResNet50, `mixed8` to `mixed10` of InceptionV3); "whole".

    Raises:
        ValueError: for an unknown `part`, and as `split_fcn()`.
    """
    check_name("part", part, ("none", "last", "whole"))
    backbone = split_fcn(model)[0].layers
    names = [layer.name for layer in backbone]
    # All paths meet in the tap, so the layers after it in the list depend on it.
    last = names.index(TAPS[model.name.removeprefix("fcn_")][4]) + 1
    first = {"none": len(names), "last": last, "whole": 0}[part]
    for number, layer in enumerate(backbone):
        fixed = isinstance(layer, layers.BatchNormalization) or layer.name.startswith("project_")
        layer.trainable = number >= first and not fixed


def layer_table(model):
    """Table of a network's layers in order, one row each.

    Returns:
        `DataFrame` with the columns layer (name), type, output_shape (without the batch axis),
        parameters (their number), and trainable (whether any of them is).
    """
    return pd.DataFrame(
        {
            "layer": layer.name,
            "type": type(layer).__name__,
            "output_shape": tuple(layer.output.shape[1:]),
            "parameters": layer.count_params(),
            "trainable": bool(layer.trainable_weights),
        }
        for layer in model.layers
    )


def parameters(model):
    """Numbers of parameters of a network: `{"total", "trainable", "frozen"}`."""
    trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    total = model.count_params()
    return {"total": total, "trainable": trainable, "frozen": total - trainable}
