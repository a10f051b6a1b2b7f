"""Settings of a training: what each may be, and what happens to text, gaps and contradictions."""

import subprocess
import sys

import pytest

from pneumo_lib.training.config import TrainingConfig, describe


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("backbone", "resnet101", r"one of vgg16, .*='resnet101'. Did you mean resnet50\?"),
        ("decoder", "skip", r"one of deconvolution, .*='skip'. Did you mean skips\?"),
        ("weights", ["a.npz"], r"a name or a path. Received: weights=\['a.npz'\]"),
        ("fine_tune", "first", r"one of none, last, whole. Received: fine_tune='first'"),
        ("epochs", 0, "a whole number of 1 or more. Received: epochs=0"),
        ("epochs", 3.0, "a whole number of 1 or more. Received: epochs=3.0"),
        ("epochs", True, "a whole number of 1 or more. Received: epochs=True"),
        ("milestones", 3, r"a list of epochs from 1 on, such as \[5, 10\].* milestones=3"),
        ("milestones", [0], r"a list of epochs from 1 on, such as \[5, 10\].* milestones=\[0\]"),
        ("milestones", [30], r"beyond the last of the `epochs`.*=\[30\], epochs=16. Train longer"),
        ("batch_size", 0, "a whole number of 1 or more. Received: batch_size=0"),
        ("optimizer", "lion", "one of adam, adamw, sgd. Received: optimizer='lion'"),
        ("learning_rate", "abc", "a number above 0. Received: learning_rate='abc'"),
        ("learning_rate", float("nan"), "a number above 0. Received: learning_rate=nan"),
        ("backbone_learning_rate", 0, "a number above 0. Received: backbone_learning_rate=0"),
        ("schedule", "linear", "one of auto, constant, cosine, .* schedule='linear'"),
        ("loss", "dise", r"one of crossentropy, .*loss='dise'. Did you mean dice\?"),
        ("loss", "0*dice", r"or a sum such as .*Received: loss='0\*dice'"),
        ("dropout", 1.0, "of 0 or more and below 1. Received: dropout=1.0"),
        ("augmentation", "mixup", "one of auto, none, flip, full. .* augmentation='mixup'"),
        ("half_size", 1, "a number above 0 and below 1. Received: half_size=1"),
        ("positive_share", 0.5, "two shares from 0 to 1, .*Received: positive_share=0.5"),
        ("positive_share", [0.5, 1.5], r"two shares from 0 to 1, .*positive_share=\[0.5, 1.5\]"),
        ("ema", 1, "of 0 or more and below 1. Received: ema=1"),
        ("test_time_flip", "maybe", "True or False. Received: test_time_flip='maybe'"),
        ("precision", "half", "one of auto, float32, .* precision='half'"),
        ("feature_precision", "half", "one of float32, float16, bfloat16. .*='half'"),
        ("image_head", "maybe", "True or False. Received: image_head='maybe'"),
        ("seed", -1, "a whole number of 0 or more. Received: seed=-1"),
    ],
)
def test_a_value_that_a_setting_cannot_have_is_refused(name, value, message):
    with pytest.raises(ValueError, match=f"`{name}` must (be )?.*{message}"):
        TrainingConfig(**{name: value})


def test_an_unknown_setting_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"no setting of that name.*: epoch. Did you mean epochs"):
        TrainingConfig.from_settings({"epoch": 1})
    with pytest.raises(ValueError, match=r"Received: zebra. Known: backbone, decoder"):
        TrainingConfig.from_settings({"zebra": 1})


def test_numbers_lists_and_none_may_come_as_text_and_names_as_numbers():
    text = {"epochs": "3", "learning_rate": "1e-3", "milestones": "[1]", "initial": 2024}
    text |= {"positive_share": "[0.8, 0.4]", "test_time_flip": "True", "weights": "None"}
    values = {"epochs": 3, "learning_rate": 0.001, "milestones": (1,), "initial": "2024"}
    values |= {"positive_share": (0.8, 0.4), "test_time_flip": True, "weights": None}
    assert TrainingConfig(**text) == TrainingConfig(**values)
    assert type(TrainingConfig(learning_rate=1).learning_rate) is float


