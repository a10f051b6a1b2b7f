"""Fused batch normalization against Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pneumo_lib.models.layers.batch_norm import FusedBatchNormalization

SHAPE = (4, 6, 5, 3)
pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the fused operation is TensorFlow's own"
)


def pair(**options):
    """Ours and the stock layer, with the same weights."""
    layers = [
        kind(momentum=0.9, **options)
        for kind in (FusedBatchNormalization, keras.layers.BatchNormalization)
    ]
    rng = np.random.default_rng(1)
    for layer in layers:
        layer.build(SHAPE)
    weights = [rng.uniform(0.5, 2, weight.shape) for weight in layers[0].weights]
    for layer in layers:
        layer.set_weights(weights)
    return layers


def step(layer, x, target, *, compiled=False):
    """Outputs, gradients of a loss by inputs and weights, and the weights after the step."""
    x = tf.constant(x)
    call = tf.function(layer, jit_compile=True) if compiled else layer
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = call(x, training=True)
        loss = tf.reduce_sum(tf.square(tf.cast(y, "float32") - target))
    gradients = tape.gradient(loss, [x, *layer.trainable_variables])
    return [np.asarray(tf.cast(a, "float32")) for a in (y, *gradients, *layer.get_weights())]


def assert_same(found, expected, *, rtol=1e-4, atol=1e-5):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return rng.normal(3, 2, SHAPE).astype("f4"), rng.normal(size=SHAPE).astype("f4")


@pytest.fixture
def fused(monkeypatch):
    """Counts the calls of the fused operation."""
    calls, operation = [], tf.compat.v1.nn.fused_batch_norm

    def counting(*arguments, **options):
        calls.append(1)
        return operation(*arguments, **options)

    monkeypatch.setattr(tf.compat.v1.nn, "fused_batch_norm", counting)
    return calls


@pytest.mark.parametrize("compiled", [False, True])
def test_step_is_that_of_the_stock_layer(batch, fused, compiled):
    ours, stock = pair()
    assert_same(step(ours, *batch, compiled=compiled), step(stock, *batch, compiled=compiled))
    assert len(fused) == 1


def test_averages_by_hand(batch):
    x, target = batch
    ours, _ = pair()
    *_, mean, variance = ours.get_weights()
    *_, new_mean, new_variance = step(ours, x, target)
    moments = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    assert_same((new_mean, new_variance), (0.9 * mean + 0.1 * moments[0],
                                           0.9 * variance + 0.1 * moments[1]))  # fmt: skip


@pytest.mark.parametrize("kind", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_float32_averages(batch, fused, kind):
    ours, stock = pair(dtype=kind)
    found = ours(batch[0], training=True)
    assert found.dtype == ours.compute_dtype
    expected = stock(batch[0], training=True)
    assert_same([tf.cast(found, "float32")], [tf.cast(expected, "float32")], rtol=0.02, atol=0.02)
    assert_same(ours.get_weights(), stock.get_weights(), rtol=0.01)
    assert len(fused) == 1


@pytest.mark.parametrize(
    "options",
    [{"scale": False}, {"center": False}, {"axis": 1}, {"renorm": True}, {"trainable": False}],
)
def test_rest_is_left_to_the_stock_layer(batch, fused, options):
    shape = [*SHAPE]
    if options.get("axis") == 1:
        shape[1], shape[3] = shape[3], shape[1]
    x, target = (array.reshape(shape) for array in batch)
    ours, stock = (kind(**options) for kind in (FusedBatchNormalization,
                                                keras.layers.BatchNormalization))  # fmt: skip
    ours.build(x.shape)
    stock.build(x.shape)
    assert_same(step(ours, x, target), step(stock, x, target))
    assert not fused


def test_inference_masks_and_replicas_are_left_to_the_stock_layer(batch, fused):
    x, _ = batch
    ours, stock = pair()
    assert_same([ours(x)], [stock(x)])
    mask = np.zeros(SHAPE[:3], bool)
    mask[:2] = True
    assert_same([ours(x, training=True, mask=mask)], [stock(x, training=True, mask=mask)])
    flat = FusedBatchNormalization(), keras.layers.BatchNormalization()
    assert_same(*([layer(x[:, 0, 0], training=True)] for layer in flat))
    ours.synchronized = True
    assert_same([ours(x, training=True)], [stock(x, training=True)])
    assert not fused


def test_network_with_it_is_saved_and_loaded(batch, tmp_path):
    network = keras.Sequential([keras.Input(SHAPE[1:]), FusedBatchNormalization(momentum=0.9)])
    network(batch[0], training=True)
    network.save(tmp_path / "network.keras")
    loaded = keras.models.load_model(tmp_path / "network.keras")
    assert type(loaded.layers[0]) is FusedBatchNormalization
    assert loaded.layers[0].momentum == 0.9
    assert_same(loaded.get_weights(), network.get_weights(), rtol=0, atol=0)
