"""Training: frozen features, compiled epochs, and a state that survives a kill."""

import math
import os
import platform
import time
from functools import partial

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import ops
from tqdm.auto import tqdm

from pneumo_lib import fcn, metrics, runs
from pneumo_lib.backbones import preprocess
from pneumo_lib.batches import epoch_order, read_blocks
from pneumo_lib.devices import choose_precision, device_name, dtype_policy
from pneumo_lib.features import cached_features, predict_batches
from pneumo_lib.losses import TRAINING_COUNTS, get_loss, training_counts
from pneumo_lib.paths import project_path, written_aside


def train(
    data,
    *,
    run=None,
    backbone="vgg19",
    decoder="deconvolution",
    weights="auto",
    epochs=50,
    milestones=(),
    batch_size=16,
    learning_rate=1e-3,
    schedule="auto",
    loss="crossentropy",
    dropout=0.5,
    precision="auto",
    feature_precision="float32",
    flips="auto",
    seed=0,
):
    """Train one FCN and keep all that a results notebook needs in `runs/<name>/`.

    A frozen backbone's features are computed once and only the head is trained, on them; the
    small FCN ("small") is trained from scratch, end to end. After every epoch the state is
    written: a killed run goes on where it was and ends with the same numbers. A finished run
    with the same settings is returned at once; one with other settings under the same name is
    moved aside, never overwritten.

    Args:
        data: `Prepared`, see `preparation.prepare()`.
        run: name of the run folder below `runs/`; default `<data>-<backbone>-<size>`.
        backbone: one of `backbones.BACKBONES`, or "small" for the FCN from scratch.
        decoder, weights, dropout: see `fcn.build_fcn()`.
        epochs: passes over the training part.
        milestones: epochs after which every case is scored and the weights are kept; the last
            epoch always is one.
        batch_size: images a step.
        learning_rate: of Adam.
        schedule: "constant", as in the report; "cosine", down to zero at the last epoch
            (Loshchilov and Hutter 2017, arXiv:1608.03983); "auto": cosine for "small".
        loss: a name of `losses.get_loss()`.
        precision: "float32", "mixed_float16", or "auto": mixed on a GPU, else float32.
        feature_precision: of a frozen backbone, see `features.cached_features()`.
        flips: whether each epoch shows half of the images mirrored left to right, or "auto": yes
            for "small"; no for a frozen backbone, as in the report. There it takes a second file
            of features.
        seed: of weights, dropout, flips and the order of the images.

    Returns:
        `Run`, see `runs.load_run()`.

    Raises:
        ValueError: if the training part is empty, or for what `build_fcn()` refuses.
    """
    settings = {
        "data_checksum": runs.data_checksum(data),
        "size": data.meta["size"],
        "backbone": backbone,
        "decoder": decoder,
        "weights": None if weights is None else str(weights),
        "epochs": epochs,
        "milestones": sorted({m for m in milestones if m < epochs} | {epochs}),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "schedule": _choose_schedule(schedule, backbone),
        "loss": loss,
        "dropout": dropout,
        "precision": choose_precision(precision),
        "feature_precision": feature_precision,
        "flips": backbone == "small" if flips == "auto" else bool(flips),
        "seed": seed,
        "code": runs.code_checksum(),
    }
    if not (data.cases["split"] == "train").any():
        raise ValueError("Training needs cases in the split 'train'. Received: none")
    name = run or f"{data.meta['source']}-{backbone}-{settings['size']}"
    folder = runs.claim(name, settings)
    if not runs.is_finished(folder):
        model, network, inputs, flipped = _build(data, settings, weights)
        _fit(network, inputs, data, settings, folder, flipped=flipped)
        _finish(model, network, inputs, data, settings, folder)
    return runs.load_run(folder)


def _choose_schedule(schedule, backbone):
    if schedule not in ("auto", "constant", "cosine"):
        raise ValueError(
            f"`schedule` must be 'auto', 'constant' or 'cosine'. Received: schedule={schedule!r}"
        )
    if schedule == "auto":
        return "cosine" if backbone == "small" else "constant"
    return schedule


def _build(data, settings, weights):
    """`(model, trained part, its inputs, mirrored inputs)`: images, or features of them.

    Images are mirrored when they are seen, so the last is None for them, and without flips.
    """
    backbone, size, seed = settings["backbone"], settings["size"], settings["seed"]
    with dtype_policy(settings["precision"]):
        if backbone == "small":
            model = fcn.build_small_fcn(size=size, seed=seed)
            return model, model, data.images, None
        model = fcn.build_fcn(
            backbone,
            decoder=settings["decoder"],
            size=size,
            weights=weights,
            dropout=settings["dropout"],
            seed=seed,
        )
    encoder, head = fcn.split_fcn(model)
    compute = partial(
        cached_features, encoder, data, backbone, precision=settings["feature_precision"]
    )
    return model, head, compute(), compute(flipped=True) if settings["flips"] else None


