"""Calibration: predicted probabilities compared with observed frequencies."""

import numpy as np
import pandas as pd

from pneumo_lib.evaluation.metrics import checked_probabilities


def reliability_table(y_true, y_pred, *, bins=10):
    """Reliability diagram as a table: predicted probability and observed frequency by bin.

    scikit-learn's `calibration_curve()` has neither the counts nor the empty bins, and needs all
    pixels in memory at once.

    Args:
        y_true: any shape, values 0 or 1: pixels `(n, height, width)` or images `(n,)`.
        y_pred: same shape, probabilities in [0, 1], or a ValueError.
        bins: number of bins of equal width.

    Returns:
        DataFrame with a row for each bin: `lower`, `upper`, `count`, and, NaN where the bin is
        empty, `predicted` (mean probability) and `observed` (share of 1 in `y_true`).

    Reference:
        Guo et al. (2017), On Calibration of Modern Neural Networks, arXiv:1706.04599.
    """
    if np.shape(y_true) != np.shape(y_pred):
        raise ValueError(
            "`y_true` and `y_pred` must have the same shape. "
            f"Received: {np.shape(y_true)} and {np.shape(y_pred)}"
        )
    sums = np.zeros((3, bins))
    for truth, probability in zip(np.atleast_2d(y_true), np.atleast_2d(y_pred), strict=True):
        truth, probability = np.ravel(truth), checked_probabilities(probability).ravel()
        place = np.minimum((probability * bins).astype(int), bins - 1)
        for row, weights in enumerate((None, probability, truth)):
            sums[row] += np.bincount(place, weights=weights, minlength=bins)
    edges = np.linspace(0, 1, bins + 1)
    table = pd.DataFrame({"lower": edges[:-1], "upper": edges[1:], "count": sums[0].astype(int)})
    filled = table["count"].where(table["count"] > 0)  # NaN where a bin is empty
    return table.assign(predicted=sums[1] / filled, observed=sums[2] / filled)


def expected_calibration_error(table):
    """Mean gap between predicted probability and observed frequency, weighted by bin counts.

    The error over the pixels of a rare target is always small, since nearly all of them lie in
    the lowest bin: an all-background prediction has an error equal to the share of the
    foreground. Read it beside the diagram, never alone.

    `table` is that of `reliability_table()`; the `float` is in [0, 1], NaN without any pixel.
    """
    gaps = (table["predicted"] - table["observed"]).abs() * table["count"]
    return float(gaps.sum() / table["count"].sum()) if table["count"].sum() else float("nan")
