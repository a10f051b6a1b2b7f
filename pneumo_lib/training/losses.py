"""Losses, each with what an empty mask contributes.

All take `y_true` `(batch, height, width)` of 0 and 1 (any dtype) and `y_pred`
`(batch, height, width, 2)`, softmax, and compute in float32 whatever arrives. The losses return
`(batch,)`, one value per image, so that Keras' `fit()` takes them as they are.
"""

from pneumo_lib._startup import keras

import numpy as np
from keras import ops

from pneumo_lib.training.config import parse_loss


def crossentropy(y_true, y_pred):
    """Mean over the pixels of `-log p(true class)`: the loss of the report.

    An empty mask contributes like any other. As 99.7 % of all pixels are background, a network
    that predicts nothing already has a small loss.
    """
    return ops.mean(_crossentropy_of_pixels(y_true, y_pred), axis=(1, 2))


def dice(y_true, y_pred, *, smooth=0.01):
    """`1 - (2 I + s) / (T + P + s)`, soft Dice of the foreground in each image.

    `I`, `T`, `P` are the shares of the pixels (means of truth times probability, of truth, of
    probability) and `s` is `smooth`. An empty mask (`T = I = 0`) contributes `P / (P + s)`: 0
    if nothing is predicted, one half for a false positive on 1 % of the pixels, about the size of
    a typical lesion, as much as for a missed lesion of that size. With `keras.losses.Dice` (a
    smoothing of 1e-7) an empty mask has loss 1 and gradient 0.

    Reference:
        Milletari, Navab, Ahmadi (2016), V-Net, doi:10.1109/3DV.2016.79, here with plain
        instead of squared sums.
    """
    y_true, foreground = ops.cast(y_true, "float32"), ops.cast(y_pred[..., 1], "float32")
    overlap = ops.mean(y_true * foreground, axis=(1, 2))
    total = ops.mean(y_true, axis=(1, 2)) + ops.mean(foreground, axis=(1, 2))
    return 1 - (2 * overlap + smooth) / (total + smooth)


def weighted_crossentropy(y_true, y_pred, *, weight=10.0):
    """Cross-entropy in which a pneumothorax pixel counts `weight` times; the mean over all pixels.

    An empty mask contributes as in `crossentropy()`. The weight moves where a pixel is called
    foreground: probabilities of `1 / (1 + weight)` and more become one half and more. The inverse
    share of the foreground (about 300) would call most of a lung foreground; 10 is a middle course.

    Reference:
        Ronneberger, Fischer, Brox (2015), U-Net, equation 1, arXiv:1505.04597.
    """
    weights = 1 + (weight - 1) * ops.cast(y_true, "float32")
    return ops.mean(weights * _crossentropy_of_pixels(y_true, y_pred), axis=(1, 2))


def _crossentropy_of_pixels(y_true, y_pred):
    """`-log p(true class)`, `(batch, height, width)`."""
    truth, softmax = ops.cast(y_true, "int32"), ops.cast(y_pred, "float32")
    if keras.backend.backend() == "torch":  # whose `nll_loss` has no gradient by channels last
        truth, softmax = ops.reshape(truth, (-1,)), ops.reshape(softmax, (-1, 2))
    # With TensorFlow, Keras finds the logits behind a softmax, but not behind one reshaped.
    return ops.reshape(ops.sparse_categorical_crossentropy(truth, softmax), ops.shape(y_true))


def focal(y_true, y_pred, *, gamma=2.0):
    """Mean over the pixels of `-(1 - p)^gamma log p`, p the probability of the true class.

    In an empty mask a pixel with a foreground probability of 0.1 counts a hundredth of its
    cross-entropy, one with 0.9 nearly all of it.

    Reference:
        Lin et al. (2017), Focal loss, arXiv:1708.02002.
    """
    y_true, foreground = ops.cast(y_true, "float32"), ops.cast(y_pred[..., 1], "float32")
    per_row = keras.losses.binary_focal_crossentropy(y_true, foreground, gamma=gamma)
    return ops.mean(per_row, axis=1)


