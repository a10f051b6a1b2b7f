"""Losses by hand, and what an empty mask teaches."""

import keras
import numpy as np
import pytest
from conftest import compiled_by_xla, gradients_of
from keras import ops

from pneumo_lib.evaluation import metrics
from pneumo_lib.training import losses
from pneumo_lib.training.config import LOSSES

ALL = [losses.get_loss(name) for name in LOSSES]
NOT_ALL_PIXELS = losses.lovasz, losses.dice_of_positives  # of an empty mask
TEACH_ALL_PIXELS = [loss for loss in ALL if loss not in NOT_ALL_PIXELS]


def softmax_of(foreground, dtype="float32"):
    foreground = np.asarray(foreground, dtype=np.float32)
    return ops.cast(np.stack([1 - foreground, foreground], axis=-1), dtype)


def gradient(loss, truth, logits):
    logits = np.asarray(logits, "float32")
    return gradients_of(lambda logits: loss(truth, ops.softmax(logits)), logits)[0]


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


@pytest.mark.parametrize("loss", ALL)
def test_a_perfect_prediction_costs_nothing(loss):
    truth, _ = random_case()
    np.testing.assert_allclose(loss(truth, softmax_of(truth)), np.zeros(3), atol=1e-5)


def test_dice_of_an_empty_mask_is_what_its_docstring_says():
    empty, probability = np.zeros((3, 10, 10), np.uint8), np.zeros((3, 10, 10))
    probability[1, 0, 0] = 1  # a false positive on 1 % of the pixels
    probability[2] = 1
    loss = losses.dice(empty, softmax_of(probability))
    np.testing.assert_allclose(loss, [0, 1 / 2, 100 / 101], atol=1e-6)


def test_dice_prices_a_missed_lesion_like_a_false_positive_of_its_size():
    lesion, nothing = np.zeros((1, 10, 10), np.uint8), np.zeros((1, 10, 10), np.uint8)
    lesion[0, 0, :3] = 1
    missed = losses.dice(lesion, softmax_of(nothing))
    np.testing.assert_allclose(missed, losses.dice(nothing, softmax_of(lesion)), rtol=1e-6)


@pytest.mark.parametrize("loss", TEACH_ALL_PIXELS)
def test_an_empty_mask_pushes_every_pixel_towards_background(loss):
    empty = np.zeros((1, 16, 16), np.uint8)
    slope = gradient(loss, empty, np.random.default_rng(0).normal(size=(1, 16, 16, 2)))
    assert (slope[..., 1] > 1e-8).all()


def test_weighted_crossentropy_counts_a_lesion_pixel_ten_times():
    truth, probability = np.array([[[1, 0]]], np.uint8), softmax_of([[[0.25, 0.5]]])
    expected = -(10 * np.log(0.25) + np.log(0.5)) / 2
    np.testing.assert_allclose(losses.weighted_crossentropy(truth, probability), [expected], 1e-5)


def test_weighted_crossentropy_of_an_empty_mask_is_the_plain_one():
    empty, probability = np.zeros((1, 10, 10), np.uint8), softmax_of(random_case(n=1)[1])
    plain = losses.crossentropy(empty, probability)
    np.testing.assert_allclose(losses.weighted_crossentropy(empty, probability), plain, rtol=1e-6)


def test_focal_equals_the_value_counted_by_hand():
    truth, probability = np.array([[[1, 0]]], np.uint8), softmax_of([[[0.25, 0.1]]])
    expected = -(0.75**2 * np.log(0.25) + 0.1**2 * np.log(0.9)) / 2
    np.testing.assert_allclose(losses.focal(truth, probability), [expected], rtol=1e-4)


def test_tversky_equals_the_value_counted_by_hand():
    truth = np.zeros((1, 10, 10), np.uint8)  # shares of 100 pixels, s = 0.5
    truth[0, 0, :4] = 1
    probability = np.zeros((1, 10, 10))
    probability[0, 0, 2:6] = 0.5  # TP 1, FP 1, FN 3
    expected = 1 - (1 + 0.5) / (1 + 0.3 * 1 + 0.7 * 3 + 0.5)
    np.testing.assert_allclose(losses.tversky(truth, softmax_of(probability)), [expected], 1e-5)


def test_tversky_with_equal_prices_is_dice():
    truth, probability = random_case()
    softmax = softmax_of(probability)
    equal = losses.tversky(truth, softmax, alpha=0.5, beta=0.5, smooth=0.005)
    np.testing.assert_allclose(equal, losses.dice(truth, softmax, smooth=0.01), rtol=1e-5)


def test_tversky_prices_are_those_of_its_docstring():
    lesion, nothing = np.zeros((1, 10, 10), np.uint8), np.zeros((1, 10, 10), np.uint8)
    lesion[0, 0, 0] = 1
    false = losses.tversky(nothing, softmax_of(lesion))
    missed = losses.tversky(lesion, softmax_of(nothing))
    np.testing.assert_allclose([*false, *missed], [0.375, 0.5833], atol=1e-4)


def test_lovasz_of_a_hard_prediction_is_one_minus_iou():
    truth, probability = random_case()
    hard = (probability > 0.4).astype(np.uint8)
    expected = 1 - metrics.iou(metrics.confusion_counts(truth, hard))
    np.testing.assert_allclose(losses.lovasz(truth, softmax_of(hard)), expected, rtol=1e-5)


