"""Networks of the related-work table as published, to compute its rows; there are no weights."""

from pneumo_lib._startup import keras

from keras import layers

from pneumo_lib._checks import check_name
from pneumo_lib.models.decoders import bilinear_kernel
from pneumo_lib.models.receptive_field import receptive_field

_PADDING = 100  # around the image, so that even a small one fills the window of the dense layers
_INCEPTIONS = {  # 1 x 1; 3 x 3: reduction, itself; 5 x 5: reduction, itself; after the pooling
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


def build_related_fcn(name, *, size=500, classes=21):
    """FCN-32s of Long et al. on one of the three classifiers that they compared.

    Dense layers become convolutions: 6 x 6 (AlexNet) or 7 x 7 (VGG16), then 1 x 1; the last
    pooling of GoogLeNet slides. A score layer of `classes` channels replaces the thousand classes,
    and a fixed bilinear transposed convolution upsamples the scores by 32. As in the authors'
    files, the image is padded by 100 pixels and the scores are cropped to it; of GoogLeNet they
    published no file, so there this is an assumption.

    Left out: local response normalization (no parameters, a window of one pixel) and the two
    auxiliary classifiers of GoogLeNet, which are used in training only.

    Args:
        name: "fcn_alexnet", "fcn_vgg16" or "fcn_googlenet".
        size: height and width of the image in pixels, any.
        classes: channels of the output.

    Returns:
        `keras.Model`, `(batch, size, size, 3)` -> `(batch, size, size, classes)` scores (logits),
        for its graph and counts: all trainable weights are zero. Trainable is what the paper
        counts as parameters.

    Raises:
        ValueError: for an unknown `name`.

    Reference:
        Long, Shelhamer, Darrell (2015), arXiv:1411.4038, section 4.1 and table 1; Krizhevsky,
        Sutskever, Hinton (2012); Simonyan, Zisserman (2015), arXiv:1409.1556; Szegedy et al.
        (2015), arXiv:1409.4842.
    """
    check_name("name", name, _CLASSIFIERS)
    classifier, kernel_size = _CLASSIFIERS[name]
    image = keras.Input((size, size, 3), name="image")
    features = classifier(layers.ZeroPadding2D(_PADDING, name="padding")(image))
    score = _convolve(features, classes, 1, name="score_fr", activation=None)
    upscored = layers.Conv2DTranspose(
        classes,
        kernel_size,
        strides=32,
        use_bias=False,
        kernel_initializer=bilinear_kernel,
        trainable=False,
        name="upscore",
    )(score)
    # The kernel of the first score is centred on the receptive field of that score.
    before = int((kernel_size - 1) / 2 - receptive_field(keras.Model(image, score)).centre)
    crop = (before, upscored.shape[1] - before - size)
    return keras.Model(image, layers.Cropping2D((crop, crop), name="score")(upscored), name=name)


def _alexnet(x):
    x = _pool(_convolve(x, 96, 11, name="conv1", strides=4, padding="valid"), 3)
    # Two groups, one for each graphics card of 2012: hence 57 million parameters, not 58.
    x = _pool(_convolve(x, 256, 5, name="conv2", groups=2), 3)
    x = _convolve(x, 384, 3, name="conv3")
    x = _convolve(x, 384, 3, name="conv4", groups=2)
    x = _pool(_convolve(x, 256, 3, name="conv5", groups=2), 3)
    return _dense(x, kernel_size=6)


def _vgg16(x):
    blocks = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]
    for block, (filters, count) in enumerate(blocks, start=1):
        for number in range(1, count + 1):
            # The first window may begin in the padding, which is there already.
            padding = "valid" if (block, number) == (1, 1) else "same"
            x = _convolve(x, filters, 3, name=f"conv{block}_{number}", padding=padding)
        x = _pool(x, 2)
    return _dense(x, kernel_size=7)


def _googlenet(x):
    x = _pool(_convolve(x, 64, 7, name="conv1", strides=2, padding="valid"), 3)
    x = _convolve(x, 64, 1, name="conv2_reduce")
    x = _pool(_convolve(x, 192, 3, name="conv2"), 3)
    for name, widths in _INCEPTIONS.items():
        x = _inception(x, widths, f"inception_{name}")
        if name in ("3b", "4e"):
            x = _pool(x, 3)
    x = layers.AveragePooling2D(7, strides=1, name="pool5")(x)
    return layers.Dropout(0.4, name="dropout")(x)


def _inception(x, widths, name):
    one, before_three, three, before_five, five, after_pool = widths
    branches = [_convolve(x, one, 1, name=f"{name}_1x1")]
    for side, before, filters in ((3, before_three, three), (5, before_five, five)):
        reduced = _convolve(x, before, 1, name=f"{name}_{side}x{side}_reduce")
        branches.append(_convolve(reduced, filters, side, name=f"{name}_{side}x{side}"))
    pooled = layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_pool")(x)
    branches.append(_convolve(pooled, after_pool, 1, name=f"{name}_pool_1x1"))
    return layers.Concatenate(name=name)(branches)


def _dense(x, *, kernel_size):
    """The two dense layers of a classifier, as convolutions."""
    for name, side in (("fc6", kernel_size), ("fc7", 1)):
        x = _convolve(x, 4096, side, name=name, padding="valid")
        x = layers.Dropout(0.5, name=f"dropout_{name}")(x)
    return x


def _convolve(x, filters, kernel_size, **arguments):
    arguments = {"padding": "same", "activation": "relu", "kernel_initializer": "zeros"} | arguments
    return layers.Conv2D(filters, kernel_size, **arguments)(x)


def _pool(x, length):
    """Maximum of windows 2 pixels apart; the last may be cut short, as in Caffe."""
    if (x.shape[1] - length) % 2:
        x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)  # after a ReLU, zeros are never the maximum
    return layers.MaxPooling2D(length, strides=2)(x)


_CLASSIFIERS = {  # with the kernel of the transposed convolution in the authors' files
    "fcn_alexnet": (_alexnet, 63),
    "fcn_vgg16": (_vgg16, 64),
    "fcn_googlenet": (_googlenet, 63),
}
