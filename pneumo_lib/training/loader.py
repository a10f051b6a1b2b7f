"""Batches of cases for `fit()`: shuffled by seed and epoch, mirrored, augmented."""

import math

from pneumo_lib._startup import keras

import numpy as np

from pneumo_lib.data.images import resize_image, resize_mask
from pneumo_lib.training.augmentation import augment

_READ_AHEAD = 2**28  # bytes at most: features of large images are megabytes each


class CaseBatches(keras.utils.PyDataset):
    """`keras.utils.PyDataset` of `(inputs, masks, sample weights)`.

    All batches have the same size, so that XLA compiles a step once: the last one is filled with
    cases of its epoch, which have weight 0. The others have the weight that makes 1 the mean of
    all, so that the loss of an epoch, which Keras averages over batches, is the mean over cases.

    Args:
        inputs: `(n, ...)`, array or memory map.
        masks: `(n, height, width)`, array or memory map of 0 and 1.
        order: function of the epoch, 1 or later, that returns the rows of its cases, always as
            many; `~i` is case i mirrored, see `epoch_order()`.
        batch_size: cases in a batch.
        mirrored: like `inputs`, of the mirrored images; needed where a row is below 0.
        augmentation_seed: inputs are images, changed by `augment()`, in each epoch in another
            way; None: no augmentation.
        halved: inputs are images, which the first epochs see at half the size; how many.
    """

    def __init__(
        self, inputs, masks, order, batch_size, *, mirrored=None, augmentation_seed=None, halved=0
    ):
        batch_bytes = batch_size * (inputs.nbytes // len(inputs) + masks.nbytes // len(masks))
        super().__init__(workers=2, max_queue_size=min(8, 1 + _READ_AHEAD // batch_bytes))
        self.inputs, self.masks, self.mirrored = inputs, masks, mirrored
        self.order, self.batch_size = order, batch_size
        self.augmentation_seed, self.halved = augmentation_seed, halved
        self.start_epoch(1)

    def start_epoch(self, epoch):
        """Put the cases in the order of this epoch, 1 or later."""
        rows = self.order(epoch)
        filled = math.ceil(len(rows) / self.batch_size) * self.batch_size
        self.epoch, self.rows = epoch, np.resize(rows, filled)
        self.weights = np.zeros(filled, "float32")
        self.weights[: len(rows)] = filled / len(rows)

    def __len__(self):
        return len(self.rows) // self.batch_size

    def __getitem__(self, index):
        batch = slice(index * self.batch_size, (index + 1) * self.batch_size)
        rows = self.rows[batch]
        mirrored = rows < 0
        cases = np.where(mirrored, ~rows, rows)
        x, y = self.inputs[cases], self.masks[cases]
        if mirrored.any():
            x[mirrored] = self.mirrored[cases[mirrored]]
            y[mirrored] = y[mirrored, :, ::-1]
        if self.epoch <= self.halved:
            half = x.shape[1] // 2, x.shape[2] // 2
            x = np.stack([resize_image(image, half) for image in x])
            y = np.stack([resize_mask(mask, half) for mask in y])
        if self.augmentation_seed is not None:
            seed = np.random.SeedSequence([self.augmentation_seed, self.epoch, index])
            seed = keras.random.SeedGenerator(int(seed.generate_state(1)[0] >> 1))  # PyTorch: int32
            x, y = map(keras.ops.convert_to_numpy, augment(x, y, seed=seed))
        return x, y, self.weights[batch]


def fed(batches):
    """`CaseBatches` for `fit()`: on TensorFlow as `tf.data.Dataset`, elsewhere as they are.

    Keras' own would wait 0.2 s for its threads after each epoch; read by one worker, it tunes its
    pipeline, which ends (TensorFlow 2.21) at the next 10 ms * 2**n of its age: an epoch later.
    """
    if keras.backend.backend() != "tensorflow":
        return batches
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    signature = keras.tree.map_structure(tf.type_spec_from_value, batches[0])
    each = lambda: map(batches.__getitem__, range(len(batches)))  # noqa: E731
    dataset = tf.data.Dataset.from_generator(each, output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(batches)))
    return dataset.prefetch(batches.max_queue_size).with_options(options)


def epoch_order(rows, *, seed, epoch, flips=False, positive=None, share=None):
    """`rows` in the order of one epoch; a row `i` that is to be mirrored is written as `~i`.

    Args:
        rows: `(n,)` int array, each 0 or more.
        seed, epoch: decide the order, and nothing else does: a resumed run goes on the same way.
        flips: mirror each case with a probability of one half.
        positive: bool array, whether case `i` has a pneumothorax; needed for `share`.
        share: of the positives in the epoch, 0 to 1; None: each row occurs once. Positives and
            healthy cases are drawn in turns, so that none comes up twice before all of its
            kind came up once. A kind that is missing is not asked for.

    Returns:
        `(n,)` int array; `~i` is `-1 - i`, so that what is below 0 is mirrored.
    """
    rng = np.random.default_rng([seed, epoch])
    if share is not None:
        kinds = [rows[positive[rows]], rows[~positive[rows]]]
        share = 0 if not kinds[0].size else 1 if not kinds[1].size else share
        count = round(share * len(rows))
        kinds = zip(kinds, (count, len(rows) - count), strict=True)
        rows = np.concatenate([_in_turns(kind, wanted, rng) for kind, wanted in kinds])
    order = rng.permutation(rows)
    return np.where(rng.random(len(order)) < 0.5, ~order, order) if flips else order


def share_at(epoch, epochs, positive_share):
    """Share of positives in an epoch, 1 to `epochs`: from the first of two shares to the second.

    Each is 0 to 1, and the steps are even; without a `positive_share` it is None.
    """
    if positive_share is None:
        return None
    first, last = positive_share
    return first + (last - first) * (epoch - 1) / max(epochs - 1, 1)


def _in_turns(rows, count, rng):
    """`count` of `rows`, each permutation of all of them used up before the next begins."""
    rounds = [rng.permutation(rows) for _ in range(-(-count // max(len(rows), 1)))]
    return np.concatenate([rows[:0], *rounds])[:count]
