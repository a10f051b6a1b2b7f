"""Decoders from feature maps to the image: the report's and the FCNs of Long et al."""

import math

from pneumo_lib._startup import keras

import numpy as np
from keras import initializers, layers, ops

from pneumo_lib.models.layers.batch_norm import FusedBatchNormalization
from pneumo_lib.models.layers.conv_transpose import FourierConv2DTranspose
from pneumo_lib.models.layers.dropout import HashedDropout

CLASSES = 2  # background, pneumothorax
# Kernel and stride of each deconvolution, from the parameter counts in the report.
DECONVOLUTIONS = {
    "vgg16": ((16, 4), (32, 4), (64, 2)),
    "vgg19": ((16, 4), (32, 4), (64, 2)),
    "resnet50": ((4, 2), (16, 2), (32, 2), (32, 2), (64, 2)),
    "inceptionv3": ((16, 4), (32, 4), (32, 2), (64, 2)),
}
# Levels (see `models.backbones`) whose scores each FCN of Long et al. adds.
FCN_LEVELS = {"fcn32s": (5,), "fcn16s": (5, 4), "fcn8s": (5, 4, 3)}


def deconvolutions(features, backbone, *, size, dropout, seed):
    """Logits `(batch, size, size, 2)` of the report's decoder: a chain of transposed convolutions.

    Args:
        features: output of the backbone, a `KerasTensor`.
        backbone, size, dropout, seed: as for `fcn.build_fcn()`.
    """
    side = math.ceil(size / math.prod(stride for _, stride in DECONVOLUTIONS[backbone]))
    x = features
    if x.shape[1] != side:
        x = layers.Resizing(side, side, name="resize")(x)
    for number, (kernel, stride) in enumerate(DECONVOLUTIONS[backbone], start=1):
        own_seed = layer_seed(seed, number)
        if number > 1:
            x = HashedDropout(dropout, seed=own_seed, name=f"dropout_{number - 1}")(x)
        start = initializers.GlorotUniform(own_seed)
        x = _upscore(x, kernel, stride, f"deconvolution_{number}", start, use_bias=True)
    return layers.CenterCrop(size, size, name="crop")(x) if x.shape[1] > size else x


@keras.saving.register_keras_serializable(package="pneumo")
def bilinear_kernel(shape, dtype=None):
    """Initial kernel of a `Conv2DTranspose`: bilinear interpolation of each class by itself.

    With "same" padding and an even kernel of twice the stride, the layer is bilinear resizing
    (pixels' centres kept) of its input with a border of zeros.

    Args:
        shape: `(k_h, k_w, classes, classes)`.
        dtype: of the result, default float32.

    Reference:
        Long, Shelhamer, Darrell (2015), arXiv:1411.4038, section 3.3.
    """
    rows, columns = (1 - np.abs(np.arange(k) - (k - 1) / 2) / ((k + 1) // 2) for k in shape[:2])
    kernel = np.multiply.outer(np.outer(rows, columns), np.eye(*shape[2:]))
    return ops.convert_to_tensor(kernel, dtype=dtype or "float32")


def fuse_scores(taps, *, dropout, seed):
    """Logits `(batch, size, size, 2)` of FCN-32s, FCN-16s or FCN-8s for one to three `taps`.

    A 1 x 1 convolution scores each tap. From the coarsest on, scores are upsampled by 2 and added
    to those of the next level; those of the finest are upsampled to the image in one step. Layer
    names and initial weights are the paper's (scores zero, transposed convolutions bilinear); all
    are trained. Dropout precedes the coarsest score, as it follows `fc7` in the paper.

    Args:
        taps: dict from level to aligned `KerasTensor`: 5, then 4, then 3.
        dropout, seed: as for `fcn.build_fcn()`.

    Reference:
        Long, Shelhamer, Darrell (2015), arXiv:1411.4038, section 4.2.
    """

    def score(x, name):
        return layers.Conv2D(CLASSES, 1, kernel_initializer="zeros", name=name)(x)

    coarsest, *finer = taps
    x = HashedDropout(dropout, seed=layer_seed(seed, 1), name="dropout")(taps[coarsest])
    x, name = score(x, "score_fr"), "upscore2"
    for level in finer:
        pool = f"pool{level}"
        x = _upscore(x, 4, 2, name, bilinear_kernel, use_bias=False)
        x = layers.Add(name=f"fuse_{pool}")([x, score(taps[level], f"score_{pool}")])
        name = f"upscore_{pool}"
    stride = 2 ** min(taps)
    return _upscore(x, 2 * stride, stride, f"upscore{stride}", bilinear_kernel, use_bias=False)


def _upscore(x, kernel_size, stride, name, initializer, *, use_bias):
    return FourierConv2DTranspose(
        CLASSES,
        kernel_size,
        strides=stride,
        padding="same",
        use_bias=use_bias,
        kernel_initializer=initializer,
        name=name,
    )(x)


def upsample(x, factor, name):
    """Bilinear upsampling, pixels' centres kept."""
    return layers.UpSampling2D(factor, interpolation="bilinear", name=name)(x)


def normalize(x, name):
    """Batch normalization with a short memory (momentum 0.9), as an epoch may have few steps."""
    return FusedBatchNormalization(momentum=0.9, name=name)(x)


def convolution(x, channels, name, seeds, *, layer=layers.Conv2D, kernel_size=3, strides=1):
    """Convolution without bias, its kernel from `next(seeds)`, batch normalization, ReLU.

    `layer` is `Conv2D` or `Conv2DTranspose`; the names of all three layers start with `name`.
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
    x = normalize(x, f"{name}_normalised")
    return layers.Activation("relu", name=f"{name}_relu")(x)


def rare_score(x, *, seed, scale=1):
    """Logits of `scale` x `scale` pixels each, biased to a foreground probability of 0.01.

    The first epochs need not learn that the target is rare: about 1 % of positive images.
    """
    log_odds = math.log(0.01 / 0.99)
    options = {"kernel_initializer": initializers.GlorotUniform(seed), "name": "score"}
    if scale == 1:
        layer = layers.Conv2D(CLASSES, 1, **options)
    else:
        layer = layers.Conv2DTranspose(CLASSES, scale, strides=scale, **options)
    x = layer(x)
    layer.bias.assign([-log_odds / 2, log_odds / 2])
    return x


def layer_seed(seed, number):
    """Seed of layer `number`; distinct for all layers of neighbouring values of `seed`."""
    return 1000 * seed + number