def tversky(y_true, y_pred, *, alpha=0.3, beta=0.7, smooth=0.005):
    """`1 - (TP + s) / (TP + alpha FP + beta FN + s)`: soft Dice that weights the two errors apart.

    `TP`, `FP`, `FN` are soft shares of the pixels, `s` is `smooth`. With both weights at one half
    it is `dice()` with twice the `smooth`. An empty mask contributes `alpha FP / (alpha FP + s)`:
    0.375 for a false positive on 1 % of the pixels, while a missed lesion of that size costs 0.58.

    Reference:
        Salehi, Erdogmus, Gholipour (2017), arXiv:1706.05721.
    """
    y_true, foreground = ops.cast(y_true, "float32"), ops.cast(y_pred[..., 1], "float32")
    tp = ops.mean(y_true * foreground, axis=(1, 2))
    fp = ops.mean((1 - y_true) * foreground, axis=(1, 2))
    fn = ops.mean(y_true * (1 - foreground), axis=(1, 2))
    return 1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)


def lovasz(y_true, y_pred):
    """Lovasz-softmax of the foreground in each image: 1 - IoU, made continuous between masks.

    For probabilities of exactly 0 and 1 it is `1 - iou`, in between the convex surrogate of it
    that lies closest. An empty mask contributes its largest foreground probability, and the
    gradient of that one pixel.

    Reference:
        Berman, Triki, Blaschko (2018), arXiv:1705.08790, equations 8 to 11.
    """
    pixels = np.prod(y_pred.shape[1:3])
    truth = ops.reshape(ops.cast(y_true, "float32"), (-1, pixels))
    errors = ops.abs(truth - ops.reshape(ops.cast(y_pred[..., 1], "float32"), (-1, pixels)))
    order = ops.argsort(-errors, axis=1)
    errors, truth = (ops.take_along_axis(values, order, axis=1) for values in (errors, truth))
    # The Jaccard loss of "these k pixels are wrong" grows with k by the weight of the k-th.
    lesion = ops.sum(truth, axis=1, keepdims=True)
    intersection = lesion - ops.cumsum(truth, axis=1)
    union = lesion + ops.cumsum(1 - truth, axis=1)
    loss = 1 - intersection / union
    weights = ops.concatenate([loss[:, :1], loss[:, 1:] - loss[:, :-1]], axis=1)
    return ops.sum(errors * ops.stop_gradient(weights), axis=1)


def crossentropy_dice(y_true, y_pred):
    """Sum of both: cross-entropy judges each pixel, Dice the lesion however small it is.

    An empty mask contributes to both terms; see there.
    """
    return crossentropy(y_true, y_pred) + dice(y_true, y_pred)


def dice_of_positives(y_true, y_pred):
    """`dice()` of an image that shows a pneumothorax; an empty mask contributes nothing.

    For sums with a loss of all images, such as "10*crossentropy+dice_of_positives". It is hardly
    smoothed, as only empty masks need that: a missed lesion on 0.2 % of the pixels costs 0.97;
    with the smoothing of `dice()` it would cost 0.17, and a network would predict too little.
    """
    positive = ops.cast(ops.any(ops.cast(y_true, "bool"), axis=(1, 2)), "float32")
    return positive * dice(y_true, y_pred, smooth=6e-5)


_LOSSES = (  # their names, in this order, are config.LOSSES
    *(crossentropy, weighted_crossentropy, focal, dice, dice_of_positives),
    *(tversky, lovasz, crossentropy_dice),
)


def get_loss(name):
    """Loss function by its name, one of `LOSSES`, or a weighted sum of them.

    Args:
        name: such as "dice" or "3*crossentropy+dice+4*focal".

    Raises:
        ValueError: if there is no loss of that name, or a weight is no positive number.
    """
    losses = {loss.__name__: loss for loss in _LOSSES}
    weighted = [(weight, losses[term]) for weight, term in parse_loss(name)]
    if weighted[0][0] == 1 and len(weighted) == 1:
        return weighted[0][1]
    return lambda y_true, y_pred: sum(weight * loss(y_true, y_pred) for weight, loss in weighted)
