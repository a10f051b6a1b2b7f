"""One run of a sweep, in a worker process of Dask."""

import ctypes
import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

from distributed import Status, get_worker

from pneumo_lib import runs
from pneumo_lib.experiments import prepare_each, train_run

STARTED = "pneumo-run-started"  # topic of Dask's events
_ENDING = (Status.closing, Status.closed, Status.failed)


class GivenUp(Exception):
    """Nobody waits for the result any more: the client left, or the worker is to end."""


def train_on_worker(planned, *, folder, home, version):
    """Seconds that one run took in this worker process.

    Args:
        planned: `PlannedRun`.
        folder: of the sweep, which the client made.
        home: the client's `PNEUMO_HOME`.
        version: the client's `RESULTS_VERSION`.

    Raises:
        FileNotFoundError: if this worker does not see the client's files.
        RuntimeError: if it has another pneumo_lib.
        FileNotFoundError, ValueError: as `prepare_data()` and `train()`.
    """
    worker, started = get_worker(), time.monotonic()
    key = worker.get_current_task()
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            "Client and workers must share the folder PNEUMO_HOME. "
            f"Received: {home}, which is not on {worker.address}"
        )
    os.environ["PNEUMO_HOME"] = home
    if runs.RESULTS_VERSION != version:
        raise RuntimeError(
            "Client and workers must have the same pneumo_lib. "
            f"Received: another one on {worker.address}"
        )
    worker.log_event(STARTED, planned.name)

    def given_up():
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled" or worker.status in _ENDING

    with _ended_if(given_up):
        train_run(planned, *prepare_each([planned]))
    return time.monotonic() - started


@contextmanager
def _ended_if(given_up):
    """Raises `GivenUp` in this thread within seconds of `given_up()`.

    Dask has no means to end a task that has begun: it would train on for nobody, and keep the run
    locked. The exception comes between two calls into TensorFlow; what was finished is kept.
    """
    thread, done = threading.get_ident(), threading.Event()

    def watch():
        while not done.wait(1):
            if given_up():
                raise_there = ctypes.pythonapi.PyThreadState_SetAsyncExc
                raise_there(ctypes.c_ulong(thread), ctypes.py_object(GivenUp))
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
