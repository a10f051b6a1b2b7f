"""Scores of an epoch: those of the counts, with Keras' own metrics as judge."""

import keras
import numpy as np
import pytest
from conftest import compiled_by_xla

from pneumo_lib.evaluation import logged_metrics, metrics
from pneumo_lib.training.metrics import (
    SCORES,
    TRAINING_COUNTS,
    SegmentationScores,
    training_counts,
)


@pytest.fixture
def case():
    """`(truth, softmax)` of three images, partly saturated."""
    rng = np.random.default_rng(5)
    truth = (rng.random((3, 20, 25)) < 0.3).astype("uint8")
    probability = rng.random(truth.shape).astype("float32")
    probability[probability < 0.2], probability[probability > 0.9] = 0, 1
    probability[:, 0] = 0.995  # nearly is not saturated
    return truth, np.stack([1 - probability, probability], axis=-1)


def scores_of(*batches):
    metric = SegmentationScores()
    for batch in batches:
        metric.update_state(*batch)
    return {name: float(value) for name, value in metric.result().items()}


def test_training_counts_are_the_counts_of_metrics(case):
    truth, softmax = case
    arrays = metrics.confusion_counts(truth, softmax[..., 1])
    expected = metrics.pool(arrays | logged_metrics.saturation_counts(truth, softmax))
    assert tuple(expected) == TRAINING_COUNTS
    np.testing.assert_allclose(training_counts(*case), list(expected.values()), rtol=1e-6)


def test_scores_of_several_batches_are_those_of_the_pooled_counts(case):
    truth, softmax = case
    counts = metrics.confusion_counts(truth, softmax[..., 1])
    counts |= logged_metrics.saturation_counts(truth, softmax)
    expected = logged_metrics.history_scores(metrics.pool(counts))
    assert scores_of(case) == pytest.approx(expected)
    assert scores_of((truth[:1], softmax[:1]), (truth[1:], softmax[1:])) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64:UserWarning")  # Keras' own
def test_scores_are_those_that_keras_finds(case):
    truth, softmax = case
    found, settings = scores_of(case), {"num_classes": 2, "sparse_y_pred": False}
    judges = {
        "accuracy": keras.metrics.SparseCategoricalAccuracy(),
        "mean_iou": keras.metrics.MeanIoU(**settings),
        "iou": keras.metrics.IoU(**settings, target_class_ids=[1]),
        "logged_mean_iou": keras.metrics.MeanIoU(num_classes=2),
    }
    for name, judge in judges.items():
        judge.update_state(
            truth if name != "logged_mean_iou" else np.eye(2, dtype="float32")[truth], softmax
        )
        assert found[name] == pytest.approx(float(judge.result()), abs=1e-6)


def test_images_without_weight_do_not_count(case):
    truth, softmax = case
    weighted = scores_of((truth, softmax, np.array([1.2, 0.0, 0.3])))
    assert weighted == pytest.approx(scores_of((truth[::2], softmax[::2])))


def test_nothing_to_find_and_nothing_found_has_no_overlap():
    found = scores_of((np.zeros((1, 4, 4)), np.tile([0.9, 0.1], (1, 4, 4, 1))))
    assert np.isnan([found["iou"], found["dice"]]).all()
    assert (found["accuracy"], found["mean_iou"]) == (1, 1)
    assert found["logged_dice"] == pytest.approx(0.9)


def test_more_pixels_than_float32_counts_are_counted_exactly_also_when_compiled():
    truth, metric = np.zeros((1, 1024, 1025)), SegmentationScores()
    step = compiled_by_xla(lambda softmax: metric.update_state(truth, softmax), stateful=True)
    right = np.tile(np.float32([0.6, 0.4]), (1, 1024, 1025, 1))
    for softmax in [right] * 40 + [1 - right]:
        step(softmax)
    carried, rest = np.asarray(metric.sums, "float64")
    counts = dict(zip(TRAINING_COUNTS, 2**20 * carried + rest, strict=True))
    pixels = 1024 * 1025  # 43 million in all
    assert (counts["tn"], counts["fp"], counts["tp"]) == (40 * pixels, pixels, 0)
    assert tuple(metric.result()) == SCORES
