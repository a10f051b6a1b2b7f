"""The networks of the related-work table, built as published so that its rows can be computed."""

import itertools
from functools import partial

from pneumo_lib._startup import keras

from keras import initializers, layers

from pneumo_lib.models.decoders import bilinear_kernel
from pneumo_lib.models.layers.dropout import HashedDropout
from pneumo_lib.models.receptive_field import receptive_field

_PADDING = 100  # around the image, so that even a small one fills the window of the dense layers
_STRIDE = 32
_INCEPTIONS = {  # 1 x 1; 3 x 3: before, itself; 5 x 5: before, itself; behind the pooling
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def build_related_fcn(name, *, size=500, classes=21, seed=0):
    """FCN-32s of Long et al. from one of the three classifiers they compared.

    The dense layers have become convolutions: 6 x 6 (AlexNet) or 7 x 7 (VGG16) positions, then
    1 x 1; GoogLeNet's last pooling slides. The thousand classes are replaced by `classes`
    scores, which a bilinear transposed convolution enlarges 32 times without learning. The first
    convolution pads by 100 pixels, as in the authors' files (for GoogLeNet, of which they
    published none, we assume it), and the scores are cropped to the image.

    Left out: local response normalisation (no parameters, a window of one pixel), and
    GoogLeNet's two auxiliary classifiers, which serve training only.

    Args:
        name: "fcn_alexnet", "fcn_vgg16" or "fcn_googlenet".
        size: height and width of the image in pixels, any.
        classes: channels of the output.
        seed: of the random weights; there are no trained ones.

    Returns:
        `keras.Model`, `(batch, size, size, 3)` -> `(batch, size, size, classes)` scores (logits).
        What is trainable is what the paper counts as parameters.

    Raises:
        ValueError: for an unknown `name`.

    Reference:
        Long, Shelhamer, Darrell (2015), arXiv:1411.4038, section 4.1 and table 1; Krizhevsky,
        Sutskever, Hinton (2012); Simonyan, Zisserman (2015), arXiv:1409.1556; Szegedy et al.
        (2015), arXiv:1409.4842.
    """
    if name not in _TRUNKS:
        raise ValueError(f"`name` must be one of {', '.join(_TRUNKS)}. Received: name={name!r}")
    trunk, kernel_size = _TRUNKS[name]
    image = keras.Input((size, size, 3), name="image")
    convolve = partial(_convolve, seeds=itertools.count(1000 * seed))
    padded = layers.ZeroPadding2D(_PADDING, name="padding")(image)
    score = convolve(trunk(padded, convolve), classes, 1, name="score_fr", activation=None)
    upscored = layers.Conv2DTranspose(
        classes,
        kernel_size,
        strides=_STRIDE,
        use_bias=False,
        kernel_initializer=bilinear_kernel,
        trainable=False,
        name="upscore",
    )(score)
    # The middle of the first stamp belongs to the middle of what the first score sees.
    before = (kernel_size - 1) / 2 - receptive_field(keras.Model(image, score)).centre
    crop = (int(before), upscored.shape[1] - int(before) - size)
    return keras.Model(image, layers.Cropping2D((crop, crop), name="score")(upscored), name=name)


def _alexnet(x, convolve):
    x = _pool(convolve(x, 96, 11, name="conv1", strides=4, padding="valid"), 3)
    # Two groups, as the two graphics cards of 2012 shared the channels: hence 57 million, not 58.
    x = _pool(convolve(x, 256, 5, name="conv2", groups=2), 3)
    x = convolve(x, 384, 3, name="conv3")
    x = convolve(x, 384, 3, name="conv4", groups=2)
    x = _pool(convolve(x, 256, 3, name="conv5", groups=2), 3)
    return _dense(x, convolve, kernel_size=6)


def _vgg16(x, convolve):
    for block, (filters, count) in enumerate(
        [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1
    ):
        for number in range(1, count + 1):
            # The first window may begin in the padding, which is there already.
            padding = "valid" if (block, number) == (1, 1) else "same"
            x = convolve(x, filters, 3, name=f"conv{block}_{number}", padding=padding)
        x = _pool(x, 2)
    return _dense(x, convolve, kernel_size=7)


def _googlenet(x, convolve):
    x = _pool(convolve(x, 64, 7, name="conv1", strides=2, padding="valid"), 3)
    x = convolve(x, 64, 1, name="conv2_reduce")
    x = _pool(convolve(x, 192, 3, name="conv2"), 3)
    for name, widths in _INCEPTIONS.items():
        x = _inception(x, convolve, widths, f"inception_{name}")
        if name in ("3b", "4e"):
            x = _pool(x, 3)
    x = layers.AveragePooling2D(7, strides=1, name="pool5")(x)
    return HashedDropout(0.4, seed=0, name="dropout")(x)


def _inception(x, convolve, widths, name):
    one, before_three, three, before_five, five, behind_pool = widths

    def reduced(before, filters, kernel_size):
        window = f"{name}_{kernel_size}x{kernel_size}"
        return convolve(
            convolve(x, before, 1, name=f"{window}_reduce"), filters, kernel_size, name=window
        )

    pooled = layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_pool")(x)
    branches = [
        convolve(x, one, 1, name=f"{name}_1x1"),
        reduced(before_three, three, 3),
        reduced(before_five, five, 5),
        convolve(pooled, behind_pool, 1, name=f"{name}_pool_1x1"),
    ]
    return layers.Concatenate(name=name)(branches)


def _dense(x, convolve, *, kernel_size):
    """The two dense layers of a classifier, as convolutions."""
    for name, size in (("fc6", kernel_size), ("fc7", 1)):
        x = convolve(x, 4096, size, name=name, padding="valid")
        x = HashedDropout(0.5, seed=size, name=f"dropout_{name}")(x)
    return x


def _convolve(x, filters, kernel_size, *, seeds, **arguments):
    """Convolution with ReLU; "same" padding and stride 1 unless told otherwise."""
    arguments = {"padding": "same", "activation": "relu"} | arguments
    initialiser = initializers.HeUniform(next(seeds))
    return layers.Conv2D(filters, kernel_size, kernel_initializer=initialiser, **arguments)(x)


def _pool(x, length):
    """Maximum of windows 2 pixels apart; the last may be cut short, as in Caffe."""
    if (x.shape[1] - length) % 2:
        x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)  # behind a ReLU, zeros are no maximum
    return layers.MaxPooling2D(length, strides=2)(x)


_TRUNKS = {  # and the kernel of the transposed convolution in the authors' files
    "fcn_alexnet": (_alexnet, 63),
    "fcn_vgg16": (_vgg16, 64),
    "fcn_googlenet": (_googlenet, 63),
}
