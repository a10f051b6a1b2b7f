"""The run folder: one training run, under way or whole, under `runs/<name>/`."""

import hashlib
import json
import logging
import math
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pneumo_lib.names import BACKBONES
from pneumo_lib.paths import project_path, written_aside

logger = logging.getLogger(__name__)
ORDER = tuple(BACKBONES)
_LOGGED = (  # name in the report's log, column of history.csv, sign
    ("loss", "loss", 1),
    ("accuracy", "accuracy", 1),
    ("mean_io_u", "logged_mean_iou", 1),
    ("dice", "logged_dice", -1),
)
_DECIDES_RESULTS = ("augmentation", "backbones", "batches", "decoders", "dropout", "fcn")
_DECIDES_RESULTS += ("features", "layers", "losses", "metrics", "normalisation")
_DECIDES_RESULTS += ("operating_point", "optimisers", "results", "steps", "taps", "training")


RESULTS_VERSION = 1


class Run(NamedTuple):
    """A finished training run, see `load_run()`."""

    folder: Path
    config: dict
    history: pd.DataFrame
    scores: pd.DataFrame


def load_run(folder):
    """What a finished run left behind.

    Args:
        folder: the run folder, or its name below `runs/`.

    Returns:
        `Run`: `folder`; `config` (settings, data, split, weights, parameters, versions,
        device, seconds); `history`, one row per epoch with loss and scores, `val_` for
        validation; `scores`, one row per milestone epoch and image with its counts. Beside
        them lie `model.keras`, `operating_point.json` where there are validation cases, and
        `probabilities.npy`, `(n, size, size)` uint8: 255 times the foreground probability of
        every prepared case after the last epoch.

    Raises:
        FileNotFoundError: if the folder holds no finished run.
    """
    folder = project_path(Path("runs") / folder)
    if not is_finished(folder):
        raise FileNotFoundError(
            "A run folder must hold a finished training run. "
            f"Received: {folder}. Train it with train() or notebooks/05_train_fcn.ipynb"
        )
    config = json.loads((folder / "config.json").read_text())
    return Run(folder, config, read_csv(folder / "history.csv"), read_csv(folder / "scores.csv"))


def default_name(data_name, backbone, decoder, size):
    """Folder name of a run that was given none: the decoder is named unless it is the report's."""
    parts = [data_name, backbone, *([] if decoder == "deconvolution" else [decoder]), size]
    return "-".join(map(str, parts))


def find_runs(data_name=None, size=None, *, data=None):
    """Finished runs, in the order of `ORDER`.

    Args:
        data_name: only runs on this data ("phantoms", or the name of the folder).
        size: only runs at this image size in pixels.
        data: `Prepared`; only runs on exactly these images, masks and splits.

    Returns:
        List of `Run`.

    Raises:
        FileNotFoundError: if there is none.
    """
    folders = sorted(p.parent for p in project_path("runs").glob("*/config.json"))
    found = [load_run(folder) for folder in folders if ".old-" not in folder.name]
    wanted = {"data_name": data_name, "size": size}
    if data is not None:
        wanted = {"data_name": data.meta["source"], "size": data.meta["size"]}
        wanted |= {"data_checksum": data_checksum(data)}
    found = [
        run
        for run in found
        if all(value in (None, run.config.get(key)) for key, value in wanted.items())
    ]
    if not found:
        raise FileNotFoundError(
            f"There is no finished run in {project_path('runs')} for {wanted}. "
            "Train one: papermill notebooks/05_train_fcn.ipynb out.ipynb -p backbone vgg19"
        )
    return sorted(found, key=lambda run: ORDER.index(run.config["backbone"]))


def caveats(runs):
    """What a reader must know beside every number of these runs: small print for figures.

    Args:
        runs: list of `Run` on the same data.

    Returns:
        Text such as "synthetic radiographs · random features: vgg19, resnet50 · split: official".
    """
    config = runs[0].config
    random = [r.config["backbone"] for r in runs if r.config["weights"] == "random features"]
    leaked = config["leaked_patients"]
    notes = [
        "synthetic radiographs" if config["synthetic"] else "",
        f"random features: {', '.join(random)}" if random else "",
        f"split: {config['split_scheme']}",
        f"{leaked} patients on two sides of it" if leaked else "",
    ]
    return " · ".join(note for note in notes if note)


def log_line(run, epoch):
    """The line that Keras would have logged after `epoch`, with the metrics of the report.

    Args:
        run: `Run`.
        epoch: 1 or later.
    """
    row = run.history.set_index("epoch").loc[epoch]
    cases = run.scores.drop_duplicates("image_id")
    steps = math.ceil((cases["split"] == "train").sum() / run.config["batch_size"])
    seconds = row["seconds"]
    values = [
        f"{prefix}{name}: {sign * row[prefix + column]:.4f}"
        for prefix in ("", "val_")
        for name, column, sign in _LOGGED
        if prefix + column in row
    ]
    start = f"{steps}/{steps} - {seconds:.0f}s {1000 * seconds / steps:.0f}ms/step"
    return " - ".join([start, *values])


