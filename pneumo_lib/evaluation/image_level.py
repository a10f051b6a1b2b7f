"""Image-level detection: a score for each whole image, ROC AUC and average precision."""

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from pneumo_lib.evaluation.metrics import checked_probabilities

TOP_SHARE = 0.001  # of the pixels: 95 % of the data set's lesions cover more (0.13 %)


def image_level_score(y_pred):
    """Image-level score of pneumothorax: the mean of the most probable pixels of each image.

    The mean is over the thousandth of the pixels with the highest probabilities, the area of
    the smallest lesions: the maximum alone would depend on one stray pixel, the mean of all
    pixels on the size of the lesion. The score ranks images; it is no calibrated probability.

    `y_pred` is `(n, height, width)`, foreground probabilities in [0, 1], or a ValueError. Returns
    `(n,)` float64 in [0, 1].
    """
    if np.ndim(y_pred) != 3 or 0 in np.shape(y_pred)[1:]:
        raise ValueError(
            "`y_pred` must be (n, height, width) with at least one pixel. "
            f"Received: shape {np.shape(y_pred)}"
        )
    scores = np.empty(len(y_pred))
    for row, probability in enumerate(y_pred):  # one image: flat memory
        pixels = checked_probabilities(probability).ravel()
        count = max(1, round(TOP_SHARE * pixels.size))
        scores[row] = np.partition(pixels, -count)[-count:].mean(dtype=np.float64)
    return np.minimum(scores, 1.0)


def image_level_scores(y_true, y_score, *, n_bootstrap=1000, seed=0, level=0.95):
    """ROC AUC and average precision of detecting pneumothorax in whole images, with intervals.

    AUC: the probability that a positive image scores higher than a healthy one; 0.5 is guessing
    whatever the share of positives. Average precision: the mean precision down the ranked list;
    guessing scores the share of positives. The intervals are the percentile bootstrap over
    images, as in `score_table()`, without resamples that lack positive or healthy images.

    Args:
        y_true: `(n,)` bool, whether the image shows a pneumothorax.
        y_score: `(n,)` float, of `image_level_score()` or any other ranking.
        n_bootstrap, seed, level: as for `score_table()`.

    Returns:
        Dict `images`, `positives`, and for `auc` and `average_precision` the score,
        `<score>_lower` and `<score>_upper`: a row for a table, which `format_table()` formats.

    Raises:
        ValueError: if the lengths differ or `y_true` lacks positive or healthy images.

    Reference:
        Hanley, McNeil (1982), Radiology 143(1):29-36, doi:10.1148/radiology.143.1.7063747.
    """
    y_true, y_score = np.asarray(y_true, dtype=bool), np.asarray(y_score, dtype=np.float64)
    if y_true.shape != y_score.shape or y_true.all() or not y_true.any():
        raise ValueError(
            "`y_true` and `y_score` must be equally long, with positive and healthy images. "
            f"Received: {y_true.size} and {y_score.size}, of them {y_true.sum()} positive"
        )
    draws = np.random.default_rng(seed).integers(len(y_true), size=(n_bootstrap, len(y_true)))
    usable = [rows for rows in draws if 0 < y_true[rows].sum() < len(rows)]
    row = {"images": len(y_true), "positives": int(y_true.sum())}
    scores = {"auc": roc_auc_score, "average_precision": average_precision_score}
    for name, score in scores.items():
        resampled = [score(y_true[rows], y_score[rows]) for rows in usable]
        bounds = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
        values = map(float, (score(y_true, y_score), *bounds))
        row |= dict(zip((name, f"{name}_lower", f"{name}_upper"), values, strict=True))
    return row
