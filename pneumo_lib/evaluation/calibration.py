"""Questions about the whole image, and whether a probability means what it says."""

import numpy as np
import pandas as pd


def reliability_table(y_true, y_pred, *, bins=10):
    """What was promised and what came true, in bins of equal width of the probability.

    Args:
        y_true: any shape, values 0 or 1: pixels `(n, height, width)` or images `(n,)`.
        y_pred: same shape, probabilities in [0, 1].
        bins: how many.

    Returns:
        DataFrame with a row for each bin: `lower`, `upper`, `count`, and, NaN where it is empty,
        `promised` (mean probability) and `observed` (share of 1 in `y_true`).

    Raises:
        ValueError: if the shapes differ or `y_pred` leaves [0, 1].

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
        truth, probability = np.ravel(truth), np.ravel(probability)  # one image: flat memory
        if probability.size and not (probability.min() >= 0 and probability.max() <= 1):
            raise ValueError(
                "`y_pred` must hold probabilities in [0, 1]. Received: values from "
                f"{probability.min()} to {probability.max()}"
            )
        place = np.minimum((probability * bins).astype(int), bins - 1)
        for row, weights in enumerate((None, probability, truth)):
            sums[row] += np.bincount(place, weights=weights, minlength=bins)
    edges = np.linspace(0, 1, bins + 1)
    table = pd.DataFrame({"lower": edges[:-1], "upper": edges[1:], "count": sums[0].astype(int)})
    filled = table["count"].where(table["count"] > 0)  # NaN where a bin is empty
    return table.assign(promised=sums[1] / filled, observed=sums[2] / filled)


def expected_calibration_error(table):
    """Mean gap between promised and observed, each bin weighed by its count.

    Of the pixels of a rare target it is always small, since nearly all of them lie in the lowest
    bin: a prediction of nothing has an error equal to the share of the foreground. Read it
    beside the diagram, never alone.

    Args:
        table: of `reliability_table()`.

    Returns:
        `float` in [0, 1], NaN where there is no pixel.
    """
    gaps = (table["promised"] - table["observed"]).abs() * table["count"]
    return float(gaps.sum() / table["count"].sum()) if table["count"].sum() else float("nan")
