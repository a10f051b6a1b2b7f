"""Projections of a decoder with skips on the principal components of its taps."""

import hashlib

from pneumo_lib._startup import keras

import numpy as np
from keras import tree

from pneumo_lib._files import atomic_write, file_lock, project_path
from pneumo_lib.models.forward import compiled
from pneumo_lib.training.features import checksum

_IMAGES = 64  # that components are found on: a million cells of VGG16's finest tap at 512 pixels
_FLOOR = 0.05  # of the first component's deviation


def fit_projections(model, data, backbone, *, folder="data/features", batch_size=8):
    """Give the layers of `project()`, if `model` has any, the principal components of their taps.

    Components of images outside the test part, up to 64 spread over them, every cell of each; no
    mask has a say in them. So they are the same for every seed and for every fold of a
    cross-validation. They are kept beside the features: runs share both to the last bit.

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
    known = np.flatnonzero(data.cases["split"] != "test")
    rows = known[:: -(-len(known) // _IMAGES)]
    taps = keras.Model(model.input, [layer.input for layer in projections], name="taps")
    folder = project_path(folder)
    which = hashlib.sha256(rows.tobytes()).hexdigest()[:8]
    path = folder / f"{backbone}-{checksum(taps, data, backbone)}-{which}-projections.npz"
    with file_lock(path):  # another process may be at it
        if not path.exists():
            moments = _moments(taps, data.images, rows, backbone, batch_size)
            found = [
                principal_projection(*moment, channels=layer.filters)
                for moment, layer in zip(moments, projections, strict=True)
            ]
            with atomic_write(path) as aside:
                np.savez(aside, *[array for pair in found for array in pair])
    with np.load(path) as file:
        arrays = [file[name] for name in file]
    for layer, kernel, bias in zip(projections, arrays[::2], arrays[1::2], strict=True):
        layer.set_weights([kernel, bias])


def _moments(taps, images, rows, backbone, batch_size):
    """`(mean, mean of the outer products)` over all cells of each tap, float64."""
    predict = compiled(taps, backbone, batch_size=batch_size)
    sums = [0] * len(taps.outputs)
    for first in range(0, len(rows), batch_size):
        batch = images[rows[first : first + batch_size]]
        for number, tap in enumerate(tree.flatten(predict(batch))):
            cells = tap.reshape(-1, tap.shape[-1]).astype("float64")
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
