"""Sweeps: a grid of training runs, spread by Dask over processes or machines.

What is done is read off the run folders alone, so a sweep that was stopped, by whatever, goes on
with the same call, on the same or on another cluster.
"""

import itertools
import logging
import re
import uuid
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import dask
import pandas as pd
from dask.utils import parse_bytes
from distributed import CancelledError, as_completed
from distributed.scheduler import KilledWorker
from tqdm.auto import tqdm

from pneumo_lib import kernels, runs, sweep_results
from pneumo_lib.cluster import connected, scheduler_lost
from pneumo_lib.experiments import (
    DATA,
    is_finished,
    prepare_for,
    training_notebook,
    unfinished,
)
from pneumo_lib.paths import alone, project_path, source_path
from pneumo_lib.sweep_worker import STARTED, train_on_worker

logger = logging.getLogger(__name__)


class Sweep(NamedTuple):
    """What `run_sweep()` leaves behind."""

    table: pd.DataFrame  # a row for each run, part and score, see `sweep_results.sweep_table()`
    summary: pd.DataFrame  # the same over seeds and folds, see `sweep_results.summarise()`
    failed: dict  # name of a run -> (why, in one line; `Path` of its notebook)
    folder: Path  # of table.csv, summary.csv, the figure and the executed notebooks


