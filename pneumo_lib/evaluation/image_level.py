"""Questions about the whole image, and whether a probability means what it says."""

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from pneumo_lib.evaluation.metrics import checked_values


def image_level_scores(y_true, evidence, *, n_bootstrap=1000, seed=0, level=0.95):
    """ROC AUC and average precision of "does this image show a pneumothorax?", with intervals.

    AUC: the chance that a positive image has more evidence than a healthy one; 0.5 is guessing,
    whatever the share of positives. Average precision: how pure the list of suspects is, from
    the top down; guessing scores the share of positives. Percentile bootstrap over images, as
    in `score_table()`; resamples without both kinds of image are left out.

    Args:
        y_true: `(n,)` bool, whether the image shows a pneumothorax.
        evidence: `(n,)` float, of `image_level.image_evidence()` or any other order.
        n_bootstrap: resamples.
        seed: of the resamples.
        level: share of the resamples inside the interval.

    Returns:
        Dict `images`, `positives`, and for `auc` and `average_precision` the score, `<score>_lower`
        and `<score>_upper`: a row for a table, which `format_table()` formats.

    Raises:
        ValueError: if the lengths differ or `y_true` lacks one of the two kinds.

    Reference:
        Hanley, McNeil (1982), Radiology 143(1):29-36, doi:10.1148/radiology.143.1.7063747.
    """
    y_true, evidence = np.asarray(y_true, dtype=bool), np.asarray(evidence, dtype=np.float64)
    if y_true.shape != evidence.shape or y_true.all() or not y_true.any():
        raise ValueError(
            "`y_true` and `evidence` must be equally long, with positive and healthy images. "
            f"Received: {y_true.size} and {evidence.size}, of them {y_true.sum()} positive"
        )
    scores = {"auc": roc_auc_score, "average_precision": average_precision_score}
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(y_true), size=(n_bootstrap, len(y_true)))
    usable = [rows for rows in draws if 0 < y_true[rows].sum() < len(rows)]
    row = {"images": len(y_true), "positives": int(y_true.sum())}
    for name, score in scores.items():
        resampled = [score(y_true[rows], evidence[rows]) for rows in usable]
        lower, upper = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
        found = float(score(y_true, evidence))
        row |= {name: found, f"{name}_lower": float(lower), f"{name}_upper": float(upper)}
    return row


EVIDENCE_SHARE = 0.001  # of the pixels: 95 % of the data set's lesions cover more (0.13 %)


def image_evidence(y_pred):
    """Evidence of pneumothorax in each whole image: the mean of its most probable pixels.

    Averaged over the thousandth of the pixels with the highest probabilities, the area of the
    smallest lesions: the maximum alone would be ruled by one stray pixel, the mean of all
    pixels by the size of the lesion. It orders images, for ROC and sorting; it is no probability
    that has been calibrated.

    Args:
        y_pred: `(n, height, width)`, foreground probabilities in [0, 1].

    Returns:
        `(n,)` float64 in [0, 1].

    Raises:
        ValueError: if the shape is another, or values lie outside the range.

    Example:
        >>> faint, spot = np.full((10, 20), 0.25), np.zeros((10, 20))
        >>> spot[4, 4] = 0.75
        >>> image_evidence([faint, spot]).tolist()  # a thousandth of 200 pixels: the highest one
        [0.25, 0.75]
    """
    if np.ndim(y_pred) != 3 or 0 in np.shape(y_pred)[1:]:
        raise ValueError(
            "`y_pred` must be (n, height, width) with at least one pixel. "
            f"Received: shape {np.shape(y_pred)}"
        )
    evidence = np.empty(len(y_pred))
    for row, probability in enumerate(y_pred):  # one image: flat memory
        pixels = checked_values(probability, "y_pred").ravel()
        count = max(1, round(EVIDENCE_SHARE * pixels.size))
        evidence[row] = np.partition(pixels, -count)[-count:].mean(dtype=np.float64)
    return np.minimum(evidence, 1.0)
