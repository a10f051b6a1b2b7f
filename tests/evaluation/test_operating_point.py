"""The operating point: masks counted by hand, the choice against trying every triplet."""

import numpy as np
import pytest

from pneumo_lib.evaluation import metrics, operating_point
from pneumo_lib.evaluation.operating_point import (
    OperatingPoint,
    apply_operating_point,
    choose_operating_point,
)


def siim_dice(y_true, y_pred, point):
    masks = apply_operating_point(y_pred, point)
    return metrics.siim_dice(metrics.confusion_counts(y_true, masks))


def blurred_cases(seed=0, *, n=12, size=16):
    """Squares in noise, every third image; their probabilities are often wrong."""
    rng = np.random.default_rng(seed)
    y_true = np.zeros((n, size, size), np.uint8)
    y_true[::3, 3:8, 4:9] = 1
    y_pred = np.clip(0.4 * y_true + 0.7 * rng.random(y_true.shape) ** 2, 0, 1)
    return y_true, y_pred.astype("float32")


def test_apply_keeps_the_whole_outline_of_an_image_that_passes_the_top_threshold():
    y_pred = np.array([[[0.9, 0.9], [0.3, 0.1]], [[0.9, 0.3], [0.3, 0.1]]])
    masks = apply_operating_point(y_pred, OperatingPoint(0.8, 0.5, 0.25))
    # Half of the pixels must reach 0.8: two of four do in the first image, one in the second.
    np.testing.assert_array_equal(masks, [[[1, 1], [1, 0]], [[0, 0], [0, 0]]])
    assert masks.dtype == np.uint8


def test_the_default_point_is_a_plain_threshold_of_one_half():
    _, y_pred = blurred_cases()
    np.testing.assert_array_equal(apply_operating_point(y_pred, OperatingPoint()), y_pred >= 0.5)


def test_bytes_are_probabilities_times_255():
    kept = np.array([[[0, 127], [128, 255]]], np.uint8)
    masks = apply_operating_point(kept, OperatingPoint())
    np.testing.assert_array_equal(masks, [[[0, 0], [1, 1]]])
    truth = masks.copy()
    assert choose_operating_point(truth, kept) == choose_operating_point(truth, kept / 255)


def test_every_score_of_the_grid_is_the_siim_dice_of_the_masks_it_stands_for():
    y_true, y_pred = blurred_cases()
    scores = operating_point.grid_scores(y_true, y_pred)
    rng = np.random.default_rng(1)
    for _ in range(50):
        bottom, top = np.sort(rng.integers(0, 127, 2))
        area = rng.integers(0, 20)
        thresholds, areas = operating_point.THRESHOLDS, operating_point.MIN_AREAS
        point = OperatingPoint(thresholds[top], areas[area], thresholds[bottom])
        assert scores[top, area, bottom] == pytest.approx(siim_dice(y_true, y_pred, point))


def test_choice_is_at_least_as_good_as_every_plain_threshold():
    y_true, y_pred = blurred_cases()
    chosen = siim_dice(y_true, y_pred, choose_operating_point(y_true, y_pred))
    plain = [siim_dice(y_true, y_pred, OperatingPoint(t, 0, t)) for t in np.arange(1, 128) / 128]
    assert chosen >= max(plain)
    assert chosen > siim_dice(y_true, y_pred, OperatingPoint())


def test_choice_removes_small_false_positives_and_keeps_the_lesion():
    y_true, y_pred = np.zeros((2, 2, 32, 32))
    y_true[0, :8, :8] = 1  # 64 of 1,024 pixels
    y_pred[0, :8, :8] = 0.4  # low, but everywhere
    y_pred[1, 0, :4] = 0.6  # higher, but only four pixels: no single threshold gets both right
    point = choose_operating_point(y_true, y_pred)
    np.testing.assert_array_equal(apply_operating_point(y_pred, point), y_true)
    assert 4 / 1024 < point.min_area <= 64 / 1024