def read_sweep(params, *, overrides=None):
    """Axes and runs of a YAML file.

    The file has two parts, both of parameters of notebook 05: `base` holds those that all runs
    share, `grid` a list of values for each that is varied. The runs are all combinations, named
    `<file>-<value>-<value>...`, where a number has the name of its parameter before it.

    Args:
        params: path of the file, such as `params/sweep.yaml`.
        overrides: dict of parameters, stronger than the file; of an axis, the one value or the
            list that replaces it.

    Returns:
        `(axes, parameters)`: names of the axes, and for each run the parameters of its notebook,
        by its name.

    Raises:
        FileNotFoundError: if there is no such file, or `data` is no folder.
        ValueError: if it has other parts, an axis is no list of values, a parameter is none of
            notebook 05, or two runs would have one name.
    """
    from pneumo_lib import report  # of the extra "notebooks"

    path, overrides = source_path(params), dict(overrides or {})
    content = report.read_params(path)
    if set(content) != {"base", "grid"}:
        raise ValueError(
            f"{path.name} must have the parts `base` and `grid`. Received: {list(content)}"
        )
    grid = content["grid"] or {}
    for name in grid.keys() & overrides.keys():
        value = overrides.pop(name)
        grid[name] = value if isinstance(value, list) else [value]
    if wrong := [name for name, values in grid.items() if not isinstance(values, list)]:
        raise ValueError(
            "`grid` must hold a list of values for each parameter, such as `seed: [0, 1]`. "
            f"Received: {wrong[0]}={grid[wrong[0]]!r}"
        )
    defaults = report.notebook_parameters(training_notebook())
    base = {"data": "phantoms"} | (content["base"] or {}) | overrides
    found = []
    for values in itertools.product(*grid.values()):
        chosen = report.check_parameters(dict(zip(grid, values, strict=True)), defaults)
        parts = [v if isinstance(v, str) else f"{k}{v}" for k, v in chosen.items()]
        name = re.sub(r"[^\w.]+", "-", " ".join([path.stem, *parts])).strip("-")
        parameters = report.check_parameters(base | chosen | {"run_name": name}, defaults)
        found.append((name, report.absolute_paths(parameters)))
    if twice := [name for name, count in Counter(n for n, _ in found).items() if count > 1]:
        raise ValueError(
            "Each run of a sweep needs a name of its own. "
            f"Received: {twice[0]}, more than once. List each value only once"
        )
    return list(grid), dict(found)


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

    Each run is one task: notebook 05 in a kernel of its own on some worker. A run that fails does
    not stop the others; one whose worker is lost goes on elsewhere after its last epoch, where a
    lock keeps it waiting as long as the lost worker still trains. The data are prepared here,
    before. Client and workers share the folder `PNEUMO_HOME` and have the same pneumo_lib.

    Args:
        params, overrides: see `read_sweep()`.
        scheduler, workers: see `cluster.connected()`: local processes, or a running cluster.
        memory: of one worker with the kernel that it runs, such as "4GB"; a run that takes more
            is ended and has failed. None: no limit.
        resources: what one run takes of what workers were started with, such as `{"GPU": 1}`.
            Local workers have just that.
        retries: how often a run that failed is tried again.

    Returns:
        `Sweep`.

    Raises:
        FileNotFoundError, ValueError: as `read_sweep()` and `prepare_data()`.
        LostCluster: if the scheduler is not reached or dies; the same call goes on.

    Example: in JupyterLab, with the progress as a widget (in a script, all of it belongs
    under `if __name__ == "__main__":`, as worker processes import the script)::

        import pneumo_lib as pl

        sweep = pl.run_sweep("params/sweep.yaml", workers=2)
        sweep.failed  # {} if all went well
        pl.sweep_chart(sweep.table, part="validation")
    """
    axes, wanted = read_sweep(params, overrides=overrides)
    folder = project_path("runs") / f"sweep-{Path(params).stem}"
    with alone(folder):  # a second call waits for the first, and then finds all done
        folder.mkdir(parents=True, exist_ok=True)
        unmade = _unfinished(wanted, folder)
        logger.info("%d runs, %d of them to train", len(wanted), len(unmade))
        failed = {}
        if unmade:
            limit = parse_bytes(memory) if memory else None
            with (
                dask.config.set({"distributed.worker.resources": resources or {}}),
                connected(scheduler, workers=workers) as client,
            ):
                options = {"resources": resources or None, "retries": retries}
                failed = _train_all(client, unmade, folder, limit=limit, **options)
            missing = _unfinished({n: unmade[n] for n in unmade if n not in failed}, folder)
            why = "its worker finished it elsewhere: client and workers must share PNEUMO_HOME"
            failed |= dict.fromkeys(missing, why)
        found = [(runs.load_run(name), wanted[name]) for name in wanted if name not in failed]
        table = sweep_results.sweep_table(found, axes=axes)
        summary = sweep_results.summarise(table, axes=axes)
        if found:
            sweep_results.keep_results(table, summary, [run for run, _ in found], folder)
    notebooks = {n: (failed[n], unfinished(folder / f"{n}.ipynb")) for n in wanted if n in failed}
    return Sweep(table, summary, notebooks, folder)


def _unfinished(wanted, folder):
    """Those of `wanted` that have to be trained; their data are prepared by then."""
    data, left = {}, {}
    for name, parameters in wanted.items():
        source = tuple(parameters.get(key) for key in DATA)
        if source not in data:
            data[source] = prepare_for(parameters)
        if not is_finished(parameters, folder / f"{name}.ipynb", data=data[source]):
            left[name] = parameters
    return left


def _train_all(client, unmade, folder, *, limit, resources, retries):
    """Trains runs on a cluster; those that failed, with the reason."""
    home, version = str(project_path()), runs.RESULTS_VERSION
    _warn_of_missing(client, resources)
    futures, failed, under_way = {}, {}, set()
    with tqdm(total=len(unmade), desc=folder.name, unit="run") as bar:

        def show():
            bar.set_postfix_str(", ".join(sorted(under_way)))

        def started(event):
            under_way.add(event[1])
            show()

        client.subscribe_topic(STARTED, started)
        for name, parameters in unmade.items():
            future = client.submit(
                train_on_worker,
                parameters,
                str(folder / f"{name}.ipynb"),
                home=home,
                version=version,
                memory=limit,
                key=(folder.name, name, uuid.uuid4().hex),
                resources=resources,
                retries=retries,
                pure=False,
            )
            futures[future] = name
        try:
            for future in as_completed(futures):
                name = futures[future]
                try:  # not its status: should the worker have died since, the run is found again
                    logger.info("%s: %.0f s, %.1f GB", name, *future.result())
                except CancelledError:
                    raise scheduler_lost(client) from None
                except Exception as error:  # the other runs go on
                    failed[name] = _reason(error)
                    logger.warning("%s failed: %s", name, failed[name])
                under_way.discard(name)
                bar.update()
                show()
        finally:
            client.unsubscribe_topic(STARTED)
            client.cancel(list(futures))  # after Ctrl-C, on a cluster that lives on
    return failed


def _reason(error):
    if isinstance(error, kernels.NotebookError):
        return error.args[1]
    if isinstance(error, KilledWorker):
        return "the workers that tried it died, each time"
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
