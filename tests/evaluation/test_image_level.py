"""Image-level scores against sorted pixels, pairs counted one by one, and a formula for the AUC."""

import numpy as np
import pytest

from pneumo_lib.evaluation.image_level import image_level_score, image_level_scores


def make_images(n=200, *, seed=0):
    rng = np.random.default_rng(seed)
    y_true = rng.random(n) < 0.3
    return y_true, np.clip(rng.normal(0.4 + 0.2 * y_true, 0.2), 0, 1)


def test_the_score_is_the_mean_of_the_most_probable_thousandth():
    probability = np.random.default_rng(2).random((4, 64, 64))
    slow = [np.sort(image.ravel())[-4:].mean() for image in probability]
    assert image_level_score(probability) == pytest.approx(slow)
    few = np.zeros((1, 50, 40))
    few[0, 10, [3, 5, 7]] = 0.9, 0.5, 0.4  # a thousandth of 2,000 pixels is 2
    assert image_level_score(few) == pytest.approx([0.7])


@pytest.mark.parametrize("row", [[0.2, 0.6], [0.6]])
def test_an_image_smaller_than_a_thousand_pixels_has_the_score_of_its_highest_one(row):
    assert image_level_score([[row]]) == pytest.approx([0.6])


def test_the_mean_is_taken_in_float64():
    probability = np.zeros((1, 50, 40), np.float32)
    probability[0, 0, :2] = 1, 1 - 2**-24  # whose mean float32 cannot hold
    assert image_level_score(probability) == [1 - 2**-25]


def test_scores_of_no_images_are_empty_and_rounding_above_1_is_cut():
    assert image_level_score(np.zeros((0, 4, 4))).shape == (0,)
    assert image_level_score(np.full((1, 2, 2), 1.0000001)) == [1]


@pytest.mark.parametrize("shape", [(4, 4), (2, 4, 4, 2), (2, 0, 4)])
def test_anything_but_a_batch_of_maps_is_refused(shape):
    with pytest.raises(ValueError, match="must be \\(n, height, width\\) with at least one pixel"):
        image_level_score(np.zeros(shape))


def test_logits_are_refused():
    with pytest.raises(ValueError, match="not logits"):
        image_level_score(np.full((1, 2, 2), 3.0))


def test_auc_is_the_share_of_pairs_in_the_right_order():
    y_true, y_score = make_images(60)
    pairs = y_score[y_true][:, None] - y_score[~y_true][None]
    found = image_level_scores(y_true, y_score, n_bootstrap=2)
    assert found["auc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_average_precision_is_that_counted_by_hand():
    # ranked by score: positive (1/1), healthy, positive (2/3)
    found = image_level_scores([True, False, True], [0.9, 0.8, 0.7], n_bootstrap=20)
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert (found["images"], found["positives"]) == (3, 2)


def test_equal_scores_give_one_half_and_the_share_of_positives():
    found = image_level_scores([True, False, False, False], [0.2] * 4, n_bootstrap=20)
    assert (found["auc"], found["average_precision"]) == (0.5, 0.25)


def test_the_interval_of_the_auc_is_near_that_of_hanley_and_mcneil():
    y_true, y_score = make_images(400)
    found = image_level_scores(y_true, y_score, n_bootstrap=200)
    auc, m, n = found["auc"], y_true.sum(), (~y_true).sum()
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (m - 1) * (q1 - auc**2) + (n - 1) * (q2 - auc**2)
    margin = 1.96 * np.sqrt(variance / (m * n))
    assert found["auc_lower"] == pytest.approx(auc - margin, abs=0.02)
    assert found["auc_upper"] == pytest.approx(auc + margin, abs=0.02)


def test_equal_seeds_give_equal_intervals():
    found = [image_level_scores(*make_images(50), n_bootstrap=30, seed=s) for s in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("y_true", [[True, True], [False, False], [True]])
def test_images_of_one_kind_or_of_another_number_are_refused(y_true):
    with pytest.raises(ValueError, match="equally long, with positive and healthy"):
        image_level_scores(y_true, [0.1, 0.2])
