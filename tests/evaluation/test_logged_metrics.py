"""The logged metrics by hand and against Keras, and the formula of the logged mean IoU."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pneumo_lib.evaluation import logged_metrics, metrics

pytestmark = pytest.mark.filterwarnings(  # Keras' own metric, on JAX
    "ignore:Explicitly requested dtype int64:UserWarning"
)


def softmax_of(foreground):
    foreground = np.asarray(foreground, dtype=np.float32)
    return np.stack([1 - foreground, foreground], axis=-1)


def random_case(seed=0, *, n=5, size=8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (n, size, size)), rng.uniform(0.001, 0.999, (n, size, size))


def saturated_case(share, *, pixels=1000):
    """A batch of one healthy image whose first pixels have a softmax of exactly (1, 0)."""
    foreground = np.full((1, 1, pixels), 0.2)
    foreground[..., : round(share * pixels)] = 0
    return np.zeros((1, 1, pixels), int), softmax_of(foreground)


def logged_by_keras(truth, softmax):
    import keras

    metric = keras.metrics.MeanIoU(num_classes=2)
    metric.update_state(np.eye(2)[truth], softmax)
    return pytest.approx(float(metric.result()), abs=1e-6)


def test_saturation_counts_equal_those_counted_by_hand():
    truth = np.array([[[1, 1, 0, 0, 0]]])
    counts = logged_metrics.saturation_counts(truth, softmax_of([[[1.0, 0.0, 0.0, 0.25, 1.0]]]))
    found = [float(counts[name][0]) for name in metrics.LOGGED_COUNTS]
    assert found == [2, 2, 2.75]  # right, wrong, sum of probabilities of the true class


def test_saturation_counts_sum_half_precision_beyond_its_largest_number():
    truth = np.zeros((1, 300, 300), np.uint8)  # 90,000 pixels; float16 ends at 65,504
    counts = logged_metrics.saturation_counts(truth, softmax_of(truth).astype(np.float16))
    assert counts["true_class_probability"] == [90_000]


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 3, 4, 2), (1, 4, 4, 1, 2)])
def test_saturation_counts_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"`y_pred` \(n, height, width, 2\)"):
        logged_metrics.saturation_counts(np.zeros((1, 4, 4)), np.zeros(shape))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_logged_mean_iou_is_that_of_keras(share):
    truth, probability = random_case(2)
    saturated = np.random.default_rng(3).random(truth.shape) < share
    softmax = softmax_of(np.where(saturated, probability > 0.5, probability))
    assert logged_metrics.as_logged_mean_iou(truth, softmax) == logged_by_keras(truth, softmax)


def test_logged_mean_iou_is_a_quarter_even_for_a_perfect_network():
    truth, _ = random_case()
    nearly = softmax_of(np.where(truth, 0.999, 0.001))
    assert metrics.iou(metrics.pool(metrics.confusion_counts(truth, nearly[..., 1]))) == 1.0
    assert logged_metrics.as_logged_mean_iou(truth, nearly) == 0.25
    assert logged_by_keras(truth, nearly) == 0.25


def test_rounding_above_one_is_saturated_as_it_is_for_keras():
    truth, probability = random_case(2)
    softmax = softmax_of(np.where(probability > 0.7, 1.0, probability)) * 1.0005
    logged = logged_metrics.as_logged_mean_iou(truth, softmax)
    assert logged != 0.25
    assert logged == logged_by_keras(truth, softmax)


def test_logged_dice_is_the_usual_soft_dice_over_both_channels():
    truth, probability = random_case(4)
    one_hot, softmax = np.eye(2)[truth], softmax_of(probability)
    usual = 2 * (one_hot * softmax).sum() / (one_hot.sum() + softmax.sum())
    assert logged_metrics.as_logged_dice(truth, softmax) == pytest.approx(usual, abs=1e-6)


def test_logged_dice_is_high_where_nothing_is_found():
    truth = np.zeros((1, 10, 10), dtype=np.uint8)
    truth[0, 0, 0] = 1  # a foreground of one percent
    found = logged_metrics.as_logged_dice(truth, softmax_of(np.zeros(truth.shape)))
    assert found == pytest.approx(0.99)


def test_history_scores_name_the_columns_of_a_history():
    truth = np.array([[[1, 1, 0, 0]]])
    softmax = softmax_of([[[0.75, 0.25, 0.25, 0.25]]])  # tp 1, fn 1, tn 2
    counts = metrics.confusion_counts(truth, softmax[..., 1])
    sums = metrics.pool(counts | logged_metrics.saturation_counts(truth, softmax))
    assert logged_metrics.history_scores(sums) == pytest.approx(
        {
            "accuracy": 3 / 4,
            "mean_iou": (1 / 2 + 2 / 3) / 2,
            "iou": 1 / 2,
            "dice": 2 / 3,
            "logged_mean_iou": 1 / 4,
            "logged_dice": 2.5 / 4,
        }
    )


def test_history_scores_of_an_absent_class_are_undefined():
    sums = dict.fromkeys(("tp", "fp", "fn", *metrics.LOGGED_COUNTS), 0)
    scores = logged_metrics.history_scores(sums | {"tn": 4})
    assert {name for name, score in scores.items() if np.isnan(score)} == {"iou", "dice"}
    assert np.isnan(list(logged_metrics.history_scores(sums | {"tn": 0}).values())).all()


@pytest.mark.parametrize("share", [0, 0.108, 0.31, 0.5, 1])
def test_the_formula_gives_the_logged_mean_iou(share):
    logged = logged_metrics.as_logged_mean_iou(*saturated_case(share))
    assert logged_metrics.logged_mean_iou_at(share) == pytest.approx(logged)


def test_a_logged_value_leads_back_to_the_share_of_saturated_pixels():
    shares = np.linspace(0, 1, 11)
    logged = logged_metrics.logged_mean_iou_at(shares)
    np.testing.assert_allclose(logged_metrics.saturated_share_at(logged), shares, atol=1e-12)


@pytest.mark.parametrize("logged", [0.2, 1.1, np.nan])
def test_values_that_the_metric_cannot_take_are_refused(logged):
    with pytest.raises(ValueError, match=r"must lie between 0\.25 and 1"):
        logged_metrics.saturated_share_at(logged)


def test_the_share_of_saturated_pixels_is_the_one_made():
    y_true, softmax = saturated_case(0.3)
    counts = metrics.confusion_counts(y_true, softmax[..., 1])
    counts |= logged_metrics.saturation_counts(y_true, softmax)
    assert logged_metrics.saturated_share(counts) == pytest.approx([0.3])


@pytest.mark.parametrize("factor", [1, 2])
def test_sharpening_raises_the_softmax_to_a_power(factor):
    softmax = softmax_of(random_case()[1])
    power = softmax.astype(float) ** factor
    power /= power.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(logged_metrics.sharpened(softmax, factor), power, atol=1e-6)


@pytest.mark.parametrize("factor", [0.1, 7, 1e7])
def test_sharpening_leaves_every_mask_as_it_was(factor):
    softmax = softmax_of(random_case()[1])
    sharp = logged_metrics.sharpened(softmax, factor)
    np.testing.assert_array_equal(sharp[..., 1] >= 0.5, softmax[..., 1] >= 0.5)
    assert sharp.dtype == np.float32
    if factor == 1e7:
        assert (sharp.max(axis=-1) == 1).all()


def test_a_factor_that_would_invert_masks_is_refused():
    with pytest.raises(ValueError, match="`factor` must be above 0"):
        logged_metrics.sharpened(softmax_of([0.5]), -1)


def test_log_line_reads_like_the_log_of_the_report():
    row = {"epoch": 2, "seconds": 2.0, "loss": 0.04441, "logged_dice": 0.9764}
    row |= {"accuracy": 0.984, "logged_mean_iou": 0.2523, "val_loss": 0.016}
    history = pd.DataFrame([row | {"epoch": 1, "loss": 1.0}, row])
    ids = [f"case-{number}" for number in range(20)]
    cases = pd.DataFrame({"image_id": ids, "split": ["train"] * 14 + ["test"] * 6})
    scores = pd.concat([cases, cases])  # of two milestones
    run = SimpleNamespace(history=history, scores=scores, config={"batch_size": 4})
    assert logged_metrics.log_line(run, 2) == (  # 14 cases in batches of 4
        "4/4 - 2s 500ms/step - loss: 0.0444 - accuracy: 0.9840 - mean_io_u: 0.2523 - "
        "dice: -0.9764 - val_loss: 0.0160"
    )
