"""Optimisers: each step by hand, slow variables slow, averages as Keras keeps them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pneumo_lib.training.optimizers import averaged_weights, build_optimizer


def two_variables(value=1.0):
    return [keras.Variable(np.full(3, value, "float32"), name=name) for name in "ab"]


def one_step(optimizer, variables, gradient=1.0):
    optimizer.apply([tf.fill([3], gradient) for _ in variables], variables)
    return [float(variable.numpy()[0]) for variable in variables]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_slow_variables_take_steps_smaller_by_their_factor(name):
    variables = two_variables(0.0)  # near zero, where hardly anything decays
    optimizer = build_optimizer(
        name, variables, learning_rate=0.1, slow=[variables[1]], slow_factor=0.01
    )
    for _ in range(3):
        fast, slow = one_step(optimizer, variables)
    assert fast < -0.2
    assert slow == pytest.approx(fast / 100, rel=2e-3)


def test_a_compiled_step_is_slow_for_slow_variables_too():
    variables = two_variables()
    optimizer = build_optimizer(
        "sgd", variables, learning_rate=0.5, slow=[variables[0]], slow_factor=0.1
    )
    tf.function(lambda: optimizer.apply([tf.ones(3), tf.ones(3)], variables))()
    np.testing.assert_allclose([variable.numpy()[0] for variable in variables], [0.95, 0.5])


def test_adamw_lets_weights_decay_but_not_those_that_were_learnt_before():
    variables = two_variables()
    optimizer = build_optimizer(
        "adamw", variables, learning_rate=0.1, slow=[variables[1]], slow_factor=0.01
    )
    decayed, kept = one_step(optimizer, variables, gradient=0.0)
    assert decayed == pytest.approx(1 - 0.1 * 0.01)
    assert kept == 1.0


def test_sgd_has_a_momentum_of_nine_tenths():
    [variable, _] = variables = two_variables(0.0)
    optimizer = build_optimizer("sgd", variables, learning_rate=1.0)
    one_step(optimizer, variables)
    one_step(optimizer, variables)
    assert float(variable.numpy()[0]) == pytest.approx(-1 - 1.9)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 0.4, 10: 0.4, 20: 0.4}),
        ("cosine", {0: 0.4, 10: 0.2, 20: 0.0}),
        ("warmup-cosine", {0: 0.0, 1: 0.2, 2: 0.4, 11: 0.2, 20: 0.0}),
    ],
)
def test_the_schedule_passes_through_these_rates(schedule, expected):
    variables = two_variables()
    optimizer = build_optimizer("sgd", variables, learning_rate=0.4, schedule=schedule, steps=20)
    rates = [float(optimizer.learning_rate)]
    for _ in range(20):
        one_step(optimizer, variables)
        rates.append(float(optimizer.learning_rate))
    for step, rate in expected.items():
        assert rates[step] == pytest.approx(rate, abs=1e-7)


@pytest.mark.parametrize("scale_loss", [False, True])
def test_averages_stand_in_for_the_weights_inside_the_block_only(scale_loss):
    variables = two_variables(0.0)
    optimizer = build_optimizer("sgd", variables, learning_rate=1.0, ema=0.5, scale_loss=scale_loss)
    scale = float(optimizer.scale_loss(1.0))
    seen, average = [], None
    for _ in range(4):
        value = one_step(optimizer, variables, gradient=scale)[0]
        average = value if average is None else 0.5 * average + 0.5 * value
        seen.append(average)
    with averaged_weights(optimizer, variables, ema=0.5):
        assert float(variables[0].numpy()[0]) == pytest.approx(seen[-1])
    assert float(variables[0].numpy()[0]) == pytest.approx(value)
    assert abs(value - seen[-1]) > 1


def test_without_averages_the_block_changes_nothing():
    variables = two_variables()
    optimizer = build_optimizer("adam", variables, learning_rate=0.1)
    with averaged_weights(optimizer, variables, ema=0.0):
        assert float(variables[0].numpy()[0]) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lion"}, r"`optimizer` must be one of .* Received: optimizer='lion'"),
        ({"schedule": "linear"}, r"`schedule` must be one of .* schedule='linear'"),
    ],
)
def test_unknown_names_are_refused(settings, message):
    settings = {"name": "adam", "schedule": "constant"} | settings
    with pytest.raises(ValueError, match=message):
        build_optimizer(settings.pop("name"), two_variables(), learning_rate=0.1, **settings)
