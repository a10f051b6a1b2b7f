"""Ways back from a backbone's grids to the image: the report's, those of Long et al., skips."""

import math

from pneumo_lib._startup import keras

import numpy as np
from keras import initializers, layers, ops

from pneumo_lib.models.layers.batch_norm import FusedBatchNormalization
from pneumo_lib.models.layers.conv_transpose import FourierConv2DTranspose
from pneumo_lib.models.layers.dropout import HashedDropout

CLASSES = 2  # background, pneumothorax
# Kernel and stride of each deconvolution; they follow from the parameter counts of the report.
DECONVOLUTIONS = {
    "vgg16": ((16, 4), (32, 4), (64, 2)),
    "vgg19": ((16, 4), (32, 4), (64, 2)),
    "resnet50": ((4, 2), (16, 2), (32, 2), (32, 2), (64, 2)),
    "inceptionv3": ((16, 4), (32, 4), (32, 2), (64, 2)),
}
# The octaves (see `backbones.TAPS`) whose scores each FCN of Long et al. adds.
OCTAVES = {"fcn32s": (5,), "fcn16s": (5, 4), "fcn8s": (5, 4, 3)}


def deconvolutions(features, backbone, *, size, dropout, seed):
    """Logits of the report's design: transposed convolutions in a row, dropout between them.

    Args:
        features: the backbone's output, a `KerasTensor`.
        backbone: key of `DECONVOLUTIONS`.
        size, dropout, seed: as for `fcn.build_fcn()`.

    Returns:
        `KerasTensor` `(batch, size, size, 2)`.
    """
    grid = math.ceil(size / math.prod(stride for _, stride in DECONVOLUTIONS[backbone]))
    x = features
    if x.shape[1] != grid:
        x = layers.Resizing(grid, grid, name="resize")(x)
    for number, (kernel, stride) in enumerate(DECONVOLUTIONS[backbone], start=1):
        if number > 1:
            x = HashedDropout(dropout, seed=layer_seed(seed, number), name=f"dropout_{number - 1}")(
                x
            )
        x = FourierConv2DTranspose(
            CLASSES,
            kernel,
            strides=stride,
            padding="same",
            kernel_initializer=initializers.GlorotUniform(layer_seed(seed, number)),
            name=f"deconvolution_{number}",
        )(x)
    return layers.CenterCrop(size, size, name="crop")(x) if x.shape[1] > size else x


@keras.saving.register_keras_serializable(package="pneumo")
def bilinear_kernel(shape, dtype=None):
    """Initial kernel of a `Conv2DTranspose` that interpolates bilinearly, each class for itself.

    With "same" padding and an even kernel of twice the stride, the output is that of bilinear
    resizing (pixels' centres kept) of an input with zeros around it.

    Args:
        shape: `(k_h, k_w, classes, classes)`.
        dtype: of the result, default float32.

    Returns:
        Array of that shape; the largest weight is at most 1.

    Reference:
        Long, Shelhamer, Darrell (2015), arXiv:1411.4038, section 3.3.
    """
    rows, columns = (1 - np.abs(np.arange(k) - (k - 1) / 2) / ((k + 1) // 2) for k in shape[:2])
    kernel = np.multiply.outer(np.outer(rows, columns), np.eye(*shape[2:]))
    return ops.convert_to_tensor(kernel, dtype=dtype or "float32")


def fuse_scores(taps, *, dropout, seed):
    """Logits of FCN-32s, FCN-16s or FCN-8s, by the number of `taps`.

    Each grid is scored by a 1 x 1 convolution; the coarse scores are doubled, the finer ones
    added, and what the finest grid holds is enlarged in one step. Names and start are the
    paper's: scores start at zero, transposed convolutions as bilinear interpolation. All of
    them learn. Dropout lies before the coarsest score, as behind the paper's `fc7`.

    Args:
        taps: dict from octave to aligned `KerasTensor`: 5, then 4, then 3.
        dropout, seed: as for `fcn.build_fcn()`.

    Returns:
        `KerasTensor` `(batch, size, size, 2)`.

    Reference:
        Long, Shelhamer, Darrell (2015), arXiv:1411.4038, section 4.2.
    """

    def score(x, name):
        return layers.Conv2D(CLASSES, 1, kernel_initializer="zeros", name=name)(x)

    def upscore(x, factor, name):
        return FourierConv2DTranspose(
            CLASSES,
            2 * factor,
            strides=factor,
            padding="same",
            use_bias=False,
            kernel_initializer=bilinear_kernel,
            name=name,
        )(x)

    coarsest, *finer = taps
    x = HashedDropout(dropout, seed=layer_seed(seed, 1), name="dropout")(taps[coarsest])
    x, doubling = score(x, "score_fr"), "upscore2"
    for octave in finer:
        pool = f"pool{octave}"
        x = layers.Add(name=f"fuse_{pool}")(
            [upscore(x, 2, doubling), score(taps[octave], f"score_{pool}")]
        )
        doubling = f"upscore_{pool}"
    factor = 2 ** min(taps)
    return upscore(x, factor, f"upscore{factor}")


def enlarge(x, factor, name):
    """Bilinear, pixels' centres kept."""
    return layers.UpSampling2D(factor, interpolation="bilinear", name=name)(x)


def normalise(x, name):
    """Batch normalisation whose averages follow quickly: an epoch may have few steps."""
    return FusedBatchNormalization(momentum=0.9, name=name)(x)


def convolution(x, channels, name, seeds, *, layer=layers.Conv2D, kernel_size=3, strides=1):
    """Convolution, `normalise()`, ReLU.

    Args:
        x: `KerasTensor`.
        channels, kernel_size, strides, name: of the convolution; `name` starts the others'.
        seeds: iterator that gives the seed of the kernel.
        layer: `Conv2D` or `Conv2DTranspose`.

    Returns:
        `KerasTensor`.
    """
    x = layer(
        channels,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer=initializers.HeNormal(next(seeds)),
        name=name,
    )(x)
    x = normalise(x, f"{name}_normalised")
    return layers.Activation("relu", name=f"{name}_relu")(x)


def rare_score(x, *, seed):
    """Logits of each pixel from `x`, starting at one per cent of foreground.

    The first epochs need not learn that the target is rare: about 1 % on positive images.
    """
    log_odds = math.log(0.01 / 0.99)
    layer = layers.Conv2D(
        CLASSES, 1, kernel_initializer=initializers.GlorotUniform(seed), name="score"
    )
    x = layer(x)
    layer.bias.assign([-log_odds / 2, log_odds / 2])
    return x


def layer_seed(seed, number):
    """One seed per layer; apart for neighbouring values of `seed`."""
    return 1000 * seed + number
