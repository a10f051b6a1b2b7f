"""Optimizer of a training: learning rates, schedule, moving average, loss scale."""

from pneumo_lib._startup import keras

from pneumo_lib._checks import check_name
from pneumo_lib.models import fcn
from pneumo_lib.training.config import SCHEDULES

_WARMUP = 0.1  # of all steps
_OPTIMIZERS = {
    "adam": (keras.optimizers.Adam, {}),
    "adamw": (keras.optimizers.AdamW, {"weight_decay": 0.01}),
    "sgd": (keras.optimizers.SGD, {"momentum": 0.9}),
}


def build_optimizer(config, *, steps=None, slow=()):
    """A Keras optimizer, not yet built.

    "adamw" has a decoupled weight decay of 0.01, "sgd" a momentum of 0.9. "cosine" leads from the
    highest learning rate down to zero after `steps` steps, "warmup-cosine" up from zero in a tenth
    of them first, for a large learning rate on untrained weights. `ema` is the momentum of an
    average of the weights that Keras keeps, and that `fit()` puts in their place at its end:
    averages over the last steps lie nearer to the middle of a minimum than the last step does.
    Batch normalization is not averaged. Float16 gradients have a scale, to stay above zero.

    Args:
        config: `TrainingConfig` with nothing left to be chosen, see `resolved()`.
        steps: of the whole training; not for "constant".
        slow: list of `keras.Variable`, weights learnt before, which have an optimizer of their
            own (`keras.optimizers.MultiOptimizer`), at the `backbone_learning_rate`. They do not
            decay: zero is no better guess.

    Returns:
        `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if the schedule is still to be chosen.

    Reference:
        Kingma, Ba (2015), Adam, arXiv:1412.6980; Loshchilov, Hutter (2019), AdamW,
        arXiv:1711.05101, and (2017), cosine schedule, arXiv:1608.03983; Howard, Ruder (2018),
        discriminative fine-tuning, arXiv:1801.06146; Polyak, Juditsky (1992), averages,
        doi:10.1137/0330046.
    """
    check_name("schedule", config.schedule, SCHEDULES)
    average = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}

    def make(name, learning_rate):
        kind, arguments = _OPTIMIZERS[name]
        rate = _scheduled(learning_rate, config.schedule, steps)
        return kind(rate, **arguments, **average)

    optimizer = fast = make(config.optimizer, config.learning_rate)
    if slow:
        paths = {variable.path for variable in slow}
        undecayed = "adam" if config.optimizer == "adamw" else config.optimizer
        slowly = make(undecayed, config.backbone_learning_rate)
        optimizer = keras.optimizers.MultiOptimizer(
            lambda variable: slowly if variable.path in paths else fast
        )
    scaled = config.precision == "mixed_float16"
    return keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer


def _scheduled(learning_rate, schedule, steps):
    if schedule == "constant":
        return learning_rate
    if schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    up = round(_WARMUP * steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - up, warmup_target=learning_rate, warmup_steps=up
    )


def optimizer_of_run(network, config, *, steps):
    """The optimizer of a training; unfreezes the part of the backbone that `fine_tune` names."""
    slow = []
    if config.fine_tune != "none" and config.backbone != "small":
        fast = {id(variable) for variable in network.trainable_variables}
        fcn.unfreeze(network, config.fine_tune)
        slow = [v for v in network.trainable_variables if id(v) not in fast]
    return build_optimizer(config, steps=steps, slow=slow)
