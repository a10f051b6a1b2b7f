"""What a training run leaves behind: scores, probabilities, operating point, configuration."""

import logging
import os

from pneumo_lib._startup import keras

import numpy as np

from pneumo_lib import runs
from pneumo_lib._files import atomic_write, new_array, project_path, read_csv, write_json
from pneumo_lib.evaluation import logged_metrics, metrics
from pneumo_lib.evaluation.image_level import image_level_score
from pneumo_lib.evaluation.operating_point import choose_operating_point
from pneumo_lib.evaluation.score_table import count_cases
from pneumo_lib.models import fcn
from pneumo_lib.models.devices import device_name
from pneumo_lib.models.forward import predict_batches
from pneumo_lib.models.image_head import fit_image_head, image_statistics
from pneumo_lib.training import state
from pneumo_lib.training.losses import get_loss

logger = logging.getLogger(__name__)


def score_cases(part, data, *, test_time_flip):
    """Counts of every case, the rows of scores.csv, of an image or of it and its mirror image."""
    return count_cases(data, _predictions(part, test_time_flip), count=_counts)


def keep_results(
    model, part, data, settings, folder, *, scores=None, distribution=None, image_head=None
):
    """Keep network, scores, probabilities, operating point and, last, `config.json`.

    The operating point is chosen on the validation cases alone; without any there is none.
    `scores` is a dict from milestone to the table of `score_cases()`, `distribution` as given to
    `train()`; without an `image_head` one is fitted where the settings ask for it.
    """
    history = read_csv(folder / "history.csv")
    with atomic_write(folder / "model.keras") as aside:
        model.save(aside)
    table, probabilities = _keep_probabilities(part, data, folder, settings["test_time_flip"])
    if settings.get("image_head"):
        table["image_score"] = _keep_image_head(image_head, part, data, folder)
    state.write_scores(folder, {**(scores or {}), int(history["epoch"].max()): table})
    validation = np.flatnonzero(data.cases["split"] == "validation")
    if validation.size:
        by_head = table["image_score"][validation] if settings.get("image_head") else None
        held_out = data.masks[validation], probabilities[validation]
        point = choose_operating_point(*held_out, scores=by_head)
        write_json(folder / runs.OPERATING_POINT, point._asdict())
    if diverged := _has_diverged(history, data, settings["loss"]):
        logger.warning(
            "%s diverged: its loss is worse than that of a network that knows nothing. Take a "
            "learning_rate below %s.",
            *(folder.name, settings.get("learning_rate")),
        )
    config = {
        "name": folder.name,
        "data": os.path.relpath(data.folder, project_path()),
        "data_name": data.meta["source"],
        **{key: data.meta[key] for key in ("synthetic", "split_scheme", "leaked_patients")},
        "prepared_by": data.meta.get("prepared_by"),
        **settings,
        "weights": getattr(model, "weights_used", "from scratch"),
        "parameters": fcn.parameters(model),
        "versions": runs.package_versions(),
        "backend": keras.backend.backend(),
        "diverged": diverged,
        "device": device_name(),
        "distribution": distribution and type(distribution).__name__,
        "seconds": round(float(history["seconds"].sum()), 3),
    }
    write_json(folder / "config.json", config)
    (folder / "state.npz").unlink(missing_ok=True)


def _keep_image_head(head, part, data, folder):
    """Keeps an image-level head, fitted on the training cases; returns the scores of all cases."""
    statistics = image_statistics(part.shapes, part.inputs, part.mirrored)
    if head is None:
        train = (data.cases["split"] == "train").to_numpy()
        positive = data.cases["has_pneumothorax"].to_numpy(dtype=bool)
        head = fit_image_head(statistics[train], positive[train])
    with atomic_write(folder / runs.IMAGE_HEAD) as aside:
        np.savez(aside, **head._asdict())
    return head(statistics)


def _keep_probabilities(part, data, folder, test_time_flip):
    """Writes `probabilities.npy`; returns the counts of every case, and the array."""
    with atomic_write(folder / "probabilities.npy") as aside:
        kept = new_array(aside, data.masks.shape, "uint8")

        def predictions():
            for rows, softmax in _predictions(part, test_time_flip):
                kept[rows] = np.rint(255 * softmax[..., 1])
                yield rows, softmax

        table = count_cases(data, predictions(), count=_counts)
        kept.flush()
    return table, kept


def _counts(y_true, softmax):
    counts = metrics.confusion_counts(y_true, softmax[..., 1])
    counts |= logged_metrics.saturation_counts(y_true, softmax)
    return counts | {"image_score": image_level_score(softmax[..., 1])}


def _has_diverged(history, data, loss):
    """Whether the last loss is twice that of calling each pixel either class with one half.

    Untrained networks are about there, and steps of a sensible length only lead away from it. (A
    loss with an upper bound, such as Dice, hardly exceeds it.)
    """
    last = history.iloc[-1]
    masks = data.masks[np.flatnonzero(data.cases["split"] == "train")[:64]]
    knows_nothing = get_loss(loss)(masks, np.full((*masks.shape, 2), 0.5, "float32"))
    return bool(last.get("val_loss", last["loss"]) > 2 * float(keras.ops.mean(knows_nothing)))


def _predictions(part, test_time_flip):
    """`(rows, softmax)` of all cases, batch by batch."""
    flipped = part.mirrored if test_time_flip else None
    return predict_batches(
        part.network, part.inputs, part.backbone, flipped=flipped, desc="scoring"
    )
