"""From masks to counts of pixels, and from counts to scores.

Every score is a ratio of four counts of pixels, so the counts are kept per image and everything
else follows: `counts` below is any mapping with `tp`, `fp`, `fn`, `tn` (the dict of
`confusion_counts()`, a table of scores, or the sums that `pool()` returns).
"""

import numpy as np

EVIDENCE_SHARE = 0.001  # of the pixels: 95 % of the data set's lesions cover more (0.13 %)
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


# --- The two metrics as the report logged them -------------------------------------------------


def saturation_counts(y_true, y_pred):
    """What the logged metrics depend on, for each image: sums that may be pooled.

    Args:
        y_true: `(n, height, width)`, any dtype, values 0 or 1.
        y_pred: `(n, height, width, 2)`, softmax; channel 1 is pneumothorax.

    Returns:
        Dict of `(n,)` arrays. `saturated_right` and `saturated_wrong`: elements of the softmax
        at 1.0 (or rounded above) whose one-hot truth is 1 or 0 (int64).
        `true_class_probability`: sum over the pixels of the probability of the true class
        (float64).

    Raises:
        ValueError: if the shapes do not belong together, or values lie outside the ranges.
    """
    if np.ndim(y_true) != 3 or np.shape(y_pred) != (*np.shape(y_true), 2):
        raise ValueError(
            "`y_true` must be (n, height, width) and `y_pred` (n, height, width, 2). "
            f"Received: shapes {np.shape(y_true)} and {np.shape(y_pred)}"
        )
    rows = []
    for truth, softmax in zip(y_true, y_pred, strict=True):
        truth, softmax = checked_values(truth, "y_true"), checked_values(softmax, "y_pred")
        of_true_class = np.where(truth, softmax[..., 1], softmax[..., 0])
        right = np.count_nonzero(of_true_class >= 1)
        wrong = np.count_nonzero(softmax >= 1) - right
        rows.append((right, wrong, of_true_class.sum(dtype=np.float64)))
    right, wrong, probability = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    values = right.astype(np.int64), wrong.astype(np.int64), probability
    return dict(zip(LOGGED_COUNTS, values, strict=True))


def logged_mean_iou(counts):
    """`as_logged_mean_iou()` from the counts of `confusion_counts()` and `saturation_counts()`."""
    right, wrong, pixels = counts["saturated_right"], counts["saturated_wrong"], pixel_count(counts)
    # Of 2 * pixels one-hot elements half are 1; all that are not saturated were "predicted" 0.
    ones = ratio(right, pixels + wrong, empty_score=np.nan)
    zeros = ratio(pixels - wrong, 2 * pixels - right, empty_score=np.nan)
    return (ones + zeros) / 2


def as_logged_mean_iou(y_true, y_pred):
    """Mean IoU as the report logged it: a measure of saturation, not of segmentation.

    `keras.metrics.MeanIoU(num_classes=2)` on one-hot truth and softmax output turns the softmax
    to integers, so everything below exactly 1.0 counts as class 0: 0.25 for every network that
    is not saturated, even a perfect one. Kept to reproduce the report; use `mean_iou()`.

    Args:
        y_true: `(n, height, width)`, any dtype, values 0 or 1.
        y_pred: `(n, height, width, 2)`, softmax.

    Returns:
        `float`, pooled over all images.
    """
    counts = confusion_counts(y_true, y_pred[..., 1]) | saturation_counts(y_true, y_pred)
    return float(logged_mean_iou(pool(counts)))


def logged_dice(counts):
    """`as_logged_dice()` from the counts of `confusion_counts()` and `saturation_counts()`."""
    return ratio(counts["true_class_probability"], pixel_count(counts), empty_score=np.nan)


def as_logged_dice(y_true, y_pred):
    """Dice as the report logged it: over both one-hot channels, background included.

    `2 sum(t p) / (sum(t) + sum(p))` over both channels. One-hot truth and softmax each sum to
    the number of pixels, so this is the mean probability given to the true class: 0.98 and more
    for a prediction that finds nothing. The report's log shows the negative (`dice: -0.9764`),
    as such code is written to serve as a loss; this returns the positive number.

    Args:
        y_true: `(n, height, width)`, any dtype, values 0 or 1.
        y_pred: `(n, height, width, 2)`, softmax.

    Returns:
        `float` in [0, 1].
    """
    counts = confusion_counts(y_true, y_pred[..., 1]) | saturation_counts(y_true, y_pred)
    return float(logged_dice(pool(counts)))


def history_scores(sums):
    """One epoch's columns of history.csv, from pooled counts (see `losses.training_counts`)."""
    return {
        "accuracy": float(pixel_accuracy(sums)),
        "mean_iou": float(mean_iou(sums, empty_score=np.nan)),
        "iou": float(iou(sums, empty_score=np.nan)),
        "dice": float(dice(sums, empty_score=np.nan)),
        "logged_mean_iou": float(logged_mean_iou(sums)),
        "logged_dice": float(logged_dice(sums)),
    }


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
