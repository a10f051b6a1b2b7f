"""Training: frozen features, compiled epochs, and a state that survives a kill."""

import time
from contextlib import nullcontext
from functools import partial

import keras
import numpy as np
from tqdm.auto import tqdm

from pneumo_lib import distribution, fcn, runs
from pneumo_lib.augmentation import AUGMENTATIONS
from pneumo_lib.batches import epoch_order, share_at
from pneumo_lib.devices import choose_precision, dtype_policy
from pneumo_lib.features import cached_features
from pneumo_lib.losses import get_loss
from pneumo_lib.optimisers import averaged_weights, optimiser_of_run
from pneumo_lib.paths import alone, project_path, written_aside
from pneumo_lib.replicas import synchronise
from pneumo_lib.results import keep_results, score_cases
from pneumo_lib.steps import compile_steps, run_epoch
from pneumo_lib.taps import fit_projections


def train(
    data,
    *,
    run=None,
    backbone="vgg19",
    decoder="deconvolution",
    weights="auto",
    initial=None,
    fine_tune="none",
    epochs=50,
    milestones=(),
    batch_size=16,
    optimizer="adam",
    learning_rate=None,
    backbone_learning_rate=1e-5,
    schedule="auto",
    loss="crossentropy",
    dropout=0.5,
    augmentation="auto",
    positive_share=None,
    ema=0.0,
    test_time_flip=False,
    precision="auto",
    feature_precision="float32",
    seed=0,
    strategy=None,
):
    """Train one FCN and keep all that a results notebook needs in `runs/<name>/`.

    A frozen backbone's features are computed once and only the head is trained, on them. Where
    the backbone is fine-tuned, the images fully augmented, or the small FCN ("small") trained from
    scratch, each step runs the whole network on images. After every epoch the state is written:
    a killed run goes on where it was and ends with the same numbers. A finished run with the same
    settings is returned at once; one with other settings under the same name is moved aside,
    never overwritten. What is kept is the state after the last epoch, and weights and scores at
    the milestones: choose among those by validation. Test cases never decide anything.

    Args:
        data: `Prepared`, see `preparation.prepare()`.
        run: name of the run folder below `runs/`; default `<data>-<backbone>-<size>`, with the
            decoder before the size unless it is the report's.
        backbone: one of `backbones.BACKBONES`, or "small" for the FCN from scratch.
        decoder, weights, dropout: see `fcn.build_fcn()`.
        initial: finished run of the same network, at any size, whose weights to start from.
        fine_tune: which part of the backbone learns, see `fcn.unfreeze()`: "none", "last", "whole".
        epochs: passes over the training part.
        milestones: epochs after which every case is scored and the weights are kept; the last
            epoch always is one.
        batch_size: images a step.
        optimizer, ema: see `optimisers.build_optimiser()`. With an average of the weights, it is
            the average that is scored, validated and kept.
        learning_rate: of the head, or of the whole small FCN; None: 1e-3, as in the report, and
            2e-3 for "small".
        backbone_learning_rate: of what `fine_tune` lets learn.
        schedule: "constant", as in the report, "cosine" or "warmup-cosine", see
            `build_optimiser()`; "auto": cosine for "small" and for fine-tuning.
        loss: see `losses.get_loss()`.
        augmentation: "none", "flip", "full", see `augmentation.augment()`; "auto": flip for "small"
            and for fine-tuning, else none, as in the report. With a frozen backbone, "flip" takes
            a second file of features, and "full" runs the backbone in each step.
        positive_share: `(from, to)`, share of positives in the first and the last epoch, in even
            steps between; None: as they come. See `batches.epoch_order()`.
        test_time_flip: whether scores and predictions are means over an image and its mirror.
        precision: "float32", "mixed_float16", "mixed_bfloat16" (halves a step through the whole
            VGG16 on processors that have it), or "auto": float16 on a GPU, else float32.
        feature_precision: of a frozen backbone, see `features.cached_features()`.
        seed: of weights, dropout, augmentation and the order of the images.
        strategy: None: one process, one device; "mirrored": all GPUs of this machine;
            "multiworker": the machines named by `TF_CONFIG`, on each of which the same call runs;
            or a `tf.distribute.Strategy`. The numbers are the same to rounding, so a run may go on
            with another one, see docs/training_on_many_machines.md.

    Returns:
        `Run`, see `runs.load_run()`.

    Raises:
        ValueError: if the training part is empty, for an unknown setting, for an `initial` run
            of another network, or for what `build_fcn()` refuses.
        FileNotFoundError: if `initial` is no finished run, and as `build_fcn()`.
    """
    settings = {
        "data_checksum": runs.data_checksum(data),
        "size": data.meta["size"],
        "backbone": backbone,
        "decoder": decoder,
        "weights": None if weights is None else str(weights),
        "initial": _identity(initial),
        "fine_tune": fine_tune,
        "epochs": epochs,
        "milestones": sorted({m for m in milestones if m < epochs} | {epochs}),
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "backbone_learning_rate": backbone_learning_rate,
        "schedule": schedule,
        "loss": loss,
        "dropout": dropout,
        "augmentation": augmentation,
        "positive_share": positive_share,
        "ema": ema,
        "test_time_flip": test_time_flip,
        "precision": choose_precision(precision),
        "feature_precision": feature_precision,
        "seed": seed,
        "results_version": runs.RESULTS_VERSION,
    }
    settings |= _automatic(settings)
    get_loss(loss)  # refused now, not after the features
    share_at(1, epochs, positive_share)
    if not (data.cases["split"] == "train").any():
        raise ValueError("Training needs cases in the split 'train'. Received: none")
    name = run or runs.default_name(data.meta["source"], backbone, decoder, settings["size"])
    folder = project_path("runs") / name
    strategy = distribution.choose_strategy(strategy, batch_size=batch_size)
    chief = distribution.is_chief(strategy)
    with distribution.one_error(strategy, name), alone(folder) if chief else nullcontext():
        distribution.check_settings(strategy, settings)
        if chief:
            runs.claim(name, settings)
        if not distribution.from_chief(strategy, int(chief and runs.is_finished(folder))):
            model, network, inputs, mirrored = _build(data, settings, strategy)
            arguments = {"mirrored": mirrored, "strategy": strategy}
            _fit(network, inputs, data, settings, folder, **arguments)
            if chief:
                keep_results(model, network, inputs, data, settings, folder, **arguments)
            distribution.barrier(strategy)
    return runs.load_run(folder)


