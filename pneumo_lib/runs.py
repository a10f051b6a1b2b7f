"""The run folder `runs/<name>/`: one training run, under way or finished.

`settings.json`, written first, identifies the run: all that decides its numbers. Each epoch
rewrites `history.csv`, `scores.csv` and the checkpoint `state.npz`. The network and its predictions
come at the end, and `config.json` last: its presence marks a finished run.
"""

import hashlib
import json
import logging
import platform
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pneumo_lib._files import made_from, project_path, read_csv
from pneumo_lib.data.prepare import Prepared, load_prepared
from pneumo_lib.evaluation import metrics
from pneumo_lib.evaluation.operating_point import OperatingPoint
from pneumo_lib.models.names import BACKBONES

logger = logging.getLogger(__name__)
SETTINGS = "settings.json"
_CONFIG = "config.json"
IMAGE_HEAD = "image_head.npz"
OPERATING_POINT = "operating_point.json"
# Raise by one when equal settings give other numbers than before: another network, training step,
# preprocessing, draw of random numbers, score or operating point. Finished runs are then trained
# again. Leave it for comments, names, messages, figures and what only makes training faster.
RESULTS_VERSION = 5
_DECIDE_NUMBERS = (
    *("tensorflow", "keras", "numpy", "pandas", "scipy", "scikit-learn"),
    *("opencv-python-headless", "pillow", "pydicom", "pneumo"),
)


class Run(NamedTuple):
    """A finished training run, see `load_run()`."""

    folder: Path
    config: dict
    history: pd.DataFrame
    scores: pd.DataFrame


class OpenRun(NamedTuple):
    """A finished run with its data and predictions, see `open_run()`."""

    run: Run
    data: Prepared
    probabilities: np.ndarray  # (n, size, size) uint8, 255 times the probability, memory-mapped
    cases: pd.DataFrame  # n rows: id, split, truth and path of images, counts, image_score, dice


def load_run(run):
    """A finished run, read from its folder or its name below `runs/`; a `Run` is returned as it is.

    Returns:
        `Run`: `folder`; `config` (settings, data, split, weights, parameters, versions, device,
        seconds); `history`, a row per epoch with loss and scores, validation with the prefix
        `val_`; `scores`, a row per milestone epoch and image with its counts. The folder also
        holds `model.keras`, `image_head.npz` if one was fitted, `operating_point.json` if there
        are validation cases, and `probabilities.npy`, `(n, size, size)` uint8: 255 times the
        foreground probability of every prepared case after the last epoch.

    Raises:
        FileNotFoundError: if the folder holds no finished run.
    """
    if isinstance(run, Run):
        return run
    folder = project_path(Path("runs") / run)
    if not is_finished(folder):
        raise FileNotFoundError(
            "A run folder must hold a finished training run. "
            f"Received: {folder}. Train it with train() or notebooks/05_train_fcn.ipynb"
        )
    tables = (read_csv(folder / f"{name}.csv") for name in ("history", "scores"))
    return Run(folder, made_from(folder, record=_CONFIG), *tables)


def default_name(data_name, backbone, decoder, size):
    """Name of a run folder from its settings; the report's decoder is left out."""
    parts = [data_name, backbone, *([] if decoder == "deconvolution" else [decoder]), size]
    return "-".join(map(str, parts))


def find_runs(data_name=None, size=None, *, data=None):
    """List of the finished `Run`s, in the order of `BACKBONES`, then by name.

    Only tables of runs that fit are read. A run that cannot be read is left out with a warning.

    Args:
        data_name: only runs on this data ("phantoms", or the name of the folder).
        size: only runs at this image size in pixels.
        data: `Prepared`; only runs on exactly these images, masks and splits.

    Raises:
        FileNotFoundError: if there is none.
    """
    wanted = {"data_name": data_name, "size": size}
    if data is not None:
        wanted = {"data_name": data.meta["source"], "data_checksum": data_checksum(data)}
    found = []
    for path in sorted(project_path("runs").glob(f"*/{_CONFIG}")):
        if ".old-" in path.parent.name:
            continue
        try:
            config = made_from(path.parent, record=_CONFIG)
            if all(value in (None, config.get(key)) for key, value in wanted.items()):
                found.append(load_run(path.parent))
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and is left out: %s", path.parent, error)
    if not found:
        raise FileNotFoundError(
            f"There is no finished run in {project_path('runs')} for {wanted}. "
            "Train one: papermill notebooks/05_train_fcn.ipynb out.ipynb -p backbone vgg19"
        )
    return _by_backbone(found)


