"""Forward passes give what the network gives: of any length, in limited memory."""

import keras
import numpy as np
import pytest
from keras import layers, tree

from pneumo_lib.models import forward
from pneumo_lib.models.backbones import preprocess
from pneumo_lib.models.forward import batch_in_memory, compiled, predict_batches


@pytest.mark.parametrize(
    ("size", "most", "images"),
    [(32, 32, 32), (128, 32, 32), (128, 8, 8), (256, 32, 8), (512, 32, 2), (1024, 32, 1)],
)
def test_pixels_that_go_through_a_network_at_once_are_limited(size, most, images):
    assert batch_in_memory(size, most=most) == images


def test_a_gpu_takes_all_that_are_asked_for(monkeypatch):
    monkeypatch.setattr(forward, "has_gpu", lambda: True)
    assert batch_in_memory(1024, most=32) == 32


def pointwise(shape, *, times):
    """A network of one pooling or upsampling layer."""
    layer = layers.UpSampling2D(times) if times >= 1 else layers.AveragePooling2D(int(1 / times))
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs))


@pytest.mark.parametrize(
    ("side", "times", "lengths"),
    [(512, 1 / 32, [2, 2, 1]), (16, 32, [2, 2, 1]), (16, 1, [5])],
    ids=["large inputs", "large outputs", "neither"],
)
def test_batches_are_small_where_inputs_or_outputs_are_large(side, times, lengths):
    inputs = np.random.default_rng(0).random((5, side, side, 1), "float32")
    network = pointwise(inputs.shape[1:], times=times)
    batches = list(predict_batches(network, inputs))
    assert [rows.stop - rows.start for rows, _ in batches] == lengths
    found = np.concatenate([output for _, output in batches])
    np.testing.assert_allclose(found, network(inputs), rtol=1e-5)


def two_outputs():
    image = keras.Input((8, 8, 3))
    x = layers.Conv2D(2, 3, kernel_initializer=keras.initializers.GlorotUniform(seed=0))(image)
    return keras.Model(image, [x, layers.Dropout(0.5)(x)])


@pytest.mark.parametrize("xla", [False, True])
def test_a_compiled_network_gives_the_outputs_of_inference(xla):
    network = two_outputs()
    predict = compiled(network, "small", batch_size=4, xla=xla)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype="uint8")
    for count in (4, 1, 3):
        expected = network(preprocess(images[:count], "small"), training=False)
        found = predict(images[:count])
        assert all(isinstance(output, np.ndarray) for output in found)
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_compiled_network_takes_features_of_half_precision_and_later_weights():
    features = keras.Input((5,))
    network = keras.Model(features, layers.Dense(2)(features))
    predict = compiled(network, batch_size=3)
    x = np.random.default_rng(0).random((2, 5)).astype("float16")
    for factor in (1, 2):  # the weights of the moment count, as at a milestone
        network.set_weights([np.full((5, 2), factor, "float32"), np.zeros(2, "float32")])
        expected = factor * x.astype("float32").sum(axis=1)
        found = tree.flatten(predict(x))[0]
        np.testing.assert_allclose(found, np.stack([expected] * 2, axis=1), rtol=1e-5)
