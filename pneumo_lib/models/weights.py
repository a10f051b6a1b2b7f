"""Weights of the ImageNet classifiers: published, from a file or a folder of files, or random."""

import hashlib
import os
import threading
import urllib.request
import warnings
from contextlib import suppress
from pathlib import Path
from zipfile import BadZipFile

from pneumo_lib._startup import keras

import numpy as np

from pneumo_lib._files import project_path

_SECONDS_TO_ANSWER = 3.0
_PUBLISHED = {  # start of the name of the file that Keras publishes, with its folder
    "vgg16": "vgg16/vgg16",
    "vgg19": "vgg19/vgg19",
    "resnet50": "resnet/resnet50",
    "inceptionv3": "inception_v3/inception_v3",
}
# What is known of a file beyond its name, by the first digits of its SHA-256.
_KNOWN = {
    "c163cea254b1225e": "ImageNet, as Keras publishes it",
    "c30c61968b30fd60": "ImageNet, decoded from a quantised release, 72 % top-1 there",
    "4b101ea7753e08b5": "ImageNet, TensorFlow's release of 2015",
}


def published_weights(name):
    """`(path, url)` of the ImageNet weights of a backbone: Keras' local file and its source."""
    url = (
        "https://storage.googleapis.com/tensorflow/keras-applications/"
        f"{_PUBLISHED[name]}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    )
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return home / "models" / Path(url).name, url


def check_published(name):
    """Raise `FileNotFoundError` unless the published weights are cached or can be downloaded."""
    path, url = published_weights(name)
    if not path.is_file() and not _answers(url):
        raise FileNotFoundError("its host does not answer")


def _answers(url):
    """Whether `url` can be fetched; decided within 3 s even if the host never answers."""
    answers = []

    def ask():
        with suppress(Exception):
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER):
                answers.append(True)

    # In a thread, because the lookup of a host name has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS_TO_ANSWER)
    return bool(answers)


def load_weights(model, name, weights):
    """Load a file of weights, or that of a folder, into the backbone `name`.

    Where a folder has no file of VGG19, it takes that of VGG16: its three further convolutions
    become identities, which change nothing behind a ReLU, so its features are those of VGG16.

    Returns:
        What a reader must know of them: the file's name, its origin where that is known, and how
        many kernels are zero if any are.

    Raises:
        FileNotFoundError: if there is no such file, or none for this backbone in the folder.
        ValueError: if the file does not fit, or holds values that are not finite.
    """
    path = _file_for(name, project_path(weights))
    foreign = Path(weights).name != path.name and not path.name.startswith(name)
    load = _load_npz if path.suffix == ".npz" else keras.Model.load_weights
    if foreign:
        load = _load_vgg16_into_vgg19
    try:
        # For a file that does not fit, Keras warns before it raises the more precise error.
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            load(model, path)
        if bad := [v.path for v in model.weights if not np.isfinite(v.numpy()).all()]:
            raise ValueError(f"{bad[0]} holds NaN or infinity")
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise ValueError(f"`weights` must fit {name}. Received: {path} ({error})") from error
    known = _KNOWN.get(hashlib.sha256(path.read_bytes()).hexdigest()[:16])
    kernels = [v.numpy() for v in model.weights if v.name == "kernel"]
    zero = sum(not kernel.any() for kernel in kernels)
    notes = ["VGG16 in VGG19's layers"] * foreign + [known] * bool(known)
    notes += [f"{zero} of {len(kernels)} kernels zero"] * bool(zero)
    return path.name + (f" ({'; '.join(notes)})" if notes else "")


def _file_for(name, path):
    """`path`, or in a folder the file whose name begins with that of the backbone."""
    if path.is_dir():
        patterns = [f"{name}[_.]*", *(["vgg16[_.]*.npz"] if name == "vgg19" else [])]
        found = [f for pattern in patterns for f in sorted(path.glob(pattern)) if f.is_file()]
        path = found[0] if found else path / f"{name}_notop.npz"
    if not path.is_file():
        raise FileNotFoundError(
            '`weights` must be "imagenet", "auto", None, an existing file, or a folder with one '
            f"such as vgg16_notop.npz. Received: weights={str(path)!r}"
        )
    return path


def _load_npz(model, path, **more):
    with path.open("rb") as file, np.load(file) as arrays:
        arrays = dict(arrays) | more
    variables = {f"{layer.name}/{v.name}": v for layer in model.layers for v in layer.weights}
    expected = {key: tuple(variable.shape) for key, variable in variables.items()}
    found = {key: array.shape for key, array in arrays.items()}
    wrong = [key for key in found | expected if found.get(key) != expected.get(key)]
    if wrong:
        raise ValueError(
            f"{len(wrong)} arrays do not fit: shape of {wrong[0]} in the file "
            f"{found.get(wrong[0])}, in the network {expected.get(wrong[0])}"
        )
    for key, variable in variables.items():
        variable.assign(arrays[key])


def _load_vgg16_into_vgg19(model, path):
    """Kernels of `blockN_conv4` pass each channel on, the others are those of VGG16."""
    identities = {}
    for block, channels in ((3, 256), (4, 512), (5, 512)):
        kernel = np.zeros((3, 3, channels, channels), "float32")
        kernel[1, 1] = np.eye(channels)
        identities[f"block{block}_conv4/kernel"] = kernel
        identities[f"block{block}_conv4/bias"] = np.zeros(channels, "float32")
    _load_npz(model, path, **identities)
