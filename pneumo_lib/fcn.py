"""Fully convolutional networks: the report's three, and a small one trained from scratch."""

import itertools
import math

import keras
import pandas as pd
from keras import layers

from pneumo_lib.backbones import build_backbone
from pneumo_lib.layers import FourierConv2DTranspose, HashedDropout

# Kernel and stride of each deconvolution; they follow from the parameter counts of the report.
DECONVOLUTIONS = {
    "vgg16": ((16, 4), (32, 4), (64, 2)),
    "vgg19": ((16, 4), (32, 4), (64, 2)),
    "resnet50": ((4, 2), (16, 2), (32, 2), (32, 2), (64, 2)),
    "inceptionv3": ((16, 4), (32, 4), (32, 2), (64, 2)),
}
CLASSES = 2  # background, pneumothorax
DECODERS = ("deconvolution",)


def build_fcn(
    backbone,
    *,
    decoder="deconvolution",
    size=128,
    weights="imagenet",
    dropout=0.5,
    seed=0,
):
    """FCN of the report: a frozen classifier, deconvolutions back to the image's size, softmax.

    Between the deconvolutions (`DECONVOLUTIONS`) there is dropout and no activation, so what
    is trained is one linear map of the features. One flat functional model: every layer of the
    backbone is a layer of it.

    The deconvolutions of InceptionV3 multiply by 64, but its own grid has about `size / 32 - 2`
    cells a side (128 pixels happen to give 2): at other sizes the grid is resized bilinearly to
    `size / 64`, rounded up, and what the rounding adds is cropped evenly before the softmax.

    Args:
        backbone: one of `backbones.BACKBONES`.
        decoder: "deconvolution".
        size: height and width in pixels, a multiple of 32 (96 at least for InceptionV3).
        weights: of the backbone, see `build_backbone()`.
        dropout: share of the values dropped after each deconvolution but the last, in [0, 1).
        seed: of the deconvolutions, the dropout and random backbone weights.

    Returns:
        `keras.Model`, `(batch, size, size, 3)` preprocessed float32 -> `(batch, size, size, 2)`
        float32 softmax, channel 1 is pneumothorax. `weights_used` as in `build_backbone()`.

    Raises:
        ValueError: for an unknown `decoder` and as `build_backbone()`.
        FileNotFoundError: as `build_backbone()`.

    Reference:
        Long, Shelhamer, Darrell (2015), arXiv:1411.4038.
    """
    if decoder not in DECODERS:
        raise ValueError(
            f"`decoder` must be one of {', '.join(DECODERS)}. Received: decoder={decoder!r}"
        )
    encoder = build_backbone(backbone, size=size, weights=weights, seed=seed)
    x = _fit_grid(encoder.output, DECONVOLUTIONS[backbone], size=size)
    for number, (kernel, stride) in enumerate(DECONVOLUTIONS[backbone], start=1):
        if number > 1:
            x = HashedDropout(
                dropout, seed=_layer_seed(seed, number), name=f"dropout_{number - 1}"
            )(x)
        x = FourierConv2DTranspose(
            CLASSES,
            kernel,
            strides=stride,
            padding="same",
            kernel_initializer=keras.initializers.GlorotUniform(_layer_seed(seed, number)),
            name=f"deconvolution_{number}",
        )(x)
    if x.shape[1] > size:
        x = layers.CenterCrop(size, size, name="crop")(x)
    x = layers.Softmax(dtype="float32", name="softmax")(x)  # float32 under mixed precision too
    model = keras.Model(encoder.input, x, name=f"fcn_{backbone}")
    model.weights_used = encoder.weights_used
    return model


