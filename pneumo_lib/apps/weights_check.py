"""Whether a file of weights holds what an ImageNet classifier learnt."""

import warnings

from pneumo_lib._startup import keras

import numpy as np
from scipy.stats import kurtosis

from pneumo_lib.apps.doctor import Finding
from pneumo_lib.models.backbones import build_backbone, preprocess
from pneumo_lib.models.names import PRETRAINED

_SIZE = 224
_HEAVY = 1.0  # median excess kurtosis of kernels: 4.6 to 5.7 where they were learnt, 0 at random
_SILENT = 0.2  # share of channels


def examine_weights(path):
    """List of `Finding`s on a file of weights, or on each file of a folder of them.

    Its kernels must have heavy tails, which training gives them and random numbers have not, and
    most channels of the last map must respond to photographs, which come with scikit-learn.

    Args:
        path: `Path`; the name of a file begins with that of its backbone.

    Raises:
        FileNotFoundError: if there is no such file, or none that begins so.
        ValueError: if a file does not fit its backbone.
    """
    names = [n for n in PRETRAINED if path.name.startswith(n)]
    if path.is_dir():
        names = [n for n in PRETRAINED if any(path.glob(f"{n}[_.]*"))]
        names += ["vgg19"] * ("vgg16" in names and "vgg19" not in names)
    if not names:
        raise FileNotFoundError(
            f"A file of weights begins with one of {', '.join(PRETRAINED)}. Received: {path}"
        )
    found = []
    for name in names:
        model = build_backbone(name, size=_SIZE, weights=path)
        found += [Finding("ok", name, model.weights_used), *_judge(model, name)]
    return found


def _judge(model, name):
    kernels = [v for v in model.weights if v.name == "kernel"]
    tails = [kurtosis(keras.ops.convert_to_numpy(v), axis=None) for v in kernels]
    text = f"excess kurtosis {np.nanmedian(tails):.1f}, median over {len(tails)} layers"
    remedy = "random, or not learnt to the end: take another file"
    yield _finding(np.nanmedian(tails) > _HEAVY, "wrong", "kernels", text, remedy)
    features = model.predict_on_batch(preprocess(_photographs(), name))
    silent = (np.ptp(features, axis=(0, 1, 2)) == 0).mean()
    text = f"{100 * silent:.0f} % of the channels are the same everywhere on six photographs"
    yield _finding(silent < _SILENT, "missing", "last feature map", text, "some of it is missing")


def _finding(right, state, what, text, remedy):
    return Finding("ok", what, text) if right else Finding(state, what, text, remedy)


def _photographs():
    """`(6, 224, 224)` float32 grey levels 0 to 255: three parts of each photograph."""
    from sklearn.datasets import load_sample_images

    with warnings.catch_warnings(action="ignore"):
        greys = [image.mean(axis=2) for image in load_sample_images().images]
    parts = [grey[100 : 100 + _SIZE, x : x + _SIZE] for grey in greys for x in (0, 200, 400)]
    return np.stack(parts).astype("float32")