CHOSEN = ("schedule", "augmentation", "learning_rate", "batch_size", "positive_share", "half_size")
SMALL = {"backbone": "small"}
GIVEN = {"schedule": "warmup-cosine", "augmentation": "full", "learning_rate": 0.1}
GIVEN |= {"batch_size": 3, "positive_share": (0.5, 0.5), "half_size": 0.3}


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, ("constant", "none", 1e-3, 16, None, None)),
        ({"fine_tune": "last"}, ("cosine", "flip", 1e-3, 16, None, None)),
        (SMALL, ("cosine", "flip", 2e-3, 8, (0.7, 0.3), 0.6)),
        (SMALL | {"positive_share": None}, ("cosine", "flip", 2e-3, 8, None, 0.6)),
        (SMALL | {"half_size": None}, ("cosine", "flip", 2e-3, 8, (0.7, 0.3), None)),
        (SMALL | {"ema": 0.9}, ("cosine", "flip", 2e-3, 8, (0.7, 0.3), None)),
        (SMALL | {"initial": "run"}, ("cosine", "flip", 2e-3, 8, (0.7, 0.3), None)),
        (GIVEN, tuple(GIVEN.values())),
        (SMALL | GIVEN, tuple(GIVEN.values())),
    ],
)
def test_auto_means_as_in_the_report_for_a_frozen_backbone_and_its_best_elsewhere(settings, chosen):
    config = TrainingConfig(**settings).resolved()
    assert tuple(getattr(config, name) for name in CHOSEN) == chosen
    assert config.precision == "float32"
    assert TrainingConfig(**settings).resolved(gpu=True).precision == "mixed_float16"
    assert config.resolved(gpu=True) == config


@pytest.mark.parametrize(
    ("epochs", "settings", "halved"),
    [
        (16, SMALL, 9),
        (2, SMALL, 1),
        (1, SMALL, 0),
        (10, SMALL | {"half_size": 0.5}, 5),
        (10, SMALL | {"half_size": None}, 0),
        (10, SMALL | {"half_size": 0.5, "ema": 0.9}, 0),  # an average needs one size
        (10, {"half_size": 0.5}, 0),
    ],
)
def test_the_first_epochs_of_the_small_fcn_see_half_the_size(epochs, settings, halved):
    config = TrainingConfig(epochs=epochs, **settings).resolved()
    assert config.epochs_at_half_size() == halved


@pytest.mark.parametrize(
    ("epochs", "given", "milestones"),
    [(20, None, (5, 10, 20)), (2, None, (1, 2)), (1, None, (1,)), (9, [], (9,)), (9, [4], (4, 9))],
)
def test_the_last_epoch_is_a_milestone_and_by_default_a_quarter_and_half(epochs, given, milestones):
    config = TrainingConfig(epochs=epochs, milestones=given)
    assert config.resolved().milestones == milestones


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({}, set()),
        ({"backbone": "small", "weights": None}, set()),
        (
            {"backbone": "small", "dropout": 0.3, "decoder": "skips", "weights": "imagenet"},
            {"dropout", "decoder", "weights"},
        ),
        ({"half_size": 0.5}, {"half_size"}),
        ({"backbone": "small", "half_size": 0.5}, set()),
        ({"backbone": "small", "half_size": 0.5, "ema": 0.9}, {"half_size"}),
        ({"backbone_learning_rate": 1e-4}, {"backbone_learning_rate"}),
        ({"backbone_learning_rate": 1e-4, "fine_tune": "last"}, set()),
        ({"initial": "run", "weights": "imagenet"}, {"weights"}),
        ({"feature_precision": "bfloat16"}, set()),
        ({"feature_precision": "bfloat16", "augmentation": "full"}, {"feature_precision"}),
    ],
)
def test_settings_that_change_nothing_are_named(settings, unused):
    assert set(TrainingConfig(**settings).without_effect()) == unused


def test_settings_are_checked_without_keras():
    code = "import sys, pneumo_lib.study.parameters\n"
    code += "assert not {'keras', 'tensorflow'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_setting_has_a_line_of_help():
    assert all(0 < len(text) <= 80 for text in describe().values())
