"""Folded networks give the outputs of the networks they are made of."""

import numpy as np
import pytest

import pneumo_lib as pl
from pneumo_lib import keras
from pneumo_lib.models.folding import fold_normalizations


def normalizations(model):
    return [x.name for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]


def randomize(model):
    """Statistics, factors and offsets that a training may have left."""
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, v.shape) for v in layer.weights])


def check_equal(model, folded):
    images = np.random.default_rng(1).uniform(-1, 1, (2, *model.input.shape[1:])).astype("float32")
    expected = np.asarray(model(images, training=False))
    assert expected.std() > 1e-3
    np.testing.assert_allclose(folded(images, training=False), expected, atol=2e-5)


@pytest.mark.parametrize("backbone", ["resnet50", "inceptionv3"])
def test_no_normalization_of_a_backbone_is_left_and_outputs_are_equal(backbone):
    model = pl.build_fcn(backbone, size=96, weights=None)
    randomize(model)
    folded = fold_normalizations(model)
    assert len(normalizations(model)) > 50
    assert normalizations(folded) == []
    check_equal(model, folded)
    pl.models.split_fcn(folded)  # taps are found by their names


def test_networks_inside_a_network_are_folded():
    members = [pl.build_small_fcn(size=32, seed=seed) for seed in (0, 1)]
    image = keras.Input((32, 32, 3))
    for number, member in enumerate(members):
        randomize(member)
        member.name = f"member_{number}"
    model = keras.Model(image, keras.layers.Average()([member(image) for member in members]))
    folded = fold_normalizations(model)
    check_equal(model, folded)
    left = [len(normalizations(folded.get_layer(member.name))) for member in members]
    assert 0 < left[0] == left[1] < len(normalizations(members[0]))  # transposed ones stay


def test_normalization_stays_where_something_else_reads_the_convolution():
    image = keras.Input((8, 8, 3))
    read_twice = keras.layers.Conv2D(4, 3)(image)
    normalized = keras.layers.BatchNormalization(name="read_twice")(read_twice)
    x = keras.layers.Add()([normalized, read_twice])
    x = keras.layers.Conv2D(4, 3, activation="relu")(x)
    x = keras.layers.BatchNormalization(name="after_activation")(x)
    x = keras.layers.Conv2D(4, 3, use_bias=False)(x)
    x = keras.layers.BatchNormalization(name="folded", scale=False, center=False)(x)
    model = keras.Model(image, x)
    randomize(model)
    folded = fold_normalizations(model)
    assert normalizations(folded) == ["read_twice", "after_activation"]
    check_equal(model, folded)
