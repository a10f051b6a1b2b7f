"""Operating point: numbers, chosen on validation cases, that turn probabilities into masks.

In the SIIM-ACR score one false positive pixel on a healthy image costs as much as a missed
lesion. So an image gets a mask only if enough of its pixels reach a high threshold or, where an
image-level head scored it, if that score is high; the outline is then drawn at a threshold of
its own.
"""

from typing import NamedTuple

import numpy as np

from pneumo_lib.evaluation.metrics import checked_probabilities, ratio

# Multiples of 1/128 are exact in binary: `y_pred * 128` rounded down counts how many of them a
# probability reaches, so that choosing and applying never disagree about a pixel.
_LEVELS = 128
THRESHOLDS = np.arange(1, _LEVELS) / _LEVELS
MIN_AREAS = np.concatenate([[0.0], 2.0 ** np.arange(-13, -3.5, 0.5)])  # lesions: 0.01 % to 15 %


class OperatingPoint(NamedTuple):
    """Thresholds of `apply_operating_point()`; the default is plain thresholding at 0.5."""

    top_threshold: float = 0.5
    min_area: float = 0.0  # share of the image
    bottom_threshold: float = 0.5
    min_score: float = 0.0  # image-level


def apply_operating_point(y_pred, point, *, scores=None):
    """Masks at the bottom threshold, empty where too few pixels reach the top threshold.

    Args:
        y_pred: `(n, height, width)`, float probabilities in [0, 1], or uint8, 255 times them,
            as in `probabilities.npy` of a run.
        point: `OperatingPoint`.
        scores: `(n,)` image-level scores; needed where the point has a `min_score`.

    Returns:
        `(n, height, width)` uint8 of 0 and 1: 0 in images with fewer than `min_area` of their
        pixels at `top_threshold` or above, or a score below `min_score`, else 1 where
        `y_pred >= bottom_threshold`.

    Raises:
        ValueError: if `y_pred` has another shape or values outside its range, or scores lack.
    """
    if np.ndim(y_pred) != 3:
        raise ValueError(f"`y_pred` must be (n, height, width). Received: shape {np.shape(y_pred)}")
    if scores is None and point.min_score:
        raise ValueError(f"`scores` are needed where a point has a `min_score`. Received: {point}")
    masks = np.zeros(np.shape(y_pred), np.uint8)
    called = [True] * len(masks) if scores is None else np.asarray(scores) >= point.min_score
    for mask, row in ((masks[i], y_pred[i]) for i in np.flatnonzero(called)):
        probability = _probability(row)
        above = np.count_nonzero(probability >= point.top_threshold)
        if above >= point.min_area * probability.size:
            mask[:] = probability >= point.bottom_threshold
    return masks


def choose_operating_point(y_true, y_pred, *, scores=None):
    """Operating point with the highest SIIM-ACR Dice on these cases: give validation cases only.

    Where several points share the highest score, the one nearest to their centre is taken, far
    from where the score falls off.

    Args:
        y_true: `(n, height, width)`, any dtype, values 0 or 1; n at least 1.
        y_pred: as for `apply_operating_point()`, of the shape of `y_true`.
        scores: `(n,)` image-level scores of a head; then they decide which images get a mask.

    Returns:
        `OperatingPoint`. Drawing nothing at all is one of the choices: a mask pays only where
        its probability of being right exceeds 1 / (1 + the Dice it then reaches).

    Raises:
        ValueError: if the shapes differ, there is no image, or `y_pred` is out of its range.

    Reference:
        Aimoldin (2019), first place of SIIM-ACR Pneumothorax Segmentation, "triplet scheme":
        github.com/sneddy/pneumothorax-segmentation.
    """
    if scores is not None:
        return _choose_by_score(y_true, y_pred, np.asarray(scores))
    scores = grid_scores(y_true, y_pred)
    best = np.argwhere(scores >= scores.max() - 1e-9)
    from_centre = (best - best.mean(axis=0)) / scores.shape
    top, area, bottom = best[np.argmin((from_centre**2).sum(axis=1))]
    return OperatingPoint(*map(float, (THRESHOLDS[top], MIN_AREAS[area], THRESHOLDS[bottom])))


