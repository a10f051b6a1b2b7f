"""The settings of a training: each with its name, default, check and one line of help.

Everything that starts a training fills a `TrainingConfig`: `train()`, the parameters cell of
notebook 05, parameter files, the command line, sweeps and experiments. Keras is not imported
here, so that settings are checked before anything that takes time.
"""

import math
import numbers
from dataclasses import asdict, dataclass, field, fields, replace

from pneumo_lib._checks import (
    as_value,
    did_you_mean,
    number,
    one_of,
    optional,
    or_auto,
    refuse,
    switch,
    text,
)
from pneumo_lib.models.names import BACKBONES, DECODERS

LOSSES = (
    "crossentropy",
    "weighted_crossentropy",
    "focal",
    "dice",
    "dice_of_positives",
    "tversky",
    "lovasz",
    "crossentropy_dice",
)
AUGMENTATIONS = ("none", "flip", "full")
OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "warmup-cosine")
FINE_TUNE = ("none", "last", "whole")
PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16")
FEATURE_PRECISIONS = ("float32", "float16", "bfloat16")


def parse_loss(loss):
    """`[(weight, name), ...]` of a loss such as "dice" or "3*crossentropy+dice".

    Raises:
        ValueError: if a name is none of `LOSSES`, or a weight no positive number.
    """
    terms = [term.strip().rpartition("*") for term in str(loss).split("+")]
    try:
        terms = [(float(weight or 1), name.strip()) for weight, _, name in terms]
    except ValueError:
        terms = []
    if not terms or not all(name in LOSSES and 0 < w < math.inf for w, name in terms):
        raise ValueError(
            f"`loss` must be one of {', '.join(LOSSES)}, or a sum such as '2*crossentropy+dice'. "
            f"Received: loss={loss!r}{did_you_mean(loss, LOSSES)}"
        )
    return terms


def _epochs(name, value):
    found = as_value(value)
    if not isinstance(found, list | tuple) or any(type(n) is not int or n < 1 for n in found):
        refuse(name, value, "a list of epochs from 1 on, such as [5, 10], or None")
    return tuple(sorted(set(found)))


def _shares(name, value):
    found = as_value(value)
    two = isinstance(found, list | tuple) and len(found) == 2
    if not two or not all(isinstance(s, numbers.Real) and 0 <= s <= 1 for s in found):
        rule = "two shares from 0 to 1, in the first and the last epoch, or None, or auto"
        refuse(name, value, rule)
    return tuple(map(float, found))


_COUNT = number(whole=True, low=1)
_PART = or_auto(optional(number(above=0, below=1)))
_SHARES = or_auto(optional(_shares))


