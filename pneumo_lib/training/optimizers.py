"""Optimizers with what fine-tuning needs: two learning rates, a schedule, averaged weights."""

import math
from contextlib import contextmanager

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
    variables,
    *,
    learning_rate,
    schedule="constant",
    steps=None,
    ema=0.0,
    slow=(),
    slow_factor=1.0,
    scale_loss=False,
):
    """A Keras optimizer, built for `variables`.

    One optimizer with a factor for some variables, not two: loss scale, schedule and averages
    are then shared, and there is one state to save.

    Args:
        name: "adam"; "adamw": decoupled weight decay of 0.01; "sgd": momentum of 0.9.
        variables: list of `keras.Variable`, all that is trained.
        learning_rate: the highest.
        schedule: "constant"; "cosine": down to zero after `steps` steps; "warmup-cosine": up from
            zero in a tenth of them first, for a large learning rate on untrained weights.
        steps: of the whole training; not for "constant".
        ema: momentum of the moving average of the weights that Keras keeps, see
            `averaged_weights()`; 0: none.
        slow: those of `variables` whose learning rate is `slow_factor` times the other's, the
            weights that were learnt before. They do not decay: zero is no better guess than they.
        slow_factor: see there.
        scale_loss: whether gradients are float16 and need a scale to stay above zero.

    Returns:
        `keras.optimizers.Optimizer`.

    Raises:
        ValueError: for an unknown `name` or `schedule`.

    Reference:
        Kingma, Ba (2015), Adam, arXiv:1412.6980; Loshchilov, Hutter (2019), AdamW,
        arXiv:1711.05101, and (2017), cosine schedule, arXiv:1608.03983; Howard, Ruder (2018),
        discriminative fine-tuning, arXiv:1801.06146.
    """
    check_name("optimizer", name, OPTIMIZERS)
    check_name("schedule", schedule, SCHEDULES)
    kind, arguments = _OPTIMIZERS[name]
    if slow:
        kind = _with_slow_variables(kind, slow, slow_factor)
    if schedule == "cosine":
        learning_rate = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    elif schedule == "warmup-cosine":
        up = round(_WARMUP * steps)
        learning_rate = keras.optimizers.schedules.CosineDecay(
            0.0, steps - up, warmup_target=learning_rate, warmup_steps=up
        )
    if ema:
        arguments = arguments | {"use_ema": True, "ema_momentum": ema}
    optimizer = kind(learning_rate, **arguments)
    if slow and optimizer.weight_decay:
        optimizer.exclude_from_weight_decay(var_list=list(slow))
    if scale_loss:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(variables)
    return optimizer


def optimizer_of_run(network, config, *, images):
    """The optimizer of a training; lets the backbone learn, slowly, as far as `fine_tune` says."""
    slow = []
    if config.fine_tune != "none" and config.backbone != "small":
        fast = {id(variable) for variable in network.trainable_variables}
        fcn.unfreeze(network, config.fine_tune)
        slow = [v for v in network.trainable_variables if id(v) not in fast]
    return build_optimizer(
        config.optimizer,
        network.trainable_variables,
        learning_rate=config.learning_rate,
        schedule=config.schedule,
        steps=config.epochs * math.ceil(images / config.batch_size),
        ema=config.ema,
        slow=slow,
        slow_factor=config.backbone_learning_rate / config.learning_rate,
        scale_loss=config.precision == "mixed_float16",
    )


def _with_slow_variables(kind, slow, factor):
    """The optimizer class `kind`, with `factor` times its learning rate for `slow` variables."""

    class Slowed(kind):  # Keras asks this method for each variable, and has no other way in
        def update_step(self, gradient, variable, learning_rate):
            # By key: on several replicas the variable that comes is the copy on one of them.
            keys = {self._var_key(one) for one in slow}
            rate = learning_rate * factor if self._var_key(variable) in keys else learning_rate
            super().update_step(gradient, variable, rate)

    return Slowed


@contextmanager
def averaged_weights(optimizer, variables, *, ema):
    """Inside the block, `variables` hold their moving averages, if there are any (`ema` > 0).

    Averages over the last steps lie nearer to the middle of a minimum than the last step does.
    Only trained weights are averaged; batch normalisation keeps the statistics of the last steps.

    Reference:
        Polyak, Juditsky (1992), doi:10.1137/0330046; Izmailov et al. (2018), arXiv:1803.05407.
    """
    if not ema:
        yield
        return
    last = [variable.numpy() for variable in variables]
    optimizer.finalize_variable_values(variables)
    yield
    for variable, value in zip(variables, last, strict=True):
        variable.assign(value)
