"""Parameters of the study: read from a file or the command line, and checked before anything runs.

Each setting is checked where it is used: those of a training by `TrainingConfig`, those of the
data by `prepare.check_data_settings()`.
"""

from dataclasses import asdict
from pathlib import Path

import yaml

from pneumo_lib._checks import as_value, did_you_mean, refuse
from pneumo_lib._files import IN_CHECKOUT, project_path
from pneumo_lib.data.prepare import check_data_settings
from pneumo_lib.models.names import check_size
from pneumo_lib.runs import load_run
from pneumo_lib.training.config import TrainingConfig

DATA = ("data", "size", "split", "fold", "seed", "phantom_count")  # they choose the cases


def read_params(path):
    """Parameters of a YAML file as a dict; `{}` for `None`."""
    if path is None:
        return {}
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No parameter file {path}. {IN_CHECKOUT}")
    try:
        params = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML in UTF-8. Received: {error}") from None
    if not isinstance(params, dict):
        raise ValueError(f"{path} must hold lines of `name: value`. Received: {params!r}")
    return params


def check_parameters(settings, defaults):
    """`settings` as notebooks take them: checked, with numbers and lists where they came as text.

    Papermill only warns of a misspelt parameter and runs with the default instead.

    Args:
        settings: dict of parameters.
        defaults: dict of all known parameters and their defaults.

    Raises:
        ValueError: for an unknown parameter, and for a value that it cannot have.
    """
    for name in settings:
        if name not in defaults and name not in ("data", "export"):
            hint = did_you_mean(name, defaults) or f". Known: {', '.join(defaults)}"
            raise ValueError(f"No notebook has a parameter `{name}`{hint}")
    config = asdict(TrainingConfig())
    config = asdict(TrainingConfig(**{n: v for n, v in settings.items() if n in config}))
    checked = {name: config[name] for name in settings if name in config}
    checked = {n: list(v) if isinstance(v, tuple) else v for n, v in checked.items()}
    checked |= check_data_settings(**{n: v for n, v in settings.items() if n in DATA})
    if "size" in checked:
        check_size(checked["size"], settings.get("backbone"))
    others = {n: _like(n, v, defaults.get(n)) for n, v in settings.items() if n not in checked}
    return {name: (checked | others)[name] for name in settings}


def _like(name, value, default):
    """`value` of the type of its default; any value where that is None."""
    value = as_value(value) if isinstance(default, bool) else value
    if default is None or isinstance(value, type(default)):
        return value
    return refuse(name, value, f"{type(default).__name__}, as its default {default!r}")


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
        if not Path(settings["weights"]).exists():
            raise FileNotFoundError(
                "`weights` must be auto, imagenet, None, or an existing file or folder. "
                f"Received: weights={settings['weights']!r}"
            )
    if settings.get("initial") is not None:
        load_run(settings["initial"])
    return settings
