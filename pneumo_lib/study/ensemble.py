"""Several networks as one: the mean of what they give, as a run of its own."""

from pneumo_lib._startup import keras  # noqa: F401

import numpy as np
import pandas as pd

from pneumo_lib import runs
from pneumo_lib._files import file_lock, project_path, write_csv, write_json
from pneumo_lib.data.prepare import prepare_data
from pneumo_lib.evaluation.operating_point import choose_out_of_fold
from pneumo_lib.models.ensemble import mean_network
from pneumo_lib.models.image_head import ImageHead
from pneumo_lib.training import state
from pneumo_lib.training.features import TrainedPart, part_on_features
from pneumo_lib.training.scoring import keep_results

# What all members must share: one image goes through all of them, and is scored once.
_SHARED = ("size", "backbone", "feature_precision", "test_time_flip", "epochs", "image_head")
# What else is kept for what reads a run folder: "several" where members differ.
_KEPT = ("decoder", "weights", "loss", "precision", "seed", "fine_tune")


def average_runs(members, *, run, data=None):
    """One network that gives the mean of several networks' probabilities.

    Trainings from different seeds err in different places, so their mean errs less. Frozen
    backbones with equal weights are run once, so three heads cost little more than one. The
    result is a run folder like that of `train()`: scores after the last epoch, operating point
    chosen on the validation cases, `model.keras` for `predict()`, `verify_run()` and the rest.
    Its history is the members' mean.

    Members may also be the folds of a cross-validation. Then the operating point is chosen on all
    cases but those of the test part, each as predicted by the members that did not train on it,
    and the result counts as trained on all of them: nothing is left to validate it.

    Args:
        members: two or more `Run`s, or what `load_run()` takes, on the same prepared data.
        run: name of the new run folder below `runs/`. One made of the same members is opened.
        data: `Prepared`, what the members were trained on; `None` opens the folder they name.
            Of folds, the cases with none held out, see `split_cases()`; `None` prepares them.

    Returns:
        `Run`; `config["mean_of"]` names the members, with the first digits of their checksums.

    Raises:
        FileNotFoundError: if a member is no finished run, or its data are not prepared here.
        ValueError: if there are fewer than two, `run` is one of them, they differ in data, size,
            backbone, test-time flip or epochs, or `data` are not those that they were scored on.
    """
    members = [runs.load_run(member) for member in members]
    _check(members, run)
    first, *others = (member.config for member in members)
    folds = any(config["data_checksum"] != first["data_checksum"] for config in others)
    if folds:
        data = data or _without_folds(runs.load_run_data(members[0]))
    else:
        data = runs.load_run_data(members[0], data=data)
    settings = {
        name: first[name] if all(c.get(name) == first[name] for c in others) else "several"
        for name in (*_SHARED, *_KEPT)
        if name in first
    }
    settings |= {
        "data_checksum": runs.data_checksum(data),
        "mean_of": [runs.run_id(m) for m in members],
        "results_version": runs.RESULTS_VERSION,
    }
    folder = project_path("runs") / run
    with file_lock(folder):
        state.create_run_folder(run, settings)
        if not runs.is_finished(folder):
            if folds:  # first, as the run is finished with what follows
                point = choose_out_of_fold([runs.open_run(member) for member in members], data)
                write_json(folder / runs.OPERATING_POINT, point._asdict())
            _keep_mean(members, data, folder, settings)
    return runs.load_run(folder)


def _without_folds(data):
    """`Prepared` of the same cases with none of them held out."""
    call = data.meta["prepared_by"]
    count = str(call.get("fold")).partition("/")[2]
    if not count:
        raise ValueError(
            "`members` must be trained on the same split, or be the folds of a cross-validation. "
            f"Received: other splits, the first prepared by {call}"
        )
    return prepare_data(**call | {"fold": f"0/{count}"})


def _check(members, run):
    names = [member.folder.name for member in members]
    if len(set(names)) < max(2, len(names)) or run in names:
        raise ValueError(
            "`members` must be two or more different runs, and `run` a name of its own. "
            f"Received: {names}, run={run!r}"
        )
    first, *others = (member.config for member in members)
    for name, config in zip(names[1:], others, strict=True):
        differs = [setting for setting in _SHARED if config.get(setting) != first.get(setting)]
        if differs:
            raise ValueError(
                f"`members` must share {', '.join(_SHARED)}. Received: {differs} differ "
                f"between {names[0]} and {name}"
            )


def _keep_mean(members, data, folder, settings):
    models = [runs.load_network(member) for member in members]
    model, part = _join(models, data, settings)
    # One member of random features is a caveat of them all.
    weights = [settings["weights"], *(member.config["weights"] for member in members)]
    model.weights_used = max(weights, key=lambda name: name == "random features")
    histories = pd.concat([member.history for member in members])
    mean = histories.groupby("epoch", as_index=False).mean()
    mean["seconds"] *= len(members)
    write_csv(folder / "history.csv", mean)
    head = None
    if settings.get("image_head"):
        heads = [runs.load_image_head(member) for member in members]
        head = ImageHead(*(np.concatenate(arrays) for arrays in zip(*heads, strict=True)))
    keep_results(model, part, data, settings, folder, image_head=head)


def _join(models, data, settings):
    """`(model, TrainedPart)`: the part after a shared backbone, or all of it."""
    model, encoder, head = mean_network(models, settings["backbone"])
    if encoder:
        return model, part_on_features(encoder, head, data, settings)
    if settings.get("image_head"):
        raise ValueError(
            "`members` with image-level heads must have the same frozen backbone. Received: "
            "backbones with other weights"
        )
    return model, TrainedPart(model, data.images, data.images[:, :, ::-1], settings["backbone"])
