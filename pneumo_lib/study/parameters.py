"""Parameters of the study: read from a file or the command line, and checked before anything runs.

Each setting is checked where it is used: those of a training by `TrainingConfig`, those of the
data by `prepare.check_data_settings()`.
"""

from dataclasses import asdict, fields
from pathlib import Path

import yaml

from pneumo_lib._files import project_path
from pneumo_lib.data.prepare import check_data_settings
from pneumo_lib.models.names import check_size, did_you_mean
from pneumo_lib.runs import load_run
from pneumo_lib.training.config import TrainingConfig, as_value

DATA = ("data", "size", "split", "fold", "seed", "phantom_count")  # they choose the cases
_TRAINING = tuple(one.name for one in fields(TrainingConfig))


def read_params(path):
    """Parameters of a YAML file as a dict; `{}` for `None`."""
    if path is None:
        return {}
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No parameter file {path}. The project's own are in params/")
    params = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(params, dict):
        raise ValueError(f"{path} must hold lines of `name: value`. Received: {params!r}")
    return params


def check_parameters(settings, defaults):
    """`settings` as notebooks take them; refuses what papermill lets pass, or could not be run.

    Papermill only warns of a misspelt parameter and runs with the default instead.

    Args:
        settings: dict of parameters.
        defaults: dict of all known parameters and their defaults.

    Returns:
        The same dict, with numbers and lists where they came as text.

    Raises:
        ValueError: for an unknown parameter, and for a value that cannot be.
    """
    for name in settings:
        if name not in defaults and name not in ("data", "export"):
            hint = did_you_mean(name, defaults) or f". Known: {', '.join(defaults)}"
            raise ValueError(f"No notebook has a parameter `{name}`{hint}")
    training = {name: settings[name] for name in _TRAINING if name in settings}
    data = {name: settings[name] for name in DATA if name in settings}
    checked = {n: v for n, v in asdict(TrainingConfig(**training)).items() if n in training}
    checked = {n: list(v) if isinstance(v, tuple) else v for n, v in checked.items()}
    checked |= check_data_settings(**data)
    if "size" in checked:
        check_size(checked["size"], settings.get("backbone"))
    others = {n: _like(n, v, defaults.get(n)) for n, v in settings.items() if n not in checked}
    return {name: (checked | others)[name] for name in settings}


def _like(name, value, default):
    """`value` of the type of its default; any text or None where that is None."""
    if type(default) in (bool, int, float):
        value = as_value(value)
    if type(default) is float and type(value) is int:
        return float(value)
    if default is None or type(value) is type(default):
        return value
    kind = type(default).__name__
    raise ValueError(
        f"`{name}` must be {kind}, as its default {default!r}. Received: {name}={value!r}"
    )


def absolute_paths(settings):
    """`data` and `weights` as absolute paths: a kernel works in the notebooks' folder.

    Raises:
        FileNotFoundError: if there is no such folder, file, or `initial` run.
    """
    settings = dict(settings)
    if settings["data"] != "phantoms":
        settings["data"] = str(project_path(str(settings["data"])))
        if not Path(settings["data"]).is_dir():
            raise FileNotFoundError(
                f"`data` must be 'phantoms' or a folder. Received: {settings['data']}. "
                "The SIIM-ACR data set is downloaded by: pneumo fetch siim --to data/siim"
            )
    if settings.get("weights") not in (None, "auto", "imagenet"):
        settings["weights"] = str(project_path(settings["weights"]))
        if not Path(settings["weights"]).is_file():
            raise FileNotFoundError(
                "`weights` must be auto, imagenet, None or an existing file. "
                f"Received: weights={settings['weights']!r}"
            )
    if settings.get("initial") is not None:
        load_run(settings["initial"])
    return settings
