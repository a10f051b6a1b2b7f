"""Ways back from a backbone's grids to the image: the report's, those of Long et al., skips."""

import itertools
import math

from keras import initializers, layers

from pneumo_lib.layers import FourierConv2DTranspose, HashedDropout, bilinear_kernel

CLASSES = 2  # background, pneumothorax
# Kernel and stride of each deconvolution; they follow from the parameter counts of the report.
DECONVOLUTIONS = {
    "vgg16": ((16, 4), (32, 4), (64, 2)),
    "vgg19": ((16, 4), (32, 4), (64, 2)),
    "resnet50": ((4, 2), (16, 2), (32, 2), (32, 2), (64, 2)),
    "inceptionv3": ((16, 4), (32, 4), (32, 2), (64, 2)),
}
# The octaves (see `backbones.TAPS`) that each decoder listens to, the coarsest first.
OCTAVES = {"fcn32s": (5,), "fcn16s": (5, 4), "fcn8s": (5, 4, 3), "skips": (5, 4, 3, 2)}


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


def align(taps, *, size):
    """Taps on grids of exactly `size / 2 ** octave`, each through a layer `tap_<octave>`.

    InceptionV3 pads nothing and ends on smaller grids (60, 29, 14, 6 for 256 pixels, not 64, 32,
    16, 8). Its cells still lie 4, 8, 16 and 32 pixels apart, so zeros around them keep each where
    it looks; resizing to the full grid would move the outer ones by up to 37 pixels.

    Args:
        taps: dict from octave to `KerasTensor`.
        size: height and width of the image in pixels.

    Returns:
        Dict from octave to `KerasTensor`.
    """
    aligned = {}
    for octave, tap in taps.items():
        missing = size // 2**octave - tap.shape[1]
        sides = (missing // 2, missing - missing // 2)
        name = f"tap_{octave}"
        layer = layers.ZeroPadding2D((sides, sides), name=name) if missing else None
        aligned[octave] = (layer or layers.Identity(name=name))(tap)
    return aligned


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


def skip_decoder(taps, *, dropout, seed):
    """Logits of a small convolutional decoder: doubled, joined by the next finer tap, convolved.

    At half resolution the scores are taken and enlarged bilinearly: there are no features of
    the image itself to draw finer. Taps are first reduced to few channels, which keeps the
    decoder about as large as the report's deconvolutions (300,000 parameters above VGG16).

    Args:
        taps: dict from octave to aligned `KerasTensor`, the coarsest first, down to 2.
        dropout, seed: as for `fcn.build_fcn()`; dropout lies before the coarsest reduction.

    Returns:
        `KerasTensor` `(batch, size, size, 2)`.

    Reference:
        Ronneberger, Fischer, Brox (2015), U-Net, arXiv:1505.04597.
    """

    def double(x, name):
        return layers.UpSampling2D(2, interpolation="bilinear", name=name)(x)

    seeds = itertools.count(layer_seed(seed, 1))
    coarsest = max(taps)
    dropped = HashedDropout(dropout, seed=next(seeds), name="dropout")(taps[coarsest])
    x = None
    for octave, tap in (taps | {coarsest: dropped, 1: None}).items():
        channels = min(8 * 2**octave, 64)
        joined = [] if x is None else [double(x, f"double_{octave}")]
        if tap is not None:
            joined.append(convolution(tap, channels, f"reduce_{octave}", seeds, kernel_size=1))
        x = layers.Concatenate(name=f"skip_{octave}")(joined) if len(joined) > 1 else joined[0]
        x = convolution(x, channels, f"decode_{octave}", seeds)
    x = rare_score(x, seed=next(seeds))
    return double(x, "double_0")


def convolution(x, channels, name, seeds, *, layer=layers.Conv2D, kernel_size=3, strides=1):
    """Convolution, batch normalisation, ReLU.

    The averages of the normalisation follow quickly (momentum 0.9): an epoch may have few steps.

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
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_normalised")(x)
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