def _by_backbone(found):
    places = {backbone: place for place, backbone in enumerate(BACKBONES)}
    return sorted(found, key=lambda run: places.get(run.config.get("backbone"), len(places)))


def runs_to_compare(data, names=None):
    """List of one finished `Run` of each backbone and seed on these data, as in `BACKBONES`.

    Args:
        data: `Prepared`: the images, masks and splits that the runs were trained on.
        names: of the run folders. None: those with their `default_name()`, which excludes
            experiments; of several decoders the report's, "deconvolution", is preferred.

    Raises:
        FileNotFoundError: if a named run, or any run, is missing.
        ValueError: if a named run was trained on other data, or two have one backbone and seed.
    """
    if names is None:
        named = ("data_name", "backbone", "decoder", "size")
        every = find_runs(data=data)
        every = [r for r in every if r.config["name"] == default_name(*map(r.config.get, named))]
        every.sort(key=lambda run: run.config["decoder"] == "deconvolution")
        if not every:
            raise FileNotFoundError(
                "Runs to compare must have their name from notebook 05 or be named. "
                "Received: neither. Set `run_names` to the names of run folders"
            )
        return _by_backbone({run.config["backbone"]: run for run in every}.values())
    found = [load_run(name) for name in names]
    checksum = data_checksum(data)
    networks = [f"{run.config['backbone']} (seed {run.config['seed']})" for run in found]
    if any(run.config["data_checksum"] != checksum for run in found):
        raise ValueError(
            "Runs to compare must be trained on exactly these images, masks and splits. "
            f"Received: {', '.join(names)}. Set data, size, split and seed as they were then"
        )
    if len(set(networks)) < len(networks):
        raise ValueError(
            "Runs to compare must differ in backbone or seed. "
            f"Received: {', '.join(names)} with {', '.join(networks)}"
        )
    return _by_backbone(found)


def caveats(runs):
    """Small print for figures: what a reader must know beside every number of these `Run`s.

    Text such as "synthetic radiographs · random features: vgg19, resnet50 · split: official".
    """
    config = runs[0].config
    random = [r.config["backbone"] for r in runs if r.config["weights"] == "random features"]
    diverged = [r.config["backbone"] for r in runs if r.config.get("diverged")]
    leaked = config["leaked_patients"]
    notes = [
        "synthetic radiographs" if config["synthetic"] else "",
        f"random features: {', '.join(random)}" if random else "",
        f"split: {config['split_scheme']}",
        f"{leaked} patients in more than one subset" if leaked else "",
        f"training diverged: {', '.join(diverged)}" if diverged else "",
    ]
    return " · ".join(filter(None, notes))


def open_run(run):
    """`OpenRun` of a `Run`, or of what `load_run()` takes, arrays memory-mapped.

    Counts and Dice of its cases are those of the last epoch at threshold 0.5; `image_score` is
    that of the image-level head, or `image_level_score()` without one.

    Raises:
        FileNotFoundError, ValueError: as `load_run()` and `load_run_data()`.
    """
    run = load_run(run)
    data = load_run_data(run)
    scores = run.scores[run.scores["epoch"] == run.scores["epoch"].max()].set_index("image_id")
    if "image_score" not in scores:
        raise ValueError(
            f"A run must have an image-level score of each case. Received: {run.folder}, from an "
            "earlier version: train it again"
        )
    columns = scores[[*metrics.COUNTS, "image_score"]]
    cases = data.cases.join(columns, on="image_id").reset_index(drop=True)
    # A lesion that vanished at this size counts as missed, as in the tables.
    dice = pd.Series(metrics.dice(cases, empty_score=np.nan))
    cases["dice"] = dice.fillna((~cases["has_pneumothorax"]).astype(float))
    probabilities = np.load(run.folder / "probabilities.npy", mmap_mode="r")
    return OpenRun(run, data, probabilities, cases)


