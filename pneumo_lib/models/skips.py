"""Decoder with skip connections: taps of several levels and of a half-size view, projected.

`taps` are dicts from level (see `models.backbones`) to `KerasTensor`. The argument `name` starts
the names of the layers made, so saved networks depend on it.
"""

import itertools

from pneumo_lib._startup import keras

import numpy as np
from keras import initializers, layers, ops

from pneumo_lib.models.decoders import convolution, layer_seed, normalize, rare_score, upsample
from pneumo_lib.models.forward import compiled

_MOST_CHANNELS = 128  # of a projected tap
_FLOOR = 0.05  # of the first component's deviation


def half_view(encoder, taps):
    """Taps 4 and 3 of a backbone for the image at half its size, as levels 5 and 4 of the image.

    The same layers see twice as far, see docs/recipes.md.
    """
    half = layers.AveragePooling2D(2, name="half_view")(encoder.input)
    again = {id(encoder.input): half}
    for layer in keras.Model(encoder.input, [taps[4], taps[3]]).layers[1:]:
        inputs = keras.tree.map_structure(lambda tensor: again[id(tensor)], layer.input)
        again[id(layer.output)] = layer(inputs)
    return {level + 1: again[id(taps[level])] for level in (4, 3)}


def align(taps, *, size, name="tap"):
    """Taps padded to `size / 2 ** level` pixels a side, each by a layer `<name>_<level>`.

    InceptionV3 does not pad, so its feature maps are smaller (60, 29, 14, 6 for 256 pixels, not
    64, 32, 16, 8) at the same strides. Zeros around them keep every pixel at its place in the
    image; resizing would move the outer ones by up to 37 pixels. `fcn.split_fcn()` starts the
    head at the layers "tap_".
    """
    aligned = {}
    for level, tap in taps.items():
        missing = size // 2**level - tap.shape[1]
        padding = (missing // 2, missing - missing // 2)
        arguments = {"name": f"{name}_{level}"}
        layer = layers.ZeroPadding2D((padding, padding), **arguments) if missing else None
        aligned[level] = (layer or layers.Identity(**arguments))(tap)
    return aligned


def project(taps, *, name="project"):
    """Taps through a frozen 1 x 1 convolution each, to a quarter of the channels, at most 128.

    Initially random projections; `training.features.fit_projections()` replaces them by
    principal components. Compared with trained layers on all channels: half the parameters, a
    quarter of the feature size, and equal scores on real X-rays.
    """
    return {
        level: layers.Conv2D(
            min(tap.shape[-1] // 4, _MOST_CHANNELS),
            1,
            kernel_initializer=initializers.Orthogonal(seed=level),
            trainable=False,
            name=f"{name}_{level}",
        )(tap)
        for level, tap in taps.items()
    }


def principal_projections(taps, images, backbone, *, channels, batch_size):
    """List of `principal_projection()` of each tap, over all cells of `(n, size, size)` images.

    `taps` is a `keras.Model` of images preprocessed for `backbone`, its outputs the taps;
    `channels` is a list of how many components, one number a tap.
    """
    predict = compiled(taps, backbone, batch_size=batch_size)
    sums = [0] * len(taps.outputs)
    for first in range(0, len(images), batch_size):
        found = keras.tree.flatten(predict(images[first : first + batch_size]))
        for number, tap in enumerate(found):
            cells = tap.reshape(-1, tap.shape[-1]).astype("float64")
            cells = np.pad(cells, ((0, 0), (0, 1)), constant_values=1)  # sums and count as well
            sums[number] = sums[number] + cells.T @ cells
    moments = [(total[-1, :-1] / total[-1, -1], total[:-1, :-1] / total[-1, -1]) for total in sums]
    pairs = zip(moments, channels, strict=True)
    return [principal_projection(*moment, channels=count) for moment, count in pairs]


def principal_projection(mean, product, *, channels):
    """Kernel and bias of a 1 x 1 convolution to the first principal components, standardised.

    Each component has mean 0 and a deviation of 1, except that those with less than 0.05 of the
    first one's deviation stay smaller: noise is not made loud.

    Args:
        mean: `(c,)` float64.
        product: `(c, c)` float64, mean of the outer product of a cell's values with themselves.
        channels: how many components.

    Returns:
        `(kernel, bias)`, `(1, 1, c, channels)` and `(channels,)` float32.

    Reference:
        Pearson (1901), doi:10.1080/14786440109462720.
    """
    variance, axes = np.linalg.eigh(product - np.outer(mean, mean))  # in ascending order
    variance, axes = variance[::-1][:channels], axes[:, ::-1][:, :channels]
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, np.arange(channels)])  # an axis has no sign: fix it
    deviation = np.sqrt(np.maximum(variance, 0))
    kernel = axes / np.maximum(deviation, _FLOOR * deviation[0] or 1)
    return kernel[None, None].astype("float32"), (-mean @ kernel).astype("float32")


