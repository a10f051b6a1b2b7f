"""The ImageNet classifiers without their dense layers: networks, weights, preprocessing."""

import os
import random
import re
import threading
import urllib.request
import warnings
from collections import defaultdict
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

from pneumo_lib._startup import keras

import numpy as np
from keras import applications, ops

from pneumo_lib._files import project_path
from pneumo_lib.models.names import PRETRAINED as BACKBONES
from pneumo_lib.models.names import check_name, check_size

_DOWNLOADS = "https://storage.googleapis.com/tensorflow/keras-applications"
_SECONDS_TO_ANSWER = 3.0
_UNNAMED = re.compile(
    r"(activation|batch_normalization|concatenate|conv2d|input_layer|(?:average|max)_pooling2d)"
    r"(?:_(\d+))?"
)


class _Backbone(NamedTuple):
    build: Callable
    preprocess: Callable
    input_deviation: float  # standard deviation of preprocessed grey levels, about
    url: str  # of the published weights, and their MD5, both as in keras.applications
    md5: str


_NOTOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"
_BACKBONES = {
    "vgg16": _Backbone(
        applications.VGG16,
        applications.vgg16.preprocess_input,
        64.0,
        f"{_DOWNLOADS}/vgg16/vgg16_{_NOTOP}",
        "6d6bbae143d832006294945121d1f1fc",
    ),
    "vgg19": _Backbone(
        applications.VGG19,
        applications.vgg19.preprocess_input,
        64.0,
        f"{_DOWNLOADS}/vgg19/vgg19_{_NOTOP}",
        "253f8cb515780f3b799900260a226db6",
    ),
    "resnet50": _Backbone(
        applications.ResNet50,
        applications.resnet.preprocess_input,
        64.0,
        f"{_DOWNLOADS}/resnet/resnet50_{_NOTOP}",
        "4d473c1dd8becc155b73f8504c6f6626",
    ),
    "inceptionv3": _Backbone(
        applications.InceptionV3,
        applications.inception_v3.preprocess_input,
        0.5,
        f"{_DOWNLOADS}/inception_v3/inception_v3_{_NOTOP}",
        "bcbd6486424b2319ff4ef7d526e38f63",
    ),
}
# The last layer on each grid, by octave: how often the image has been halved. The pool3 to pool5
# of Long et al.; a residual network and InceptionV3 pass their grids on without such a pool.
_VGG_TAPS = {octave: f"block{octave}_pool" for octave in (2, 3, 4, 5)}
TAPS = {
    "vgg16": _VGG_TAPS,
    "vgg19": _VGG_TAPS,
    "resnet50": {
        2: "conv2_block3_out",
        3: "conv3_block4_out",
        4: "conv4_block6_out",
        5: "conv5_block3_out",
    },
    "inceptionv3": {2: "activation_4", 3: "mixed2", 4: "mixed7", 5: "mixed10"},
}
# What a decoder with skips joins. VGG computes its richest features just before each pool, so
# there the same grid holds more than behind the pool that led to it.
SKIP_TAPS = TAPS | {
    "vgg16": {octave: f"block{octave + 1}_conv3" for octave in (2, 3, 4)},
    "vgg19": {octave: f"block{octave + 1}_conv4" for octave in (2, 3, 4)},
}
_PREPROCESSING = {name: backbone.preprocess for name, backbone in _BACKBONES.items()}
_PREPROCESSING["small"] = applications.inception_v3.preprocess_input


def build_backbone(name, *, size=128, weights="auto", seed=0):
    """Frozen classifier without its dense layers, with the name of its weights.

    Args:
        name: one of `BACKBONES`: "vgg16", "vgg19", "resnet50", "inceptionv3".
        size: height and width of the input in pixels, a multiple of 32.
        weights: "imagenet": the file Keras publishes, downloaded once; a path: a Keras
            `.weights.h5`, the published `..._notop.h5`, or an `.npz` with one array for each
            `<layer>/<variable>` such as `block1_conv1/kernel`; None: random, from `seed`;
            "auto": ImageNet where the file is at hand or its host answers within 3 s, else
            random with a warning.
        seed: of the random weights; the global random state is left as it was.

    Returns:
        `keras.Model`, `(batch, size, size, 3)` preprocessed float32 -> features. Its
        `weights_used` is "imagenet", "random features" or the name of the weight file.

    Raises:
        ValueError: for an unknown `name`, a `size` it cannot take, or a weight file that
            does not fit.
        FileNotFoundError: if the weight file does not exist or cannot be downloaded.
    """
    check_name("backbone", name, BACKBONES)
    check_size(size, name)
    with _global_random_state_kept():
        model = _BACKBONES[name].build(include_top=False, weights=None, input_shape=(size, size, 3))
    _number_layers_from_zero(model)
    model.weights_used = _set_weights(model, name, weights=weights, seed=seed)
    model.trainable = False
    return model


def preprocess(images, backbone):
    """Grey images as the three-channel input `backbone` was trained on.

    VGG and ResNet: BGR minus the ImageNet mean colour; InceptionV3: -1 to 1; both by Keras'
    own `preprocess_input`. "small" (`build_small_fcn`): -1 to 1. Runs inside a compiled graph.

    Args:
        images: `(batch, height, width)`, uint8 or float, grey levels 0 to 255.
        backbone: one of `BACKBONES`, or "small".

    Returns:
        `(batch, height, width, 3)` float32 tensor.

    Raises:
        ValueError: for an unknown `backbone` or images that are not a grey batch.
    """
    check_name("backbone", backbone, _PREPROCESSING)
    if len(images.shape) != 3:
        raise ValueError(
            "`images` must have the shape (batch, height, width). "
            f"Received: shape={tuple(images.shape)}"
        )
    grey = ops.cast(ops.convert_to_tensor(images), "float32")
    return _PREPROCESSING[backbone](ops.stack([grey, grey, grey], axis=-1))


