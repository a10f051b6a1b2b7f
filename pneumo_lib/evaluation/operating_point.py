"""Operating point: from probabilities to masks by three numbers chosen on validation cases.

A network that is right about most pixels still draws a few on healthy lungs, and in the SIIM-ACR
score one false pixel on a healthy image costs as much as a missed lung. So an image must first
earn its mask: enough pixels must be quite sure. Only then is the outline drawn, at a threshold
of its own.
"""

from typing import NamedTuple

import numpy as np

# Multiples of 1/128 are exact in binary: `y_pred * 128` rounded down counts how many of them a
# probability reaches, so that choosing and applying never disagree about a pixel.
_LEVELS = 128
THRESHOLDS = np.arange(1, _LEVELS) / _LEVELS
MIN_AREAS = np.concatenate([[0.0], 2.0 ** np.arange(-13, -3.5, 0.5)])  # lesions: 0.01 % to 15 %


class OperatingPoint(NamedTuple):
    """How masks are cut, see `apply_operating_point()`; the default is plain thresholding."""

    top_threshold: float = 0.5
    min_area: float = 0.0  # share of the image
    bottom_threshold: float = 0.5


def apply_operating_point(y_pred, point):
    """Masks: empty where too few pixels are sure, else all pixels that are sure enough.

    Args:
        y_pred: `(n, height, width)`, float probabilities in [0, 1], or uint8, 255 times them,
            as in `probabilities.npy` of a run.
        point: `OperatingPoint`.

    Returns:
        `(n, height, width)` uint8 of 0 and 1: 0 in images with fewer than `min_area` of their
        pixels at `top_threshold` or above, else 1 where `y_pred >= bottom_threshold`.

    Raises:
        ValueError: if `y_pred` has another shape or values outside its range.
    """
    _check_batch(y_pred)
    masks = np.zeros(np.shape(y_pred), np.uint8)
    for mask, row in zip(masks, y_pred, strict=True):
        probability = _probability(row)
        sure = np.count_nonzero(probability >= point.top_threshold)
        if sure >= point.min_area * probability.size:
            mask[:] = probability >= point.bottom_threshold
    return masks


def choose_operating_point(y_true, y_pred):
    """The triplet with the highest SIIM-ACR Dice on these images: give validation cases only.

    Every triplet of a grid is scored, 127 x 20 x 127 of them with `bottom_threshold` no higher
    than `top_threshold`: from histograms of each image, in one matrix product. The score is that of
    `metrics.siim_dice()`. Where several triplets score best, the one nearest to the centre of
    them all is taken: far from where the score falls off.

    Args:
        y_true: `(n, height, width)`, any dtype, values 0 or 1; n at least 1.
        y_pred: as for `apply_operating_point()`, of the shape of `y_true`.

    Returns:
        `OperatingPoint`.

    Raises:
        ValueError: if the shapes differ, there is no image, or `y_pred` is out of its range.

    Reference:
        Aimoldin (2019), first place of SIIM-ACR Pneumothorax Segmentation, "triplet scheme":
        github.com/sneddy/pneumothorax-segmentation.
    """
    scores = grid_scores(y_true, y_pred)
    best = np.argwhere(scores >= scores.max() - 1e-9)
    from_centre = (best - best.mean(axis=0)) / scores.shape
    top, area, bottom = best[np.argmin((from_centre**2).sum(axis=1))]
    return OperatingPoint(*map(float, (THRESHOLDS[top], MIN_AREAS[area], THRESHOLDS[bottom])))


def grid_scores(y_true, y_pred):
    """SIIM-ACR Dice of every triplet.

    Args:
        y_true, y_pred: as for `choose_operating_point()`.

    Returns:
        `(127, 20, 127)` float64 over `THRESHOLDS` (top), `MIN_AREAS`, `THRESHOLDS` (bottom);
        -inf where the bottom threshold is above the top one.

    Raises:
        ValueError: as `choose_operating_point()`.
    """
    if np.shape(y_true) != np.shape(y_pred) or not len(y_true):
        raise ValueError(
            "`y_true` and `y_pred` must both be (n, height, width), with n at least 1. "
            f"Received: shapes {np.shape(y_true)} and {np.shape(y_pred)}"
        )
    _check_batch(y_pred)
    predicted, hits, lesion = _areas(y_true, y_pred)
    total = predicted + lesion[:, None]
    dice = np.divide(2 * hits, total, out=np.ones(total.shape), where=total > 0)
    empty_mask = (lesion == 0).astype(float)  # what an image scores that keeps no pixel
    pixels = np.prod(np.shape(y_true)[1:])
    open_gate = predicted[:, :, None] >= MIN_AREAS * pixels  # (n, top thresholds, areas)
    # Dice where the gate is open, else that of an empty mask; summed over all images at once.
    gain = np.tensordot(open_gate.astype(float), dice - empty_mask[:, None], axes=(0, 0))
    scores = empty_mask.mean() + gain / len(y_true)
    scores[np.broadcast_to((THRESHOLDS[:, None] < THRESHOLDS)[:, None], scores.shape)] = -np.inf
    return scores


def _areas(y_true, y_pred):
    """Pixels at each threshold or above, those of them in the lesion, and the lesion's own.

    Two `(n, 127)` arrays and one `(n,)`, float64.
    """
    rows = []
    for truth, row in zip(y_true, y_pred, strict=True):
        level = np.minimum(_probability(row) * _LEVELS, _LEVELS).astype(np.uint8).ravel()
        truth = np.asarray(truth).ravel() != 0
        counts = [np.bincount(v, minlength=_LEVELS + 1) for v in (level, level[truth])]
        at_least = np.cumsum(np.array(counts)[:, ::-1], axis=1)[:, ::-1]
        rows.append((*at_least[:, 1:_LEVELS], np.count_nonzero(truth)))
    predicted, hits, lesion = zip(*rows, strict=True)
    return np.array(predicted, float), np.array(hits, float), np.array(lesion, float)


def _probability(row):
    """One image as float probabilities."""
    row = np.asarray(row)
    row = row / np.float32(255) if row.dtype == np.uint8 else row
    if not (row.min() >= 0 and row.max() <= 1.001):  # also fails for nan
        raise ValueError(
            "`y_pred` must hold probabilities in [0, 1], or 255 times them as uint8. "
            f"Received: {row.dtype} from {row.min()} to {row.max()}"
        )
    return row


def _check_batch(y_pred):
    if np.ndim(y_pred) != 3:
        raise ValueError(f"`y_pred` must be (n, height, width). Received: shape {np.shape(y_pred)}")
