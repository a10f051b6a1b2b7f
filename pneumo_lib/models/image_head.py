"""Image-level head: the probability that a whole X-ray shows a pneumothorax, from frozen features.

A decoder is trained to outline lesions, not to tell whether there is one. This head is: a logistic
regression on the means of each channel of the taps over the cells of a grid. A pneumothorax is
nearly always on one side, so differences between left and right are among them.
"""

from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from pneumo_lib.models.fcn import unpack

_BATCH = 8  # images whose features are pooled at a time
_GRID = 4  # cells in height and in width
_PENALTY = 1000.0  # thousands of statistics, a few hundred images


class ImageHead(NamedTuple):
    """Logistic regressions on `pool_taps()`, whose probabilities are averaged: k of them, m inputs.

    `fit_image_head()` gives one, an ensemble has one per member.
    """

    mean: np.ndarray  # (k, m) float32, of the inputs
    scale: np.ndarray  # (k, m) float32, their standard deviations
    weights: np.ndarray  # (k, m) float32, of the standardised inputs
    bias: np.ndarray  # (k,) float32

    def __call__(self, statistics):
        """`(n, m)` statistics -> `(n,)` float64 probabilities of pneumothorax."""
        standardised = (statistics[:, None] - self.mean) / self.scale
        logits = (standardised * self.weights).sum(axis=-1, dtype=np.float64) + self.bias
        return (1 / (1 + np.exp(-logits))).mean(axis=1)


def pool_taps(taps):
    """Statistics of each channel of feature maps: input of the image-level head.

    Means over the cells of a grid of 4 x 4, and of each cell with its mirror cell on the other
    side of the chest, their mean and absolute difference; docs/real_xrays.md compares others.

    Args:
        taps: list of `(n, height, width, channels)` arrays, see `fcn.tap_shapes()`.

    Returns:
        `(n, 16 * channels of all taps)` float32.
    """
    return np.concatenate([_pool(np.asarray(tap, np.float32)) for tap in taps], axis=1)


def image_statistics(shapes, *views):
    """`pool_taps()` of features of `fcn.split_fcn()`: means over the image and its mirror image.

    Args:
        shapes: of the taps, see `fcn.tap_shapes()`.
        *views: `(n, ...)` features of the images, and of the mirrored images; n at least 1.
    """
    steps = range(0, len(views[0]), _BATCH)
    steps = tqdm(steps, desc="image-level head", delay=1, leave=False)
    batches = ([np.asarray(view[first : first + _BATCH]) for view in views] for first in steps)
    pooled = ([pool_taps(unpack(view, shapes)) for view in batch] for batch in batches)
    return np.concatenate([np.mean(each, axis=0) for each in pooled])


def _pool(tap):
    _, height, width, _ = tap.shape
    # as `keras.ops.adaptive_average_pool()`, which takes ten times as long
    cells = [[tap[:, r, c].mean(axis=(1, 2)) for c in _parts(width)] for r in _parts(height)]
    cells = np.moveaxis(np.array(cells), 2, 0)  # (n, rows, columns, channels)
    left, right = (view[:, :, : _GRID // 2] for view in (cells, cells[:, :, ::-1]))
    pairs = np.stack([(left + right) / 2, np.abs(left - right)], axis=1)
    return pairs.reshape(len(tap), -1)


def _parts(length):
    """Slices of equal parts; they overlap where the length is no multiple of their number."""
    return [slice(n * length // _GRID, -(-(n + 1) * length // _GRID)) for n in range(_GRID)]


def fit_image_head(statistics, positive):
    """`ImageHead` of training images.

    Args:
        statistics: `(n, m)` float, of `pool_taps()`.
        positive: `(n,)` bool, whether an image shows a pneumothorax; both kinds must occur.
    """
    from sklearn.linear_model import LogisticRegression

    mean, scale = statistics.mean(axis=0), statistics.std(axis=0)
    scale[scale == 0] = 1  # a silent channel
    model = LogisticRegression(C=1 / _PENALTY, max_iter=1000)
    model.fit((statistics - mean) / scale, positive)
    arrays = (mean[None], scale[None], model.coef_, model.intercept_)
    return ImageHead(*(np.asarray(array, np.float32) for array in arrays))
