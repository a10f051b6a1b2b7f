"""What a training run leaves behind: scores, probabilities, operating point, configuration."""

import os
import platform
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from pneumo_lib import distribution, fcn, metrics, runs
from pneumo_lib.arrays import new_array
from pneumo_lib.devices import device_name
from pneumo_lib.features import predict_batches
from pneumo_lib.operating_point import choose_operating_point
from pneumo_lib.paths import project_path, written_aside


class TrainedPart(NamedTuple):
    """The part of a network that learns, and its inputs for every case."""

    network: keras.Model
    inputs: np.ndarray  # images, or features of a frozen backbone
    mirrored: np.ndarray | None  # the same of the mirrored images; None where nothing needs them
    backbone: str | None = None  # for which images are preprocessed; None: inputs are features


def score_cases(part, data, *, test_time_flip):
    """Counts of every case, the rows of scores.csv.

    Args:
        part: `TrainedPart`.
        data: `Prepared`.
        test_time_flip: whether predictions are means over an image and its mirror image.
    """
    tables = []
    for rows, softmax in _predictions(part, test_time_flip):
        y_true = data.masks[rows]
        counts = metrics.confusion_counts(y_true, softmax[..., 1])
        tables.append(pd.DataFrame(counts | metrics.saturation_counts(y_true, softmax)))
    cases = data.cases[["image_id", "split", "has_pneumothorax"]].reset_index(drop=True)
    return pd.concat([cases, pd.concat(tables, ignore_index=True)], axis=1)


def keep_results(model, part, data, settings, folder, *, strategy=None):
    """Keep network, probabilities, operating point and, last, `config.json`.

    The operating point is chosen on the validation cases alone; without any there is none.

    Args:
        model: `keras.Model`, images to softmax.
        part: `TrainedPart` of it.
        data: `Prepared`.
        settings: dict for `config.json`, with `test_time_flip`.
        folder: the run folder, with `history.csv` and `scores.csv`.
        strategy: `tf.distribute.Strategy` that trained, if any.
    """
    with written_aside(folder / "model.keras") as aside:
        model.save(aside)
    with written_aside(folder / "probabilities.npy") as aside:
        kept = new_array(aside, data.masks.shape, "uint8")
        for rows, softmax in _predictions(part, settings["test_time_flip"]):
            kept[rows] = np.rint(255 * softmax[..., 1])
        kept.flush()
    validation = np.flatnonzero(data.cases["split"] == "validation")
    if validation.size:
        point = choose_operating_point(data.masks[validation], kept[validation])
        runs.write_json(folder / "operating_point.json", point._asdict())
    history = runs.read_csv(folder / "history.csv")
    root = project_path()
    config = {
        "name": folder.name,
        "data": os.path.relpath(data.folder, root),
        "data_name": data.meta["source"],
        "synthetic": data.meta["synthetic"],
        "split_scheme": data.meta["split_scheme"],
        "leaked_patients": data.meta["leaked_patients"],
        **settings,
        "weights": getattr(model, "weights_used", "from scratch"),
        "parameters": fcn.parameters(model),
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
        },
        "device": device_name(),
        "strategy": distribution.describe(strategy),
        "seconds": round(float(history["seconds"].sum()), 3),
    }
    runs.write_json(folder / "config.json", config)
    (folder / "state.npz").unlink(missing_ok=True)


def _predictions(part, test_time_flip):
    """`(rows, softmax)` of all cases, batch by batch."""
    flipped = part.mirrored if test_time_flip else None
    return predict_batches(part.network, part.inputs, part.backbone, flipped=flipped)
