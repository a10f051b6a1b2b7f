"""Losses by hand, what an empty mask teaches, and the epoch's sums against `metrics`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pneumo_lib import losses, metrics

ALL = (losses.crossentropy, losses.dice, losses.crossentropy_dice)


def softmax_of(foreground, dtype="float32"):
    foreground = np.asarray(foreground, dtype=np.float32)
    return tf.cast(np.stack([1 - foreground, foreground], axis=-1), dtype)


def gradient(loss, truth, logits):
    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = keras.ops.sum(loss(truth, keras.ops.softmax(logits)))
    return tape.gradient(value, logits).numpy()


def random_case(seed=0, *, n=3, size=10):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (n, size, size)).astype(np.uint8), rng.random((n, size, size))


def test_crossentropy_is_the_mean_of_minus_log_of_the_true_class():
    truth, probability = np.array([[[1, 0]]], np.uint8), softmax_of([[[0.25, 0.5]]])
    expected = -(np.log(0.25) + np.log(0.5)) / 2
    np.testing.assert_allclose(losses.crossentropy(truth, probability), [expected], rtol=1e-5)


def test_dice_equals_the_value_counted_by_hand():
    truth = np.zeros((1, 10, 10), np.uint8)  # shares of 100 pixels, s = 1
    truth[0, 0, :4] = 1
    probability = np.zeros((1, 10, 10))
    probability[0, 0, 2:6] = 0.5  # I = 1, T = 4, P = 2
    loss = losses.dice(truth, softmax_of(probability))
    np.testing.assert_allclose(loss, [1 - (2 * 1 + 1) / (4 + 2 + 1)], rtol=1e-6)


def test_the_sum_is_the_sum_of_both():
    truth, probability = random_case()
    softmax = softmax_of(probability)
    both = losses.crossentropy(truth, softmax) + losses.dice(truth, softmax)
    np.testing.assert_allclose(losses.crossentropy_dice(truth, softmax), both, rtol=1e-6)


@pytest.mark.parametrize("loss", ALL)
def test_a_perfect_prediction_costs_nothing(loss):
    truth, _ = random_case()
    np.testing.assert_allclose(loss(truth, softmax_of(truth)), np.zeros(3), atol=1e-5)


def test_dice_of_an_empty_mask_is_what_its_docstring_says():
    empty, probability = np.zeros((3, 10, 10), np.uint8), np.zeros((3, 10, 10))
    probability[1, 0, 0] = 1  # a false alarm on 1 % of the pixels
    probability[2] = 1
    loss = losses.dice(empty, softmax_of(probability))
    np.testing.assert_allclose(loss, [0, 1 / 2, 100 / 101], atol=1e-6)


def test_dice_prices_a_missed_lesion_like_a_false_alarm_of_its_size():
    lesion, nothing = np.zeros((1, 10, 10), np.uint8), np.zeros((1, 10, 10), np.uint8)
    lesion[0, 0, :3] = 1
    missed = losses.dice(lesion, softmax_of(nothing))
    np.testing.assert_allclose(missed, losses.dice(nothing, softmax_of(lesion)), rtol=1e-6)


@pytest.mark.parametrize("loss", ALL)
def test_an_empty_mask_pushes_every_pixel_towards_background(loss):
    empty = np.zeros((1, 16, 16), np.uint8)
    slope = gradient(loss, empty, np.random.default_rng(0).normal(size=(1, 16, 16, 2)))
    assert (slope[..., 1] > 1e-6).all()


def test_dice_of_keras_teaches_nothing_on_an_empty_mask():
    # The reason for writing our own; should Keras change, ours can go.
    theirs = keras.losses.Dice(axis=(1, 2, 3), reduction="none")
    empty = np.zeros((1, 16, 16, 1), np.float32)
    slope = gradient(lambda t, p: theirs(t, p[..., 1:]), empty, np.zeros((1, 16, 16, 2)))
    assert np.abs(slope).max() < 1e-9


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("foreground", [0, 1])
def test_losses_and_gradients_stay_finite_at_exact_saturation(loss, foreground):
    truth, _ = random_case()
    logits = np.zeros((3, 10, 10, 2), np.float32)
    logits[..., foreground] = 1000  # softmax of exactly 0 and 1, half of the pixels wrong
    assert set(np.unique(keras.ops.softmax(logits))) == {0.0, 1.0}
    assert np.isfinite(loss(truth, keras.ops.softmax(logits))).all()
    assert np.isfinite(gradient(loss, truth, logits)).all()


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(loss, dtype):
    truth, probability = random_case(n=1, size=300)  # sums beyond 65,504, the end of float16
    softmax = softmax_of(np.where(truth, 0.9, probability), dtype)
    value = loss(truth, softmax)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    np.testing.assert_allclose(value, loss(truth, tf.cast(softmax, "float32")), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float32"])
def test_any_dtype_of_mask_gives_the_same_loss(dtype):
    truth, probability = random_case()
    softmax = softmax_of(probability)
    expected = losses.crossentropy_dice(truth, softmax)
    np.testing.assert_array_equal(losses.crossentropy_dice(truth.astype(dtype), softmax), expected)


def test_get_loss_finds_each_loss_by_name():
    assert tuple(map(losses.get_loss, ("crossentropy", "dice", "crossentropy_dice"))) == ALL


def test_get_loss_refuses_an_unknown_name():
    with pytest.raises(ValueError, match=r"`loss` must be one of \['crossentropy', .*'focal'"):
        losses.get_loss("focal")


def saturated_case():
    truth, probability = random_case(5)
    probability[probability < 0.2], probability[probability > 0.9] = 0, 1
    probability[:, 0] = 0.995  # nearly is not saturated
    return truth, softmax_of(probability)


def test_training_counts_are_the_counts_of_metrics():
    truth, softmax = saturated_case()
    arrays = metrics.confusion_counts(truth, softmax.numpy()[..., 1])
    expected = metrics.pool(arrays | metrics.saturation_counts(truth, softmax.numpy()))
    assert tuple(expected) == losses.TRAINING_COUNTS
    counts = losses.training_counts(truth, softmax)
    np.testing.assert_allclose(counts, list(expected.values()), rtol=1e-6)


def test_training_counts_of_compiled_steps_make_the_scores_of_an_epoch():
    step = tf.function(losses.training_counts, jit_compile=True)
    truth, softmax = saturated_case()
    sums = sum(np.float64(step(truth[i : i + 1], softmax[i : i + 1])) for i in range(3))
    scores = metrics.history_scores(dict(zip(losses.TRAINING_COUNTS, sums, strict=True)))
    softmax = softmax.numpy()
    assert scores["logged_mean_iou"] == pytest.approx(metrics.as_logged_mean_iou(truth, softmax))
    assert scores["logged_dice"] == pytest.approx(metrics.as_logged_dice(truth, softmax))
    counts = metrics.pool(metrics.confusion_counts(truth, softmax[..., 1]))
    assert scores["iou"] == pytest.approx(metrics.iou(counts))


def test_fit_metrics_agree_with_the_scores_of_metrics():
    truth, softmax = saturated_case()
    counts = metrics.pool(metrics.confusion_counts(truth, softmax.numpy()[..., 1]))
    for metric, score in zip(losses.fit_metrics(), (metrics.mean_iou, metrics.iou), strict=True):
        metric.update_state(truth, softmax)
        assert float(metric.result()) == pytest.approx(float(score(counts)), abs=1e-6)


def test_fit_takes_each_loss_with_the_metrics():
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:2, 2:5, 2:5] = 1
    images = truth[..., None].astype(np.float32)
    for loss in ALL:
        dense = keras.layers.Dense(2, "softmax", kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((8, 8, 1)), dense])
        model.compile(keras.optimizers.Adam(0.1), loss, metrics=losses.fit_metrics())
        history = model.fit(images, truth, epochs=30, verbose=0).history
        assert history["loss"][-1] < history["loss"][0]
        assert history["iou"][-1] == pytest.approx(1)
