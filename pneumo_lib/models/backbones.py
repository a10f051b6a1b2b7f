"""ImageNet classifiers of keras.applications without their dense layers: weights, preprocessing.

A level counts how often the image has been halved: feature maps of level 2, 3, 4 and 5 have
stride 4, 8, 16 and 32. A tap is the feature map of one level that a decoder reads.
"""

import random
import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

from pneumo_lib._startup import keras

import numpy as np
from keras import ops
from keras.applications import inception_v3, resnet, vgg16, vgg19

from pneumo_lib._checks import check_name
from pneumo_lib.models.names import PRETRAINED as BACKBONES
from pneumo_lib.models.names import check_size
from pneumo_lib.models.weights import check_published, load_weights, published_weights

_UNNAMED = re.compile(
    r"(activation|batch_normalization|concatenate|conv2d|input_layer|(?:average|max)_pooling2d)"
    r"(?:_(\d+))?"
)


class _Backbone(NamedTuple):
    build: Callable
    module: ModuleType  # of keras.applications
    deviation: float  # approximate standard deviation of preprocessed grey levels


_BACKBONES = {
    "vgg16": _Backbone(vgg16.VGG16, vgg16, 64.0),
    "vgg19": _Backbone(vgg19.VGG19, vgg19, 64.0),
    "resnet50": _Backbone(resnet.ResNet50, resnet, 64.0),
    "inceptionv3": _Backbone(inception_v3.InceptionV3, inception_v3, 0.5),
}
# Last layer of each level: pool3 to pool5 of Long et al., and where there is no such pool, what
# the next level starts from.
TAPS = {
    "vgg16": {level: f"block{level}_pool" for level in (2, 3, 4, 5)},
    "vgg19": {level: f"block{level}_pool" for level in (2, 3, 4, 5)},
    "resnet50": {
        2: "conv2_block3_out",
        3: "conv3_block4_out",
        4: "conv4_block6_out",
        5: "conv5_block3_out",
    },
    "inceptionv3": {2: "activation_4", 3: "mixed2", 4: "mixed7", 5: "mixed10"},
}
# Taps of a decoder with skips. VGG computes its richest features of a level just before the pool
# that ends it, three or four convolutions after the pool that leads to it.
SKIP_TAPS = TAPS | {
    "vgg16": {level: f"block{level + 1}_conv3" for level in (2, 3, 4)},
    "vgg19": {level: f"block{level + 1}_conv4" for level in (2, 3, 4)},
}
_PREPROCESSING = {name: backbone.module.preprocess_input for name, backbone in _BACKBONES.items()}
_PREPROCESSING["small"] = inception_v3.preprocess_input


def build_backbone(name, *, size=128, weights="auto", seed=0):
    """Frozen ImageNet classifier without its dense layers.

    Args:
        name: one of `BACKBONES`: "vgg16", "vgg19", "resnet50", "inceptionv3".
        size: height and width of the input in pixels, a multiple of 32.
        weights: "imagenet": the file Keras publishes, downloaded once; a path: a Keras
            `.weights.h5`, the published `..._notop.h5`, or an `.npz` with one array for each
            `<layer>/<variable>` such as `block1_conv1/kernel`, or a folder with such a file for
            each backbone, see `weights.load_weights()`; None: random, from `seed`; "auto":
            ImageNet if the file is cached or its host answers within 3 s, else random with a
            warning.
        seed: of the random weights; the global random state is unchanged.

    Returns:
        `keras.Model`, `(batch, size, size, 3)` preprocessed float32 -> features. Its
        `weights_used` is "imagenet", "random features" or names the weight file.

    Raises:
        ValueError: for an unknown `name`, a `size` it cannot take, or a weight file that
            does not fit.
        FileNotFoundError: if the weight file does not exist or cannot be downloaded.
    """
    check_name("backbone", name, BACKBONES)
    check_size(size, name)
    if weights == "auto":
        try:
            return build_backbone(name, size=size, weights="imagenet", seed=seed)
        except FileNotFoundError as error:
            warnings.warn(f"random features: {error}", stacklevel=2)
            weights = None
    model = _imagenet_network(name, size) if weights == "imagenet" else _network(name, size)
    model.weights_used = "imagenet" if weights == "imagenet" else "random features"
    _number_layers_from_zero(model)
    if weights is None:
        _randomize(model, seed=seed, input_deviation=_BACKBONES[name].deviation)
    elif weights != "imagenet":
        model.weights_used = load_weights(model, name, weights)
    model.trainable = False
    return model


def preprocess(images, backbone):
    """Grey images as the three-channel input `backbone` was trained on.

    VGG and ResNet: BGR minus the ImageNet mean colour; InceptionV3: -1 to 1; both by Keras'
    own `preprocess_input`. "small", see `build_small_fcn()`: -1 to 1. Runs inside a compiled graph.

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


def _network(name, size, *, weights=None):
    state = random.getstate()  # Keras draws a seed for every initializer from Python's generator
    try:
        return _BACKBONES[name].build(
            include_top=False, weights=weights, input_shape=(size, size, 3)
        )
    finally:
        random.setstate(state)


def _imagenet_network(name, size):
    """Network with the weights that Keras publishes, downloaded unless they are cached."""
    try:
        check_published(name)
        return _network(name, size, weights="imagenet")
    except Exception as error:  # Keras raises plain `Exception` when a download fails
        path, url = published_weights(name)
        raise FileNotFoundError(
            f"The ImageNet weights of {name} could not be downloaded ({error}). "
            f"Fetch {url} and put it into {path.parent} by hand."
        ) from error


def _number_layers_from_zero(model):
    """Give layers the same names in every process.

    Keras numbers unnamed layers (InceptionV3's, every input) over the whole process: a file by
    layer name would not fit the second network.
    """
    numbered = defaultdict(list)
    for layer in model.layers:
        if name := _UNNAMED.fullmatch(layer.name):
            numbered[name[1]].append((int(name[2] or 0), layer))
    for kind, layers in numbered.items():
        for number, (_, layer) in enumerate(sorted(layers, key=lambda pair: pair[0])):
            layer.name = f"{kind}_{number}" if number else kind


def _randomize(model, *, seed, input_deviation):
    """He-normal kernels from `seed`; biases 0 and batch statistics (mean 0, variance 1) stay.

    Two factors keep features near 1 for the decoder: the first kernel is divided by the deviation
    of the input, and the last of each residual branch by 4, because 16 full branches would
    multiply the variance by about 2 ** 16.

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