def claim(name, settings):
    """Folder of the run `name`, new or begun with the same settings.

    Work with other settings under that name is moved aside to `<name>.old-<number>`.

    Args:
        name: folder name below `runs/`.
        settings: dict that decides the run's results.

    Returns:
        `Path` of the folder.

    Raises:
        ValueError: if the folder holds something that is not a training run.
    """
    folder = project_path(Path("runs") / name)
    identity = folder / "settings.json"
    settings = json.loads(json.dumps(settings))
    if folder.exists() and any(folder.iterdir()):
        if not identity.exists():
            raise ValueError(
                f"A run needs a folder of its own. Received: {folder}, which holds something "
                "else. Give the run another name"
            )
        if json.loads(identity.read_text()) == settings:
            if is_finished(folder):  # and killed just before its state was removed
                (folder / "state.npz").unlink(missing_ok=True)
            return folder
        number = 1
        while (aside := folder.with_name(f"{name}.old-{number}")).exists():
            number += 1
        folder.rename(aside)
        logger.warning("%s was trained with other settings; kept as %s", name, aside.name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(identity, settings)
    return folder


def run_settings(data, config):
    """All that decides the results of a training, as `settings.json` holds it.

    Args:
        data: `Prepared`.
        config: `TrainingConfig`, with nothing left to be chosen, see `resolved()`.

    Raises:
        FileNotFoundError: if `initial` is no finished run.
    """
    initial = None
    if config.initial is not None:
        folder = load_run(config.initial).folder
        learnt = hashlib.sha256((folder / "model.keras").read_bytes()).hexdigest()[:16]
        initial = {"run": folder.name, "checksum": learnt}
    return {
        "data_checksum": data_checksum(data),
        "size": data.meta["size"],
        **asdict(config),
        "initial": initial,
        "results_version": RESULTS_VERSION,
    }


def is_finished(folder):
    """Whether the run in `folder` went to its last epoch: `config.json` is written last."""
    return (folder / "config.json").is_file()


def save_state(folder, variables, history, scores):
    """Keep all that training needs to go on after the last epoch of `history`.

    Args:
        folder: the run folder.
        variables: list of `keras.Variable`: weights, optimiser, random states.
        history: list of dicts, one an epoch.
        scores: list of tables, one a milestone.
    """
    write_csv(folder / "history.csv", pd.DataFrame(history))
    if scores:
        table = pd.concat(scores, ignore_index=True)
        write_csv(folder / "scores.csv", table[["epoch", *table.columns.drop("epoch")]])
    # Last, for it decides how many rows of the tables above count.
    with written_aside(folder / "state.npz") as aside:
        np.savez(aside, *[np.asarray(v) for v in variables], epoch=len(history))


def load_state(folder, variables):
    """Set `variables` to the last state in `folder`.

    Returns:
        `(history, scores)` so far, as given to `save_state()`; empty lists if there is none.
    """
    if not (folder / "state.npz").exists():
        return [], []
    with np.load(folder / "state.npz") as state:
        epoch = int(state["epoch"])
        for number, variable in enumerate(variables):
            variable.assign(state[f"arr_{number}"])
    history = read_csv(folder / "history.csv").head(epoch)
    scores = []
    if (folder / "scores.csv").exists():
        table = read_csv(folder / "scores.csv")
        scores = [rows for number, rows in table.groupby("epoch") if number <= epoch]
    return history.to_dict("records"), scores


def data_checksum(data):
    """Checksum of the prepared images and masks, and of the split each of them is in."""
    table = data.cases[["image_id", "split"]].to_csv(index=False)
    return hashlib.sha256(f"{data.meta['checksum']}\n{table}".encode()).hexdigest()[:16]


def code_checksum():
    """Checksum of the modules that decide a run's results: other code is another run."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for module in _DECIDES_RESULTS:
        digest.update((package / f"{module}.py").read_bytes())
    return digest.hexdigest()[:16]


def write_json(path, content):
    """Write `content` as indented JSON, aside and then renamed."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path, table):
    """Write a `DataFrame` without its index, aside and then renamed."""
    with written_aside(path) as aside:
        table.to_csv(aside, index=False)


def read_csv(path):
    """Table written by `write_csv()`, every number to its last bit."""
    # The C parser of pandas before 3.1 loses the last bit; the Python one never did.
    return pd.read_csv(path, dtype={"image_id": str}, engine="python")
