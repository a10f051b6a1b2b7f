"""Sweeps: a grid of training runs, spread by Dask over processes or machines.

Which runs are finished is read off the run folders alone, so a sweep that was stopped, by
whatever, goes on with the same call, on the same or on another cluster.
"""

import itertools
import logging
import os
import re
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import dask
import pandas as pd
from distributed import get_worker
from tqdm.auto import tqdm

from pneumo_lib import runs
from pneumo_lib._files import file_lock, project_path, write_csv
from pneumo_lib.cluster.dask_client import as_finished, connected
from pneumo_lib.evaluation.score_table import score_table
from pneumo_lib.study import experiments

logger = logging.getLogger(__name__)
STARTED = "pneumo-run-started"  # topic of Dask's events


class Sweep(NamedTuple):
    """Results of `run_sweep()`."""

    table: pd.DataFrame  # a row for each run, split and score, see `sweep_table()`
    summary: pd.DataFrame  # the same over seeds and folds, see `summarise()`
    failed: dict  # name of a run -> (why, in one line; `Path` of a text file with the traceback)
    folder: Path  # of table.csv, summary.csv, the figure, and a file for each failure


def read_sweep(params, *, overrides=None):
    """`(axes, planned)` of a YAML file: names of the axes, and a list of `PlannedRun`, all checked.

    The file has two parts, both of settings of data and training, see `plan_run()`: `base` holds
    those that all runs share, `grid` a list of values for each that is varied. The runs are all
    combinations, named `<file>-<value>-<value>...`, where a number has the name of its setting
    before it.

    Args:
        params: path of the file, such as `params/sweep.yaml`.
        overrides: dict of settings, stronger than the file; of an axis, the one value or the
            list that replaces it.

    Raises:
        FileNotFoundError, ValueError: as `plan_run()`; or for a file that is not there, other
            parts, an axis without a list, or two runs of one name.
    """
    overrides = dict(overrides or {})
    stem, base, grid = experiments.read_two_parts(params, "grid")
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
        run = experiments.plan_run("", base | overrides | chosen)
        checked = {name: run.settings[name] for name in grid}
        words = [chosen[n] if isinstance(v, str) else f"{n}{v}" for n, v in checked.items()]
        planned.append(run._replace(name=experiments.run_name(stem, *words)))
    for name, count in Counter(run.name for run in planned).items():
        if count > 1:
            raise ValueError(
                "Each run of a sweep needs a name of its own. "
                f"Received: {name}, more than once. List each value only once"
            )
    return list(grid), planned


def run_sweep(params, *, overrides=None, resources=None, retries=1, **cluster):
    """`Sweep` of a file, after training all of its runs that are not finished.

    Each run is one task: `train()` in a worker process. A run that fails does not stop the others;
    one whose worker is lost goes on elsewhere after its last epoch, where a lock keeps it waiting
    as long as the lost worker still trains. The data are prepared here, before. Client and workers
    share the folder `PNEUMO_HOME` and have the same pneumo_lib. A script must call this under
    `if __name__ == "__main__":`, as worker processes import it.

    Args:
        params, overrides: see `read_sweep()`.
        resources: what one run takes of what workers were started with, such as `{"GPU": 1}`.
            Local workers have just that.
        retries: how often a run that failed is tried again.
        cluster: `scheduler`, `workers` and `memory` of `dask_client.connected()`. A run that took
            more than `memory`, twice, has failed.

    Raises:
        FileNotFoundError, ValueError: as `read_sweep()`, `prepare_data()` and `connected()`.
        LostCluster: if the scheduler is not reached or dies; the same call goes on.
    """
    axes, planned = read_sweep(params, overrides=overrides)
    folder = project_path("runs") / f"sweep-{Path(params).stem}"
    with file_lock(folder):  # a second call waits for the first, and then finds all done
        folder.mkdir(parents=True, exist_ok=True)
        prepared = zip(planned, experiments.prepare_each(planned), strict=True)
        unmade = [run for run, data in prepared if not experiments.is_finished(run, data)]
        logger.info("%d runs, %d of them to train", len(planned), len(unmade))
        failed = {}
        if unmade:
            with (
                dask.config.set({"distributed.worker.resources": resources or {}}),
                connected(**cluster) as client,
            ):
                _warn_of_missing(client, resources or {})
                options = {"resources": resources or None, "retries": retries}
                failed = _train_all(client, unmade, folder, **options)
        done = [(runs.load_run(r.name), r.settings) for r in planned if r.name not in failed]
        table = sweep_table(done, axes=axes)
        summary = summarise(table, axes=axes)
        if done:
            keep_results(table, summary, [run for run, _ in done], folder)
    return Sweep(table, summary, failed, folder)


def _warn_of_missing(client, resources):
    """Dask waits in silence for a worker that has what a task needs."""
    there = [w["resources"] for w in client.scheduler_info(n_workers=-1)["workers"].values()]
    for name, amount in resources.items():
        if not any(offered.get(name, 0) >= amount for offered in there):
            logger.warning(
                "No worker has %s=%g yet; the runs wait for one: dask worker --resources '%s=%g'",
                *(name, amount, name, amount),
            )