@keras.saving.register_keras_serializable(package="pneumo")
class Coordinates(layers.Layer):
    """Coordinates of each pixel as three channels: `|x|`, `y` and `x ** 2`, x and y in [-1, 1].

    Left and right are equal, as a chest is nearly symmetric. `(batch, h, w, channels)` ->
    `(batch, h, w, 3)`; only the shape of the input matters.
    """

    def call(self, inputs):
        _, h, w, _ = inputs.shape
        y, x = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
        place = ops.cast(np.stack([np.abs(x), y, x**2], axis=-1), inputs.dtype)
        return ops.zeros_like(inputs[..., :1]) + place

    def compute_output_shape(self, input_shape):
        return (*input_shape[:3], 3)


def skip_decoder(taps, context, *, dropout, seed):
    """Logits of a small decoder that adds the taps of each level to the upsampled coarser one.

    Projected taps are reduced to 32 channels, 16 on the finest level, whose scores are upsampled
    to the image. Coordinates join each level: where a pneumothorax can be depends on the place in
    the chest. Small on purpose (53,426 parameters above VGG16), as positive cases are few.

    Args:
        taps: aligned, down to level 2.
        context: aligned taps of the `half_view()`.
        dropout: share of the channels dropped from each tap but the finest.
        seed: as for `fcn.build_fcn()`.

    Returns:
        `KerasTensor` `(batch, size, size, 2)`.

    Reference:
        Lin et al. (2017), Feature pyramid networks, arXiv:1612.03144; Liu et al. (2018),
        CoordConv, arXiv:1807.03247.
    """
    seeds = itertools.count(layer_seed(seed, 1))
    finest = min(taps)

    def reduce(x, channels, name):
        start = initializers.HeNormal(next(seeds))
        layer = layers.Conv2D(channels, 1, use_bias=False, kernel_initializer=start, name=name)
        return layer(x)

    def lateral(tap, channels, name):
        if channels == 32:
            tap = layers.SpatialDropout2D(dropout, seed=next(seeds), name=f"dropout_{name}")(tap)
        return reduce(tap, channels, f"lateral_{name}")

    x = None
    for level in sorted({*taps, *context}, reverse=True):
        channels = 16 if level == finest else 32
        joined = [
            lateral(tensors[level], channels, f"{view}{level}")
            for view, tensors in (("", taps), ("half_", context))
            if level in tensors
        ]
        if x is not None:
            narrow = reduce(x, channels, f"narrow_{level}")
            joined.append(upsample(narrow, 2, f"double_{level}"))
        x = layers.Add(name=f"fuse_{level}")(joined) if len(joined) > 1 else joined[0]
        x = normalize(x, f"fuse_{level}_normalised")
        x = layers.Activation("relu", name=f"fuse_{level}_relu")(x)
        x = layers.Concatenate(name=f"placed_{level}")([x, Coordinates(name=f"place_{level}")(x)])
        x = convolution(x, channels, f"decode_{level}", seeds)
    return upsample(rare_score(x, seed=next(seeds)), 2**finest, "enlarge")
