"""Dask: many tasks on this machine's processes or on a cluster that is already running."""

import contextlib
import logging
import os
import uuid
from importlib import import_module

import dask
from distributed import CancelledError, Client, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from pneumo_lib.logs import log_levels

logger = logging.getLogger(__name__)
_DEATHS = 10  # of workers under one task, after which the task is held to be the cause
_PATIENCE = 10  # seconds for a scheduler to answer
_RETRIES = 2  # of a task that raised: a store may answer the second time


class LostCluster(RuntimeError):
    """The scheduler is out of reach, or went away."""


def scheduler_lost(client):
    """`LostCluster` for a client whose scheduler went away in mid-work."""
    return LostCluster(
        "The Dask scheduler must live until the end. Received: lost connection to "
        f"{client.scheduler.addr if client.scheduler else 'it'}. Start it and its workers again "
        "and give the same command: what was finished is kept"
    )


@contextlib.contextmanager
def connected(scheduler="local", *, workers=None):
    """A Dask client; what was started for it ends with the block.

    Args:
        scheduler: "local": processes on this machine; the address of a running scheduler, such as
            `tcp://10.0.0.1:8786`; or a `distributed.Client`, as dask-jobqueue gives one.
        workers: local processes, which share the cores; `None` is one for two cores.

    Yields:
        `distributed.Client`.

    Raises:
        LostCluster: if no scheduler answers there.
        ValueError: if `workers` is not positive, or given where nothing is started.
    """
    if workers is not None and (scheduler != "local" or workers < 1):
        raise ValueError(
            "`workers` is the number of local processes, 1 or more, with scheduler='local' only. "
            f"Received: workers={workers}, scheduler={scheduler!r}"
        )
    with contextlib.ExitStack() as stack:
        # a lost connection is told once, in our words
        stack.enter_context(log_levels(distributed=logging.CRITICAL))
        if isinstance(scheduler, Client):
            client = scheduler
        elif scheduler == "local":
            client = stack.enter_context(Client(stack.enter_context(_local(workers))))
        else:
            client = stack.enter_context(_reach(scheduler))
        logger.info("Dashboard   %s", client.dashboard_link)
        if not client.nthreads():
            logger.info("No worker has joined yet; the work starts with the first.")
        yield client


def _local(workers):
    """A cluster of processes with one task at a time; TensorFlow in each gets its share of cores.

    Without a limit of memory, at which Dask would kill: TensorFlow's is not Dask's to judge.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = workers or max(1, cores // 2)
    share = str(max(1, cores // workers))
    names = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
    with dask.config.set({"distributed.scheduler.allowed-failures": _DEATHS}):
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
            env=dict.fromkeys(names, share) | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        )


def _reach(address):
    try:
        return Client(address, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise LostCluster(
            "`scheduler` must be 'local' or the address of a running Dask scheduler. "
            f"Received: {address} ({type(error).__name__}). Start one: dask scheduler"
        ) from None


def as_finished(client, do, items, *, window=2000, **options):
    """Yield `(item, result, error)` of each item, in the order in which they end.

    Each is one task; at most `window` of them are known to Dask, so that neither graph nor
    memory grow with their number. A task whose worker dies is done again elsewhere, so `do` may
    run twice, even at once: it must leave the same behind.

    Args:
        client: `distributed.Client`.
        do: function `do(item, **options)`, which the workers import.
        items: iterable, read only so far ahead.
        window: tasks at most.
        options: as `do` takes them.

    Yields:
        `error` is `None`, or text where the task took several workers down with it.

    Raises:
        LostCluster: if the scheduler went away.
        Exception: what a task raised each time that it was tried.
    """
    items, known, coming = iter(items), {}, as_completed()
    name = (do.__module__, do.__name__)

    def submit_next():
        for item in items:
            key = f"{do.__name__}-{uuid.uuid4().hex}"
            future = client.submit(_call, *name, item, options, key=key, retries=_RETRIES)
            known[future] = item
            coming.add(future)
            return True
        return False

    while len(known) < window and submit_next():
        pass
    for future in coming:
        item = known.pop(future)
        try:  # not its status: should the worker have died since, it is computed again
            found = (item, future.result(), None)
        except KilledWorker:
            found = (item, None, "the processes that worked on it died, each time")
        except CancelledError:
            raise scheduler_lost(client) from None
        submit_next()
        yield found


def _call(module, name, item, options):
    """By name, because a function that came as itself would load TensorFlow before."""
    return getattr(import_module(module), name)(item, **options)
