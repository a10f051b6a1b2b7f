"""Experiments: many trainings from one parameter file, each with a few settings changed."""

import logging
import re
from dataclasses import asdict
from functools import cache
from typing import NamedTuple

from pneumo_lib import runs
from pneumo_lib._files import project_path, source_path
from pneumo_lib.data.prepare import prepare_data
from pneumo_lib.study.parameters import DATA, absolute_paths, check_parameters, read_params
from pneumo_lib.training.config import TrainingConfig

logger = logging.getLogger(__name__)


class PlannedRun(NamedTuple):
    """A checked training, started or not, see `plan_run()`."""

    name: str  # of the run folder
    source: dict  # arguments of `prepare_data()` that were given
    config: TrainingConfig
    factor: str = "base"  # of an experiment: what is changed
    level: str = ""  # to what
    changes: dict | None = None  # settings that differ from those of the base run

    @property
    def settings(self):
        """All settings of data and training, `{name: value}`."""
        return asdict(self.config) | self.source


def plan_run(name, settings):
    """`PlannedRun` of a dict of fields of `TrainingConfig` and arguments of `prepare_data()`.

    Raises:
        ValueError: for an unknown setting, or a value that it cannot have.
        FileNotFoundError: if there is no such data folder, file of weights or `initial` run.
    """
    known = dict.fromkeys([*DATA, *asdict(TrainingConfig())])
    settings = check_parameters(absolute_paths({"data": "phantoms"} | settings), known)
    source = {n: settings[n] for n in DATA if n in settings}
    training = {n: v for n, v in settings.items() if n not in DATA or n == "seed"}
    return PlannedRun(name, source, TrainingConfig(**training))


def read_two_parts(params, second):
    """Stem of the file, its part "base" and its part `second`, of a YAML file of many runs."""
    path = source_path(params)
    content = read_params(path)
    if set(content) != {"base", second}:
        raise ValueError(
            f"{path.name} must have the parts `base` and `{second}`. Received: {list(content)}"
        )
    return path.stem, content["base"] or {}, content[second] or {}


def run_name(*words):
    """Name of a run folder, of the letters, digits, dots and dashes in `words`."""
    return re.sub(r"[^\w.]+", "-", " ".join(words)).strip("-")


def read_experiments(params, *, overrides=None):
    """List of `PlannedRun` of a YAML file, the base run first; all are checked.

    The file has two parts. `base` holds settings of data (arguments of `prepare_data()`) and
    training (fields of `TrainingConfig`); `experiments` names factors, each with levels, each
    with the settings that differ from the base. Runs are named `<file>-base` and
    `<file>-<factor>-<level>`.

    Args:
        params: path of the file, such as `params/better.yaml`.
        overrides: dict of settings, stronger than `base` and weaker than a level.

    Raises:
        FileNotFoundError, ValueError: for no such file, other parts, or as `plan_run()`.
    """
    stem, base, factors = read_two_parts(params, "experiments")
    planned = []
    for factor, levels in [("base", {"": {}}), *factors.items()]:
        for level, changes in levels.items():
            run = plan_run(run_name(stem, factor, str(level)), base | (overrides or {}) | changes)
            planned.append(run._replace(factor=factor, level=str(level), changes=changes))
    return planned


def run_experiments(params, *, overrides=None):
    """List of `Run` of the experiments in a file; those that are not finished are trained.

    Args:
        params, overrides: see `read_experiments()`.

    Raises:
        FileNotFoundError, ValueError: as `read_experiments()` and `prepare_data()`, before
            anything is trained, and as `train()`.
    """
    planned = read_experiments(params, overrides=overrides)
    found = []
    for number, (run, data) in enumerate(zip(planned, prepare_each(planned), strict=True), 1):
        logger.info("%d/%d %s", number, len(planned), run.name)
        found.append(train_run(run, data))
    return found


def prepare_each(planned):
    """`Prepared` data of each of the `planned` runs; the same cases are prepared once."""
    prepare = cache(lambda source: prepare_data(**dict(source)))
    return [prepare(tuple(run.source.items())) for run in planned]


def train_run(planned, data):
    """Finished `Run` of a `PlannedRun`, see `train()`."""
    from pneumo_lib._startup import keras  # starts TensorFlow, which only training needs

    from pneumo_lib.training.train import train

    run = train(data, planned.config, run=planned.name)
    keras.utils.clear_session()  # the next run in this process needs the memory
    return run


def is_finished(planned, data):
    """Whether `train_run()` would only open the run, found out without starting Keras."""
    folder = project_path("runs") / planned.name
    if not runs.is_finished(folder):
        return False
    on_any = (planned.config.resolved(gpu=gpu) for gpu in (False, True))  # a worker may have one
    settings = (runs.run_settings(data, config) for config in on_any)
    return any(runs.changed_settings(folder, each) == [] for each in settings)
