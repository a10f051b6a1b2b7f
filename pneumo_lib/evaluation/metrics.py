"""From masks to counts of pixels, and from counts to scores.

Every score is a ratio of four counts of pixels, so the counts are kept per image and everything
else follows: `counts` below is any mapping with `tp`, `fp`, `fn`, `tn` (the dict of
`confusion_counts()`, a table of scores, or the sums that `pool()` returns).
"""

import numpy as np

COUNTS = ("tp", "fp", "fn", "tn")
LOGGED_COUNTS = ("saturated_right", "saturated_wrong", "true_class_probability")


def confusion_counts(y_true, y_pred, *, threshold=0.5):
    """Four counts of pixels for each image: true/false positives and negatives.

    Args:
        y_true: `(n, height, width)`, any dtype, values 0 or 1.
        y_pred: same shape, probabilities in [0, 1] (not logits), or masks of 0 and 1.
        threshold: a pixel is foreground where `y_pred >= threshold`.

    Returns:
        Dict of `(n,)` int64 arrays `tp`, `fp`, `fn`, `tn`; they sum to the pixels of an image.

    Raises:
        ValueError: if the shapes differ, or values lie outside the ranges above.

    Example:
        >>> lesion = np.array([[[1, 1], [0, 0]]])
        >>> half = np.array([[[0.9, 0.2], [0.1, 0.3]]])
        >>> {name: int(count[0]) for name, count in confusion_counts(lesion, half).items()}
        {'tp': 1, 'fp': 0, 'fn': 1, 'tn': 2}
    """
    if np.ndim(y_true) != 3 or np.shape(y_true) != np.shape(y_pred):
        raise ValueError(
            "`y_true` and `y_pred` must both be (n, height, width). "
            f"Received: shapes {np.shape(y_true)} and {np.shape(y_pred)}"
        )
    rows = []
    for truth, probability in zip(y_true, y_pred, strict=True):  # one image: flat memory
        truth = checked_values(truth, "y_true")
        predicted = checked_values(probability, "y_pred") >= threshold
        tp = np.count_nonzero(truth & predicted)
        fp, fn = np.count_nonzero(predicted) - tp, np.count_nonzero(truth) - tp
        rows.append((tp, fp, fn, truth.size - tp - fp - fn))
    columns = np.array(rows, dtype=np.int64).reshape(-1, len(COUNTS)).T
    return dict(zip(COUNTS, columns, strict=True))


def pool(counts):
    """Sums over all images, as a dict of numbers: scores of them weigh every pixel alike."""
    return {name: np.sum(counts[name]) for name in COUNTS + LOGGED_COUNTS if name in counts}


def pixel_accuracy(counts):
    """Share of the pixels that are right: always near 1 where the target is rare."""
    return ratio(counts["tp"] + counts["tn"], pixel_count(counts), empty_score=np.nan)


def iou(counts, *, class_id=1, empty_score=1.0):
    """Intersection over union (Jaccard, 1912) of pneumothorax (1) or background (0).

    `tp / (tp + fp + fn)`; `empty_score` where truth and prediction both lack the class:
    1.0 (the SIIM-ACR rule) or `nan` (leave it out of `np.nanmean`).

    Reference:
        Jaccard (1912), New Phytologist 11(2):37-50, doi:10.1111/j.1469-8137.1912.tb05611.x.
    """
    hits = counts[{0: "tn", 1: "tp"}[class_id]]
    return ratio(hits, hits + counts["fp"] + counts["fn"], empty_score=empty_score)


def mean_iou(counts, *, empty_score=1.0):
    """Mean of the IoU of both classes; with `nan`, the mean of the classes that occur."""
    both = np.stack([iou(counts, class_id=c, empty_score=empty_score) for c in (0, 1)])
    occurs = ~np.isnan(both)
    return ratio(np.where(occurs, both, 0).sum(axis=0), occurs.sum(axis=0), empty_score=np.nan)


def dice(counts, *, empty_score=1.0):
    """Dice similarity coefficient `2 tp / (2 tp + fp + fn)`; see `dice_score()`."""
    twice = 2 * counts["tp"]
    return ratio(twice, twice + counts["fp"] + counts["fn"], empty_score=empty_score)


def sensitivity(counts, *, empty_score=np.nan):
    """Share of the lesion that was found; `empty_score` where there is no lesion."""
    return ratio(counts["tp"], counts["tp"] + counts["fn"], empty_score=empty_score)


def precision(counts, *, empty_score=np.nan):
    """Share of the prediction that is lesion; `empty_score` where nothing was predicted."""
    return ratio(counts["tp"], counts["tp"] + counts["fp"], empty_score=empty_score)


def siim_dice(counts):
    """Score of the SIIM-ACR challenge: mean Dice over images, two empty masks scoring 1.

    Predicting nothing at all scores the share of healthy images: 0.7785 on the full data set.
    """
    return float(np.mean(dice(counts, empty_score=1.0)))


def dice_score(y_true, y_pred, *, threshold=0.5, empty_score=1.0):
    """Dice similarity coefficient of each image in a batch.

    `2 * tp / (2 * tp + fp + fn)`, with the counts of `confusion_counts()`.

    Args:
        y_true: `(batch, height, width)`, any dtype, values 0 or 1.
        y_pred: same shape, float, probabilities in [0, 1] (not logits).
        threshold: a pixel is foreground where `y_pred >= threshold`.
        empty_score: score of an image whose two masks are both empty: 1.0
            (the SIIM-ACR rule) or `float("nan")` (leave it out of `np.nanmean`).

    Returns:
        `(batch,)` float32, each in [0, 1] or equal to `empty_score`.

    Raises:
        ValueError: as `confusion_counts()`.

    Example:
        >>> lesion = np.array([[[1, 1], [0, 0]]])
        >>> half = np.array([[[1.0, 0.0], [0.0, 0.0]]])
        >>> round(float(dice_score(lesion, half)[0]), 3)  # tp=1, fp=0, fn=1
        0.667

    Reference:
        Dice (1945), Ecology 26(3):297-302, doi:10.2307/1932409.
    """
    counts = confusion_counts(y_true, y_pred, threshold=threshold)
    return dice(counts, empty_score=empty_score).astype(np.float32)


def pixel_count(counts):
    return counts["tp"] + counts["fp"] + counts["fn"] + counts["tn"]


def ratio(numerator, denominator, *, empty_score):
    """`numerator / denominator` in float64, and `empty_score` where the denominator is 0."""
    # not np.float64(...), which NumPy 2.0 makes a scalar of an array with one element
    both = (np.asarray(values, dtype=np.float64) for values in (numerator, denominator))
    numerator, denominator = np.broadcast_arrays(*both)
    out = np.full(denominator.shape, empty_score, dtype=np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def checked_values(values, name):
    """`values` as booleans (`y_true`) or as they are (`y_pred`), refused outside their range."""
    values = np.asarray(values)
    if name == "y_true":
        if not ((values == 0) | (values == 1)).all():
            raise ValueError(
                "`y_true` must hold 0 and 1 only. Received: values from "
                f"{values.min()} to {values.max()}"
            )
        return values != 0
    # A hair above 1 is rounding; the comparison also fails for nan.
    if values.size and not (values.min() >= 0 and values.max() <= 1.001):
        raise ValueError(
            "`y_pred` must hold probabilities in [0, 1], not logits. Received: values from "
            f"{values.min()} to {values.max()}"
        )
    return values
