"""Losses, each with what an empty mask contributes, and the sums that score an epoch.

All take `y_true` `(batch, height, width)` of 0 and 1 (any dtype) and `y_pred`
`(batch, height, width, 2)`, softmax, and compute in float32 whatever arrives. The losses return
`(batch,)`, one value per image, so that Keras' `fit()` takes them as they are.
"""

import keras
from keras import ops

from pneumo_lib.metrics import COUNTS, LOGGED_COUNTS

TRAINING_COUNTS = COUNTS + LOGGED_COUNTS
"""Names of what `training_counts()` returns, in its order."""


def crossentropy(y_true, y_pred):
    """Mean over the pixels of `-log p(true class)`: the loss of the report.

    An empty mask contributes like any other: each pixel asks for background. As 99.7 % of all
    pixels do, predicting nothing already makes this loss small.
    """
    y_pred = ops.cast(y_pred, "float32")
    per_pixel = ops.sparse_categorical_crossentropy(ops.cast(y_true, "int32"), y_pred)
    return ops.mean(per_pixel, axis=(1, 2))


def dice(y_true, y_pred, *, smooth=0.01):
    """`1 - (2 I + s) / (T + P + s)`, soft Dice of the foreground in each image.

    `I`, `T`, `P` are the shares of the pixels (means of truth times probability, of truth, of
    probability) and `s` is `smooth`. An empty mask (`T = I = 0`) contributes `P / (P + s)`: 0
    if nothing is predicted, one half for a false alarm on 1 % of the pixels, about the size of
    a typical lesion, which a missed lesion of that size costs too. So healthy lungs teach; with
    `keras.losses.Dice` (a smoothing of 1e-7) an empty mask has loss 1 and gradient 0.

    Reference:
        Milletari, Navab, Ahmadi (2016), V-Net, doi:10.1109/3DV.2016.79, here with plain
        instead of squared sums.
    """
    y_true, foreground = ops.cast(y_true, "float32"), ops.cast(y_pred[..., 1], "float32")
    overlap = ops.mean(y_true * foreground, axis=(1, 2))
    total = ops.mean(y_true, axis=(1, 2)) + ops.mean(foreground, axis=(1, 2))
    return 1 - (2 * overlap + smooth) / (total + smooth)


def crossentropy_dice(y_true, y_pred):
    """Sum of both: cross-entropy judges each pixel, Dice the lesion however small it is.

    An empty mask contributes to both terms; see there.
    """
    return crossentropy(y_true, y_pred) + dice(y_true, y_pred)


def get_loss(name):
    """Loss function by its name: "crossentropy", "dice" or "crossentropy_dice".

    Raises:
        ValueError: if there is no loss of that name.
    """
    losses = {loss.__name__: loss for loss in (crossentropy, dice, crossentropy_dice)}
    if name not in losses:
        raise ValueError(f"`loss` must be one of {list(losses)}. Received: loss={name!r}")
    return losses[name]


def fit_metrics():
    """Keras' own metrics for `compile()`, set up right for softmax output and 0/1 masks."""
    settings = {"num_classes": 2, "sparse_y_pred": False}  # False: take the larger channel
    return [
        keras.metrics.MeanIoU(**settings, name="mean_iou"),
        keras.metrics.IoU(**settings, target_class_ids=[1], name="iou"),
    ]


def training_counts(y_true, y_pred):
    """Sums over a batch from which `metrics.history_scores()` makes an epoch's scores.

    Cheap enough for each training step: a handful of sums. Add the steps up in float64 (NumPy):
    float32 counts exactly up to 16.7 million pixels, more than a batch but less than an epoch.

    Args:
        y_true: `(batch, height, width)`, any dtype, values 0 or 1.
        y_pred: `(batch, height, width, 2)`, softmax.

    Returns:
        `(7,)` float32 in the order of `TRAINING_COUNTS`: four counts of pixels at threshold
        0.5, and the sums of `metrics.saturation_counts()`.
    """
    y_true, y_pred = ops.cast(y_true, "bool"), ops.cast(y_pred, "float32")
    background, foreground = y_pred[..., 0], y_pred[..., 1]
    of_true_class = ops.where(y_true, foreground, background)
    of_other_class = ops.where(y_true, background, foreground)
    predicted = foreground >= 0.5
    conditions = (
        ops.logical_and(y_true, predicted),
        ops.logical_and(ops.logical_not(y_true), predicted),
        ops.logical_and(y_true, ops.logical_not(predicted)),
        ops.logical_not(ops.logical_or(y_true, predicted)),
        of_true_class >= 1,
        of_other_class >= 1,
    )
    sums = [ops.sum(ops.cast(condition, "float32")) for condition in conditions]
    return ops.stack([*sums, ops.sum(of_true_class)])