def _identity(initial):
    """Name of the run to start from, and a checksum of what it learnt."""
    if initial is None:
        return None
    folder = runs.load_run(initial).folder
    return {"run": folder.name, "checksum": runs.weights_checksum(folder)}


def _automatic(settings):
    """What "auto" stands for in `augmentation` and `schedule`, and no `learning_rate` at all."""
    report = settings["backbone"] != "small" and settings["fine_tune"] == "none"
    augmentation = settings["augmentation"]
    if augmentation not in ("auto", *AUGMENTATIONS):
        raise ValueError(
            f"`augmentation` must be one of auto, {', '.join(AUGMENTATIONS)}. "
            f"Received: augmentation={augmentation!r}"
        )
    chosen = {"schedule": "constant" if report else "cosine"}
    chosen["augmentation"] = "none" if report else "flip"
    chosen = {name: value for name, value in chosen.items() if settings[name] == "auto"}
    if settings["learning_rate"] is None:
        chosen["learning_rate"] = 2e-3 if settings["backbone"] == "small" else 1e-3
    return chosen


def _build(data, settings, strategy):
    """`(model, trained part, its inputs, mirrored inputs)`: images, or features of them.

    Mirrored features are None where nothing needs them.
    """
    backbone, size, seed = settings["backbone"], settings["size"], settings["seed"]
    with dtype_policy(settings["precision"]), distribution.scope(strategy):
        if backbone == "small":
            model = fcn.build_small_fcn(size=size, seed=seed)
        else:
            model = fcn.build_fcn(
                backbone,
                decoder=settings["decoder"],
                size=size,
                weights=None if settings["initial"] else settings["weights"],
                dropout=settings["dropout"],
                seed=seed,
            )
    with distribution.chief_first(strategy):
        if settings["initial"]:
            _start_from(model, settings["initial"]["run"])
        else:
            fit_projections(model, data, backbone)
        return model, *_inputs(model, data, settings)


