"""Paired comparison of two networks on the same images."""

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

    Easy images are easy for both networks, so the difference varies less from image to image
    than the scores do: intervals of two rows of `score_table()` may overlap where this one
    excludes 0. The interval is the percentile bootstrap over images, the p-value a two-sided
    sign-flip permutation test (exact where `2**images` is at most `n`). Neither covers the
    variance of training: another seed gives another network.

    Args:
        first, second: one row per image, in any order, with the columns `image_id`,
            `has_pneumothorax` and those of `score`, such as `run.scores` of one epoch and split.
        score: "dice_positive" (images with a pneumothorax) or "siim_dice" (all images, two
            empty masks score 1), from the counts; or a column of both tables, without the
            images where it is missing in either.
        n, seed, level: number of resamples, and of sign flips; their seed; confidence level.

    Returns:
        `PairedDifference`; a list of them makes a table: `pd.DataFrame([...])`. Interval and
        p-value are NaN where fewer than two images have the score.

    Raises:
        ValueError: if the tables differ in images or truth, or an image occurs twice in one.

    Reference:
        Efron, Tibshirani (1993), An Introduction to the Bootstrap, chapters 13 and 15.
    """
    values = _aligned(first, second, score)
    if len(values) < 2:  # nothing to resample
        means = values[0] if len(values) else np.full(2, np.nan)
        return PairedDifference(len(values), *means, means[1] - means[0], *[np.nan] * 3)
    difference = values[:, 1] - values[:, 0]
    # Blocks of resamples keep memory flat.
    settings = {"n_resamples": n, "batch": max(1, 2_000_000 // len(values)), "rng": seed}
    interval = stats.bootstrap(
        (difference,), np.mean, confidence_level=level, method="percentile", **settings
    ).confidence_interval
    flipped = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", vectorized=True, **settings
    )
    found = (*values.mean(axis=0), difference.mean(), *interval, flipped.pvalue)
    return PairedDifference(len(values), *map(float, found))


def _aligned(first, second, score):
    """`(images, 2)` scores of the images that have both."""
    first, second = (table.set_index("image_id") for table in (first, second))
    images = first.index
    if not images.is_unique or not images.sort_values().equals(second.index.sort_values()):
        raise ValueError(
            "Both tables must hold the same images, each once. Received: "
            f"{len(first)} and {len(second)} rows with {len(images.intersection(second.index))} "
            "images in common. Choose one epoch and one split of each run"
        )
    second = second.loc[images]
    if differ := (first["has_pneumothorax"] != second["has_pneumothorax"]).sum():
        raise ValueError(
            "Both tables must agree on which images show a pneumothorax. "
            f"Received: {differ} that differ"
        )
    values = np.column_stack([_score(first, score), _score(second, score)])
    return values[~np.isnan(values).any(axis=1)]


def _score(table, score):
    if score == "dice_positive":  # a positive whose mask vanished at this size counts as missed
        return np.where(table["has_pneumothorax"], dice(table, empty_score=0.0), np.nan)
    if score == "siim_dice":
        return dice(table, empty_score=1.0)
    return table[score].to_numpy(dtype=np.float64)
