"""One training on several machines or GPUs, by tf.distribute: who takes part, what they agree on.

A worker is a process, with one replica or one for each of its GPUs; the step of a replica is in
`replicas`. The chief is the worker with replica 0: it alone writes.
"""

import hashlib
import json
import logging
import os
import re
from contextlib import contextmanager, nullcontext
from functools import cache

import pneumo_lib._startup  # noqa: F401  (before TensorFlow)

import numpy as np
import tensorflow as tf

logger = logging.getLogger(__name__)
SUM = tf.distribute.ReduceOp.SUM


def choose_strategy(strategy, *, batch_size):
    """The `tf.distribute.Strategy` that is meant, or None for one replica without any.

    Args:
        strategy: see `train.train()`.
        batch_size: images a step, over all replicas.

    Raises:
        ValueError: for an unknown name, "multiworker" without `TF_CONFIG`, or if the batch cannot
            be divided evenly.
    """
    named = {"mirrored": tf.distribute.MirroredStrategy, "multiworker": _multiworker}
    if strategy is None:
        return None
    if not isinstance(strategy, tf.distribute.Strategy):
        if strategy not in named:
            raise ValueError(
                "`strategy` must be None, 'mirrored', 'multiworker' or a tf.distribute.Strategy. "
                f"Received: strategy={strategy!r}"
            )
        strategy = named[strategy]()
    if batch_size % strategy.num_replicas_in_sync:
        raise ValueError(
            "`batch_size` must be a multiple of the number of replicas. "
            f"Received: batch_size={batch_size}, {strategy.num_replicas_in_sync} replicas"
        )
    return strategy


@cache  # a process may join its cluster only once
def _multiworker():
    if not json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster"):
        raise ValueError(
            "strategy='multiworker' needs the environment variable TF_CONFIG, which names all "
            "workers and this one. Received: none. See docs/training_on_many_machines.md"
        )
    logger.info("Waiting for all workers named in TF_CONFIG.")
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except RuntimeError as error:
        raise ValueError(
            "strategy='multiworker' must be the first that uses TensorFlow in a process. Received: "
            f"{error} Start a new process"
        ) from error


def scope(strategy):
    """Inside the block, variables are made on every replica."""
    return nullcontext() if strategy is None else strategy.scope()


def local_replicas(strategy):
    """Numbers of the replicas that this process computes; 0 is among the chief's."""
    numbers = []
    if strategy is None:
        return [0]
    strategy.experimental_distribute_values_from_function(
        lambda context: numbers.append(context.replica_id_in_sync_group) or tf.constant(0)
    )
    return numbers


def is_chief(strategy):
    """Whether this process is the one that writes."""
    return 0 in local_replicas(strategy)


def describe(strategy):
    """What config.json says of it; None for None."""
    if strategy is None:
        return None
    replicas = strategy.num_replicas_in_sync
    workers = replicas // len(local_replicas(strategy))
    return {"name": type(strategy).__name__, "workers": workers, "replicas": replicas}


def per_replica(strategy, arrays):
    """A NumPy array for each replica of this process, as tf.distribute takes them."""
    arrays = iter(arrays)
    return strategy.experimental_distribute_values_from_function(
        lambda _: tf.constant(next(arrays))
    )


def total(strategy, values):
    """Sum of a NumPy array over all workers, in its dtype; all of them must ask for it."""
    numbers = local_replicas(strategy)
    if strategy is None or len(numbers) == strategy.num_replicas_in_sync:
        return values
    values = np.asarray(values)
    zeros = [np.zeros_like(values)] * (len(numbers) - 1)
    return strategy.reduce(SUM, per_replica(strategy, [values, *zeros]), axis=None).numpy()


def from_chief(strategy, values):
    """The chief's NumPy array on every worker; the others give one of that shape and dtype."""
    values = np.asarray(values)
    return total(strategy, values if is_chief(strategy) else np.zeros_like(values))


def check_settings(strategy, settings):
    """Meet all workers, and see that they were started alike: another batch order never ends.

    Raises:
        ValueError: on each worker, if their `settings` differ.
    """
    if strategy is None:
        return
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).digest()
    digests = np.zeros((strategy.num_replicas_in_sync, 4), "int64")
    digests[local_replicas(strategy)] = np.frombuffer(digest, "int64")
    if len(np.unique(total(strategy, digests), axis=0)) > 1:
        raise ValueError(
            "All workers of a training must have the same settings, data and code. Received on "
            f"this worker, unlike on others: {settings}"
        )


def same_state(strategy, variables, epoch):
    """Set `variables` on every worker to the chief's; returns the chief's `epoch`.

    Broadcast, not read by each from the state's file: a network file system may still show
    another machine the file of the epoch before.
    """
    if strategy is None:
        return epoch
    values = [np.asarray(variable) for variable in variables]
    flat = np.concatenate([[epoch], *[value.ravel() for value in values]], dtype="float64")
    epoch, *flat = np.split(
        from_chief(strategy, flat), np.cumsum([1, *[value.size for value in values]])[:-1]
    )
    for variable, value, new in zip(variables, values, flat, strict=True):
        variable.assign(new.reshape(value.shape).astype(value.dtype))
    return int(epoch[0])


def barrier(strategy):
    """Wait until every worker is here."""
    total(strategy, 0)


@contextmanager
def chief_first(strategy):
    """The chief runs the block before the others do: they find its files."""
    chief = is_chief(strategy)
    if not chief:
        barrier(strategy)
    yield
    if chief:
        barrier(strategy)


@contextmanager
def one_error(strategy, name):
    """Tells of a dead worker in one sentence, and how run `name` goes on.

    Raises:
        RuntimeError: if another worker no longer answers, or this one is cut off from it.
    """
    gone = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError)
    try:
        yield
    except (*gone, tf.errors.CancelledError) as error:
        if strategy is None or len(local_replicas(strategy)) == strategy.num_replicas_in_sync:
            raise
        where = r"(?:remote target|heartbeats\):)\s+/job:(\w+)/replica:\d+/task:(\d+)"
        who = re.search(where, str(error))
        raise RuntimeError(
            "All workers of a training must live to its end. Received: "
            f"{'{} {}'.format(*who.groups()) if who else 'another worker'} no longer answers; its "
            "own output says why. Start all workers again with the same command: run "
            f"{name!r} goes on after its last whole epoch"
        ) from error