@contextmanager
def _global_random_state_kept():
    """Keras draws the seed of every unseeded initialiser from Python's global generator."""
    state = random.getstate()
    try:
        yield
    finally:
        random.setstate(state)


def _number_layers_from_zero(model):
    """Give layers the same names in every process.

    Keras numbers unnamed layers (InceptionV3's, every input) over the whole process, so a
    second network would have other names than the first and a file by layer would not fit.
    """
    numbered = defaultdict(list)
    for layer in model.layers:
        if name := _UNNAMED.fullmatch(layer.name):
            numbered[name[1]].append((int(name[2] or 0), layer))
    for kind, layers in numbered.items():
        for number, (_, layer) in enumerate(sorted(layers, key=lambda pair: pair[0])):
            layer.name = f"{kind}_{number}" if number else kind


def _set_weights(model, name, *, weights, seed):
    """Fill `model` as `weights` says; return the name of what was used."""
    if weights == "auto":
        try:
            return _set_weights(model, name, weights="imagenet", seed=seed)
        except FileNotFoundError as error:
            warnings.warn(f"random features: {error}", stacklevel=3)
            weights = None
    if weights is None:
        _randomise(model, seed=seed, input_deviation=_BACKBONES[name].input_deviation)
        return "random features"
    path = _imagenet_file(name) if weights == "imagenet" else project_path(weights)
    if not path.is_file():
        raise FileNotFoundError(
            '`weights` must be "imagenet", "auto", None or an existing file. '
            f"Received: weights={str(weights)!r}"
        )
    load = _load_npz if path.suffix == ".npz" else keras.Model.load_weights
    try:
        # Of a file that does not fit, Keras warns first and then raises what says more.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            load(model, path)
        if bad := [v.path for v in model.weights if not np.isfinite(v.numpy()).all()]:
            raise ValueError(f"{bad[0]} holds NaN or infinity")
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise ValueError(f"`weights` must fit {name}. Received: {path} ({error})") from error
    return "imagenet" if weights == "imagenet" else path.name


def published_weights(name):
    """`(path, url)` of a backbone's ImageNet weights: where Keras keeps and where it gets them."""
    url = _BACKBONES[name].url
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return home / "models" / Path(url).name, url


def _imagenet_file(name):
    """Path of the file Keras publishes, downloaded unless it lies in Keras' folder."""
    path, url = published_weights(name)
    try:
        if not path.is_file() and not _answers(url):
            raise TimeoutError("its host does not answer")
        return Path(
            keras.utils.get_file(
                path.name,
                url,
                cache_dir=str(path.parents[1]),
                cache_subdir="models",
                file_hash=_BACKBONES[name].md5,
            )
        )
    except Exception as error:  # get_file() raises plain `Exception` when a download fails
        raise FileNotFoundError(
            f"The ImageNet weights of {name} could not be downloaded ({error}). "
            f"Fetch {url} and put it into {path.parent} by hand."
        ) from error


def _answers(url):
    """Whether `url` can be had, known after a few seconds even where the network is silent."""
    answers = []

    def ask():
        with suppress(Exception):
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER):
                answers.append(True)

    # In a thread of its own, because looking up a host's name takes no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_ANSWER)
    return bool(answers)


def _load_npz(model, path):
    variables = {f"{layer.name}/{v.name}": v for layer in model.layers for v in layer.weights}
    with path.open("rb") as file, np.load(file) as arrays:
        if missing := sorted(variables.keys() - set(arrays)):
            raise ValueError(f"{len(missing)} arrays are missing, the first is {missing[0]}")
        if unknown := sorted(set(arrays) - variables.keys()):
            raise ValueError(f"{len(unknown)} arrays are unknown, the first is {unknown[0]}")
        for key, variable in variables.items():
            if arrays[key].shape != tuple(variable.shape):
                raise ValueError(
                    f"{key} has the shape {arrays[key].shape}, not {tuple(variable.shape)}"
                )
            variable.assign(arrays[key])


def _randomise(model, *, seed, input_deviation):
    """He-normal kernels from `seed`; biases 0 and batch statistics (mean 0, variance 1) stay.

    Two scales keep the features near 1, so that a head above them can learn: the first kernel
    undoes the spread of the input, and a residual branch starts at a quarter, because sixteen
    full ones would multiply the variance by about 2 ** 16.

    Reference:
        He et al. (2015), arXiv:1502.01852; Zhang et al. (2019, Fixup), arXiv:1901.09321.
    """
    convolutions = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    for number, layer in enumerate(convolutions):
        shape = layer.kernel.shape
        deviation = np.sqrt(2 / np.prod(shape[:-1]), dtype="float32")
        if number == 0:
            deviation /= input_deviation
        if layer.name.endswith("_3_conv"):  # ResNet50: the last convolution of a branch
            deviation /= 4
        rng = np.random.default_rng([seed, number])
        layer.kernel.assign(deviation * rng.standard_normal(shape, "float32"))
