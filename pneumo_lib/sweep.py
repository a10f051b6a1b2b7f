"""Sweeps: a grid of training runs, spread by Dask over processes or machines.

What is done is read off the run folders alone, so a sweep that was stopped, by whatever, goes on
with the same call, on the same or on another cluster.
"""

import itertools
import logging
import traceback
import uuid
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import dask
import pandas as pd
from distributed import CancelledError, as_completed
from distributed.scheduler import KilledWorker
from tqdm.auto import tqdm

from pneumo_lib import runs, sweep_results
from pneumo_lib.cluster import connected, over_memory, scheduler_lost
from pneumo_lib.experiments import is_finished, plan_run, prepare_each, read_two_parts, run_name
from pneumo_lib.paths import alone, project_path
from pneumo_lib.sweep_worker import STARTED, train_on_worker

logger = logging.getLogger(__name__)


class Sweep(NamedTuple):
    """What `run_sweep()` leaves behind."""

    table: pd.DataFrame  # a row for each run, part and score, see `sweep_results.sweep_table()`
    summary: pd.DataFrame  # the same over seeds and folds, see `sweep_results.summarise()`
    failed: dict  # name of a run -> (why, in one line; `Path` of a text file with the traceback)
    folder: Path  # of table.csv, summary.csv, the figure and what failed


def read_sweep(params, *, overrides=None):
    """Axes and runs of a YAML file; all runs are checked.

    The file has two parts, both of settings of data and training, see `plan_run()`: `base` holds
    those that all runs share, `grid` a list of values for each that is varied. The runs are all
    combinations, named `<file>-<value>-<value>...`, where a number has the name of its setting
    before it.

    Args:
        params: path of the file, such as `params/sweep.yaml`.
        overrides: dict of settings, stronger than the file; of an axis, the one value or the
            list that replaces it.

    Returns:
        `(axes, planned)`: names of the axes, and a list of `PlannedRun`.

    Raises:
        FileNotFoundError: if there is no such file, or `data` is no folder.
        ValueError: if it has other parts, an axis is no list of values, two runs would have one
            name, or as `plan_run()`.
    """
    overrides = dict(overrides or {})
    stem, base, grid = read_two_parts(params, "grid")
    for name in grid.keys() & overrides.keys():
        value = overrides.pop(name)
        grid[name] = value if isinstance(value, list) else [value]
    if wrong := [name for name, values in grid.items() if not isinstance(values, list)]:
        raise ValueError(
            "`grid` must hold a list of values for each setting, such as `seed: [0, 1]`. "
            f"Received: {wrong[0]}={grid[wrong[0]]!r}"
        )
    planned = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        run = plan_run("", base | overrides | chosen)
        checked = {name: run.settings[name] for name in grid}
        words = [chosen[n] if isinstance(v, str) else f"{n}{v}" for n, v in checked.items()]
        planned.append(run._replace(name=run_name(stem, *words)))
    names = Counter(run.name for run in planned)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ValueError(
            "Each run of a sweep needs a name of its own. "
            f"Received: {twice[0]}, more than once. List each value only once"
        )
    return list(grid), planned


