"""Forward passes over arrays: as many rows at a time as memory allows."""

import numpy as np
import pytest

from pneumo_lib import keras
from pneumo_lib.models.forward import batch_in_memory, predict_batches


@pytest.mark.parametrize(
    ("size", "most", "images"),
    [(32, 32, 32), (128, 32, 32), (128, 8, 8), (256, 32, 8), (512, 32, 2), (1024, 32, 1)],
)
def test_pixels_that_go_through_a_network_at_once_are_limited(size, most, images):
    assert batch_in_memory(size, most=most) == images


def pointwise(shape, *, times):
    """A network of one pooling or upsampling layer."""
    layers = keras.layers
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