def _fit(network, inputs, data, settings, folder, *, flipped=None):
    """Train `network` to the last epoch, from the state in `folder` if there is one."""
    end_to_end = inputs is data.images
    backbone = settings["backbone"] if end_to_end else None
    parts = {part: np.flatnonzero(data.cases["split"] == part) for part in ("train", "validation")}
    learning_rate = settings["learning_rate"]
    if settings["schedule"] == "cosine":
        steps = settings["epochs"] * math.ceil(len(parts["train"]) / settings["batch_size"])
        learning_rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    optimizer = keras.optimizers.Adam(learning_rate)
    if settings["precision"] == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(network.trainable_variables)
    flips = keras.random.SeedGenerator(settings["seed"])
    variables = [*network.variables, *optimizer.variables, flips.state]
    flips = flips if end_to_end and settings["flips"] else None
    train_part, evaluate = _compile(network, optimizer, settings, backbone, flips)

    history, scores = runs.load_state(folder, variables)
    epochs = settings["epochs"]
    with tqdm(total=epochs, initial=len(history), desc=settings["backbone"], unit="epoch") as bar:
        for epoch in range(len(history) + 1, epochs + 1):
            started = time.monotonic()
            order = epoch_order(
                parts["train"], seed=settings["seed"], epoch=epoch, flips=flipped is not None
            )
            row = {"epoch": epoch, "seconds": 0.0}
            for prefix, step, rows in (
                ("", train_part, order),
                ("val_", evaluate, parts["validation"]),
            ):
                sums = _run_epoch(
                    step, inputs, data.masks, rows, settings["batch_size"], flipped=flipped
                )
                row |= {prefix + name: score for name, score in sums.items()}
            if epoch in settings["milestones"]:
                scores.append(_score(network, inputs, data, backbone).assign(epoch=epoch))
                network.save_weights(folder / f"epoch_{epoch}.weights.h5")
            row["seconds"] = time.monotonic() - started
            history.append(row)
            runs.save_state(folder, variables, history, scores)
            bar.set_postfix(loss=f"{row['loss']:.4f}", dice=f"{row['dice']:.3f}")
            bar.update()


def _compile(network, optimizer, settings, backbone, flips):
    """Two compiled functions of `(steps, batch, ...)` inputs and masks: train, evaluate.

    Each returns `(steps, 1 + len(TRAINING_COUNTS))`: the summed loss and the counts of every
    step, so that an epoch costs Python a call per block of `read_blocks()`. XLA halves the time
    of a head's step; for whole networks TensorFlow's own convolutions are faster than XLA's on
    a processor, and what is left at the end of an epoch is not worth a second compilation.
    """
    loss = get_loss(settings["loss"])
    heads_only = backbone is None

    def measure(y, y_pred):
        values = loss(y, y_pred)
        return values, ops.concatenate([ops.sum(values)[None], training_counts(y, y_pred)])

    def train_step(x, y):
        if flips is not None:
            x, y = _flip_some(x, y, flips)
        x = x if backbone is None else preprocess(x, backbone)
        with tf.GradientTape() as tape:
            values, counts = measure(y, network(x, training=True))
            scaled = optimizer.scale_loss(ops.mean(values))
        variables = network.trainable_variables
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return counts

    def evaluation_step(x, y):
        x = x if backbone is None else preprocess(x, backbone)
        return measure(y, network(x, training=False))[1]

    def over_steps(step):
        compiled = tf.function(step, jit_compile=heads_only)

        @tf.function(reduce_retracing=True)
        def run_whole_batches(x, y):
            rows = tf.TensorArray("float32", tf.shape(x)[0])
            for i in tf.range(tf.shape(x)[0]):
                rows = rows.write(i, compiled(x[i], y[i]))
            return rows.stack()

        rest = tf.function(step)

        def run(x, y):
            if x.shape[1] == settings["batch_size"]:
                return run_whole_batches(x, y)
            return rest(x[0], y[0])[None]

        return run

    return over_steps(train_step), over_steps(evaluation_step)


def _flip_some(images, masks, seed):
    """Half of the images, with their masks, mirrored left to right."""
    chosen = keras.random.uniform((images.shape[0], 1, 1), seed=seed) < 0.5
    return [ops.where(chosen, array[:, :, ::-1], array) for array in (images, masks)]


def _run_epoch(step, inputs, masks, rows, batch_size, *, flipped=None):
    """Scores of one pass over `rows`, for history.csv; empty if there are none."""
    if len(rows) == 0:
        return {}
    sums = [
        step(tf.constant(x), tf.constant(y)).numpy()
        for x, y in read_blocks(inputs, masks, rows, batch_size, flipped=flipped)
    ]
    sums = np.concatenate(sums).sum(axis=0, dtype="float64")
    scores = metrics.history_scores(dict(zip(TRAINING_COUNTS, sums[1:], strict=True)))
    return {"loss": sums[0] / len(rows), **scores}


def _score(network, inputs, data, backbone):
    """Counts of every case, the rows of scores.csv."""
    tables = []
    for rows, softmax in predict_batches(network, inputs, backbone):
        y_true = data.masks[rows]
        counts = metrics.confusion_counts(y_true, softmax[..., 1])
        tables.append(pd.DataFrame(counts | metrics.saturation_counts(y_true, softmax)))
    cases = data.cases[["image_id", "split", "has_pneumothorax"]].reset_index(drop=True)
    return pd.concat([cases, pd.concat(tables, ignore_index=True)], axis=1)


def _finish(model, network, inputs, data, settings, folder):
    """Keep the trained network, its probabilities and, last, `config.json`."""
    with written_aside(folder / "model.keras") as aside:
        model.save(aside)
    backbone = settings["backbone"] if inputs is data.images else None
    with written_aside(folder / "probabilities.npy") as aside:
        shape = data.masks.shape
        kept = np.lib.format.open_memmap(aside, mode="w+", dtype="uint8", shape=shape)
        for rows, softmax in predict_batches(network, inputs, backbone):
            kept[rows] = np.rint(255 * softmax[..., 1])
        kept.flush()
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
        "seconds": round(float(history["seconds"].sum()), 3),
    }
    runs.write_json(folder / "config.json", config)
    (folder / "state.npz").unlink(missing_ok=True)
