"""Counts against a pixel loop, scores by hand, the logged metrics against Keras itself."""

import doctest
import subprocess
import sys

import numpy as np
import pytest

from pneumo_lib.evaluation import image_level, logged_metrics, metrics

NAN = float("nan")
EMPTY = [[0, 0, 0, 0]]
# name: (truth, prediction, tp, fp, fn, tn, dice, IoU), each mask one row of four pixels
HAND_COUNTED = {
    "perfect": ([[1, 1, 0, 0]], [[1, 1, 0, 0]], 2, 0, 0, 2, 1.0, 1.0),
    "half found": ([[1, 1, 0, 0]], [[1, 0, 0, 0]], 1, 0, 1, 2, 2 / 3, 1 / 2),
    "disjoint": ([[1, 1, 0, 0]], [[0, 0, 1, 0]], 0, 1, 2, 1, 0.0, 0.0),
    "missed": ([[1, 1, 0, 0]], EMPTY, 0, 0, 2, 2, 0.0, 0.0),
    "false alarm": (EMPTY, [[1, 1, 1, 0]], 0, 3, 0, 1, 0.0, 0.0),
    "both empty": (EMPTY, EMPTY, 0, 0, 0, 4, 1.0, 1.0),
}


def softmax_of(foreground):
    foreground = np.asarray(foreground, dtype=np.float32)
    return np.stack([1 - foreground, foreground], axis=-1)


def random_case(seed=0, *, n=5, size=8):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (n, size, size)), rng.uniform(0.001, 0.999, (n, size, size))


@pytest.mark.parametrize("case", HAND_COUNTED.values(), ids=HAND_COUNTED)
def test_counts_dice_and_iou_equal_those_counted_by_hand(case):
    truth, prediction, *numbers = case
    counts = metrics.confusion_counts(np.array([truth]), np.array([prediction]))
    found = [counts[name][0] for name in ("tp", "fp", "fn", "tn")]
    assert [*found, metrics.dice(counts)[0], metrics.iou(counts)[0]] == pytest.approx(numbers)


def test_confusion_counts_agree_with_a_loop_over_pixels():
    truth, probability = random_case()
    counts = metrics.confusion_counts(truth, probability, threshold=0.3)
    for i in range(len(truth)):
        slow = dict.fromkeys(metrics.COUNTS, 0)
        for t, p in zip(truth[i].flat, probability[i].flat, strict=True):
            slow[{(1, 1): "tp", (0, 1): "fp", (1, 0): "fn", (0, 0): "tn"}[t, int(p >= 0.3)]] += 1
        assert {name: counts[name][i] for name in slow} == slow


def test_scores_agree_with_scikit_learn():
    from sklearn import metrics as judge

    truth, probability = random_case(1)
    sums = metrics.pool(metrics.confusion_counts(truth, probability))
    flat, predicted = truth.ravel(), (probability >= 0.5).ravel()
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


def test_the_evidence_of_an_image_is_the_mean_of_its_most_probable_thousandth():
    probability = np.zeros((1, 50, 40))
    probability[0, 10, [3, 5, 7]] = 0.9, 0.5, 0.4  # a thousandth of 2,000 pixels is 2
    assert image_level.image_level_score(probability) == pytest.approx([0.7])


def test_evidence_agrees_with_sorting_every_pixel():
    _, probability = random_case(2, n=4, size=64)
    slow = [np.sort(image.ravel())[-4:].mean() for image in probability]
    assert image_level.image_level_score(probability) == pytest.approx(slow)


def test_an_image_smaller_than_a_thousand_pixels_is_judged_by_its_highest_one():
    assert image_level.image_level_score(np.array([[[0.2, 0.6]]])) == pytest.approx([0.6])


def test_an_image_may_be_one_pixel():
    assert image_level.image_level_score([[[0.25]]]) == [0.25]


def test_evidence_is_averaged_in_float64():
    probability = np.zeros((1, 50, 40), np.float32)
    probability[0, 0, :2] = 1, 1 - 2**-24  # whose mean float32 cannot hold
    assert image_level.image_level_score(probability) == [1 - 2**-25]


def test_evidence_of_no_images_is_empty_and_rounding_above_1_is_cut():
    assert image_level.image_level_score(np.zeros((0, 4, 4))).shape == (0,)
    assert image_level.image_level_score(np.full((1, 2, 2), 1.0000001)) == [1]


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4, 2), (2, 0, 4)])
def test_evidence_refuses_what_is_no_batch_of_maps(shape):
    with pytest.raises(ValueError, match="must be \\(n, height, width\\) with at least one pixel"):
        image_level.image_level_score(np.zeros(shape))


def test_evidence_refuses_logits():
    with pytest.raises(ValueError, match="not logits"):
        image_level.image_level_score(np.full((1, 2, 2), 3.0))


