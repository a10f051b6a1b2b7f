"""What a training run leaves behind: scores, probabilities, operating point, configuration."""

import os
import platform

import keras
import numpy as np
import tensorflow as tf

from pneumo_lib import distribution, fcn, metrics, runs
from pneumo_lib.arrays import new_array
from pneumo_lib.devices import device_name
from pneumo_lib.features import predict_batches
from pneumo_lib.operating_point import choose_operating_point
from pneumo_lib.paths import project_path, written_aside
from pneumo_lib.tables import count_cases


def score_cases(network, inputs, data, settings, *, mirrored):
    """Counts of every case, the rows of scores.csv.

    Args:
        network: `keras.Model`, the trained part.
        inputs: what it takes, for every case: `data.images`, or features of them.
        data: `Prepared`.
        settings: of the run, as `train()` puts them together.
        mirrored: like `inputs`, of the mirrored images; needed for `test_time_flip`.
    """
    predictions = _predictions(network, inputs, data, settings, mirrored=mirrored)
    return count_cases(data, predictions, count=_counts)


def keep_results(model, network, inputs, data, settings, folder, *, mirrored, strategy=None):
    """Keep network, probabilities, operating point and, last, `config.json`.

    The operating point is chosen on the validation cases alone; without any there is none.

    Args:
        model: `keras.Model`, images to softmax.
        network, inputs, data, settings, mirrored: see `score_cases()`.
        folder: the run folder.
        strategy: `tf.distribute.Strategy` that trained, if any.
    """
    with written_aside(folder / "model.keras") as aside:
        model.save(aside)
    with written_aside(folder / "probabilities.npy") as aside:
        kept = new_array(aside, data.masks.shape, "uint8")
        for rows, softmax in _predictions(network, inputs, data, settings, mirrored=mirrored):
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
        "prepared_by": data.meta.get("prepared_by"),
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


def _counts(y_true, softmax):
    counts = metrics.confusion_counts(y_true, softmax[..., 1])
    return counts | metrics.saturation_counts(y_true, softmax)


def _predictions(network, inputs, data, settings, *, mirrored):
    """`(rows, softmax)` of all cases, batch by batch."""
    backbone = settings["backbone"] if inputs is data.images else None
    flipped = mirrored if settings["test_time_flip"] else None
    return predict_batches(network, inputs, backbone, flipped=flipped, desc="scoring")
