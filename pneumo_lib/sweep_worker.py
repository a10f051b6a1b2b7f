"""One run of a sweep, in a worker process of Dask."""

import os
from pathlib import Path

from distributed import Status, get_worker

from pneumo_lib import kernels, runs
from pneumo_lib.experiments import train_in_kernel

STARTED = "pneumo-run-started"  # topic of Dask's events
_ENDING = (Status.closing, Status.closed, Status.failed)


def train_on_worker(parameters, executed, *, home, version, memory=None):
    """One run, in a worker process; `(seconds, peak memory in GB)`.

    Args:
        parameters: of notebook 05.
        executed: path of its executed copy.
        home: the client's `PNEUMO_HOME`.
        version: the client's `RESULTS_VERSION`.
        memory: bytes that this process and its kernel may take.

    Raises:
        FileNotFoundError: if this worker does not see the client's files.
        RuntimeError: if it has another pneumo_lib.
        MemoryError: if the run took more than `memory`.
        NotebookError: if a cell fails.
    """
    worker = get_worker()
    key = worker.get_current_task()
    if not Path(executed).parent.is_dir():
        raise FileNotFoundError(
            "Client and workers must share the folder PNEUMO_HOME. "
            f"Received: {home}, which is not on {worker.address}"
        )
    os.environ["PNEUMO_HOME"] = home
    if version != runs.RESULTS_VERSION:
        raise RuntimeError(
            "Client and workers must have the same pneumo_lib. "
            f"Received: another one on {worker.address}"
        )
    worker.log_event(STARTED, parameters["run_name"])

    def stop(total):
        """A task is a thread, which nothing else ends: its kernel would train on for nobody."""
        task = worker.state.tasks.get(key)
        given_up = task is None or task.state == "cancelled"
        return given_up or worker.status in _ENDING or (memory and total > memory)

    used = {}
    try:
        with kernels.measured(every=1, stop=stop) as used:
            train_in_kernel(parameters, Path(executed))
    except kernels.NotebookError:
        if memory and used["peak_gb"] * 1e9 > memory:
            raise MemoryError(
                f"A run may take {memory / 1e9:g} GB with its worker. "
                f"Received: {used['peak_gb']:g} GB. Raise `memory`, or take a smaller batch_size"
            ) from None
        raise
    return used["seconds"], used["peak_gb"]