def test_pooling_weighs_pixels_and_the_mean_weighs_images():
    truth = np.array([[[1, 1, 1, 1, 1, 1]], [[1, 0, 0, 0, 0, 0]]])
    found = np.array([[[1, 1, 1, 1, 1, 1]], [[0, 0, 0, 0, 0, 0]]])
    counts = metrics.confusion_counts(truth, found)
    assert metrics.iou(counts).mean() == pytest.approx(1 / 2)
    assert metrics.iou(metrics.pool(counts)) == pytest.approx(6 / 7)


@pytest.mark.parametrize("score", [metrics.dice, metrics.iou, metrics.mean_iou])
def test_two_empty_masks_score_one_by_the_rule_of_siim(score):
    assert score(metrics.confusion_counts(np.array([EMPTY]), np.array([EMPTY]))) == [1.0]


@pytest.mark.parametrize("score", [metrics.dice, metrics.iou])
def test_two_empty_masks_can_be_left_out(score):
    counts = metrics.confusion_counts(np.array([EMPTY]), np.array([EMPTY]))
    assert np.isnan(score(counts, empty_score=NAN))


def test_an_empty_score_may_be_a_whole_number():
    counts = {"tp": np.array([1, 0]), "fp": np.array([2, 0]), "fn": np.array([0, 0])}
    np.testing.assert_array_equal(metrics.dice(counts, empty_score=0), [0.5, 0])


def test_mean_iou_is_one_number_for_each_image():
    truth = np.array([[[1, 1, 0, 0]], [[1, 0, 0, 0]]])
    counts = metrics.confusion_counts(truth, np.array([[[1, 0, 0, 0]], [[1, 0, 0, 0]]]))
    np.testing.assert_allclose(metrics.mean_iou(counts), [(1 / 2 + 2 / 3) / 2, 1])


def test_mean_iou_can_leave_an_absent_class_out():
    counts = {"tp": 0, "fp": 0, "fn": 0, "tn": 4}
    assert metrics.mean_iou(counts, empty_score=NAN) == 1.0
    assert metrics.mean_iou({**counts, "fn": 4}, empty_score=NAN) == pytest.approx(0.25)


def test_sensitivity_and_precision_are_undefined_without_anything_to_divide_by():
    counts = {"tp": 0, "fp": 0, "fn": 0, "tn": 4}
    assert np.isnan(metrics.sensitivity(counts))
    assert np.isnan(metrics.precision(counts))


def test_siim_dice_of_an_all_background_prediction_is_the_share_of_healthy_images():
    area = np.array([3, 0, 0, 0])
    assert metrics.siim_dice({"tp": 0 * area, "fp": 0 * area, "fn": area, "tn": 9 - area}) == 0.75


def test_dice_score_returns_one_float32_per_image():
    truth = np.array([[[1, 1]], [[0, 0]], [[0, 0]]])
    score = metrics.dice_score(truth, np.array([[[0.9, 0.1]], [[0, 0]], [[0, 1]]]), empty_score=NAN)
    np.testing.assert_allclose(score, np.float32([2 / 3, NAN, 0]))
    assert score.dtype == np.float32


def test_dice_score_cuts_at_the_threshold_and_gives_two_empty_masks_one():
    truth = np.array([[[1, 1]], [[0, 0]]])
    probability = np.array([[[0.9, 0.3]], [[0.2, 0.1]]])
    assert metrics.dice_score(truth, probability, threshold=0.3).tolist() == [1, 1]


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
    with pytest.raises(ValueError, match=r"must be \(n, height, width\) and `y_pred`"):
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
def test_what_follows_the_data_is_given_by_name(score):
    data = [1, 2] if score in ("confusion_counts", "ratio") else [dict.fromkeys(metrics.COUNTS, 1)]
    with pytest.raises(TypeError, match="positional argument"):
        getattr(metrics, score)(*data, 0.5)
    with pytest.raises(TypeError, match="positional argument"):
        metrics.dice_score(1, 2, 0.5)


@pytest.mark.parametrize("wrong", [-3.0, -0.1, 1.01, 4.0, NAN])
def test_confusion_counts_refuses_logits_and_nan(wrong):
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\], not logits"):
        metrics.confusion_counts(np.array([[[0, 1]]]), np.array([[[0.5, wrong]]]))


@pytest.mark.parametrize(
    ("truth", "softmax"),
    [
        ((1, 4, 4), (1, 4, 4)),
        ((1, 3, 4), (1, 4, 4, 2)),
        ((1, 4, 4), (1, 3, 4, 2)),
        ((4, 4), (4, 4, 2)),
        ((1, 4, 4, 1), (1, 4, 4, 1, 2)),
    ],
)
def test_saturation_counts_refuses_other_shapes(truth, softmax):
    with pytest.raises(ValueError, match=r"`y_pred` \(n, height, width, 2\)"):
        logged_metrics.saturation_counts(np.zeros(truth), np.zeros(softmax))


