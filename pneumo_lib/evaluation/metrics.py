"""Pixel counts of predicted masks, and the scores computed from them.

Every score is a ratio of four pixel counts, so the counts are kept per image. `counts` below is
any mapping with `tp`, `fp`, `fn`, `tn`: the dict of `confusion_counts()`, a table of scores, or
the sums of `pool()`.
"""

import numpy as np

COUNTS = ("tp", "fp", "fn", "tn")
LOGGED_COUNTS = ("saturated_right", "saturated_wrong", "true_class_probability")


def confusion_counts(y_true, y_pred, *, threshold=0.5):
    """True and false positive and negative pixels of each image.

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
        >>> {n: int(c[0]) for n, c in confusion_counts(lesion, half).items()}
        {'tp': 1, 'fp': 0, 'fn': 1, 'tn': 2}
    """
    rows = []
    for truth, probability in checked_pairs(y_true, y_pred):
        predicted = probability >= threshold
        tp = np.count_nonzero(truth & predicted)
        fp, fn = np.count_nonzero(predicted) - tp, np.count_nonzero(truth) - tp
        rows.append((tp, fp, fn, truth.size - tp - fp - fn))
    columns = np.array(rows, dtype=np.int64).reshape(-1, len(COUNTS)).T
    return dict(zip(COUNTS, columns, strict=True))


def pool(counts):
    """Sums over all images, a dict of numbers; a score of them weighs every pixel alike."""
    return {name: np.sum(counts[name]) for name in COUNTS + LOGGED_COUNTS if name in counts}


def pixel_accuracy(counts):
    """Share of the pixels that are classified correctly: near 1 wherever the target is rare."""
    return ratio(counts["tp"] + counts["tn"], pixel_count(counts))


def iou(counts, *, class_id=1, empty_score=1.0):
    """Intersection over union `tp / (tp + fp + fn)` of pneumothorax (1) or background (0).

    `empty_score`, where truth and prediction both lack the class, is as for `dice_score()`.
    Jaccard (1912), New Phytologist 11(2):37-50, doi:10.1111/j.1469-8137.1912.tb05611.x.
    """
    hits = counts[{0: "tn", 1: "tp"}[class_id]]
    return ratio(hits, hits + counts["fp"] + counts["fn"], empty_score=empty_score)


def mean_iou(counts, *, empty_score=1.0):
    """Mean of the IoU of both classes; with `nan`, the mean of the classes that occur."""
    both = np.stack([iou(counts, class_id=c, empty_score=empty_score) for c in (0, 1)])
    occurs = ~np.isnan(both)
    return ratio(np.where(occurs, both, 0).sum(axis=0), occurs.sum(axis=0))


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
    """SIIM-ACR challenge score: the mean Dice over images, two empty masks scoring 1.

    An all-background prediction scores the share of healthy images: 0.7785 on the full data set.
    """
    return float(np.mean(dice(counts, empty_score=1.0)))


def dice_score(y_true, y_pred, *, threshold=0.5, empty_score=1.0):
    """Dice similarity coefficient `2 tp / (2 tp + fp + fn)` of each image.

    Args:
        y_true, y_pred, threshold: as for `confusion_counts()`, with the same errors.
        empty_score: score of an image whose two masks are both empty: 1.0 (the SIIM-ACR rule)
            or `float("nan")` (leave the image out of `np.nanmean`).

    Returns:
        `(n,)` float32, each in [0, 1] or equal to `empty_score`.

    Reference:
        Dice (1945), Ecology 26(3):297-302, doi:10.2307/1932409.
    """
    counts = confusion_counts(y_true, y_pred, threshold=threshold)
    return dice(counts, empty_score=empty_score).astype(np.float32)


def pixel_count(counts):
    """Number of pixels, per image or pooled as `counts` are."""
    return counts["tp"] + counts["fp"] + counts["fn"] + counts["tn"]


def ratio(numerator, denominator, *, empty_score=np.nan):
    """`numerator / denominator` in float64, and `empty_score` where the denominator is 0."""
    # not np.float64(...), which NumPy 2.0 makes a scalar of an array with one element
    both = (np.asarray(values, dtype=np.float64) for values in (numerator, denominator))
    numerator, denominator = np.broadcast_arrays(*both)
    out = np.full(denominator.shape, empty_score, dtype=np.float64)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def checked_pairs(y_true, y_pred, *, channels=()):
    """Iterator over `(boolean mask, prediction)` of single images, in memory one at a time.

    A ValueError refuses any `y_true` but `(n, height, width)` of 0 and 1, and any `y_pred` but
    probabilities of that shape with `channels` appended.
    """
    if np.ndim(y_true) != 3 or np.shape(y_pred) != (*np.shape(y_true), *channels):
        axes = ", ".join(map(str, ("n", "height", "width", *channels)))
        raise ValueError(
            f"`y_true` must be (n, height, width) and `y_pred` ({axes}), with equal lengths. "
            f"Received: shapes {np.shape(y_true)} and {np.shape(y_pred)}"
        )
    for truth, prediction in zip(map(np.asarray, y_true), y_pred, strict=True):
        if not ((truth == 0) | (truth == 1)).all():
            raise ValueError(
                "`y_true` must hold 0 and 1 only. Received: values from "
                f"{truth.min()} to {truth.max()}"
            )
        yield truth != 0, checked_probabilities(prediction)


def checked_probabilities(y_pred):
    """`y_pred` as an array, or a ValueError where values lie outside [0, 1]."""
    y_pred = np.asarray(y_pred)
    # A hair above 1 is rounding; the comparison also fails for nan.
    if y_pred.size and not (y_pred.min() >= 0 and y_pred.max() <= 1.001):
        raise ValueError(
            "`y_pred` must hold probabilities in [0, 1], not logits. Received: values from "
            f"{y_pred.min()} to {y_pred.max()}"
        )
    return y_pred
