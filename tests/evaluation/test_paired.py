"""Paired comparisons by hand, against every toss of the signs, and by simulation."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pneumo_lib.evaluation.paired import paired_difference


def make_pair(n=12, *, gain=0.1, seed=0):
    """Two tables of a made-up score of the same images, the second in another order."""
    rng = np.random.default_rng(seed)
    cases = pd.DataFrame({"image_id": [f"image {i}" for i in range(n)], "has_pneumothorax": True})
    depth = rng.uniform(0, 1, n)
    second = cases.assign(depth=depth + rng.normal(gain, 0.1, n))
    return cases.assign(depth=depth), second.sample(frac=1, random_state=seed)


def counted(dice_of_positives, *, healthy):
    """One row per image: positives of 10 pixels found in part, and healthy ones of 100 pixels."""
    tp = [round(10 * d / (2 - d)) for d in dice_of_positives]  # without false positives
    rows = [(True, t, 0, 10 - t, 90) for t in tp] + [(False, 0, fp, 0, 100 - fp) for fp in healthy]
    table = pd.DataFrame(rows, columns=["has_pneumothorax", "tp", "fp", "fn", "tn"])
    return table.assign(image_id=range(len(table)))


def test_dice_on_positives_and_siim_dice_are_those_counted_by_hand():
    first = counted([0, 1], healthy=[0, 5])  # Dice 0, 1 | 1, 0
    second = counted([1, 1], healthy=[0, 0])  # Dice 1, 1 | 1, 1
    found = paired_difference(first, second)
    assert (found.images, found.first, found.second, found.difference) == (2, 0.5, 1.0, 0.5)
    found = paired_difference(first, second, score="siim_dice")
    assert (found.images, found.first, found.second, found.difference) == (4, 0.5, 1.0, 0.5)


def test_the_p_value_counts_every_toss_of_the_signs():
    first, second = make_pair(9)
    difference = second.sort_index()["depth"] - first["depth"]
    signs = np.array(list(product((-1, 1), repeat=9)))
    as_far = np.abs((signs * difference.to_numpy()).mean(1)) >= abs(difference.mean()) - 1e-12
    assert paired_difference(first, second, score="depth").p_value == pytest.approx(as_far.mean())


def test_with_many_images_the_p_value_is_near_that_of_the_t_test():
    first, second = make_pair(60, gain=0.025)
    found = paired_difference(first, second, score="depth")
    judge = stats.ttest_rel(second.sort_index()["depth"], first["depth"])
    assert 0.01 < judge.pvalue < 0.2  # neither end of the scale
    assert found.p_value == pytest.approx(judge.pvalue, abs=0.02)


def test_the_interval_is_near_that_of_the_normal_distribution():
    first, second = make_pair(200)
    found = paired_difference(first, second, score="depth")
    difference = second.sort_index()["depth"] - first["depth"]
    margin = 1.96 * difference.std() / np.sqrt(200)
    assert found.lower == pytest.approx(found.difference - margin, abs=0.003)
    assert found.upper == pytest.approx(found.difference + margin, abs=0.003)


def test_equal_runs_differ_by_0_with_a_p_value_of_1_and_a_better_second_run_by_more_than_0():
    first, second = make_pair()
    found = paired_difference(first, first, score="depth")
    assert (found.difference, found.lower, found.upper, found.p_value) == (0, 0, 0, 1)
    forward = paired_difference(first, second, score="depth")
    back = paired_difference(second, first, score="depth")
    assert forward.difference > 0 > back.difference
    assert forward.p_value == back.p_value


def test_equal_seeds_give_equal_results():
    first, second = make_pair(40)
    found = [paired_difference(first, second, score="depth", n=500, seed=s) for s in (3, 3, 4)]
    assert found[0] == found[1] != found[2]


def test_images_without_the_score_in_either_table_are_left_out():
    first, second = make_pair(6)
    first.loc[0, "depth"] = np.nan
    second.loc[1, "depth"] = np.nan
    assert paired_difference(first, second, score="depth").images == 4


def test_other_images_and_several_epochs_of_a_run_are_refused():
    first, second = make_pair()
    with pytest.raises(ValueError, match=r"the same images, each once.*12 and 11 rows with 11"):
        paired_difference(first, second.iloc[1:])
    with pytest.raises(ValueError, match="Choose one epoch and one split"):
        paired_difference(pd.concat([first, first]), pd.concat([second, second]))


def test_tables_that_disagree_on_the_truth_are_refused():
    first, second = make_pair()
    second.loc[3, "has_pneumothorax"] = False
    with pytest.raises(ValueError, match=r"agree on which images.*Received: 1 that differ"):
        paired_difference(first, second, score="depth")


def test_a_single_image_has_a_difference_and_no_interval():
    first, second = make_pair(1)
    found = paired_difference(first, second, score="depth")
    assert found.difference == second["depth"][0] - first["depth"][0]
    assert np.isnan([found.lower, found.upper, found.p_value]).all()


def test_without_an_image_that_has_the_score_all_is_missing():
    healthy = counted([], healthy=[0, 3])
    found = paired_difference(healthy, healthy)
    assert found.images == 0
    assert np.isnan(found[1:]).all()
