"""The scores of an epoch as one Keras metric: right ones, and the two as the report logged them."""

from pneumo_lib._startup import keras

from keras import ops

from pneumo_lib.evaluation.metrics import COUNTS, LOGGED_COUNTS

TRAINING_COUNTS = COUNTS + LOGGED_COUNTS
"""Names of what `training_counts()` returns, in its order."""
SCORES = ("accuracy", "mean_iou", "iou", "dice", "logged_mean_iou", "logged_dice")
"""Names of what `SegmentationScores` returns, columns of history.csv."""
_CARRY = 2.0**20


def training_counts(y_true, y_pred, sample_weight=None):
    """Sums over a batch that determine the scores of an epoch.

    Args:
        y_true: `(batch, height, width)`, any dtype, values 0 or 1.
        y_pred: `(batch, height, width, 2)`, softmax.
        sample_weight: `(batch,)`; images of weight 0 do not count, all others count once.

    Returns:
        `(7,)` float32 in the order of `TRAINING_COUNTS`: four counts of pixels at threshold
        0.5, and the sums of `logged_metrics.saturation_counts()`.
    """
    y_true, y_pred = ops.cast(y_true, "bool"), ops.cast(y_pred, "float32")
    background, foreground = y_pred[..., 0], y_pred[..., 1]
    of_true_class = ops.where(y_true, foreground, background)
    of_other_class = ops.where(y_true, background, foreground)
    predicted = foreground >= 0.5
    values = (
        ops.logical_and(y_true, predicted),
        ops.logical_and(ops.logical_not(y_true), predicted),
        ops.logical_and(y_true, ops.logical_not(predicted)),
        ops.logical_not(ops.logical_or(y_true, predicted)),
        of_true_class >= 1,
        of_other_class >= 1,
        of_true_class,
    )
    sums = ops.stack([ops.sum(ops.cast(value, "float32"), axis=(1, 2)) for value in values])
    if sample_weight is not None:
        sums = sums * ops.cast(sample_weight > 0, "float32")
    return ops.sum(sums, axis=1)


@keras.saving.register_keras_serializable(package="pneumo")
class SegmentationScores(keras.metrics.Metric):
    """All scores of an epoch from pooled counts, for `compile(weighted_metrics=[...])`.

    `result()` is a dict of `SCORES`, which Keras shows and logs one by one: pixel accuracy, mean
    IoU, IoU and Dice of the foreground (nan where neither truth nor prediction holds any), and
    the mean IoU and Dice as the report logged them, see `evaluation.logged_metrics`.

    An epoch has more pixels than float32 counts exactly (16.7 million), and not every backend has
    float64: each sum is kept as two numbers, multiples of 2**20 and the rest.
    """

    def __init__(self, name="scores", **kwargs):
        super().__init__(name=name, **kwargs)
        self.sums = self.add_variable((2, len(TRAINING_COUNTS)), "zeros", "float32", name="sums")

    def update_state(self, y_true, y_pred, sample_weight=None):
        carried, rest = ops.unstack(ops.convert_to_tensor(self.sums))
        rest = rest + training_counts(y_true, y_pred, sample_weight)
        more = ops.floor(rest / _CARRY)
        self.sums.assign(ops.stack([carried + more, rest - more * _CARRY]))

    def result(self):
        carried, rest = ops.unstack(ops.convert_to_tensor(self.sums))
        tp, fp, fn, tn, right, wrong, probability = ops.unstack(carried * _CARRY + rest)
        pixels = tp + fp + fn + tn
        foreground, background = tp / (tp + fp + fn), tn / (tn + fp + fn)
        both = (foreground + background) / 2
        both = ops.where(ops.isnan(foreground), background, both)
        values = (
            (tp + tn) / pixels,
            ops.where(ops.isnan(background), foreground, both),
            foreground,
            2 * tp / (2 * tp + fp + fn),
            (right / (pixels + wrong) + (pixels - wrong) / (2 * pixels - right)) / 2,
            probability / pixels,
        )
        return dict(zip(SCORES, values, strict=True))
