"""Optimizer of a training: learning rates, schedule, moving average, loss scale."""

import math

from pneumo_lib._startup import keras

from pneumo_lib.models import fcn
from pneumo_lib.models.names import check_name
from pneumo_lib.training.config import OPTIMIZERS, SCHEDULES

_WARMUP = 0.1  # of all steps
_OPTIMIZERS = {
    "adam": (keras.optimizers.Adam, {}),
    "adamw": (keras.optimizers.AdamW, {"weight_decay": 0.01}),
    "sgd": (keras.optimizers.SGD, {"momentum": 0.9}),
}


def build_optimizer(
    name,
    *,
    learning_rate,
    schedule="constant",
    steps=None,
    ema=0.0,
    slow=(),
    slow_learning_rate=None,
    scale_loss=False,
):
    """A Keras optimizer, not yet built.

    Args:
        name: "adam"; "adamw": decoupled weight decay of 0.01; "sgd": momentum of 0.9.
        learning_rate: the highest.
        schedule: "constant"; "cosine": down to zero after `steps` steps; "warmup-cosine": up from
            zero in a tenth of them first, for a large learning rate on untrained weights.
        steps: of the whole training; not for "constant".
        ema: momentum of the moving average of the weights that Keras keeps, and that `fit()` puts
            in their place at its end; 0: none. Averages over the last steps lie nearer to the
            middle of a minimum than the last step does. Batch normalization is not averaged.
        slow: list of `keras.Variable`, weights learnt before, which have an optimizer of their
            own (`keras.optimizers.MultiOptimizer`). They do not decay: zero is no better guess.
        slow_learning_rate: theirs.
        scale_loss: whether gradients are float16 and need a scale to stay above zero.

    Returns:
        `keras.optimizers.Optimizer`.

    Raises:
        ValueError: for an unknown `name` or `schedule`.

    Reference:
        Kingma, Ba (2015), Adam, arXiv:1412.6980; Loshchilov, Hutter (2019), AdamW,
        arXiv:1711.05101, and (2017), cosine schedule, arXiv:1608.03983; Howard, Ruder (2018),
        discriminative fine-tuning, arXiv:1801.06146; Polyak, Juditsky (1992), averages,
        doi:10.1137/0330046.
    """
    check_name("optimizer", name, OPTIMIZERS)
    check_name("schedule", schedule, SCHEDULES)
    average = {"use_ema": True, "ema_momentum": ema} if ema else {}

    def make(name, learning_rate):
        kind, arguments = _OPTIMIZERS[name]
        return kind(_scheduled(learning_rate, schedule, steps), **arguments, **average)

    optimizer = make(name, learning_rate)
    if slow:
        paths, fast = {variable.path for variable in slow}, optimizer
        slowly = make("adam" if name == "adamw" else name, slow_learning_rate)
        optimizer = keras.optimizers.MultiOptimizer(
            lambda variable: slowly if variable.path in paths else fast
        )
    return keras.optimizers.LossScaleOptimizer(optimizer) if scale_loss else optimizer


def _scheduled(learning_rate, schedule, steps):
    if schedule == "constant":
        return learning_rate
    if schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    up = round(_WARMUP * steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0, steps - up, warmup_target=learning_rate, warmup_steps=up
    )


def optimizer_of_run(network, config, *, images):
    """The optimizer of a training; unfreezes the part of the backbone that `fine_tune` names."""
    slow = []
    if config.fine_tune != "none" and config.backbone != "small":
        fast = {id(variable) for variable in network.trainable_variables}
        fcn.unfreeze(network, config.fine_tune)
        slow = [v for v in network.trainable_variables if id(v) not in fast]
    return build_optimizer(
        config.optimizer,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        steps=config.epochs * math.ceil(images / config.batch_size),
        ema=config.ema,
        slow=slow,
        slow_learning_rate=config.backbone_learning_rate,
        scale_loss=config.precision == "mixed_float16",
    )
