"""Training: frozen features, compiled epochs, and a state that survives a kill."""

import logging
import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial

from pneumo_lib._startup import keras

import numpy as np
from tqdm.auto import tqdm

from pneumo_lib import runs
from pneumo_lib._files import atomic_write, file_lock, project_path
from pneumo_lib.models import fcn
from pneumo_lib.training import distribution, state
from pneumo_lib.training.config import TrainingConfig
from pneumo_lib.training.devices import dtype_policy, prepare_gpus
from pneumo_lib.training.features import cached_features
from pneumo_lib.training.loader import epoch_order, share_at
from pneumo_lib.training.optimizers import averaged_weights, optimizer_of_run
from pneumo_lib.training.projections import fit_projections
from pneumo_lib.training.replicas import synchronise
from pneumo_lib.training.scoring import TrainedPart, keep_results, score_cases
from pneumo_lib.training.steps import compile_steps, run_epoch

logger = logging.getLogger(__name__)


def train(data, config=None, *, run=None, strategy=None, **changes):
    """Train one FCN and keep all that a results notebook needs in `runs/<name>/`.

    A frozen backbone's features are computed once and only the head is trained, on them. Where
    the backbone is fine-tuned, the images fully augmented, or the small FCN ("small") trained from
    scratch, each step runs the whole network on images. After every epoch the state is written:
    a killed run goes on where it was and ends with the same numbers. A finished run with the same
    settings is returned at once; one with other settings under the same name is moved aside,
    never overwritten. What is kept is the state after the last epoch, and weights and scores at
    the milestones: choose among those by validation. Test cases never decide anything.

    Args:
        data: `Prepared`, see `prepare.prepare()`.
        config: `TrainingConfig`; None: the defaults.
        run: name of the run folder below `runs/`; default `<data>-<backbone>-<size>`, with the
            decoder before the size unless it is the report's.
        strategy: None: one process, one device; "mirrored": all GPUs of this machine;
            "multiworker": the machines named by `TF_CONFIG`, on each of which the same call runs;
            or a `tf.distribute.Strategy`. The numbers are the same to rounding, so a run may go on
            with another one, see docs/training_on_many_machines.md.
        **changes: single settings of `TrainingConfig`, such as `epochs=5`, stronger than `config`.

    Returns:
        `Run`, see `runs.load_run()`. Its `config["diverged"]` is True, with a logged warning, if
        the training ended with weights that are of no use.

    Raises:
        ValueError: if the training split is empty, for a setting that `TrainingConfig` refuses,
            for an `initial` run of another network, if the loss is no longer a number, or for
            what `build_fcn()` refuses.
        FileNotFoundError: if `initial` is no finished run, and as `build_fcn()`.
    """
    config = TrainingConfig.from_settings(asdict(config or TrainingConfig()) | changes)
    for setting, why in config.without_effect().items():
        given = getattr(config, setting)
        logger.warning("%s=%r changes nothing in this training: %s.", setting, given, why)
    config = config.resolved(gpu=prepare_gpus())
    settings = runs.run_settings(data, config)
    if not (data.cases["split"] == "train").any():
        raise ValueError("Training needs cases in the split 'train'. Received: none")
    name = run or runs.default_name(
        data.meta["source"], config.backbone, config.decoder, data.meta["size"]
    )
    folder = project_path("runs") / name
    strategy = distribution.choose_strategy(strategy, batch_size=config.batch_size)
    chief = distribution.is_chief(strategy)
    with distribution.one_error(strategy, name), file_lock(folder) if chief else nullcontext():
        distribution.check_settings(strategy, settings)
        if chief:
            state.create_run_folder(name, settings)
        if not distribution.from_chief(strategy, int(chief and runs.is_finished(folder))):
            model, part = _build(data, config, strategy)
            _fit(part, data, config, folder, strategy=strategy)
            if chief:
                keep_results(model, part, data, settings, folder, strategy=strategy)
            distribution.barrier(strategy)
    return runs.load_run(folder)


