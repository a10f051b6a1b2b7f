"""Several networks as one: the mean of what they give, as a run of its own."""

from functools import partial

import keras
import numpy as np
import pandas as pd

from pneumo_lib import fcn, runs
from pneumo_lib.features import cached_features
from pneumo_lib.inference import load_network
from pneumo_lib.paths import alone, project_path
from pneumo_lib.prediction_files import run_id
from pneumo_lib.preparation import load_prepared
from pneumo_lib.results import TrainedPart, keep_results, score_cases

# What all members must share: one image goes through all of them, and is scored once.
_SHARED = ("data_checksum", "size", "backbone", "test_time_flip", "epochs")
# What else of the first member's settings is kept, for what reads a run folder.
_KEPT = ("decoder", "weights", "loss", "precision", "feature_precision", "seed", "fine_tune")


def average_runs(members, *, run, data=None):
    """One network that gives the mean of several networks' probabilities.

    Trainings from different seeds err in different places, so their mean errs less: three on 232
    real X-rays gave 0.05 [0.02, 0.09] more Dice on positives than the first of them. Frozen
    backbones with equal weights are run once, so three heads cost little more than one. The
    result is a run folder like that of `train()`: scores after the last epoch, operating point
    chosen on the validation cases, `model.keras` for `predict()`, `verify_run()` and the rest.
    Its history is the members' mean.

    Args:
        members: two or more `Run`s, or what `load_run()` takes, on the same prepared data.
        run: name of the new run folder below `runs/`. One made of the same members is opened.
        data: `Prepared`, what the members were trained on; `None` opens the folder they name.

    Returns:
        `Run`; `config["mean_of"]` names the members, with the first digits of their checksums.

    Raises:
        FileNotFoundError: if a member is no finished run, or its data are not prepared here.
        ValueError: if there are fewer than two, `run` is one of them, they differ in data, size,
            backbone, test-time flip or epochs, or `data` are not those that they were scored on.
    """
    members = [m if isinstance(m, runs.Run) else runs.load_run(m) for m in members]
    _check(members, run)
    first = members[0].config
    data = load_prepared(project_path(first["data"])) if data is None else data
    if runs.data_checksum(data) != first["data_checksum"]:
        raise ValueError(
            "The mean is scored on what its members were trained on. Received: "
            f"{data.folder}, which has changed since. Prepare the data again with prepare_data()"
        )
    settings = {name: first[name] for name in (*_SHARED, *_KEPT) if name in first}
    settings |= {"mean_of": [run_id(m) for m in members], "code": runs.code_checksum()}
    folder = project_path("runs") / run
    with alone(folder):
        runs.claim(run, settings)
        if not runs.is_finished(folder):
            _keep_mean(members, data, folder, settings)
    return runs.load_run(folder)


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
                f"`members` must share data, size, backbone and epochs. Received: {differs} differ "
                f"between {names[0]} and {name}"
            )


def _keep_mean(members, data, folder, settings):
    model, part = _join([load_network(m) for m in members], data, settings)
    model.weights_used = members[0].config["weights"]
    histories = pd.concat([member.history for member in members])
    mean = histories.groupby("epoch", as_index=False).mean()
    mean["seconds"] *= len(members)
    runs.write_csv(folder / "history.csv", mean)
    scores = score_cases(part, data, test_time_flip=settings["test_time_flip"])
    scores.insert(0, "epoch", settings["epochs"])
    runs.write_csv(folder / "scores.csv", scores)
    keep_results(model, part, data, settings, folder)


def _join(models, data, settings):
    """`(model, TrainedPart)`: the part after a shared backbone, or all of it."""
    backbone, name = settings["backbone"], f"mean_{settings['backbone']}"
    image = keras.Input(models[0].input.shape[1:], name="image")
    halves = [] if backbone == "small" else [fcn.split_fcn(model) for model in models]
    if not halves or not _equal([encoder for encoder, _ in halves]):
        model = keras.Model(image, _mean(models, image), name=name)
        return model, TrainedPart(model, data.images, data.images[:, :, ::-1], backbone)
    encoder, heads = halves[0][0], [head for _, head in halves]
    features = keras.Input(encoder.output.shape[1:], name="features")
    network = keras.Model(features, _mean(heads, features), name="heads")
    model = keras.Model(image, network(encoder(image)), name=name)
    compute = partial(
        cached_features, encoder, data, backbone, precision=settings["feature_precision"]
    )
    mirrored = compute(flipped=True) if settings["test_time_flip"] else None
    return model, TrainedPart(network, compute(), mirrored)


def _mean(models, x):
    named = [
        keras.Model(model.input, model.output, name=f"member_{number}")
        for number, model in enumerate(models, start=1)
    ]
    return keras.layers.Average(name="mean", dtype="float32")([model(x) for model in named])


def _equal(encoders):
    """Whether all have the same weights."""
    first, *others = (encoder.get_weights() for encoder in encoders)
    return all(all(map(np.array_equal, first, weights)) for weights in others)