def _setting(default, check, about):
    return field(default=default, metadata={"check": check, "help": about})


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of one training; all are checked, and numbers that came as text are converted.

    The help of each setting is in its field's metadata; `describe()` lists them all.

    Raises:
        ValueError: for a value that a setting cannot have, naming the setting and its rule.
    """

    backbone: str = _setting(
        "vgg19", one_of(*BACKBONES), f"{', '.join(BACKBONES)}: from scratch, the control"
    )
    decoder: str = _setting(
        "deconvolution", one_of(*DECODERS), f"as in the report; or {', '.join(list(DECODERS)[1:])}"
    )
    weights: str | None = _setting(
        "auto",
        optional(text),
        "of the backbone: auto, imagenet, a file, a folder of files, or None: random",
    )
    initial: str | None = _setting(
        None, optional(text), "finished run of the same network, at any size, to start from"
    )
    fine_tune: str = _setting(
        "none", one_of(*FINE_TUNE), "part of the backbone that learns too: none, last, whole"
    )
    epochs: int = _setting(16, _COUNT, "passes over the training cases")
    milestones: tuple | None = _setting(
        None,
        optional(_epochs),
        "epochs after which all are scored; None: a quarter, half and all of them",
    )
    batch_size: int | None = _setting(
        None, optional(_COUNT), "images in one training step; None: 16, and 8 for small"
    )
    optimizer: str = _setting("adam", one_of(*OPTIMIZERS), "adam (as in the report), adamw, sgd")
    learning_rate: float | None = _setting(
        None, optional(number(above=0)), "of the decoder; None: 0.001, and 0.002 for small"
    )
    backbone_learning_rate: float = _setting(
        1e-5, number(above=0), "of the part of the backbone that fine_tune lets learn"
    )
    schedule: str = _setting(
        "auto",
        one_of("auto", *SCHEDULES),
        "constant, cosine, warmup-cosine; auto: cosine for small and fine-tuning",
    )
    loss: str = _setting(
        "crossentropy",
        lambda _, loss: parse_loss(loss) and loss,
        "a name in pl.training.LOSSES, or a sum such as 2*crossentropy+dice",
    )
    dropout: float = _setting(
        0.5, number(below=1), "share of the values, or channels, that the decoder drops"
    )
    augmentation: str = _setting(
        "auto",
        one_of("auto", *AUGMENTATIONS),
        "none, flip, full; auto: flip for small and fine-tuning, else none",
    )
    positive_share: tuple | str | None = _setting(
        "auto", _SHARES, "in the first and last epoch; None: as given; auto: [0.7, 0.3] for small"
    )
    half_size: float | str | None = _setting(
        "auto", _PART, "share of the epochs, the first ones, at half the size; auto: 0.6 for small"
    )
    ema: float = _setting(
        0.0, number(below=1), "momentum of the average of the weights that is kept; 0: none"
    )
    test_time_flip: bool = _setting(
        False, switch, "whether predictions are means over an image and its mirror image"
    )
    image_head: bool = _setting(
        False, switch, "whether a head for whole images is fitted on a frozen backbone's features"
    )
    precision: str = _setting(
        "auto", one_of("auto", *PRECISIONS), f"{', '.join(PRECISIONS)}; auto: by the device"
    )
    feature_precision: str = _setting(
        "float32", one_of(*FEATURE_PRECISIONS), "of a frozen backbone: float32, float16, bfloat16"
    )
    seed: int = _setting(
        0,
        number(whole=True),
        "of the phantoms, the split, the first weights and the order of the images",
    )

    def __post_init__(self):
        for one in fields(self):
            value = one.metadata["check"](one.name, getattr(self, one.name))
            object.__setattr__(self, one.name, value)
        if self.milestones and self.milestones[-1] > self.epochs:
            raise ValueError(
                "`milestones` must not lie beyond the last of the `epochs`. Received: "
                f"milestones={list(self.milestones)}, epochs={self.epochs}. Train longer, or "
                "leave `milestones` out"
            )

    @classmethod
    def from_settings(cls, settings):
        """The config of a dict of settings; those that it lacks have their defaults.

        Raises:
            ValueError: for an unknown name, and as `TrainingConfig`.
        """
        known = [one.name for one in fields(cls)]
        for name in settings:
            if name not in known:
                hint = did_you_mean(name, known) or f". Known: {', '.join(known)}"
                raise ValueError(f"A training has no setting of that name. Received: {name}{hint}")
        return cls(**settings)

    def resolved(self, *, gpu=False):
        """The same training with nothing left that is chosen automatically, but for `weights`.

        Args:
            gpu: whether a GPU trains, which decides the precision.
        """
        small = self.backbone == "small"
        as_reported = not small and self.fine_tune == "none"
        chosen = {
            "schedule": "constant" if as_reported else "cosine",
            "augmentation": "none" if as_reported else "flip",
            "precision": "mixed_float16" if gpu else "float32",
            "learning_rate": 2e-3 if small else 1e-3,
            "batch_size": 8 if small else 16,
            # 0.08 more Dice on fresh phantoms after 16 epochs than with positives as they come
            "positive_share": (0.7, 0.3) if small else None,
            "half_size": 0.6 if small and not (self.ema or self.initial) else None,
        }
        chosen = {n: v for n, v in chosen.items() if getattr(self, n) == getattr(TrainingConfig, n)}
        early = [math.ceil(self.epochs * share) for share in (0.25, 0.5)]
        early = early if self.milestones is None else self.milestones
        chosen["milestones"] = [*early, self.epochs]  # its check sorts them
        chosen["image_head"] = self.image_head and not self.trains_on_images()
        return replace(self, **chosen)

    def trains_on_images(self):
        """Whether each step runs the whole network on images, not a decoder on kept features."""
        return self.backbone == "small" or self.fine_tune != "none" or self.augmentation == "full"

    def epochs_at_half_size(self):
        """How many epochs, the first ones, see images of half the size: none with `ema`."""
        chosen = self.half_size not in (None, "auto") and self.backbone == "small" and not self.ema
        return int(self.epochs * self.half_size) if chosen else 0

    def without_effect(self):
        """Settings that were given and change nothing, `{name: why}`."""
        unused = {}
        if self.backbone == "small":
            names = ["decoder", "fine_tune", "dropout", *(["weights"] if self.weights else [])]
            unused |= dict.fromkeys(names, "the small FCN has neither backbone nor dropout")
        if self.backbone != "small" or self.ema:
            unused["half_size"] = "only the small FCN, without `ema`, takes images of two sizes"
        if self.initial:
            unused["weights"] = "the weights are those of `initial`"
        if self.backbone == "small" or self.fine_tune == "none":
            unused["backbone_learning_rate"] = "no part of a backbone learns"
        if self.trains_on_images():
            unused |= dict.fromkeys(("feature_precision", "image_head"), "no features are kept")
        defaults = asdict(TrainingConfig())
        return {n: why for n, why in unused.items() if getattr(self, n) != defaults[n]}


def describe():
    """One line of help for each setting of a training, `{name: help}`, in their order."""
    return {one.name: one.metadata["help"] for one in fields(TrainingConfig)}
