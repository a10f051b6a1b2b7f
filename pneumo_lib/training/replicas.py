"""The training step on several replicas: each computes its share of a batch, all change alike.

Gradients and the moments of batch normalisation are summed over the replicas, so that the
training is that of one replica, to rounding. A worker reads only its own share of the arrays.
"""

from pneumo_lib._startup import keras

import numpy as np
import tensorflow as tf

from pneumo_lib.models.forward import as_graph
from pneumo_lib.models.layers.replica_share import share_of, sharing
from pneumo_lib.training.distribution import SUM, local_replicas, per_replica
from pneumo_lib.training.loader import read_blocks


def synchronise(network, on=True):
    """Let batch normalisation take its moments over the whole batch; whether any of it trains."""
    found = [
        layer
        for layer in network._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    for layer in found:
        layer.synchronized = on
    return bool(found)


def read_shares(strategy, inputs, masks, rows, batch_size, *, flipped=None):
    """Like `loader.read_blocks()`, of this worker's share of each batch.

    Yields:
        `(inputs, masks, images)`: a value for each of its replicas, `(steps, share, ...)`, and
        the number of images of the whole batch.
    """
    numbers = local_replicas(strategy)
    whole = len(rows) - len(rows) % batch_size
    for part, images in ((rows[:whole], batch_size), (rows[whole:], len(rows) - whole)):
        if not len(part):
            continue
        replicas = strategy.num_replicas_in_sync
        shares = [share_of(images, replicas=replicas, number=number) for number in numbers]
        first, stop = shares[0].first, shares[-1].stop
        mine = part.reshape(-1, images)[:, first:stop].ravel()
        for block in read_blocks(inputs, masks, mine, stop - first, flipped=flipped):
            yield (
                *[
                    per_replica(strategy, [a[:, s.first - first : s.stop - first] for s in shares])
                    for a in block
                ],
                images,
            )


def over_replicas(strategy, step, *, batch_size, jit_compile, then=None):
    """`step` as a compiled function of what `read_shares()` yields.

    Args:
        strategy: `tf.distribute.Strategy`.
        step: function of one share, inputs and masks, that needs no other replica: returns
            counts, or, with `then`, `(gradients, counts)`.
        batch_size: images of a whole batch; a smaller one is not worth XLA's compilation.
        jit_compile: whether XLA compiles `step`; it cannot where replicas must talk in it.
        then: function of the gradients, on each replica; here they talk.

    Returns:
        Function that returns `(steps, counts)`, sums over this worker's replicas.
    """

    def on_share(x, y, share):
        with sharing(share):
            return step(x, y)

    compiled = as_graph(on_share, jit_compile=True)

    def run(x, y, images):
        function = compiled if jit_compile and images == batch_size else on_share

        def on_replica(x, y, i):
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            number = int(tf.get_static_value(number))
            share = share_of(images, replicas=strategy.num_replicas_in_sync, number=number)
            counts = function(x[i], y[i], share)
            if then is not None:
                gradients, counts = counts
                then(gradients)
            return share.weight * counts

        steps = tf.shape(strategy.experimental_local_results(x)[0])[0]
        rows = tf.TensorArray("float32", steps)
        for i in tf.range(steps):
            counts = strategy.run(on_replica, args=(x, y, i))
            rows = rows.write(i, tf.add_n(strategy.experimental_local_results(counts)))
        return rows.stack()

    return as_graph(run, reduce_retracing=True)


def apply_gradients(optimizer, network, gradients):
    """Change the weights by the sum of the replicas' gradients, on each replica alike."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        # Where one replica's gradients overflow, all must leave the step out.
        finite = [tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients]
        overflown = 1 - tf.cast(tf.reduce_all(finite), "float32")
        overflown = tf.distribute.get_replica_context().all_reduce(SUM, overflown)
        gradients = [tf.where(overflown > 0, np.nan, gradient) for gradient in gradients]
    optimizer.apply(gradients, network.trainable_variables)
