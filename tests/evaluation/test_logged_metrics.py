"""The formula of the logged mean IoU against the metric itself, and against Keras."""

import doctest

import numpy as np
import pytest

from pneumo_lib.evaluation import logged_metrics, metrics


def certain_of(share, *, pixels=1000):
    """A batch of one healthy image whose first pixels have a softmax of exactly (1, 0)."""
    foreground = np.full((1, 1, pixels), 0.2, np.float32)
    foreground[..., : round(share * pixels)] = 0
    return np.zeros((1, 1, pixels), int), np.stack([1 - foreground, foreground], axis=-1)


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(logged_metrics).failed == 0


@pytest.mark.parametrize("share", [0, 0.108, 0.31, 0.5, 1])
def test_the_formula_is_what_the_metric_reads(share):
    y_true, softmax = certain_of(share)
    logged = logged_metrics.as_logged_mean_iou(y_true, softmax)
    assert logged_metrics.logged_mean_iou_at(share) == pytest.approx(logged)


def test_the_formula_is_what_keras_reads():
    import keras

    y_true, softmax = certain_of(0.4)
    metric = keras.metrics.MeanIoU(num_classes=2)
    metric.update_state(np.eye(2)[y_true], softmax)
    assert logged_metrics.logged_mean_iou_at(0.4) == pytest.approx(float(metric.result()), abs=1e-6)


def test_a_logged_value_leads_back_to_the_share_of_certain_pixels():
    shares = np.linspace(0, 1, 11)
    logged = logged_metrics.logged_mean_iou_at(shares)
    np.testing.assert_allclose(logged_metrics.saturated_share_at(logged), shares, atol=1e-12)


@pytest.mark.parametrize("logged", [0.2, 1.1, np.nan])
def test_values_that_the_metric_cannot_read_are_refused(logged):
    with pytest.raises(ValueError, match=r"must lie between 0\.25 and 1"):
        logged_metrics.saturated_share_at(logged)


def test_the_share_of_certain_pixels_is_the_one_made():
    y_true, softmax = certain_of(0.3)
    counts = metrics.confusion_counts(y_true, softmax[..., 1])
    counts |= logged_metrics.saturation_counts(y_true, softmax)
    assert logged_metrics.saturated_share(counts) == pytest.approx([0.3])


def some_softmax(seed=0):
    scores = np.random.default_rng(seed).normal(0, 3, (2, 8, 8)).astype(np.float32)
    foreground = 1 / (1 + np.exp(-scores))
    return np.stack([1 - foreground, foreground], axis=-1)


def test_sharpening_by_1_changes_nothing():
    softmax = some_softmax()
    np.testing.assert_allclose(logged_metrics.sharpened(softmax, 1), softmax, atol=1e-6)


def test_sharpening_doubles_the_logit():
    softmax = some_softmax()
    twice = softmax.astype(float) ** 2
    twice /= twice.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(logged_metrics.sharpened(softmax, 2), twice, atol=1e-6)


@pytest.mark.parametrize("factor", [0.1, 7, 1e4])
def test_sharpening_leaves_every_mask_as_it_was(factor):
    softmax = some_softmax()
    sharp = logged_metrics.sharpened(softmax, factor)
    np.testing.assert_array_equal(sharp[..., 1] >= 0.5, softmax[..., 1] >= 0.5)
    assert sharp.dtype == np.float32


def test_enough_sharpening_makes_every_pixel_certain():
    assert (logged_metrics.sharpened(some_softmax(), 1e5).max(axis=-1) == 1).all()


def test_a_factor_that_would_turn_masks_over_is_refused():
    with pytest.raises(ValueError, match="`factor` must be above 0"):
        logged_metrics.sharpened(some_softmax(), -1)
