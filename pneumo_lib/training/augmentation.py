"""Random changes of an X-ray and its mask that keep the diagnosis, made while a batch is read."""

import math

from pneumo_lib._startup import keras

import numpy as np
from keras import ops


def augment(images, masks, *, seed):
    """A batch as another radiographer might have taken it; image and mask change together.

    Own code beside Keras' layers (`RandomRotation`, `RandomElasticTransform`, ...): those
    resample once a layer, each time a little more blurred, and their masks do not stay 0 and 1.
    Here all movements are one field of positions, and image and mask are read there once.

    Args:
        images: `(batch, height, width)`, uint8 or float, grey levels 0 to 255.
        masks: `(batch, height, width)`, values 0 or 1.
        seed: `keras.random.SeedGenerator`; its state decides, and counts the draws.

    Returns:
        `(images, masks)` of the same shapes; masks hold 0 and 1 only.
    """
    images, masks = move(images, masks, seed=seed)
    return relight(images, seed=seed), masks


def move(images, masks, *, seed, shift=0.06, scale=0.15, rotation=12.0, elastic=0.015):
    """Each image shifted, scaled, turned and bent at random; what comes in is black and healthy.

    Args:
        images, masks: see `augment()`.
        seed: `keras.random.SeedGenerator`.
        shift: largest share of a side.
        scale: largest change of size, as a logarithm: 0.15 is from 86 % to 116 %.
        rotation: largest angle in degrees.
        elastic: standard deviation of the displacements on a coarse 4 x 4 grid, as a share of a
            side, which bicubic interpolation makes smooth.

    Returns:
        `(images float32, masks uint8)`. Both are read between the pixels bilinearly; a mask is
        then cut at one half.

    Reference:
        Ronneberger, Fischer, Brox (2015), U-Net, section 3.1, arXiv:1505.04597.
    """
    n, height, width = images.shape
    angle, size, *shifts = ops.split(_draw((n, 4), seed), 4, axis=1)
    angle, size = math.radians(rotation) * angle, ops.exp(scale * size)
    cos, sin = (f(angle)[:, :, None] / size[:, :, None] for f in (ops.cos, ops.sin))
    # Where each pixel is read: around the centre, a side having length 1.
    y = ((np.arange(height, dtype="float32") + 0.5) / height - 0.5)[None, :, None]
    x = ((np.arange(width, dtype="float32") + 0.5) / width - 0.5)[None, None, :]
    bend = elastic * keras.random.normal((n, 4, 4, 2), seed=seed)
    bend = ops.image.resize(bend, (height, width), interpolation="bicubic")
    down, across = (shift * s[:, :, None] for s in shifts)
    rows = height * (cos * y - sin * x + down + bend[..., 0] + 0.5) - 0.5
    columns = width * (sin * y + cos * x + across + bend[..., 1] + 0.5) - 0.5
    both = ops.stack([ops.cast(images, "float32"), ops.cast(masks, "float32")], axis=-1)
    both = _read(both, rows, columns)
    return both[..., 0], ops.cast(both[..., 1] >= 0.5, "uint8")


def relight(images, *, seed, brightness=0.1, contrast=0.25, gamma=0.25):
    """Each image with another exposure: gamma, then contrast about its mean, then brightness.

    Args:
        images: `(batch, height, width)` float, grey levels 0 to 255.
        seed: `keras.random.SeedGenerator`.
        brightness: largest change, as a share of the grey scale.
        contrast, gamma: largest change of the factor and of the exponent, as a logarithm.

    Returns:
        `(batch, height, width)` float32 from 0 to 255.
    """
    changes = ops.split(_draw((images.shape[0], 3), seed), 3, axis=1)
    light, steepness, curve = (change[:, :, None] for change in changes)
    images = (ops.cast(images, "float32") / 255) ** ops.exp(gamma * curve)
    mean = ops.mean(images, axis=(1, 2), keepdims=True)
    images = (images - mean) * ops.exp(contrast * steepness) + mean + brightness * light
    return 255 * ops.clip(images, 0, 1)


def _draw(shape, seed):
    return keras.random.uniform(shape, -1, 1, seed=seed)


def _read(values, rows, columns):
    """`(n, h, w, c)` values at the positions `(n, h, w)`, bilinearly; 0 outside of the image."""
    n, height, width, channels = values.shape
    # A border of zeros answers whatever lies outside, so that no position needs a special case.
    values = ops.pad(values, [(0, 0), (1, 1), (1, 1), (0, 0)])
    rows, columns = ops.clip(rows + 1, 0, height + 1), ops.clip(columns + 1, 0, width + 1)
    top, left = ops.minimum(ops.floor(rows), height), ops.minimum(ops.floor(columns), width)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    first = ops.cast(top, "int32") * (width + 2) + ops.cast(left, "int32")
    first = first + np.arange(n, dtype="int32")[:, None, None] * ((height + 2) * (width + 2))
    values = ops.reshape(values, (-1, channels))

    def along_a_row(first):
        left, after = ops.take(values, first, axis=0), ops.take(values, first + 1, axis=0)
        return left * (1 - right) + after * right

    return along_a_row(first) * (1 - down) + along_a_row(first + width + 2) * down
