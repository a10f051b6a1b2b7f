"""Why the mean IoU of the report's logs grows: certainty, not overlap.

`metrics.as_logged_mean_iou()` counts the values of the softmax that are exactly 1.0. Here is
what it must read when a share of the pixels is that certain, and the way back.
"""

import numpy as np

from pneumo_lib.evaluation.metrics import (
    LOGGED_COUNTS,
    checked_values,
    confusion_counts,
    dice,
    iou,
    mean_iou,
    pixel_accuracy,
    pixel_count,
    pool,
    ratio,
)


def logged_mean_iou_at(saturated):
    """Logged mean IoU of a network that is certain of a share of the pixels, and right there.

    Half of all one-hot values are 1. Where the softmax is exactly 1.0 the metric sees a 1, and
    everywhere else a 0. With a share f of the pixels certain it finds f of the ones, and all of
    the zeros among `2 - f` that it takes for zeros: `(f + 1 / (2 - f)) / 2`, whatever the masks
    look like. 0.25 for f = 0, 1 for f = 1.

    Args:
        saturated: share of the pixels that are certain, in [0, 1]; number or array.

    Returns:
        The same shape, float64 in [0.25, 1].

    Example:
        >>> [float(logged_mean_iou_at(share)) for share in (0, 1)]
        [0.25, 1.0]
    """
    saturated = np.asarray(saturated, dtype=np.float64)
    return (saturated + 1 / (2 - saturated)) / 2


def saturated_share_at(logged):
    """The share of certain pixels behind a logged mean IoU: `logged_mean_iou_at()` solved for f.

    `1 + m - sqrt((1 - m)**2 + 1)`: the report's 0.3190 needs a share of 0.109, no lesion found.

    Args:
        logged: mean IoU as logged, in [0.25, 1]; number or array.

    Returns:
        The same shape, float64 in [0, 1].

    Raises:
        ValueError: if a value lies outside [0.25, 1].
    """
    logged = np.asarray(logged, dtype=np.float64)
    if not ((logged >= 0.25) & (logged <= 1)).all():
        raise ValueError(f"`logged` must lie between 0.25 and 1. Received: {logged}")
    return 1 + logged - np.sqrt((1 - logged) ** 2 + 1)


def saturated_share(counts):
    """Share of the pixels with a softmax of exactly 1.0 on the true class.

    Args:
        counts: of `metrics.confusion_counts()` and `saturation_counts()`, per image or pooled.
    """
    pixels = counts["tp"] + counts["fp"] + counts["fn"] + counts["tn"]
    return ratio(counts[LOGGED_COUNTS[0]], pixels, empty_score=np.nan)


def sharpened(softmax, factor):
    """The softmax of a network whose last scores were multiplied: more certain, the same masks.

    Args:
        softmax: `(..., 2)` float32, as a network gives it.
        factor: above 0; below 1 it makes the network less certain.

    Returns:
        The same shape, float32. Wherever a channel led, it still leads.

    Raises:
        ValueError: if `factor` is not above 0.
    """
    if not factor > 0:
        raise ValueError(f"`factor` must be above 0. Received: factor={factor}")
    tiny = np.finfo(np.float32).tiny
    scores = np.log(np.maximum(np.asarray(softmax, dtype=np.float64), tiny))
    margin = factor * (scores[..., 1] - scores[..., 0])
    # In float64 and then rounded, as a softmax in float32 rounds what is nearly certain to 1.
    with np.errstate(over="ignore"):
        foreground = 1 / (1 + np.exp(-margin))
        background = 1 / (1 + np.exp(margin))
    return np.stack([background, foreground], axis=-1).astype(np.float32)


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