def choose_out_of_fold(opened, data):
    """Operating point chosen on all cases outside the test part, each as predicted out of fold.

    `opened` is a list of `OpenRun`, the folds of a cross-validation, `data` the `Prepared` cases
    with none held out. ValueError: if the cases differ, or one was never held out.
    """
    rows = {name: row for row, name in enumerate(data.cases["image_id"])}
    scores, times = np.zeros(len(rows)), np.zeros(len(rows), int)
    y_pred = np.zeros(data.masks.shape, np.uint8)
    for member in opened:
        if set(member.cases["image_id"]) != set(rows):
            raise ValueError(
                "Folds must be of the same cases. Received: others in "
                f"{member.run.folder.name}, prepared by {member.data.meta['prepared_by']}"
            )
        for row in np.flatnonzero(member.cases["split"] == "validation"):
            place = rows[member.cases["image_id"][row]]
            times[place] += 1
            scores[place] += (member.cases["image_score"][row] - scores[place]) / times[place]
            change = (member.probabilities[row] - y_pred[place].astype(float)) / times[place]
            y_pred[place] = np.rint(y_pred[place] + change)
    known = np.flatnonzero(data.cases["split"] != "test")
    if missing := (times[known] == 0).sum():
        raise ValueError(
            "Folds must hold out every case once, so that all can choose the operating point. "
            f"Received: {len(opened)} runs, {missing} of {len(known)} cases never held out"
        )
    by_head = scores[known] if opened[0].run.config.get("image_head") else None
    return choose_operating_point(data.masks[known], y_pred[known], scores=by_head)


def grid_scores(y_true, y_pred):
    """SIIM-ACR Dice (`metrics.siim_dice`) of every operating point on the search grid.

    All points are scored in one matrix product over histograms of each image. Arguments and errors
    are those of `choose_operating_point()`.

    Returns:
        `(127, 20, 127)` float64 over `THRESHOLDS` (top), `MIN_AREAS`, `THRESHOLDS` (bottom);
        -inf where the bottom threshold is above the top one.
    """
    lesion, predicted, dice = _dice_by_threshold(y_true, y_pred)
    empty_mask = (lesion == 0).astype(float)  # Dice of an image whose mask stays empty
    gate = predicted[:, :, None] >= MIN_AREAS * np.prod(np.shape(y_true)[1:])  # (n, top, area)
    # Dice where the gate is open, else that of an empty mask; summed over all images at once.
    gain = np.tensordot(gate.astype(float), dice - empty_mask, axes=(0, 0))
    scores = empty_mask.mean() + gain / len(y_true)
    scores[np.broadcast_to((THRESHOLDS[:, None] < THRESHOLDS)[:, None], scores.shape)] = -np.inf
    return scores


def _choose_by_score(y_true, y_pred, scores):
    """Point without `min_area`: images in the order of their scores, cut where the sum is best."""
    lesion, _, dice = _dice_by_threshold(y_true, y_pred)
    order = np.argsort(-scores, kind="stable")
    gain = np.cumsum((dice - (lesion == 0))[order], axis=0)  # of the first 1, 2, ... images
    tied = np.append(np.diff(scores[order]) == 0, False)  # a cut cannot part equal scores
    gain[tied] = -np.inf
    gain = np.concatenate([np.zeros((1, gain.shape[1])), gain])
    count, bottom = np.unravel_index(gain.argmax(), gain.shape)
    ends = [2.0, *scores[order], 0.0]  # a cut lies midway between two images, or above all
    threshold = THRESHOLDS[bottom]
    return OperatingPoint(*map(float, (threshold, 0, threshold, np.mean(ends[count : count + 2]))))


def _dice_by_threshold(y_true, y_pred):
    """`(n, 1)` pixels of each lesion; `(n, 127)` predicted pixels and Dice at `THRESHOLDS`."""
    if np.ndim(y_true) != 3 or np.shape(y_true) != np.shape(y_pred) or not len(y_true):
        raise ValueError(
            "`y_true` and `y_pred` must both be (n, height, width), with n at least 1. "
            f"Received: shapes {np.shape(y_true)} and {np.shape(y_pred)}"
        )
    histograms = []
    for truth, row in zip(y_true, y_pred, strict=True):
        level = np.minimum(_probability(row) * _LEVELS, _LEVELS).astype(np.uint8).ravel()
        lesion = np.asarray(truth).ravel() != 0
        histograms.append([np.bincount(v, minlength=_LEVELS + 1) for v in (level, level[lesion])])
    # (2, n, 129): pixels at each level or above, and those of them in the lesion
    predicted, hits = np.cumsum(np.swapaxes(histograms, 0, 1)[..., ::-1], axis=-1)[..., ::-1]
    lesion, predicted, hits = hits[:, :1], predicted[:, 1:_LEVELS], hits[:, 1:_LEVELS]
    return lesion, predicted, ratio(2 * hits, predicted + lesion, empty_score=1.0)


def _probability(row):
    """Float probabilities of one image, which uint8 holds times 255."""
    row = np.asarray(row)
    return checked_probabilities(row / np.float32(255) if row.dtype == np.uint8 else row)
