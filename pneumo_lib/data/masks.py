"""Masks of 0 and 1 from what programs write as masks."""

import re

import cv2
import numpy as np

SIIM_SIDE = 1024  # pixels of the images that SIIM-ACR's run lengths were drawn on
_PAIRS = re.compile(r"(\d{1,9} ?)+", re.ASCII)
_FEWEST_STEPS = 8  # from run to run, that tell the height of an image
_NOISE = 0.1  # of the range: flat areas that JPEG has blurred are of one label
_FEW = 16  # levels, at most, of a mask that JPEG has not blurred


def binary_mask(pixels):
    """Mask from the pixels of a mask file.

    Two grey levels in any depth, two colours, or an alpha channel; edges may be smooth, and a JPEG
    may blur the levels. Brighter than the middle of the two is 1, as is all of one value but 0.

    `pixels` are `(height, width)`, or with 3 or 4 channels (BGR, alpha), uint8 or uint16, the mask
    is `(height, width)` uint8. A ValueError gives the reason, if there are more labels than two, or
    two different masks.
    """
    if pixels.ndim == 2:
        return _cut(pixels)
    grey = cv2.cvtColor(pixels[..., :3], cv2.COLOR_BGR2GRAY)
    alpha = pixels[..., 3] if pixels.shape[2] == 4 else None
    if alpha is None or alpha.min() == alpha.max():
        return _cut(grey)
    mask = _cut(alpha)
    if grey.min() != grey.max() and (_cut(grey) != mask).mean() > 0.001:
        raise ValueError("its colours and its alpha channel are different masks")
    return mask


def _cut(grey):
    low, high = int(grey.min()), int(grey.max())
    if low == high:
        return np.full(grey.shape, high > 0, np.uint8)
    if not ((grey == low) | (grey == high)).all():
        _refuse_labels(grey, high - low)
    return cv2.compare(grey, (low + high) / 2, cv2.CMP_GT) & 1


def _refuse_labels(grey, span):
    """Raises `ValueError` if areas of one grey level, as no smooth edge has, are more than two."""
    square = np.ones((3, 3), np.uint8)
    levels = np.flatnonzero(np.bincount(grey[cv2.erode(grey, square) == cv2.dilate(grey, square)]))
    noise = span * _NOISE if np.count_nonzero(np.bincount(grey.ravel())) > _FEW else 0
    groups = np.split(levels, np.flatnonzero(np.diff(levels) > noise) + 1)
    if len(groups) > 2 or any(np.ptp(group) > span / 2 for group in groups if len(group)):
        raise ValueError(f"it holds more than two labels: {', '.join(map(str, levels[:5]))}")


def rle_shape(case, shape):
    """`(height, width)` of the image that the run lengths of a case were drawn on.

    That is the case's own image, of `shape`, unless `rle_side` or the runs themselves show that it
    had SIIM-ACR's 1024 x 1024 pixels. A ValueError refuses runs that show another size, or offsets
    that are not relative.
    """
    if any(map(_counts_from_the_first_pixel, case["rles"])):
        raise ValueError(
            "An offset of a run length must count from the end of the run before, as SIIM-ACR's "
            f"do. Received: offsets from the first pixel for {case['image_id']}. Subtract from "
            "each the end of the run before"
        )
    side = rle_height(case["rles"]) or 0
    side = SIIM_SIDE if case.get("rle_side") == SIIM_SIDE else side
    if abs(side - SIIM_SIDE) < SIIM_SIDE / 32 and abs(shape[0] - SIIM_SIDE) > SIIM_SIDE / 32:
        return SIIM_SIDE, SIIM_SIDE
    if side > 1.1 * shape[0]:
        raise ValueError(
            "Run lengths must be of the image's own size, or of 1024 x 1024 pixels. Received: runs "
            f"of an image about {side} pixels high, for {case['image_id']} of {shape[0]} x "
            f"{shape[1]}. Use the images that they were drawn on"
        )
    return shape


def rle_height(texts):
    """Height in pixels of the images that run-length texts were drawn on, by the runs themselves.

    In a region, the runs of neighbouring columns begin about one height apart. The height is right
    to a few pixels; `None` where runs are few or differ, as in small regions.
    """
    steps = [np.empty(0, int)]
    for numbers in map(_numbers, texts):
        steps.append((numbers[1:] + numbers[:-1])[1::2])  # a length and the next offset
    return _common(np.concatenate(steps))


def _counts_from_the_first_pixel(text):
    """Whether the offsets themselves grow by one height from run to run, as in other formats."""
    numbers = _numbers(text)
    steps = np.diff(numbers[0::2])
    height = _common(steps) if (steps > 0).all() else None
    return height is not None and height > numbers[1::2].max()


def _numbers(text):
    return np.array(text.split() if _PAIRS.fullmatch(text) else (), int)


def _common(steps):
    """Median of the steps; `None` where they are few, or half of them further from it than 5 %."""
    middle = np.median(steps) if len(steps) >= _FEWEST_STEPS else 0
    near = abs(steps - middle) <= middle / 20
    return int(middle) if middle and near.mean() >= 0.5 else None
