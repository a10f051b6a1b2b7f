"""Counts and scores by hand and against scikit-learn."""

import doctest
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as judge

from pneumo_lib.evaluation import metrics

NAN = float("nan")
EMPTY = [[0, 0, 0, 0]]
# name: (truth, prediction, tp, fp, fn, tn, dice, IoU), each mask one row of four pixels
HAND_COUNTED = {
    "perfect": ([[1, 1, 0, 0]], [[1, 1, 0, 0]], 2, 0, 0, 2, 1.0, 1.0),
    "half found": ([[1, 1, 0, 0]], [[1, 0, 0, 0]], 1, 0, 1, 2, 2 / 3, 1 / 2),
    "disjoint": ([[1, 1, 0, 0]], [[0, 0, 1, 0]], 0, 1, 2, 1, 0.0, 0.0),
    "missed": ([[1, 1, 0, 0]], EMPTY, 0, 0, 2, 2, 0.0, 0.0),
    "false positive": (EMPTY, [[1, 1, 1, 0]], 0, 3, 0, 1, 0.0, 0.0),
    "both empty": (EMPTY, EMPTY, 0, 0, 0, 4, 1.0, 1.0),
}


@pytest.mark.parametrize("case", HAND_COUNTED.values(), ids=HAND_COUNTED)
def test_counts_dice_and_iou_equal_those_counted_by_hand(case):
    truth, prediction, *numbers = case
    counts = metrics.confusion_counts(np.array([truth]), np.array([prediction]))
    found = [counts[name][0] for name in ("tp", "fp", "fn", "tn")]
    assert [*found, metrics.dice(counts)[0], metrics.iou(counts)[0]] == pytest.approx(numbers)


def test_counts_and_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    truth, probability = rng.integers(0, 2, (5, 8, 8)), rng.random((5, 8, 8))
    counts = metrics.confusion_counts(truth, probability, threshold=0.3)
    for i, mask in enumerate(truth):
        (tn, fp), (fn, tp) = judge.confusion_matrix(mask.ravel(), probability[i].ravel() >= 0.3)
        assert [counts[name][i] for name in metrics.COUNTS] == [tp, fp, fn, tn]
    sums = metrics.pool(counts)
    flat, predicted = truth.ravel(), (probability >= 0.3).ravel()
    assert metrics.pixel_accuracy(sums) == pytest.approx(judge.accuracy_score(flat, predicted))
    assert metrics.iou(sums) == pytest.approx(judge.jaccard_score(flat, predicted))
    macro = judge.jaccard_score(flat, predicted, average="macro")
    assert metrics.mean_iou(sums) == pytest.approx(macro)
    background = judge.jaccard_score(flat, predicted, pos_label=0)
    assert metrics.iou(sums, class_id=0) == pytest.approx(background)
    assert metrics.dice(sums) == pytest.approx(judge.f1_score(flat, predicted))
    assert metrics.sensitivity(sums) == pytest.approx(judge.recall_score(flat, predicted))
    assert metrics.precision(sums) == pytest.approx(judge.precision_score(flat, predicted))


def test_a_pixel_at_the_threshold_is_foreground():
    counts = metrics.confusion_counts(np.array([[[1]]]), np.array([[[0.5]]]))
    assert counts["tp"] == [1]


def test_confusion_counts_of_no_images_are_empty():
    counts = metrics.confusion_counts(np.zeros((0, 4, 4)), np.zeros((0, 4, 4)))
    assert [(len(count), count.dtype) for count in counts.values()] == [(0, np.int64)] * 4


def test_pooling_weighs_pixels_and_the_mean_weighs_images():
    truth = np.array([[[1, 1, 1, 1, 1, 1]], [[1, 0, 0, 0, 0, 0]]])
    found = np.array([[[1, 1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0, 0]]])
    counts = metrics.confusion_counts(truth, found)
    assert metrics.iou(counts).mean() == pytest.approx(1 / 2)
    assert metrics.iou(metrics.pool(counts)) == pytest.approx(6 / 7)


@pytest.mark.parametrize("score", [metrics.dice, metrics.iou])
def test_two_empty_masks_score_one_or_are_left_out(score):
    counts = metrics.confusion_counts(np.array([EMPTY]), np.array([EMPTY]))
    assert score(counts) == metrics.mean_iou(counts) == [1.0]
    assert np.isnan(score(counts, empty_score=NAN))


