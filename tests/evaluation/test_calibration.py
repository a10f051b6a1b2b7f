"""Image-level scores against pairs counted one by one, calibration against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from pneumo_lib.evaluation.calibration import expected_calibration_error, reliability_table
from pneumo_lib.evaluation.image_level import image_level_scores


def make_evidence(n=200, *, seed=0):
    rng = np.random.default_rng(seed)
    y_true = rng.random(n) < 0.3
    return y_true, np.clip(rng.normal(0.4 + 0.2 * y_true, 0.2), 0, 1)


def test_auc_is_the_share_of_pairs_in_the_right_order():
    y_true, evidence = make_evidence(60)
    pairs = evidence[y_true][:, None] - evidence[~y_true][None]
    found = image_level_scores(y_true, evidence, n_bootstrap=2)
    assert found["auc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_average_precision_is_that_counted_by_hand():
    # from the top down: positive (1/1), healthy, positive (2/3)
    found = image_level_scores([True, False, True], [0.9, 0.8, 0.7], n_bootstrap=20)
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert (found["images"], found["positives"]) == (3, 2)


def test_evidence_that_says_nothing_scores_one_half_and_the_share_of_positives():
    found = image_level_scores([True, False, False, False], [0.2] * 4, n_bootstrap=20)
    assert (found["auc"], found["average_precision"]) == (0.5, 0.25)


def test_the_interval_of_the_auc_is_near_that_of_hanley_and_mcneil():
    y_true, evidence = make_evidence(400)
    found = image_level_scores(y_true, evidence, n_bootstrap=200)
    auc, m, n = found["auc"], y_true.sum(), (~y_true).sum()
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)
    margin = 1.96 * np.sqrt(variance / (m * n))
    assert found["auc_lower"] == pytest.approx(auc - margin, abs=0.02)
    assert found["auc_upper"] == pytest.approx(auc + margin, abs=0.02)


def test_equal_seeds_give_equal_intervals():
    y_true, evidence = make_evidence(50)
    first, second, other = (
        image_level_scores(y_true, evidence, n_bootstrap=30, seed=seed) for seed in (1, 1, 2)
    )
    assert first == second != other


@pytest.mark.parametrize("y_true", [[True, True], [False, False], [True]])
def test_images_of_one_kind_or_of_another_number_are_refused(y_true):
    with pytest.raises(ValueError, match="equally long, with positive and healthy"):
        image_level_scores(y_true, [0.1, 0.2])


def test_reliability_is_that_counted_by_hand():
    table = reliability_table([0, 1, 1, 1], [0.1, 0.3, 0.9, 1.0], bins=2)
    assert table["count"].tolist() == [2, 2]
    np.testing.assert_allclose(table["predicted"], [0.2, 0.95])
    np.testing.assert_allclose(table["observed"], [0.5, 1.0])
    assert expected_calibration_error(table) == pytest.approx((2 * 0.3 + 2 * 0.05) / 4)


def test_reliability_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    probability = rng.random((5, 16, 16)) ** 3
    truth = rng.random((5, 16, 16)) < probability
    table = reliability_table(truth, probability, bins=15)
    observed, promised = calibration_curve(truth.ravel(), probability.ravel(), n_bins=15)
    np.testing.assert_allclose(table["observed"].dropna(), observed)
    np.testing.assert_allclose(table["predicted"].dropna(), promised)
    assert table["count"].sum() == truth.size


def test_an_empty_bin_has_a_count_of_0_and_no_shares():
    table = reliability_table(np.zeros((1, 2, 2)), np.full((1, 2, 2), 0.05))
    assert table["count"].tolist() == [4] + [0] * 9
    assert table["predicted"].isna().sum() == table["observed"].isna().sum() == 9
    assert expected_calibration_error(table) == pytest.approx(0.05)


def test_a_prediction_of_nothing_has_an_error_of_the_share_of_the_foreground():
    truth = np.zeros((1, 10, 10))
    truth[0, 0, :3] = 1
    assert expected_calibration_error(reliability_table(truth, 0 * truth)) == pytest.approx(0.03)


def test_the_error_of_no_pixels_is_missing():
    assert np.isnan(expected_calibration_error(reliability_table([], [])))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="must have the same shape"):
        reliability_table([0, 1], [0.5])


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
        reliability_table([0, 1], [0.5, wrong])