def test_saturation_counts_refuses_a_mask_of_255():
    with pytest.raises(ValueError, match="must hold 0 and 1 only"):
        logged_metrics.saturation_counts(np.array([[[0, 255]]]), softmax_of([[[0.5, 0.5]]]))


def test_saturation_counts_sum_half_precision_beyond_its_largest_number():
    truth = np.zeros((1, 300, 300), np.uint8)  # 90,000 pixels; float16 ends at 65,504
    counts = logged_metrics.saturation_counts(truth, softmax_of(truth).astype(np.float16))
    assert counts["true_class_probability"] == [90_000]


def test_saturation_counts_equal_those_counted_by_hand():
    truth = np.array([[[1, 1, 0, 0, 0]]])
    counts = logged_metrics.saturation_counts(truth, softmax_of([[[1.0, 0.0, 0.0, 0.25, 1.0]]]))
    assert {name: float(count[0]) for name, count in counts.items()} == {
        "saturated_right": 2,
        "saturated_wrong": 2,
        "true_class_probability": 2.75,
    }


def keras_logged_mean_iou(truth, softmax):
    import keras

    metric = keras.metrics.MeanIoU(num_classes=2)
    metric.update_state(np.eye(2)[truth], softmax)
    return float(metric.result())


def test_logged_mean_iou_is_a_quarter_for_any_unsaturated_network():
    truth, probability = random_case()
    assert logged_metrics.as_logged_mean_iou(truth, softmax_of(probability)) == 0.25


def test_logged_mean_iou_is_a_quarter_even_for_a_perfect_network():
    truth, _ = random_case()
    nearly = softmax_of(np.where(truth, 0.999, 0.001))
    assert metrics.iou(metrics.pool(metrics.confusion_counts(truth, nearly[..., 1]))) == 1.0
    assert logged_metrics.as_logged_mean_iou(truth, nearly) == 0.25
    assert keras_logged_mean_iou(truth, nearly) == 0.25


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_logged_mean_iou_is_that_of_keras(share):
    truth, probability = random_case(2)
    saturated = np.random.default_rng(3).random(truth.shape) < share
    softmax = softmax_of(np.where(saturated, probability > 0.5, probability))
    logged = logged_metrics.as_logged_mean_iou(truth, softmax)
    assert logged == pytest.approx(keras_logged_mean_iou(truth, softmax), abs=1e-6)


def test_rounding_above_one_is_saturated_as_it_is_for_keras():
    truth, probability = random_case(2)
    softmax = softmax_of(np.where(probability > 0.7, 1.0, probability)) * 1.0005
    logged = logged_metrics.as_logged_mean_iou(truth, softmax)
    assert logged != 0.25
    assert logged == pytest.approx(keras_logged_mean_iou(truth, softmax), abs=1e-6)


@pytest.mark.parametrize(("share", "reads"), [(0.108, 0.319), (0.31, 0.451)])
def test_saturated_background_alone_reads_like_the_report(share, reads):
    truth = np.zeros((1, 1, 1000), dtype=np.uint8)
    probability = np.full(truth.shape, 0.01)
    probability[..., : round(share * 1000)] = 0
    assert logged_metrics.as_logged_mean_iou(truth, softmax_of(probability)) == pytest.approx(
        reads, abs=1e-3
    )


def test_logged_dice_is_the_usual_soft_dice_over_both_channels():
    truth, probability = random_case(4)
    one_hot, softmax = np.eye(2)[truth], softmax_of(probability)
    usual = 2 * (one_hot * softmax).sum() / (one_hot.sum() + softmax.sum())
    assert logged_metrics.as_logged_dice(truth, softmax) == pytest.approx(usual, abs=1e-6)


def test_logged_dice_is_high_where_nothing_is_found():
    truth = np.zeros((1, 10, 10), dtype=np.uint8)
    truth[0, 0, 0] = 1  # a foreground of one percent
    assert logged_metrics.as_logged_dice(truth, softmax_of(np.zeros(truth.shape))) == pytest.approx(
        0.99
    )


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
    undefined = {
        n for n, v in logged_metrics.history_scores(sums | {"tn": 4}).items() if np.isnan(v)
    }
    assert undefined == {"iou", "dice"}
    assert np.isnan(list(logged_metrics.history_scores(sums | {"tn": 0}).values())).all()


def test_examples_in_the_docstrings_are_true():
    assert doctest.testmod(metrics, extraglobs={"np": np}).failed == 0


def test_metrics_and_tables_import_neither_keras_nor_matplotlib():
    code = (
        "import sys, pneumo_lib.evaluation.metrics, pneumo_lib.evaluation.score_table; "
        "sys.exit(any(name in sys.modules for name in ('keras', 'tensorflow', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