def test_an_empty_score_may_be_a_whole_number():
    counts = {"tp": np.array([1, 0]), "fp": np.array([2, 0]), "fn": np.array([0, 0])}
    np.testing.assert_array_equal(metrics.dice(counts, empty_score=0), [0.5, 0])


def test_mean_iou_is_one_number_for_each_image():
    truth = np.array([[[1, 1, 0, 0]], [[1, 0, 0, 0]]])
    counts = metrics.confusion_counts(truth, np.array([[[1, 0, 0, 0]], [[1, 0, 0, 0]]]))
    np.testing.assert_allclose(metrics.mean_iou(counts), [(1 / 2 + 2 / 3) / 2, 1])


def test_without_lesion_mean_iou_can_leave_it_out_and_sensitivity_and_precision_are_undefined():
    counts = {"tp": 0, "fp": 0, "fn": 0, "tn": 4}
    assert metrics.mean_iou(counts, empty_score=NAN) == 1.0
    assert metrics.mean_iou({**counts, "fn": 4}, empty_score=NAN) == pytest.approx(0.25)
    assert np.isnan([metrics.sensitivity(counts), metrics.precision(counts)]).all()


def test_siim_dice_of_an_all_background_prediction_is_the_share_of_healthy_images():
    area = np.array([3, 0, 0, 0])
    assert metrics.siim_dice({"tp": 0 * area, "fp": 0 * area, "fn": area, "tn": 9 - area}) == 0.75


def test_dice_score_is_one_float32_per_image_at_any_threshold():
    truth, found = np.array([[[1, 1]], [[0, 0]], [[0, 0]]]), [[[0.9, 0.1]], [[0, 0]], [[0, 1]]]
    score = metrics.dice_score(truth, found, empty_score=NAN)
    np.testing.assert_allclose(score, np.float32([2 / 3, NAN, 0]))
    assert score.dtype == np.float32
    assert metrics.dice_score(truth, found, threshold=0.1).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("truth", "prediction"),
    [
        ((1, 4, 4), (1, 4, 4, 2)),
        ((1, 4, 4), (1, 3, 4)),
        ((1, 3, 4), (1, 4, 4)),
        ((4, 4), (4, 4)),
        ((1, 4, 4, 1), (1, 4, 4, 1)),
    ],
)
def test_confusion_counts_refuses_other_shapes(truth, prediction):
    with pytest.raises(ValueError, match=r"must be \(n, height, width\) and `y_pred` \(n, height,"):
        metrics.confusion_counts(np.zeros(truth), np.zeros(prediction))


@pytest.mark.parametrize(
    ("value", "shown"), [(255, "from 0 to 255"), (-1, "from -1 to 0"), (0.5, r"from 0\.0 to 0\.5")]
)
def test_confusion_counts_refuses_a_mask_of_other_values(value, shown):
    with pytest.raises(ValueError, match=f"must hold 0 and 1 only.*{shown}"):
        metrics.confusion_counts(np.array([[[0, value]]]), np.zeros((1, 1, 2)))


def test_a_thousandth_above_one_is_rounding():
    counts = metrics.confusion_counts(np.array([[[1, 0]]]), np.array([[[1.001, 0]]]))
    assert counts["tp"] == counts["tn"] == [1]


@pytest.mark.parametrize(
    "score", ["iou", "mean_iou", "dice", "sensitivity", "precision", "confusion_counts", "ratio"]
)
def test_arguments_after_the_data_are_given_by_name(score):
    data = [1, 2] if score in ("confusion_counts", "ratio") else [dict.fromkeys(metrics.COUNTS, 1)]
    with pytest.raises(TypeError, match="positional argument"):
        getattr(metrics, score)(*data, 0.5)
    with pytest.raises(TypeError, match="positional argument"):
        metrics.dice_score(1, 2, 0.5)


@pytest.mark.parametrize("wrong", [-3.0, -0.1, 1.01, 4.0, NAN])
def test_confusion_counts_refuses_logits_and_nan(wrong):
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\], not logits"):
        metrics.confusion_counts(np.array([[[0, 1]]]), np.array([[[0.5, wrong]]]))


def test_examples_in_the_docstrings_are_true():
    assert doctest.testmod(metrics, extraglobs={"np": np}) == (0, 3)


def test_metrics_and_tables_import_neither_keras_nor_matplotlib():
    code = (
        "import sys, pneumo_lib.evaluation.metrics, pneumo_lib.evaluation.score_table; "
        "sys.exit(any(name in sys.modules for name in ('keras', 'tensorflow', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
