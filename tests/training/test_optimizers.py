"""Optimizers: each step by hand, slow variables slow, averages as Keras keeps them."""

import keras
import numpy as np
import pytest

from pneumo_lib.training.config import TrainingConfig
from pneumo_lib.training.optimizers import build_optimizer


def build(optimizer, *, steps=20, slow=(), **settings):
    config = TrainingConfig(optimizer=optimizer, **settings).resolved()
    return build_optimizer(config, steps=steps, slow=slow)


def two_variables(value=1.0):
    """Two weights of three numbers, each of a layer of its own."""
    layers = [keras.layers.Dense(3, use_bias=False, name=name) for name in "ab"]
    for layer in layers:
        layer.build((None, 1))
        layer.kernel.assign(np.full((1, 3), value, "float32"))
    return [layer.kernel for layer in layers]


def one_step(optimizer, variables, gradient=1.0):
    gradients = [keras.ops.full((1, 3), gradient) for _ in variables]
    if keras.backend.backend() == "jax":  # as `fit()` does there: `apply()` scales no loss
        optimizer.build(variables)
        both = [*variables, *optimizer.variables]
        state = [variable.value for variable in both]
        learnt, own = optimizer.stateless_apply(state[2:], gradients, state[:2])
        for variable, value in zip(both, [*learnt, *own], strict=True):
            variable.assign(value)
    else:
        optimizer.apply(gradients, variables)
    return [float(variable.numpy()[0, 0]) for variable in variables]


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_slow_variables_have_a_learning_rate_of_their_own(name, precision):
    variables = two_variables(0.0)  # near zero, where hardly anything decays
    rates = {"learning_rate": 0.1, "backbone_learning_rate": 0.001}
    optimizer = build(name, slow=[variables[1]], precision=precision, **rates)
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    assert scales == (precision == "mixed_float16")
    for _ in range(3):
        fast, slow = one_step(optimizer, variables, float(optimizer.scale_loss(1.0)))
    assert fast < -0.2
    assert slow == pytest.approx(fast / 100, rel=2e-3)


def test_slow_variables_follow_the_schedule_too():
    variables = two_variables(0.0)
    slow = {"slow": [variables[0]], "backbone_learning_rate": 0.01}
    optimizer = build("sgd", learning_rate=0.1, schedule="cosine", steps=2, **slow)
    first = one_step(optimizer, variables)
    assert first == pytest.approx([-0.01, -0.1])
    second = one_step(optimizer, variables)  # half the learning rate, and a momentum of 0.9
    assert second == pytest.approx([-0.01 - 0.005 - 0.009, -0.1 - 0.05 - 0.09])


def test_adamw_lets_weights_decay_but_not_those_that_were_learnt_before():
    variables = two_variables()
    rates = {"learning_rate": 0.1, "backbone_learning_rate": 0.001}
    optimizer = build("adamw", slow=[variables[1]], **rates)
    decayed, kept = one_step(optimizer, variables, gradient=0.0)
    assert decayed == pytest.approx(1 - 0.1 * 0.01)
    assert kept == 1.0


def test_sgd_has_a_momentum_of_nine_tenths():
    variables, optimizer = two_variables(0.0), build("sgd", learning_rate=1.0)
    one_step(optimizer, variables)
    assert one_step(optimizer, variables)[0] == pytest.approx(-1 - 1.9)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.4, 10: 0.4, 20: 0.4}),
        ("cosine", {0: 0.4, 10: 0.2, 20: 0.0}),
        ("warmup-cosine", {0: 0.0, 1: 0.2, 2: 0.4, 11: 0.2, 20: 0.0}),
    ],
)
def test_the_schedule_passes_through_these_learning_rates(schedule, expected):
    variables = two_variables()
    optimizer = build("sgd", learning_rate=0.4, schedule=schedule, steps=20)
    rates = [float(optimizer.learning_rate)]
    for _ in range(20):
        one_step(optimizer, variables)
        rates.append(float(optimizer.learning_rate))
    for step, rate in expected.items():
        assert rates[step] == pytest.approx(rate, abs=1e-7)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_averages_replace_the_weights_at_the_end(precision):
    variables = two_variables(0.0)
    slow = {"slow": [variables[1]], "backbone_learning_rate": 0.1}
    optimizer = build("sgd", learning_rate=1.0, ema=0.5, precision=precision, **slow)
    average = None
    for _ in range(4):
        values = np.array(one_step(optimizer, variables, float(optimizer.scale_loss(1.0))))
        average = values if average is None else 0.5 * average + 0.5 * values
    optimizer.finalize_variable_values(variables)
    found = [float(variable.numpy()[0, 0]) for variable in variables]
    assert found == pytest.approx(average)
    assert np.abs(values - average).min() > 0.1


def test_a_schedule_that_is_still_to_be_chosen_is_refused():
    with pytest.raises(ValueError, match=r"`schedule` must be one of .* schedule='auto'"):
        build_optimizer(TrainingConfig(learning_rate=0.1))