def _train_all(client, planned, folder, *, resources, retries):
    """Trains runs on a cluster; those that failed, as in `Sweep`."""
    failed, under_way = {}, set()
    shared = {"folder": str(folder), "home": str(project_path()), "version": runs.RESULTS_VERSION}
    options = {"resources": resources, "retries": retries, "raising": False, **shared}
    with tqdm(total=len(planned), desc=folder.name, unit="run") as bar:

        def show(event=None):
            under_way.update(event[1:] if event else ())
            bar.set_postfix_str(", ".join(sorted(under_way)))

        client.subscribe_topic(STARTED, show)
        for run, seconds, error in as_finished(client, train_on_worker, planned, **options):
            if error is None and not runs.is_finished(project_path("runs") / run.name):
                error = FileNotFoundError(
                    "its worker finished it elsewhere: all must share the folder PNEUMO_HOME"
                )
            log = folder / f"{run.name}.failed.txt"
            log.unlink(missing_ok=True)
            if error is None:
                logger.info("%s: %.0f s", run.name, seconds)
            else:
                log.write_text("".join(traceback.format_exception(error)))
                failed[run.name] = f"{type(error).__name__}: {error}", log
                logger.warning("%s failed: %s", run.name, failed[run.name][0])
            under_way.discard(run.name)
            bar.update()
            show()
        client.unsubscribe_topic(STARTED)
    return failed


def train_on_worker(planned, *, folder, home, version):
    """Seconds that a `PlannedRun` took in this worker process.

    The client passes the `folder` of the sweep, its `PNEUMO_HOME` and its `RESULTS_VERSION`. A
    RuntimeError refuses them if this worker has other files or another pneumo_lib.
    """
    worker, started = get_worker(), time.monotonic()
    if not Path(folder).is_dir() or version != runs.RESULTS_VERSION:
        raise RuntimeError(
            "Client and workers must share the folder PNEUMO_HOME and have the same pneumo_lib. "
            f"Received: {home} and results of version {version}, unlike on {worker.address}"
        )
    os.environ["PNEUMO_HOME"] = home
    worker.log_event(STARTED, planned.name)
    experiments.train_run(planned, *experiments.prepare_each([planned]))
    return time.monotonic() - started


def sweep_table(found, *, axes):
    """A row for each run, split and score of a list of `(Run, dict of its parameters)`.

    `axes` are the names of the parameters that tell the runs apart.

    Returns:
        DataFrame with the columns `run`, those of `axes`, `split` ("validation", "test"),
        `images`, `positives`, `score` (of `SCORES`), `value` after the last epoch with its
        bootstrap interval over images, `lower` and `upper` (see `score_table()`), and
        `all_background`, the score of an empty prediction on the same images.
    """
    from pneumo_lib.plots.experiments import SCORES  # with matplotlib, which no worker needs

    rows = []
    for run, parameters in found:
        place = {"run": run.folder.name}
        for axis in axes:  # text where pandas could not group by the value
            value = parameters[axis]
            place[axis] = value if isinstance(value, (str, bool, int, float)) else str(value)
        last = run.scores[run.scores["epoch"] == run.scores["epoch"].max()]
        scores = score_table(last[last["split"] != "train"]).set_index(["model", "split"])
        network, nothing = scores.loc["network"], scores.loc["all background"]
        splits = [split for split in ("validation", "test") if split in network.index]
        for split, score in itertools.product(splits, SCORES):
            sizes = network.loc[split, ["images", "positives"]].astype(int).to_dict()
            names = [score, f"{score}_lower", f"{score}_upper"]
            values = dict(zip(("value", "lower", "upper"), network.loc[split, names], strict=True))
            values["all_background"] = nothing.loc[split, score]
            rows.append(place | {"split": split} | sizes | {"score": score} | values)
    return pd.DataFrame(rows)


def summarise(table, *, axes):
    """`sweep_table()` over seeds and folds: how far a score moves when training is repeated.

    Returns:
        DataFrame with the other axes, `split`, `score`, `runs`, and of their values `mean`, `sd`
        (NaN for one run), `lowest`, `highest`; `all_background` is a mean, too: another seed or
        fold may have other images.
    """
    from pneumo_lib.plots.experiments import REPEATS

    if table.empty:
        return table
    by = [*(axis for axis in axes if axis not in REPEATS), "split", "score"]
    values = {"runs": "size", "mean": "mean", "sd": "std", "lowest": "min", "highest": "max"}
    values = {name: ("value", how) for name, how in values.items()}
    groups = table.groupby(by, sort=False)
    return groups.agg(**values, all_background=("all_background", "mean")).reset_index()


def keep_results(table, summary, found, folder):
    """Writes table.csv, summary.csv and the figure of a list of `Run` to a folder."""
    import matplotlib.pyplot as plt

    from pneumo_lib.plots.experiments import sweep_chart
    from pneumo_lib.plots.style import export, use_style

    write_csv(folder / "table.csv", table)
    write_csv(folder / "summary.csv", summary)
    one_each = {run.config["backbone"]: run for run in found}
    note = re.sub(r"fold \d+/(\d+)", r"\1 folds", runs.caveats(list(one_each.values())))
    with plt.rc_context():
        use_style()
        figure = sweep_chart(table, note=note)
        export(figure, "scores", folder=folder)
        plt.close(figure)