def test_lovasz_is_the_mean_jaccard_loss_over_all_thresholds_of_the_error():
    # Its definition as an integral: the loss of "wrong where the error reaches t", t from 0 to 1.
    truth, probability = random_case(n=1, size=5)
    errors = np.abs(truth - np.float32(probability)).ravel()
    expected, below = 0.0, 0.0
    for t in np.sort(errors):
        wrong = (errors >= t).reshape(truth.shape)
        hard = np.where(wrong, 1 - truth, truth)
        expected += (t - below) * (1 - metrics.iou(metrics.confusion_counts(truth, hard))[0])
        below = t
    np.testing.assert_allclose(losses.lovasz(truth, softmax_of(probability)), [expected], rtol=1e-5)


def test_lovasz_of_an_empty_mask_is_its_largest_foreground_probability():
    empty, probability = np.zeros((3, 10, 10), np.uint8), random_case()[1]
    largest = probability.max(axis=(1, 2))
    np.testing.assert_allclose(losses.lovasz(empty, softmax_of(probability)), largest, rtol=1e-5)
    slope = gradient(losses.lovasz, empty, np.random.default_rng(0).normal(size=(3, 10, 10, 2)))
    assert ((slope[..., 1] > 0).sum(axis=(1, 2)) == 1).all()


def test_losses_compile_with_xla_to_the_same_values():
    truth, probability = random_case()
    softmax = softmax_of(probability)
    for loss in (losses.focal, losses.tversky, losses.lovasz):
        compiled = compiled_by_xla(loss)
        np.testing.assert_allclose(compiled(truth, softmax), loss(truth, softmax), rtol=1e-4)


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
    logits[..., foreground] = 1000  # half of the pixels wrong
    exactly = np.sign(logits)  # 0 and 1; some processors round the softmax to just below 1
    np.testing.assert_allclose(ops.softmax(logits), exactly, rtol=1e-6)
    assert np.isfinite(loss(truth, exactly)).all()
    assert np.isfinite(gradient(loss, truth, logits)).all()


@pytest.mark.parametrize("loss", ALL)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(loss, dtype):
    truth, probability = random_case(n=1, size=300)  # sums beyond 65,504, the end of float16
    softmax = softmax_of(np.where(truth, 0.9, probability), dtype)
    value = loss(truth, softmax)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    np.testing.assert_allclose(value, loss(truth, ops.cast(softmax, "float32")), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "bool", "int64", "float32"])
def test_any_dtype_of_mask_gives_the_same_loss(dtype):
    truth, probability = random_case()
    softmax = softmax_of(probability)
    expected = losses.crossentropy_dice(truth, softmax)
    np.testing.assert_array_equal(losses.crossentropy_dice(truth.astype(dtype), softmax), expected)


def test_get_loss_finds_each_loss_by_name():
    names = "crossentropy weighted_crossentropy focal dice dice_of_positives tversky lovasz"
    assert list(map(losses.get_loss, [*names.split(), "crossentropy_dice"])) == ALL
    assert tuple(loss.__name__ for loss in ALL) == LOSSES


def test_losses_are_added_and_weighted():
    truth, probability = random_case()
    softmax = softmax_of(probability)
    terms = losses.crossentropy(truth, softmax), losses.dice(truth, softmax)
    total = losses.get_loss("0.5 * crossentropy + 1e1*dice")(truth, softmax)
    np.testing.assert_allclose(total, 0.5 * terms[0] + 10 * terms[1], rtol=1e-6)
    np.testing.assert_allclose(losses.crossentropy_dice(truth, softmax), sum(terms), rtol=1e-6)
    assert losses.get_loss("1*dice") is losses.dice


@pytest.mark.parametrize("name", ["hinge", "dice+hinge", "two*dice", "dice+", "dice-focal"])
def test_get_loss_refuses_what_is_no_sum_of_losses(name):
    with pytest.raises(ValueError, match=r"`loss` must be one of crossentropy, .*Received"):
        losses.get_loss(name)


def test_dice_of_positives_is_dice_where_there_is_a_lesion_and_nothing_elsewhere():
    truth, probability = random_case()
    truth[1] = 0
    softmax = softmax_of(probability)
    expected = np.asarray(losses.dice(truth, softmax, smooth=6e-5)) * [1, 0, 1]
    np.testing.assert_allclose(losses.dice_of_positives(truth, softmax), expected)
    slope = gradient(losses.dice_of_positives, truth, np.zeros((3, 10, 10, 2)))
    assert not slope[1].any()


def test_a_small_lesion_that_is_missed_costs_dice_of_positives_nearly_all():
    lesion = np.zeros((1, 20, 25), np.uint8)
    lesion[0, 3, 4] = 1  # of 500 pixels
    softmax = softmax_of(np.zeros(lesion.shape))
    missed = [float(loss(lesion, softmax)[0]) for loss in (losses.dice_of_positives, losses.dice)]
    np.testing.assert_allclose(missed, [1 - 0.00006 / 0.00206, 1 - 0.01 / 0.012], rtol=1e-5)


def test_fit_takes_losses_as_they_are():
    truth = np.zeros((4, 8, 8), np.uint8)
    truth[:2, 2:5, 2:5] = 1
    images = truth[..., None].astype(np.float32)
    for loss in (losses.crossentropy, losses.crossentropy_dice):
        dense = keras.layers.Dense(2, "softmax", kernel_initializer="zeros")
        model = keras.Sequential([keras.Input((8, 8, 1)), dense])
        model.compile(keras.optimizers.Adam(0.1), loss)
        history = model.fit(images, truth, epochs=30, verbose=0).history
        assert history["loss"][-1] < history["loss"][0]