def _inputs(model, data, settings):
    """`(trained part, its inputs, mirrored inputs)`, see `_build()`."""
    backbone = settings["backbone"]
    if backbone == "small" or settings["fine_tune"] != "none" or settings["augmentation"] == "full":
        return model, data.images, data.images[:, :, ::-1]
    encoder, head = fcn.split_fcn(model)
    compute = partial(
        cached_features, encoder, data, backbone, precision=settings["feature_precision"]
    )
    both = settings["augmentation"] == "flip" or settings["test_time_flip"]
    return head, compute(), compute(flipped=True) if both else None


def _start_from(model, name):
    """Give `model` the weights of the finished run `name`."""
    initial = runs.load_run(name)
    learnt = keras.models.load_model(initial.folder / "model.keras", compile=False).get_weights()
    if [w.shape for w in learnt] != [tuple(w.shape) for w in model.weights]:
        raise ValueError(
            "`initial` must be a run of the same network: backbone and decoder. "
            f"Received: initial={name!r}, whose weights do not fit {model.name}"
        )
    model.set_weights(learnt)
    model.weights_used = initial.config["weights"]


def _fit(network, inputs, data, settings, folder, *, mirrored=None, strategy=None):
    """Train `network` to the last epoch, from the state in `folder` if there is one."""
    end_to_end, epochs = inputs is data.images, settings["epochs"]
    parts = {part: np.flatnonzero(data.cases["split"] == part) for part in ("train", "validation")}
    positive = data.cases["has_pneumothorax"].to_numpy(dtype=bool)
    with distribution.scope(strategy):
        optimiser = optimiser_of_run(network, settings, images=len(parts["train"]))
        draws = keras.random.SeedGenerator(settings["seed"])
    variables = [*network.variables, *optimiser.variables, draws.state]
    train_part, evaluate = compile_steps(
        network,
        optimiser,
        loss=settings["loss"],
        batch_size=settings["batch_size"],
        backbone=settings["backbone"] if end_to_end else None,
        augmentation=settings["augmentation"],
        seed=draws,
        strategy=strategy,
    )
    flips = settings["augmentation"] == "flip" and not end_to_end  # images are mirrored in the step
    averaged = partial(
        averaged_weights, optimiser, network.trainable_variables, ema=settings["ema"]
    )

    def pass_over(step, rows):
        batch_size, flipped = settings["batch_size"], mirrored if flips else None
        arguments = {"flipped": flipped, "strategy": strategy}
        return run_epoch(step, inputs, data.masks, rows, batch_size, **arguments)

    chief = distribution.is_chief(strategy)
    history, scores = runs.load_state(folder, variables) if chief else ([], [])
    done = distribution.same_state(strategy, variables, len(history))
    bar = {"total": epochs, "initial": done, "desc": settings["backbone"], "unit": "epoch"}
    with tqdm(**bar if chief else {"disable": True}) as bar:
        for epoch in range(done + 1, epochs + 1):
            started = time.monotonic()
            order = epoch_order(
                parts["train"],
                seed=settings["seed"],
                epoch=epoch,
                flips=flips,
                positive=positive,
                share=share_at(epoch, epochs, settings["positive_share"]),
            )
            row = {"epoch": epoch, "seconds": 0.0, **pass_over(train_part, order)}
            with averaged():
                validated = pass_over(evaluate, parts["validation"])
                row |= {f"val_{name}": score for name, score in validated.items()}
                if chief and epoch in settings["milestones"]:
                    table = score_cases(network, inputs, data, settings, mirrored=mirrored)
                    scores.append(table.assign(epoch=epoch))
                    with written_aside(folder / f"epoch_{epoch}.weights.h5") as aside:
                        network.save_weights(aside)
            row["seconds"] = time.monotonic() - started
            history.append(row)
            if chief:
                runs.save_state(folder, variables, history, scores)
            bar.set_postfix(loss=f"{row['loss']:.4f}", dice=f"{row['dice']:.3f}")
            bar.update()
    if settings["ema"]:
        optimiser.finalize_variable_values(network.trainable_variables)
    synchronise(network, on=False)