def _build(data, config, strategy):
    """`(model, TrainedPart)`: the whole network from images to softmax, and what of it learns."""
    size = data.meta["size"]
    with dtype_policy(config.precision), distribution.scope(strategy):
        if config.backbone == "small":
            model = fcn.build_small_fcn(size=size, seed=config.seed)
        else:
            model = fcn.build_fcn(
                config.backbone,
                decoder=config.decoder,
                size=size,
                weights=None if config.initial else config.weights,
                dropout=config.dropout,
                seed=config.seed,
            )
    with distribution.chief_first(strategy):
        if config.initial:
            _start_from(model, config.initial)
        else:
            fit_projections(model, data, config.backbone)
        if config.trains_on_images():
            mirrored = data.images[:, :, ::-1]
            return model, TrainedPart(model, data.images, mirrored, config.backbone)
        encoder, head = fcn.split_fcn(model)
        compute = partial(
            cached_features, encoder, data, config.backbone, precision=config.feature_precision
        )
        both = config.augmentation == "flip" or config.test_time_flip
        return model, TrainedPart(head, compute(), compute(flipped=True) if both else None)


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


def _fit(part, data, config, folder, *, strategy=None):
    """Train `part` to the last epoch, from the state in `folder` if there is one."""
    network, epochs, split = part.network, config.epochs, data.cases["split"]
    rows = {name: np.flatnonzero(split == name) for name in ("train", "validation")}
    positive = data.cases["has_pneumothorax"].to_numpy(dtype=bool)
    with distribution.scope(strategy):
        optimizer = optimizer_of_run(network, config, images=len(rows["train"]))
        draws = keras.random.SeedGenerator(config.seed)
    variables = [*network.variables, *optimizer.variables, draws.state]
    train_part, evaluate = compile_steps(
        network,
        optimizer,
        loss=config.loss,
        batch_size=config.batch_size,
        backbone=part.backbone,
        augmentation=config.augmentation,
        seed=draws,
        strategy=strategy,
    )
    # Images are mirrored in the step; mirrored features are read in the place of the others.
    flips = config.augmentation == "flip" and part.backbone is None
    averaged = partial(averaged_weights, optimizer, network.trainable_variables, ema=config.ema)

    def pass_over(step, rows):
        arguments = {"flipped": part.mirrored if flips else None, "strategy": strategy}
        return run_epoch(step, part.inputs, data.masks, rows, config.batch_size, **arguments)

    chief = distribution.is_chief(strategy)
    history, scores = state.load_state(folder, variables) if chief else ([], [])
    done = distribution.same_state(strategy, variables, len(history))
    bar = {"total": epochs, "initial": done, "desc": config.backbone, "unit": "epoch"}
    with tqdm(**bar if chief else {"disable": True}) as bar:
        for epoch in range(done + 1, epochs + 1):
            started = time.monotonic()
            order = epoch_order(
                rows["train"],
                seed=config.seed,
                epoch=epoch,
                flips=flips,
                positive=positive,
                share=share_at(epoch, epochs, config.positive_share),
            )
            row = {"epoch": epoch, "seconds": 0.0, **pass_over(train_part, order)}
            with averaged():
                validated = pass_over(evaluate, rows["validation"])
                row |= {f"val_{name}": score for name, score in validated.items()}
                _check_finite(row, config, folder.name)
                if chief and epoch in config.milestones:
                    table = score_cases(part, data, test_time_flip=config.test_time_flip)
                    scores.append(table.assign(epoch=epoch))
                    with atomic_write(folder / f"epoch_{epoch}.weights.h5") as aside:
                        network.save_weights(aside)
            row["seconds"] = time.monotonic() - started
            history.append(row)
            if chief:
                state.save_state(folder, variables, history, scores)
            bar.set_postfix(loss=f"{row['loss']:.4f}", dice=f"{row['dice']:.3f}")
            bar.update()
    if config.ema:
        optimizer.finalize_variable_values(network.trainable_variables)
    synchronise(network, on=False)


def _check_finite(row, config, name):
    """Refuse to go on with weights that are no numbers any more; the state before them is kept."""
    for key in ("loss", "val_loss"):
        if not math.isfinite(row.get(key, 0)):
            raise ValueError(
                f"The loss of a training must stay finite. Received: {key}={row[key]} in epoch "
                f"{row['epoch']} of run {name!r}. Take a learning_rate below "
                f"{config.learning_rate:g}; the epochs before are kept"
            )
