"""Two networks on the same images: is one better, or was it chance?"""

from typing import NamedTuple

import numpy as np
from scipy import stats

from pneumo_lib.evaluation.metrics import dice


class PairedDifference(NamedTuple):
    """`second` minus `first` on the same images, see `paired_difference()`."""

    images: int
    first: float
    second: float
    difference: float
    lower: float
    upper: float
    p_value: float


def paired_difference(first, second, *, score="dice_positive", n=9999, seed=0, level=0.95):
    """Mean difference of a per-image score between two networks, with interval and p-value.

    Easy images are easy for both networks, so the difference on each image varies less than the
    scores do: intervals of two rows of `score_table()` may meet where this one excludes 0. The
    interval is the percentile bootstrap over images. The p-value is two-sided: how often a mean
    at least as far from 0 comes about when the sign of each difference is tossed (all `2**images`
    ways where `n` or fewer). Both know nothing of training: another seed is another network.

    Args:
        first, second: one row per image, with the columns `image_id`, `has_pneumothorax` and
            those of `score`, such as `run.scores` after one epoch on one split. Rows may be in
            any order.
        score: "dice_positive" (images with a pneumothorax) or "siim_dice" (all images, two
            empty masks score 1), from the counts; or a column of both tables, where images
            that lack it in either are left out.
        n: resamples, and tosses.
        seed: of both.
        level: share of the resamples inside the interval.

    Returns:
        `PairedDifference`; a list of them makes a table: `pd.DataFrame([...])`. Interval and
        p-value are NaN where fewer than two images have the score.

    Raises:
        ValueError: if the tables differ in images or truth, or an image occurs twice in one.

    Example:
        >>> import pandas as pd
        >>> cases = pd.DataFrame({"image_id": ["a", "b"], "has_pneumothorax": [True, True]})
        >>> first, second = cases.assign(depth=[1.0, 2.0]), cases.assign(depth=[2.0, 5.0])
        >>> found = paired_difference(first, second, score="depth")
        >>> found.difference, round(found.p_value, 3)  # of 4 tosses, ++ and -- are as far from 0
        (2.0, 0.5)

    Reference:
        Efron, Tibshirani (1993), An Introduction to the Bootstrap, chapters 13 and 15.
    """
    values = _aligned(first, second, score)
    if len(values) < 2:  # nothing to draw again
        means = values[0] if len(values) else np.full(2, np.nan)
        return PairedDifference(len(values), *means, means[1] - means[0], *[np.nan] * 3)
    difference = values[:, 1] - values[:, 0]
    # Blocks of resamples keep memory flat.
    settings = {"n_resamples": n, "batch": max(1, 2_000_000 // len(values)), "rng": seed}
    interval = stats.bootstrap(
        (difference,), np.mean, confidence_level=level, method="percentile", **settings
    ).confidence_interval
    tossed = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", vectorized=True, **settings
    )
    means = values.mean(axis=0)
    return PairedDifference(
        len(values), *map(float, (*means, difference.mean(), *interval, tossed.pvalue))
    )


def _aligned(first, second, score):
    """`(images, 2)` of the two scores of each image, those without left out."""
    tables = [table.set_index("image_id") for table in (first, second)]
    same = tables[0].index.sort_values().equals(tables[1].index.sort_values())
    if not same or not tables[0].index.is_unique:
        common = len(set(first["image_id"]) & set(second["image_id"]))
        raise ValueError(
            "Both tables must hold the same images, each once. Received: "
            f"{len(first)} and {len(second)} rows with {common} images in common. "
            "Choose one epoch and one split of each run"
        )
    tables[1] = tables[1].loc[tables[0].index]
    positive = [table["has_pneumothorax"].to_numpy(bool) for table in tables]
    if (positive[0] != positive[1]).any():
        raise ValueError(
            "Both tables must agree on which images show a pneumothorax. Received: "
            f"{(positive[0] != positive[1]).sum()} that differ"
        )
    values = np.column_stack([_score(table, score) for table in tables])
    return values[~np.isnan(values).any(axis=1)]


def _score(table, score):
    if score == "dice_positive":  # a positive whose mask vanished at this size counts as missed
        return np.where(table["has_pneumothorax"], dice(table, empty_score=0.0), np.nan)
    if score == "siim_dice":
        return dice(table, empty_score=1.0)
    return table[score].to_numpy(dtype=np.float64)