def build_small_fcn(*, size=128, filters=16, seed=0):
    """Small FCN with skip connections, to be trained from scratch: what transfer must beat.

    Four grids, the first at full resolution, because half of the target is a rim one or two
    pixels wide: a stem of stride 2 lost a fifth of the Dice on phantoms. On the way back each
    grid is joined by the one of its size from the way down (`skip_*`). With batch normalisation
    ten epochs on phantoms found what took about thirty without; its averages follow quickly
    (momentum 0.9), as an epoch may have few steps.

    Args:
        size: height and width in pixels, a multiple of 32.
        filters: channels of the first grid; 2, 4 and 6 times as many in the next.
        seed: of the weights.

    Returns:
        `keras.Model` as of `build_fcn()`, for images preprocessed for "small"; `weights_used`
        is "from scratch".

    Raises:
        ValueError: if `size` is not a multiple of 32.

    Reference:
        Ronneberger, Fischer, Brox (2015), U-Net, arXiv:1505.04597.
    """
    if size % 32 or size < 32:
        raise ValueError(f"`size` must be a multiple of 32. Received: size={size}")
    seeds = itertools.count(_layer_seed(seed, 0))

    def convolution(x, channels, name, **arguments):
        initialiser = keras.initializers.HeNormal(next(seeds))
        arguments = {"layer": layers.Conv2D, "kernel_size": 3, "strides": 1} | arguments
        x = arguments.pop("layer")(
            channels,
            padding="same",
            use_bias=False,
            kernel_initializer=initialiser,
            name=name,
            **arguments,
        )(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_normalised")(x)
        return layers.Activation("relu", name=f"{name}_relu")(x)

    image = keras.Input((size, size, 3), name="image")
    x = convolution(image, filters, "stem")
    skips = []
    for level, channels in enumerate((2 * filters, 4 * filters, 6 * filters), start=1):
        x = convolution(x, x.shape[-1], f"encode_{level}")
        skips.append(x)
        x = convolution(x, channels, f"halve_{level}", strides=2)
    x = convolution(x, x.shape[-1], "bottom_1")
    x = convolution(x, x.shape[-1], "bottom_2")
    for level, skip in zip((3, 2, 1), reversed(skips), strict=True):
        doubling = {"layer": layers.Conv2DTranspose, "kernel_size": 2, "strides": 2}
        x = convolution(x, skip.shape[-1], f"double_{level}", **doubling)
        x = layers.Concatenate(name=f"skip_{level}")([x, skip])
        x = convolution(x, skip.shape[-1], f"decode_{level}")
    initialiser = keras.initializers.GlorotUniform(next(seeds))
    x = layers.Conv2D(CLASSES, 1, kernel_initializer=initialiser, name="score")(x)
    model = keras.Model(image, layers.Softmax(dtype="float32", name="softmax")(x), name="small")
    # The first epochs need not learn that the target is rare: about 1 % on positive images.
    log_odds = math.log(0.01 / 0.99)
    model.get_layer("score").bias.assign([-log_odds / 2, log_odds / 2])
    model.weights_used = "from scratch"
    return model


def split_fcn(model):
    """The frozen and the trained half of a `build_fcn()` network, sharing its weights.

    The features of a frozen encoder never change: computed once, they train the head without
    running the backbone again, and the full model has learnt with it.

    Args:
        model: of `build_fcn()`, new or loaded from a file.

    Returns:
        `(encoder, head)`, two `keras.Model`: images -> features, and features -> softmax.

    Raises:
        ValueError: if the model has no layer `deconvolution_1`.
    """
    if "deconvolution_1" not in {layer.name for layer in model.layers}:
        raise ValueError(
            "`model` must be made by build_fcn(): a layer `deconvolution_1` starts its head. "
            f"Received: model={model.name!r}"
        )
    features = model.get_layer("deconvolution_1").input
    encoder = keras.Model(model.input, features, name=f"{model.name}_encoder")
    head = keras.Model(features, model.output, name=f"{model.name}_head")
    return encoder, head


def layer_table(model):
    """Layers of a network in order, one row each.

    Args:
        model: any functional `keras.Model`.

    Returns:
        `DataFrame` with the columns layer (name), type, output_shape (without the batch axis),
        parameters, and trainable (whether training changes any of them).
    """
    rows = [
        {
            "layer": layer.name,
            "type": type(layer).__name__,
            "output_shape": tuple(layer.output.shape[1:]),
            "parameters": layer.count_params(),
            "trainable": bool(layer.trainable_weights),
        }
        for layer in model.layers
    ]
    return pd.DataFrame(rows)


def parameters(model):
    """Number of parameters of a network: `{"total", "trainable", "frozen"}`, frozen the rest."""
    trainable = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    total = model.count_params()
    return {"total": total, "trainable": trainable, "frozen": total - trainable}


def _fit_grid(features, deconvolutions, *, size):
    """Features on the grid that `deconvolutions` enlarge to `size`, or just beyond it."""
    grid = math.ceil(size / math.prod(stride for _, stride in deconvolutions))
    if features.shape[1] == grid:
        return features
    return layers.Resizing(grid, grid, name="resize")(features)


def _layer_seed(seed, number):
    """One seed per layer; apart for neighbouring values of `seed`."""
    return 1000 * seed + number
