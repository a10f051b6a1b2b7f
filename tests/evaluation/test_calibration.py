"""Calibration by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from pneumo_lib.evaluation.calibration import expected_calibration_error, reliability_table


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
    observed, predicted = calibration_curve(truth.ravel(), probability.ravel(), n_bins=15)
    np.testing.assert_allclose(table["observed"].dropna(), observed)
    np.testing.assert_allclose(table["predicted"].dropna(), predicted)
    assert table["count"].sum() == truth.size


def test_an_empty_bin_has_a_count_of_0_and_no_frequency():
    table = reliability_table(np.zeros((1, 2, 2)), np.full((1, 2, 2), 0.05))
    assert table["count"].tolist() == [4] + [0] * 9
    assert table["predicted"].isna().sum() == table["observed"].isna().sum() == 9


def test_an_all_background_prediction_has_an_error_of_the_share_of_the_foreground():
    truth = np.zeros((1, 10, 10))
    truth[0, 0, :3] = 1
    assert expected_calibration_error(reliability_table(truth, 0 * truth)) == pytest.approx(0.03)


def test_the_error_of_no_pixels_is_missing():
    assert np.isnan(expected_calibration_error(reliability_table([], [])))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="must have the same shape"):
        reliability_table([0, 1], [0.5])


@pytest.mark.parametrize("wrong", [-0.1, 1.1, np.nan])
def test_values_that_are_no_probabilities_are_refused(wrong):
    with pytest.raises(ValueError, match=r"probabilities in \[0, 1\]"):
        reliability_table([0, 1], [0.5, wrong])