def run_sweep(
    params,
    *,
    overrides=None,
    scheduler="local",
    workers=None,
    memory=None,
    resources=None,
    retries=1,
):
    """Train all runs of a sweep that are not finished, and gather their scores.

    Each run is one task: `train()` in a worker process. A run that fails does not stop the others;
    one whose worker is lost goes on elsewhere after its last epoch, where a lock keeps it waiting
    as long as the lost worker still trains. The data are prepared here, before. Client and workers
    share the folder `PNEUMO_HOME` and have the same pneumo_lib.

    Args:
        params, overrides: see `read_sweep()`.
        scheduler, workers, memory: see `cluster.connected()`: local processes, or a running
            cluster. A run that took more than `memory`, twice, has failed.
        resources: what one run takes of what workers were started with, such as `{"GPU": 1}`.
            Local workers have just that.
        retries: how often a run that failed is tried again.

    Returns:
        `Sweep`.

    Raises:
        FileNotFoundError, ValueError: as `read_sweep()`, `prepare_data()` and `connected()`.
        LostCluster: if the scheduler is not reached or dies; the same call goes on.

    Example: in JupyterLab, with the progress as a widget (in a script, all of it belongs
    under `if __name__ == "__main__":`, as worker processes import the script)::

        import pneumo_lib as pl

        sweep = pl.run_sweep("params/sweep.yaml", workers=2)
        sweep.failed  # {} if all went well
        pl.sweep_chart(sweep.table, part="validation")
    """
    axes, planned = read_sweep(params, overrides=overrides)
    folder = project_path("runs") / f"sweep-{Path(params).stem}"
    with alone(folder):  # a second call waits for the first, and then finds all done
        folder.mkdir(parents=True, exist_ok=True)
        prepared = zip(planned, prepare_each(planned), strict=True)
        unmade = [run for run, data in prepared if not is_finished(run, data)]
        logger.info("%d runs, %d of them to train", len(planned), len(unmade))
        failed = {}
        if unmade:
            with (
                dask.config.set({"distributed.worker.resources": resources or {}}),
                connected(scheduler, workers=workers, memory=memory) as client,
            ):
                options = {"resources": resources or None, "retries": retries}
                failed = _train_all(client, unmade, folder, **options)
        done = [(runs.load_run(r.name), r.settings) for r in planned if r.name not in failed]
        table = sweep_results.sweep_table(done, axes=axes)
        summary = sweep_results.summarise(table, axes=axes)
        if done:
            sweep_results.keep_results(table, summary, [run for run, _ in done], folder)
    return Sweep(table, summary, failed, folder)


def _train_all(client, planned, folder, *, resources, retries):
    """Trains runs on a cluster; those that failed, as in `Sweep`."""
    _warn_of_missing(client, resources)
    shared = {"folder": str(folder), "home": str(project_path()), "version": runs.RESULTS_VERSION}
    futures, failed, under_way = {}, {}, set()
    with tqdm(total=len(planned), desc=folder.name, unit="run") as bar:

        def show():
            bar.set_postfix_str(", ".join(sorted(under_way)))

        def started(event):
            under_way.add(event[1])
            show()

        client.subscribe_topic(STARTED, started)
        for run in planned:
            key = (folder.name, run.name, uuid.uuid4().hex)
            options = {"key": key, "resources": resources, "retries": retries, "pure": False}
            futures[client.submit(train_on_worker, run, **shared, **options)] = run.name
        try:
            for future in as_completed(futures):
                name, log = futures[future], folder / f"{futures[future]}.failed.txt"
                try:  # not its status: should the worker have died since, the run is found again
                    logger.info("%s: %.0f s", name, future.result())
                    runs.load_run(name)  # FileNotFoundError
                    log.unlink(missing_ok=True)
                except CancelledError:
                    raise scheduler_lost(client) from None
                except Exception as error:  # the other runs go on
                    failed[name] = _reason(error, client), log
                    log.write_text("".join(traceback.format_exception(error)))
                    logger.warning("%s failed: %s", name, failed[name][0])
                under_way.discard(name)
                bar.update()
                show()
        finally:
            client.unsubscribe_topic(STARTED)
            client.cancel(list(futures))  # after Ctrl-C, on a cluster that lives on
    return failed


def _reason(error, client):
    if isinstance(error, KilledWorker):
        return over_memory(client, error) or "the workers that tried it died, each time"
    return f"{type(error).__name__}: {error}"


def _warn_of_missing(client, resources):
    """Dask waits in silence for a worker that has what a task needs."""
    there = [w["resources"] for w in client.scheduler_info(n_workers=-1)["workers"].values()]
    for name, amount in (resources or {}).items():
        if not any(offered.get(name, 0) >= amount for offered in there):
            logger.warning(
                "No worker has %s=%g yet; the runs wait for one: dask worker --resources '%s=%g'",
                *(name, amount, name, amount),
            )
