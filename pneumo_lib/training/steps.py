"""Training and evaluation of whole epochs, compiled so that Python hardly takes part."""

from functools import partial

import pneumo_lib._startup  # noqa: F401  (before Keras)

import numpy as np
import tensorflow as tf
from keras import ops

from pneumo_lib.evaluation import logged_metrics
from pneumo_lib.models.backbones import preprocess
from pneumo_lib.models.forward import as_graph
from pneumo_lib.models.layers.replica_share import current_share
from pneumo_lib.training import distribution, replicas
from pneumo_lib.training.augmentation import augment
from pneumo_lib.training.loader import read_blocks
from pneumo_lib.training.losses import TRAINING_COUNTS, get_loss, training_counts


def compile_steps(
    network,
    optimizer,
    *,
    loss,
    batch_size,
    backbone,
    augmentation="none",
    seed=None,
    strategy=None,
):
    """Two compiled functions of `(steps, batch, ...)` inputs and masks: train, evaluate.

    Each returns `(steps, 1 + len(TRAINING_COUNTS))`: the summed loss and the counts of every
    step, so that an epoch costs Python a call per block of `read_blocks()`. XLA halves the time
    of a head's step; for whole networks TensorFlow's own convolutions are faster than XLA's on
    a processor, and what is left at the end of an epoch is not worth a second compilation.

    Args:
        network: `keras.Model` whose trainable variables are to learn.
        optimizer: built for them.
        loss: a name of `losses.get_loss()`.
        batch_size: inputs in a whole step.
        backbone: inputs are images, to be preprocessed for it; None: features of a head.
        augmentation, seed: of images, see `augmentation.augment()`; nothing happens to features.
        strategy: `tf.distribute.Strategy` under which network and optimizer were made; the
            functions then are those of `replicas.over_replicas()`.
    """
    loss = get_loss(loss)
    heads_only = backbone is None

    def measure(y, y_pred):
        values = loss(y, y_pred)
        return values, ops.concatenate([ops.sum(values)[None], training_counts(y, y_pred)])

    def find_gradients(x, y):
        if not heads_only:
            x, y = augment(x, y, kind=augmentation, seed=seed)
            x = preprocess(x, backbone)
        with tf.GradientTape() as tape:
            values, counts = measure(y, network(x, training=True))
            scaled = optimizer.scale_loss(_mean_over_batch(values))
        return tape.gradient(scaled, network.trainable_variables), counts

    def train_step(x, y):
        gradients, counts = find_gradients(x, y)
        optimizer.apply(gradients, network.trainable_variables)
        return counts

    def evaluation_step(x, y):
        x = x if heads_only else preprocess(x, backbone)
        return measure(y, network(x, training=False))[1]

    if strategy is not None:
        alone = not replicas.synchronise(network)  # else replicas talk in the middle of a step
        arguments = {"batch_size": batch_size, "jit_compile": heads_only and alone}
        apply = partial(replicas.apply_gradients, optimizer, network)
        return (
            replicas.over_replicas(strategy, find_gradients, then=apply, **arguments),
            replicas.over_replicas(strategy, evaluation_step, **arguments),
        )

    def over_steps(step):
        compiled = as_graph(step, jit_compile=heads_only)

        def run_whole_batches(x, y):
            rows = tf.TensorArray("float32", tf.shape(x)[0])
            for i in tf.range(tf.shape(x)[0]):
                rows = rows.write(i, compiled(x[i], y[i]))
            return rows.stack()

        whole_batches = as_graph(run_whole_batches, reduce_retracing=True)
        rest = as_graph(step)

        def run(x, y):
            if x.shape[1] == batch_size:
                return whole_batches(x, y)
            return rest(x[0], y[0])[None]

        return run

    return over_steps(train_step), over_steps(evaluation_step)


def _mean_over_batch(values):
    """Mean of `(images,)`; of a share, what it adds to the mean over the whole batch."""
    share = current_share()
    if share is None:
        return ops.mean(values)
    return ops.sum(values) * (share.weight / share.images)


def run_epoch(step, inputs, masks, rows, batch_size, *, flipped=None, strategy=None):
    """Scores of one pass over `rows`, for history.csv; empty if there are none.

    Args:
        step: one of `compile_steps()`.
        inputs, masks, rows, batch_size, flipped: see `loader.read_blocks()`.
        strategy: as for `compile_steps()`; each worker then reads its own share of every batch.
    """
    if len(rows) == 0:
        return {}
    if strategy is None:
        blocks = read_blocks(inputs, masks, rows, batch_size, flipped=flipped)
        blocks = (map(tf.constant, block) for block in blocks)
    else:
        blocks = replicas.read_shares(strategy, inputs, masks, rows, batch_size, flipped=flipped)
    sums = [step(*block).numpy() for block in blocks]
    sums = np.concatenate(sums).sum(axis=0, dtype="float64")
    sums = distribution.total(strategy, sums)
    scores = logged_metrics.history_scores(dict(zip(TRAINING_COUNTS, sums[1:], strict=True)))
    return {"loss": sums[0] / len(rows), **scores}
