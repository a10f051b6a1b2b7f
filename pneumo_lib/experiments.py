"""Experiments: many runs of the training notebook, each with a few parameters changed.

Notebooks are read and run by packages of the extra "notebooks", so they are imported where they
are needed: the library works without them.
"""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pneumo_lib import runs
from pneumo_lib.metrics import confusion_counts
from pneumo_lib.operating_point import apply_operating_point, load_operating_point
from pneumo_lib.paths import project_path, source_path
from pneumo_lib.preparation import load_prepared, prepare_data

logger = logging.getLogger(__name__)
# parameters that choose the cases
DATA = ("data", "size", "split", "fold", "seed", "phantom_count")


class Experiment(NamedTuple):
    """One run of a parameter file, see `read_experiments()`."""

    factor: str  # what is changed; "base": nothing, the run that all others are compared with
    level: str  # to what
    parameters: dict  # of the training notebook

    @property
    def run(self):
        """Name of the run folder."""
        return self.parameters["run_name"]


def read_experiments(params, *, overrides=None):
    """Experiments of a YAML file, the base run first.

    The file has two parts. `base` holds parameters of notebook 05; `experiments` names factors,
    each with levels, each with the parameters that differ from the base. Runs are named
    `<file>-base` and `<file>-<factor>-<level>`.

    Args:
        params: path of the file, such as `params/better.yaml`.
        overrides: dict of parameters, stronger than `base` and weaker than a level.

    Returns:
        List of `Experiment`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has other parts, or a parameter that notebook 05 does not know.
    """
    from pneumo_lib import report

    path = source_path(params)
    content = report.read_params(path)
    if set(content) != {"base", "experiments"}:
        raise ValueError(
            f"{path.name} must have the parts `base` and `experiments`. Received: {list(content)}"
        )
    defaults = report.notebook_parameters(training_notebook())
    base = content["base"] | (overrides or {})
    levels = [("base", "", {})]
    for factor, changes in content["experiments"].items():
        levels += [(factor, str(level), change) for level, change in changes.items()]
    experiments = []
    for factor, level, changes in levels:
        name = re.sub(r"[^\w.]+", "-", f"{path.stem} {factor} {level}".strip())
        parameters = report.check_parameters(base | changes | {"run_name": name}, defaults)
        experiments.append(Experiment(factor, level, parameters))
    return experiments


def run_experiments(params, *, overrides=None, in_kernels=True):
    """Train all experiments of a file that are not finished.

    Args:
        params, overrides: see `read_experiments()`.
        in_kernels: each by notebook 05 in a kernel of its own, which leaves an executed notebook
            to look at and gives memory back; else right here, for experiments of seconds.

    Returns:
        List of `Run`, in the order of the file.

    Raises:
        FileNotFoundError, ValueError: as `read_experiments()`, `prepare_data()` and `train()`.
        NotebookError: if a cell of the notebook fails.
    """
    experiments = read_experiments(params, overrides=overrides)
    if not in_kernels:
        return [_train(experiment) for experiment in experiments]
    folder = project_path("runs") / f"experiments-{Path(params).stem}"
    folder.mkdir(parents=True, exist_ok=True)
    for number, experiment in enumerate(experiments, start=1):
        progress = f"{number}/{len(experiments)} {experiment.run}"
        executed = folder / f"{experiment.run}.ipynb"
        if is_finished(experiment.parameters, executed):
            logger.info("%s: finished before", progress)
            continue
        train_in_kernel(experiment.parameters, executed, desc=progress)
        logger.info("%s: done", progress)
    return [runs.load_run(experiment.run) for experiment in experiments]


def scores_at_operating_point(run):
    """Counts of every case at the run's own operating point, like the rows of its scores.

    Args:
        run: `Run`.

    Returns:
        DataFrame with the columns `image_id`, `split`, `has_pneumothorax`, `tp`, `fp`, `fn`, `tn`.
    """
    data = load_prepared(project_path(run.config["data"]))
    probabilities = np.load(run.folder / "probabilities.npy", mmap_mode="r")
    point = load_operating_point(run)
    tables = []
    for first in range(0, len(data.masks), 256):  # 256 images at a time, however many there are
        rows = slice(first, first + 256)
        masks = apply_operating_point(probabilities[rows], point)
        tables.append(pd.DataFrame(confusion_counts(data.masks[rows], masks)))
    cases = data.cases[["image_id", "split", "has_pneumothorax"]].reset_index(drop=True)
    return pd.concat([cases, pd.concat(tables, ignore_index=True)], axis=1)


def _train(experiment):
    from pneumo_lib import train  # Keras is needed, and started, only to train

    settings = dict(experiment.parameters)
    source = {name: settings.pop(name) for name in DATA if name in settings}
    data = prepare_data(source.pop("data", "phantoms"), **source)
    settings |= {"run": settings.pop("run_name"), "seed": source.get("seed", 0)}
    return train(data, **settings)


def train_in_kernel(parameters, executed, *, desc=None):
    """Runs notebook 05, whose executed copy gets its name when it came to its end.

    Args:
        parameters: dict, with `run_name`.
        executed: `Path` of the copy.
        desc: of the progress bar; None shows none.

    Raises:
        NotebookError: see `kernels.execute()`.
    """
    from pneumo_lib import kernels

    step = kernels.Step(parameters["run_name"], training_notebook(), parameters)
    kernels.execute(step, unfinished(executed), desc=desc)
    unfinished(executed).replace(executed)


def unfinished(executed):
    """Where a notebook lies while it runs, and stays, to look at, if a cell fails."""
    return executed.with_suffix(".unfinished.ipynb")


def prepare_for(parameters):
    """`Prepared` data of a run of notebook 05."""
    from pneumo_lib import report

    wanted = report.notebook_parameters(training_notebook()) | parameters
    source = {name: wanted[name] for name in DATA}
    return prepare_data(source.pop("data"), **source)


def is_finished(parameters, executed, *, data=None):
    """Whether a run is there, of the same parameters, data and code.

    Args:
        parameters, executed: as for `train_in_kernel()`.
        data: `Prepared`; `None`: that of `prepare_for()`.
    """
    import nbformat

    folder = project_path("runs") / parameters["run_name"]
    if not executed.is_file() or not runs.is_finished(folder):
        return False
    kept = nbformat.read(executed, as_version=4).metadata.papermill.parameters
    if dict(kept) != parameters:
        return False
    config = runs.read_config(folder)
    checksum = runs.data_checksum(data or prepare_for(parameters))
    same_code = runs.results_version(config) == runs.RESULTS_VERSION
    return same_code and config["data_checksum"] == checksum


def training_notebook():
    return source_path("notebooks") / "05_train_fcn.ipynb"