def test_ties_are_broken_towards_the_centre_of_the_plateau():
    y_true = np.zeros((1, 8, 8), np.uint8)
    y_true[0, :4] = 1
    point = choose_operating_point(y_true, 0.25 + 0.5 * y_true)
    # Any bottom threshold above 1/4 and up to 3/4 is perfect.
    assert point.bottom_threshold == pytest.approx(0.5, abs=0.1)
    assert 0.25 < point.top_threshold < 0.95


def test_bottom_threshold_is_never_above_the_top_threshold():
    y_true, y_pred = blurred_cases()
    top, _, bottom = np.nonzero(np.isfinite(operating_point.grid_scores(y_true, y_pred)))
    assert (bottom <= top).all()


def test_an_image_below_the_lowest_score_has_no_mask():
    y_pred = np.full((3, 2, 2), 0.9)
    point = OperatingPoint(0.5, 0.0, 0.5, min_score=0.6)
    masks = apply_operating_point(y_pred, point, scores=[0.5, 0.6, 0.7])
    np.testing.assert_array_equal(masks.any(axis=(1, 2)), [False, True, True])
    with pytest.raises(ValueError, match="`scores` are needed where a point has a `min_score`"):
        apply_operating_point(y_pred, point)


@pytest.mark.parametrize("seed", range(5))
def test_the_choice_by_score_is_the_best_of_all_cuts_and_thresholds(seed):
    y_true, y_pred = blurred_cases(seed)
    rng = np.random.default_rng(seed)
    scores = np.clip(0.3 * y_true.any(axis=(1, 2)) + rng.random(len(y_true)), 0, 1).round(1)
    point = choose_operating_point(y_true, y_pred, scores=scores)

    def score_of(point):
        masks = apply_operating_point(y_pred, point, scores=scores)
        return metrics.siim_dice(metrics.confusion_counts(y_true, masks))

    every = [
        score_of(OperatingPoint(bottom, 0, bottom, cut))
        for bottom in np.arange(1, 128) / 128
        for cut in (*np.unique(scores), 1.1)
    ]
    assert score_of(point) == pytest.approx(max(every))


def test_a_mask_that_does_not_pay_is_not_drawn():
    """With a Dice of 1/2 a call pays above a probability of 2/3: 3 of 5 do not, 4 of 5 do."""
    drawn, scores = np.ones((5, 1, 3)), np.full(5, 0.5)
    for positives, called in ((3, False), (4, True)):
        truth = np.zeros(drawn.shape, np.uint8)
        truth[:positives, 0, 1] = 1  # one of the three pixels that are drawn: Dice 2 / (3 + 1)
        point = choose_operating_point(truth, drawn, scores=scores)
        assert apply_operating_point(drawn, point, scores=scores).any() == called, positives


def test_healthy_images_alone_give_empty_masks():
    _, y_pred = blurred_cases()
    healthy = np.zeros(y_pred.shape, np.uint8)
    assert not apply_operating_point(y_pred, choose_operating_point(healthy, y_pred)).any()


def test_choosing_needs_images_of_equal_shape_and_applying_a_batch():
    y_true, y_pred = blurred_cases()
    for cases in ((y_true[:3], y_pred), (y_true[:0], y_pred[:0]), (y_true[0], y_pred[0])):
        with pytest.raises(ValueError, match="must both be"):
            choose_operating_point(*cases)
    with pytest.raises(ValueError, match=r"`y_pred` must be \(n, height, width\)"):
        apply_operating_point(y_pred[0], OperatingPoint())


@pytest.mark.parametrize("value", [-1.0, 2.0, np.nan])
def test_logits_are_refused(value):
    y_true, y_pred = blurred_cases()
    y_pred[1, 2, 3] = value
    with pytest.raises(ValueError, match="must hold probabilities"):
        choose_operating_point(y_true, y_pred)
