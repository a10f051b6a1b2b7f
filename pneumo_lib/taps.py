"""What a decoder with skips reads of a backbone: features of several grids, few and alike."""

import hashlib

from pneumo_lib.quiet import keras

import numpy as np
import tensorflow as tf
from keras import initializers, layers, tree

from pneumo_lib.features import checksum, compiled
from pneumo_lib.paths import alone, project_path, written_aside

_MOST_CHANNELS = 128  # of a projected tap
_IMAGES = 64  # that components are found on: a million cells of VGG16's finest tap at 512 pixels
_FLOOR = 0.05  # of the first component's deviation


def half_view(encoder, taps):
    """Taps of the image at half its size, through the same layers: each sees twice as much.

    Against the full image alone this second, coarse view raised the area under the curve from
    0.71 to 0.77 in cross-validation on real X-rays (512 pixels, VGG16).

    Args:
        encoder: the backbone, a `keras.Model`.
        taps: dict from octave to `KerasTensor` of the backbone; those of octaves 4 and 3 are
            taken again.

    Returns:
        Dict from octave (5 and 4, of the full image) to `KerasTensor`.
    """
    half = layers.AveragePooling2D(2, name="half_view")(encoder.input)
    again = {id(encoder.input): half}
    for layer in keras.Model(encoder.input, [taps[4], taps[3]]).layers[1:]:
        inputs = keras.tree.map_structure(lambda tensor: again[id(tensor)], layer.input)
        again[id(layer.output)] = layer(inputs)
    return {octave + 1: again[id(taps[octave])] for octave in (4, 3)}


def align(taps, *, size, name="tap"):
    """Taps on grids of exactly `size / 2 ** octave`, each through a layer `<name>_<octave>`.

    InceptionV3 pads nothing and ends on smaller grids (60, 29, 14, 6 for 256 pixels, not 64, 32,
    16, 8). Its cells still lie 4, 8, 16 and 32 pixels apart, so zeros around them keep each where
    it looks; resizing to the full grid would move the outer ones by up to 37 pixels.

    Args:
        taps: dict from octave to `KerasTensor`.
        size: height and width of the image in pixels.
        name: starts the layers' names; `fcn.split_fcn()` looks for "tap_".

    Returns:
        Dict from octave to `KerasTensor`.
    """
    aligned = {}
    for octave, tap in taps.items():
        missing = size // 2**octave - tap.shape[1]
        sides = (missing // 2, missing - missing // 2)
        arguments = {"name": f"{name}_{octave}"}
        layer = layers.ZeroPadding2D((sides, sides), **arguments) if missing else None
        aligned[octave] = (layer or layers.Identity(**arguments))(tap)
    return aligned


def project(taps, *, name="project"):
    """Each tap through a frozen 1 x 1 convolution to a quarter of its channels, at most 128.

    They start as random projections, to be made those on principal components by
    `fit_projections()`. Against trained layers on all channels the decoder has half the
    parameters and its features a quarter of the size; on real X-rays it finds as much.

    Args:
        taps: dict from octave to `KerasTensor`.
        name: starts the layers' names.

    Returns:
        Dict from octave to `KerasTensor`.
    """
    return {
        octave: layers.Conv2D(
            min(tap.shape[-1] // 4, _MOST_CHANNELS),
            1,
            kernel_initializer=initializers.Orthogonal(seed=octave),
            trainable=False,
            name=f"{name}_{octave}",
        )(tap)
        for octave, tap in taps.items()
    }


def fit_projections(model, data, backbone, *, folder="data/features", batch_size=8):
    """Give the layers of `project()`, if `model` has any, the principal components of their taps.

    Components of training images alone, up to 64 spread over them, every cell of each: the same
    for every seed. They are kept beside the features, so that runs share both to the last bit.

    Args:
        model: of `fcn.build_fcn()`.
        data: `Prepared`.
        backbone: name that chooses the preprocessing.
        folder: where the file is kept.
        batch_size: images at a time.
    """
    projections = [layer for layer in model.layers if layer.name.startswith("project_")]
    if not projections:
        return
    train = np.flatnonzero(data.cases["split"] == "train")
    rows = train[:: -(-len(train) // _IMAGES)]
    taps = keras.Model(model.input, [layer.input for layer in projections], name="taps")
    folder = project_path(folder)
    which = hashlib.sha256(rows.tobytes()).hexdigest()[:8]
    path = folder / f"{backbone}-{checksum(taps, data, backbone)}-{which}-projections.npz"
    with alone(path):  # another process may be at it
        if not path.exists():
            moments = _moments(taps, data.images, rows, backbone, batch_size)
            found = [
                principal_projection(*moment, channels=layer.filters)
                for moment, layer in zip(moments, projections, strict=True)
            ]
            with written_aside(path) as aside:
                np.savez(aside, *[array for pair in found for array in pair])
    with np.load(path) as file:
        arrays = [file[name] for name in file]
    for layer, kernel, bias in zip(projections, arrays[::2], arrays[1::2], strict=True):
        layer.set_weights([kernel, bias])


def _moments(taps, images, rows, backbone, batch_size):
    """`(mean, mean of the outer products)` over all cells of each tap, float64."""
    predict = compiled(taps, images.shape[1:], images.dtype, backbone)
    sums = [0] * len(taps.outputs)
    for first in range(0, len(rows), batch_size):
        batch = images[rows[first : first + batch_size]]
        for number, tap in enumerate(tree.flatten(predict(tf.constant(batch)))):
            cells = tap.numpy().reshape(-1, tap.shape[-1]).astype("float64")
            cells = np.pad(cells, ((0, 0), (0, 1)), constant_values=1)  # sums and count as well
            sums[number] = sums[number] + cells.T @ cells
    return [(total[-1, :-1] / total[-1, -1], total[:-1, :-1] / total[-1, -1]) for total in sums]


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
