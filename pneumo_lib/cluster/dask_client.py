"""Dask: many tasks on this machine's processes or on a cluster that is already running."""

import contextlib
import logging
import os
import uuid
from importlib import import_module
from itertools import islice

import dask
from dask.utils import parse_bytes
from distributed import CancelledError, Client, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from pneumo_lib._logs import log_levels

logger = logging.getLogger(__name__)
_DEATHS = 10  # of workers under one task, after which the task is taken for the cause
_PATIENCE = 10  # seconds for a scheduler to answer
_RETRIES = 2  # of a task that raised: a store may answer the second time


class LostCluster(RuntimeError):
    """The scheduler is out of reach, or went away."""


@contextlib.contextmanager
def connected(scheduler="local", *, workers=None, memory=None):
    """A Dask client; what was started for it ends with the block.

    Args:
        scheduler: "local": processes on this machine; the address of a running scheduler, such as
            `tcp://10.0.0.1:8786`; or a `distributed.Client`, as dask-jobqueue gives one.
        workers: local processes, which share the cores; `None` is one for two cores.
        memory: limit of a local process, such as "4GB". One that exceeds it is ended, and its task
            is tried once more by another. `None`: no limit.

    Raises:
        LostCluster: if no scheduler answers there.
        ValueError: if `workers` is not positive, or one of both is given where nothing is started.
    """
    given = workers is not None or memory is not None
    if (given and scheduler != "local") or (workers is not None and workers < 1):
        raise ValueError(
            "`workers`, 1 or more, and `memory` are those of local processes, with "
            f"scheduler='local' only. Received: workers={workers}, memory={memory}, "
            f"scheduler={scheduler!r}. Elsewhere workers have a limit by dask worker --memory-limit"
        )
    with contextlib.ExitStack() as stack:
        # a lost connection is reported once, by `LostCluster`
        stack.enter_context(log_levels(distributed=logging.CRITICAL))
        client = scheduler
        if scheduler == "local":
            client = stack.enter_context(Client(stack.enter_context(_local(workers, memory))))
        elif not isinstance(scheduler, Client):
            try:
                client = stack.enter_context(Client(scheduler, timeout=_PATIENCE))
            except (OSError, ValueError) as error:
                raise LostCluster(
                    "`scheduler` must be 'local' or the address of a running Dask scheduler. "
                    f"Received: {scheduler} ({type(error).__name__}). Start one: dask scheduler"
                ) from None
        logger.info("Dashboard   %s", client.dashboard_link)
        if not client.nthreads():
            logger.info("No worker has joined yet; the work starts with the first.")
        yield client


def _local(workers, memory):
    """A cluster of processes with one task at a time; TensorFlow in each gets its share of cores.

    Dask would pause a process that comes near its limit until it has freed memory, which
    TensorFlow never does: only ending the process is left to Dask.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = workers or max(1, cores // 2)
    share = str(max(1, cores // workers))
    names = ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
    settings = {f"distributed.worker.memory.{what}": False for what in ("target", "spill", "pause")}
    settings |= {"distributed.worker.memory.terminate": 1.0}
    settings |= {"distributed.scheduler.allowed-failures": _DEATHS if memory is None else 1}
    with dask.config.set(settings):
        return LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            memory_limit=0 if memory is None else parse_bytes(memory),
            silence_logs=logging.CRITICAL,
            env=dict.fromkeys(names, share) | {"TF_CPP_MIN_LOG_LEVEL": "3", "TQDM_DISABLE": "1"},
        )


def as_finished(
    client, do, items, *, window=2000, retries=_RETRIES, resources=None, raising=True, **options
):
    """Yield `(item, result, error)` of each item, in the order in which they end.

    Each is one task, `do(item, **options)` of a function that the workers import; at most `window`
    of them are sent to Dask ahead, so that neither graph nor memory grow with their number. A task
    whose worker dies is done again elsewhere, so `do` may run twice, even at once: it must leave
    the same behind. `error` is `None` or an exception, a `RuntimeError` where the workers of a
    task died. Raises `LostCluster` if the scheduler went away.

    Args:
        retries: how often a task that raised is tried again.
        resources: what a task takes of what workers have, such as `{"GPU": 1}`.
        raising: whether what a task raised each time ends the work; else it is its `error`.
    """
    items, pending, coming = iter(items), {}, as_completed()
    how = {"retries": retries, "resources": resources}

    def submit(count):
        for item in islice(items, count):
            key = f"{do.__name__}-{uuid.uuid4().hex}"  # by which the dashboard groups them
            future = client.submit(_call, do.__module__, do.__name__, item, options, key=key, **how)
            pending[future] = item
            coming.add(future)

    submit(window)
    try:
        for future in coming:
            item = pending.pop(future)
            try:  # not its status: should the worker have died since, it is computed again
                found = (item, future.result(), None)
            except KilledWorker as error:
                found = (item, None, _worker_deaths(client, error.last_worker.address))
            except CancelledError:
                raise LostCluster(
                    "The Dask scheduler must live until the end. Received: lost connection to "
                    f"{client.scheduler.addr if client.scheduler else 'it'}. Start it and its "
                    "workers again and give the same command: what was finished is kept"
                ) from None
            except Exception as error:
                if raising:
                    raise
                found = (item, None, error)
            submit(1)
            yield found
    except KeyboardInterrupt:
        # Dask lets tasks that have begun go on: their workers are started anew
        keys = {future.key for future in pending}
        busy = [worker for worker, tasks in client.processing().items() if keys & set(tasks)]
        client.cancel(list(pending))
        client.restart_workers(busy, raise_for_error=False)
        raise
    finally:
        client.cancel(list(pending))  # on a cluster that lives on


def _worker_deaths(client, worker):
    """Error of a task that took several workers down, `worker` last."""
    why = "the processes that worked on it died, each time"
    for _, event in client.get_events("worker-restart-memory"):
        if event["worker"] == worker:
            why += f"; the last took {event['rss'] / 1e9:.1f} GB, more memory than it may"
    return RuntimeError(why)


def _call(module, name, item, options):
    """By name, because a function that came as itself would load TensorFlow before."""
    return getattr(import_module(module), name)(item, **options)