def load_run_data(run, *, data=None):
    """The `Prepared` images, masks and split that a `Run` was trained and scored on.

    They are in the folder named in the run, or must be the given `data`.

    Raises:
        FileNotFoundError: if they are not prepared here.
        ValueError: if they changed after the training.
    """
    rule = "A run belongs to the images, masks and split it was scored on. Received: "
    config = run.config
    call = config.get("prepared_by") or {  # none where `prepare()` was called itself
        "data": config["data_name"], "size": config["size"], "split": config["split_scheme"]
    }  # fmt: skip
    again = f"pl.prepare_data({', '.join(f'{name}={value!r}' for name, value in call.items())})"
    folder = project_path(config["data"])
    try:
        data = load_prepared(folder) if data is None else data
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{rule}{run.folder.name}, without {folder}. Prepare them again: {again}"
        ) from None
    if data_checksum(data) != config["data_checksum"]:
        raise ValueError(
            f"{rule}{data.folder}, which changed after {run.folder.name} was trained. Train the "
            f"run again, or restore the data set and prepare it again: {again}"
        )
    return data


def load_operating_point(run):
    """`OperatingPoint` that a `Run` chose on its validation cases; the default without them."""
    point = made_from(run.folder, record=OPERATING_POINT)
    return OperatingPoint(**(point or {}))


def load_image_head(run):
    """`ImageHead` of a `Run`; None for one without. A ValueError for one of an earlier version."""
    from pneumo_lib.models.image_head import ImageHead  # starts Keras

    if not (run.folder / IMAGE_HEAD).is_file():
        return None
    if (made_by := run.config["results_version"]) < 5:
        rule = "An image-level head must be of results version 5 or later. Received: version"
        raise ValueError(f"{rule} {made_by} in {run.folder}. Train the run again")
    with np.load(run.folder / IMAGE_HEAD) as arrays:
        return ImageHead(**arrays)


def load_network(run):
    """The `keras.Model` of a `Run`.

    Raises:
        ValueError: if the file is damaged or holds code (a lambda layer, a pickle).
    """
    from pneumo_lib._startup import keras  # TensorFlow, which nothing else that reads a run needs

    import pneumo_lib.models.fcn  # noqa: F401  (registers the layers that a network may hold)

    path = run.folder / "model.keras"
    try:
        # `safe_mode` by name: a process may have turned it off for all
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever its parts raise
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ValueError(
            "A saved network must be whole and hold no code of its own. "
            f"Received: {path} ({reason}). Train the run again, or get it from whom you trust"
        ) from error


def run_id(run):
    """Name of a `Run` and the first 12 hexadecimal digits of its network's checksum."""
    return f"{run.folder.name}@{weights_checksum(run.folder)[:12]}"


def run_settings(data, config):
    """The content of `settings.json`: all that decides the results of a training.

    `config` is a `TrainingConfig` with nothing left to be chosen, see `resolved()`. Raises
    FileNotFoundError if `initial` is no finished run.
    """
    initial = None
    if config.initial is not None:
        folder = load_run(config.initial).folder
        initial = {"run": folder.name, "checksum": weights_checksum(folder)}
    return {
        "data_checksum": data_checksum(data),
        "size": data.meta["size"],
        **asdict(config),
        "initial": initial,
        "results_version": RESULTS_VERSION,
    }


def changed_settings(folder, settings):
    """Sorted names of `run_settings()` in which the run in `folder` differs; `None` without one."""
    if (former := made_from(folder, record=SETTINGS)) is None:
        return None
    settings = json.loads(json.dumps(settings))  # tuples become lists, as in `former`
    return sorted(k for k in former.keys() | settings if former.get(k) != settings.get(k))


def is_finished(folder):
    """Whether the run in `folder` reached its last epoch."""
    return (folder / _CONFIG).is_file()


def data_checksum(data):
    """Checksum of `Prepared` images, masks and splits."""
    table = data.cases[["image_id", "split"]].to_csv(index=False)
    return hashlib.sha256(f"{data.meta['checksum']}\n{table}".encode()).hexdigest()[:16]


def weights_checksum(folder):
    """Checksum of the network of the finished run in `folder`."""
    return hashlib.sha256((folder / "model.keras").read_bytes()).hexdigest()[:16]


def package_versions():
    """Versions of Python and the packages that decide a run's numbers, as a dict."""
    versions = {"python": platform.python_version()}
    for name in _DECIDE_NUMBERS:
        with suppress(PackageNotFoundError):  # some may be installed under another name
            versions[name] = version(name)
    return versions
