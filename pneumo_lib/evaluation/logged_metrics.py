"""Mean IoU and Dice as the report logged them, and why they grow without better masks.

Both are computed on the softmax, so a network that grows more sure of the same masks gains.
"""

import numpy as np
from scipy.special import expit

from pneumo_lib.evaluation import metrics

_LOG = (("loss", 1), ("accuracy", 1), ("logged_mean_iou", 1), ("logged_dice", -1))  # with its sign
_IN_LOG = {"logged_mean_iou": "mean_io_u", "logged_dice": "dice"}  # names that differ there


def saturation_counts(y_true, y_pred):
    """Sums that determine the logged metrics, for each image; they may be pooled.

    Args:
        y_true: `(n, height, width)`, any dtype, values 0 or 1.
        y_pred: `(n, height, width, 2)`, softmax; channel 1 is pneumothorax.

    Returns:
        Dict of `(n,)` arrays: `saturated_right` and `saturated_wrong` (int64), the elements of
        the softmax at 1.0 or rounded above whose one-hot truth is 1 or 0, and
        `true_class_probability` (float64), the sum of the probabilities of the true class.

    Raises:
        ValueError: if the shapes do not belong together, or values lie outside the ranges.
    """
    rows = []
    for truth, softmax in metrics.checked_pairs(y_true, y_pred, channels=(2,)):
        of_true_class = np.where(truth, softmax[..., 1], softmax[..., 0])
        right = np.count_nonzero(of_true_class >= 1)
        wrong = np.count_nonzero(softmax >= 1) - right
        rows.append((right, wrong, of_true_class.sum(dtype=np.float64)))
    kinds = zip(metrics.LOGGED_COUNTS, (np.int64, np.int64, np.float64), strict=True)
    table = np.array(rows, dtype=list(kinds))
    return {name: table[name] for name in metrics.LOGGED_COUNTS}


def logged_mean_iou(counts):
    """`as_logged_mean_iou()` from the counts of `confusion_counts()` and `saturation_counts()`."""
    right, wrong = counts["saturated_right"], counts["saturated_wrong"]
    pixels = metrics.pixel_count(counts)
    # Of 2 * pixels one-hot elements half are 1; all that are not saturated were "predicted" 0.
    ones = metrics.ratio(right, pixels + wrong)
    zeros = metrics.ratio(pixels - wrong, 2 * pixels - right)
    return (ones + zeros) / 2


def logged_dice(counts):
    """`as_logged_dice()` from the counts of `confusion_counts()` and `saturation_counts()`."""
    return metrics.ratio(counts["true_class_probability"], metrics.pixel_count(counts))


def as_logged_mean_iou(y_true, y_pred):
    """Mean IoU as the report logged it: a measure of saturation, not of segmentation.

    `keras.metrics.MeanIoU(num_classes=2)` on one-hot truth and softmax output casts the softmax
    to integers, so everything below exactly 1.0 counts as class 0: 0.25 for every network that
    is not saturated, even a perfect one. Kept to reproduce the report; use `mean_iou()`.

    `y_true` and `y_pred` are as for `saturation_counts()`; the `float` is pooled over all images.
    """
    return float(logged_mean_iou(_pooled_counts(y_true, y_pred)))


def as_logged_dice(y_true, y_pred):
    """Dice as the report logged it: over both one-hot channels, background included.

    `2 sum(t p) / (sum(t) + sum(p))` over both channels. One-hot truth and softmax each sum to
    the number of pixels, so this is the mean probability of the true class: 0.98 and more for a
    prediction that finds nothing. The report's log shows the negative (`dice: -0.9764`), as
    such code is written to serve as a loss; this returns the positive number.

    `y_true` and `y_pred` are as for `saturation_counts()`; the `float` is pooled over all images.
    """
    return float(logged_dice(_pooled_counts(y_true, y_pred)))


def _pooled_counts(y_true, y_pred):
    counts = metrics.confusion_counts(y_true, y_pred[..., 1])
    return metrics.pool(counts | saturation_counts(y_true, y_pred))


def history_scores(sums):
    """One epoch's columns of history.csv, from pooled counts."""
    scores = {
        "accuracy": metrics.pixel_accuracy(sums),
        "mean_iou": metrics.mean_iou(sums, empty_score=np.nan),
        "iou": metrics.iou(sums, empty_score=np.nan),
        "dice": metrics.dice(sums, empty_score=np.nan),
        "logged_mean_iou": logged_mean_iou(sums),
        "logged_dice": logged_dice(sums),
    }
    return {name: float(score) for name, score in scores.items()}


def saturated_share(counts):
    """Share of the pixels with a softmax of exactly 1.0 on the true class."""
    return metrics.ratio(counts["saturated_right"], metrics.pixel_count(counts))


def logged_mean_iou_at(saturated):
    """Logged mean IoU of a network that is saturated, and right, on a share of the pixels.

    The metric reads a softmax of exactly 1.0 as 1 and everything else as 0, and half of all
    one-hot values are 1. With a share f of the pixels saturated it finds f of the ones, and all
    zeros among the `2 - f` values read as 0: `(f + 1 / (2 - f)) / 2`, whatever the masks.

    `saturated` is a share in [0, 1], number or array; the result is float64 in [0.25, 1].
    """
    saturated = np.asarray(saturated, dtype=np.float64)
    return (saturated + 1 / (2 - saturated)) / 2


def saturated_share_at(logged):
    """Share of saturated pixels behind a logged mean IoU, the inverse of `logged_mean_iou_at()`.

    `1 + m - sqrt((1 - m)**2 + 1)`: the report's 0.3190 needs a share of 0.109, no lesion found.

    `logged` is a number or array in [0.25, 1], or a ValueError; the result is float64 in [0, 1].
    """
    logged = np.asarray(logged, dtype=np.float64)
    if not ((logged >= 0.25) & (logged <= 1)).all():
        raise ValueError(f"`logged` must lie between 0.25 and 1. Received: {logged}")
    return 1 + logged - np.sqrt((1 - logged) ** 2 + 1)


def sharpened(softmax, factor):
    """Softmax with its logits multiplied by `factor`: higher confidence, the same masks.

    `softmax` and the result are `(..., 2)` float32. `factor` is above 0, or a ValueError; below 1
    it lowers the confidence.
    """
    if not factor > 0:
        raise ValueError(f"`factor` must be above 0. Received: factor={factor}")
    tiny = np.finfo(np.float32).tiny
    logits = np.log(np.maximum(np.asarray(softmax, dtype=np.float64), tiny))
    margin = factor * np.diff(logits, axis=-1)
    # In float64 and then rounded, as a softmax in float32 rounds values near 1 to 1.
    return expit(np.concatenate([-margin, margin], axis=-1)).astype(np.float32)


def log_line(run, epoch):
    """The line of Keras' log after `epoch`, counted from 1, of a `Run`, as the report showed it."""
    row = run.history.set_index("epoch").loc[epoch]
    cases = run.scores.drop_duplicates("image_id")
    steps = -(-(cases["split"] == "train").sum() // run.config["batch_size"])
    seconds = row["seconds"]
    values = [
        f"{prefix}{_IN_LOG.get(column, column)}: {sign * row[prefix + column]:.4f}"
        for prefix in ("", "val_")
        for column, sign in _LOG
        if prefix + column in row
    ]
    start = f"{steps}/{steps} - {seconds:.0f}s {1000 * seconds / steps:.0f}ms/step"
    return " - ".join([start, *values])
