"""Why the mean IoU of the report's logs grows: certainty, not overlap.

`metrics.as_logged_mean_iou()` counts the values of the softmax that are exactly 1.0. Here is
what it must read when a share of the pixels is that certain, and the way back.
"""

import numpy as np

from pneumo_lib.metrics import LOGGED_COUNTS, ratio


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
