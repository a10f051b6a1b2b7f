"""Training: frozen features, Keras' `compile()` and `fit()`, a checkpoint after each epoch."""

import logging
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial

from pneumo_lib._startup import keras

import numpy as np
from tqdm.auto import tqdm

from pneumo_lib import runs
from pneumo_lib._files import atomic_write, file_lock, project_path
from pneumo_lib.models import fcn
from pneumo_lib.models.devices import dtype_policy, prepare_gpus
from pneumo_lib.models.forward import at_half_size, with_preprocessing
from pneumo_lib.training import state
from pneumo_lib.training.callbacks import Checkpoint
from pneumo_lib.training.config import TrainingConfig
from pneumo_lib.training.features import TrainedPart, fit_projections, part_on_features
from pneumo_lib.training.loader import CaseBatches, epoch_order, fed, share_at
from pneumo_lib.training.losses import get_loss
from pneumo_lib.training.metrics import SegmentationScores
from pneumo_lib.training.optimizers import optimizer_of_run
from pneumo_lib.training.scoring import keep_results, score_cases

logger = logging.getLogger(__name__)
_STEPS_PER_EXECUTION = 32  # of a head: Python would be a tenth of a step
_WORTH_XLA = 256  # steps in all: fewer take longer to compile than they save


def train(data, config=None, *, run=None, distribution=None, callbacks=(), **changes):
    """Train one FCN and keep all that a results notebook needs in `runs/<name>/`.

    Where the backbone is frozen, its features are computed once and only the head is trained;
    elsewhere each step runs the whole network on images. A checkpoint follows every epoch: a
    killed run goes on where it was and ends with the same numbers. A finished run with the same
    settings is returned at once; one with other settings is moved aside. Kept are the weights
    after the last epoch, and weights and scores at the milestones: choose by validation.

    Args:
        data: `Prepared`, see `prepare.prepare()`.
        config: `TrainingConfig`; None: the defaults.
        run: name of the run folder below `runs/`; None: `runs.default_name()`.
        distribution: several devices of this machine: a `tf.distribute.MirroredStrategy` or,
            with JAX, `keras.distribution.DataParallel`; see docs/training_on_many_machines.md.
        callbacks: list of `keras.callbacks.Callback` that see each epoch as in `fit()`. They are
            no part of the settings, and a resumed run begins them anew.
        **changes: single settings of `TrainingConfig`, such as `epochs=5`, stronger than `config`.

    Returns:
        `Run`, see `runs.load_run()`. `config["diverged"]` is True, with a logged warning, if the
        weights are of no use.

    Raises:
        ValueError: if the training split is empty, for an `initial` run of another network, if the
            loss is no longer finite, and as `TrainingConfig` and `build_fcn()`.
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
    with file_lock(folder), distribution.scope() if distribution else nullcontext():
        state.create_run_folder(name, settings)
        if not runs.is_finished(folder):
            model, part = _build(data, config)
            scores = _fit(part, data, config, folder, callbacks, distributed=bool(distribution))
            keep_results(
                *(model, part, data, settings, folder), scores=scores, distribution=distribution
            )
    return runs.load_run(folder)


def _build(data, config):
    """`(model, TrainedPart)`: the whole network from images to softmax, and what of it learns."""
    options = {"size": data.meta["size"], "seed": config.seed}
    with dtype_policy(config.precision):
        if config.backbone == "small":
            model = fcn.build_small_fcn(**options)
        else:
            options |= {"decoder": config.decoder, "dropout": config.dropout}
            weights = None if config.initial else config.weights
            model = fcn.build_fcn(config.backbone, weights=weights, **options)
    if config.initial:
        _start_from(model, config.initial)
    else:
        fit_projections(model, data, config.backbone)
    if config.trains_on_images():
        mirrored = data.images[:, :, ::-1]
        return model, TrainedPart(model, data.images, mirrored, config.backbone)
    encoder, head = fcn.split_fcn(model)
    return model, part_on_features(encoder, head, data, asdict(config))


def _start_from(model, name):
    """Give `model` the weights of the finished run `name`."""
    initial = runs.load_run(name)
    learnt = runs.load_network(initial).get_weights()
    if [w.shape for w in learnt] != [tuple(w.shape) for w in model.weights]:
        raise ValueError(
            "`initial` must be a run of the same network: backbone and decoder. "
            f"Received: initial={name!r}, whose weights do not fit {model.name}"
        )
    model.set_weights(learnt)
    model.weights_used = initial.config["weights"]


def compile_network(network, optimizer, *, loss, backbone=None, distributed=False, steps=1024):
    """`keras.Model` with the weights of `network`, compiled for `fit()` on `CaseBatches`.

    With TensorFlow, XLA halves the time of a head's step, after some seconds of compilation; for
    whole networks its own convolutions are faster on a processor, and under a strategy neither XLA
    nor several steps an execution work.

    Args:
        network: `keras.Model` of which all trainable weights are to learn.
        optimizer: `keras.optimizers.Optimizer`, built here.
        loss: a name of `losses.get_loss()`.
        backbone: inputs are images, to be preprocessed for it; None: features of a head.
        distributed: whether several devices train.
        steps: of the whole training; XLA has to be worth its compilation.
    """
    heads_only = backbone is None
    network = network if heads_only else with_preprocessing(network, backbone)
    backend = keras.backend.backend()
    many_steps = heads_only and not distributed and backend == "tensorflow"
    network.compile(
        optimizer=optimizer,
        loss=get_loss(loss),
        weighted_metrics=[SegmentationScores()],
        jit_compile=backend == "jax" or (many_steps and steps >= _WORTH_XLA),
        steps_per_execution=_STEPS_PER_EXECUTION if many_steps else 1,
    )
    optimizer.build(network.trainable_variables)
    return network


def _phases(part, config, *, steps, done, distributed):
    """`(epoch before the first, last epoch, compiled network)`: at half the size, and at the full.

    The optimizer of the full size begins anew: what the other one remembers of its gradients
    misleads it. `steps` are those of an epoch; what is `done` is left out.
    """
    halved, phases = config.epochs_at_half_size(), []
    if done < halved:
        phases = [(0, halved, at_half_size(part.network), replace(config, schedule="constant"))]
    phases += [(halved, config.epochs, part.network, config)]
    options = {"loss": config.loss, "backbone": part.backbone, "distributed": distributed}
    for start, end, network, settings in phases:
        in_all = steps * (end - start)
        optimizer = optimizer_of_run(part.network, settings, steps=in_all)
        yield start, end, compile_network(network, optimizer, steps=in_all, **options)


def _fit(part, data, config, folder, callbacks, *, distributed):
    """Train from the checkpoint in `folder`, if any, to the end; `{milestone: table of scores}`."""
    both = train, validation = _batches(part, data, config)
    averaged = keras.callbacks.SwapEMAWeights() if config.ema else None
    score = partial(score_cases, part, data, test_time_flip=config.test_time_flip)
    done = state.epochs_done(folder)
    bar = tqdm(total=config.epochs, initial=done, desc=config.backbone, unit="epoch")

    def begin(epoch, logs=None):
        for batches in filter(None, both):
            batches.start_epoch(epoch + 1)

    def show(epoch, logs):
        bar.set_postfix(loss=f"{logs['loss']:.4f}", dice=f"{logs['dice']:.3f}")
        bar.update()

    options = {"steps": len(train), "done": done, "distributed": distributed}
    with bar:
        for start, end, network in _phases(part, config, **options):
            weights, own = part.network.variables, network.optimizer.variables
            history, scores = state.load_state(folder, weights + own if done > start else weights)
            begin(min(len(history), end - 1))  # after a kill all epochs may be done
            x, y, sample_weights = train[0]
            # Else fit() builds them on a first batch, which the threads that read ahead then lack.
            network.compute_loss(x, y, softmax := network(x), sample_weights)
            network.compute_metrics(x, y, softmax, sample_weights)
            kept = part.network, folder, config.milestones, score, history, scores
            network.fit(
                fed(train),
                validation_data=validation and fed(validation),
                epochs=end,
                initial_epoch=len(history),
                shuffle=False,
                verbose=0,
                callbacks=[
                    *callbacks,
                    *([averaged] if averaged else []),
                    Checkpoint(*kept, averaged=averaged),
                    keras.callbacks.LambdaCallback(on_epoch_begin=begin, on_epoch_end=show),
                ],
            )
            if network.stop_training:  # by a callback of the user
                break
    for batches in filter(None, both):  # TensorFlow keeps every dataset that it read
        batches.inputs = batches.masks = batches.mirrored = None
    with atomic_write(folder / f"epoch_{len(history)}.weights.h5") as aside:
        part.network.save_weights(aside)
    return scores


def _batches(part, data, config):
    """`CaseBatches` of the training cases, and of the validation cases if there are any."""
    split = data.cases["split"]
    rows = {name: np.flatnonzero(split == name) for name in ("train", "validation")}
    positive = data.cases["has_pneumothorax"].to_numpy(dtype=bool)
    drawn = {"seed": config.seed, "flips": config.augmentation != "none", "positive": positive}

    def order(epoch):
        share = share_at(epoch, config.epochs, config.positive_share)
        return epoch_order(rows["train"], epoch=epoch, share=share, **drawn)

    halved = config.epochs_at_half_size()
    seed = config.seed if config.augmentation == "full" else None
    options = {"mirrored": part.mirrored, "augmentation_seed": seed, "halved": halved}
    train = CaseBatches(part.inputs, data.masks, order, config.batch_size, **options)
    if not len(rows["validation"]):
        return train, None
    held_out = part.inputs, data.masks, lambda epoch: rows["validation"]
    return train, CaseBatches(*held_out, config.batch_size, halved=halved)
