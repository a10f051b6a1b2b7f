"""Masks of 0 and 1 from what programs write as masks."""

import cv2
import numpy as np

_NOISE = 0.1  # of the range: flat areas that JPEG has blurred are of one label
_FEW = 16  # levels, at most, of a mask that JPEG has not blurred


def binary_mask(pixels):
    """Mask from the pixels of a mask file.

    Two grey levels in any depth, two colours, or an alpha channel; edges may be smooth, and a JPEG
    may blur the levels. Brighter than the middle of the two is 1.

    Args:
        pixels: `(height, width)`, or with 3 or 4 channels (BGR, alpha), uint8 or uint16.

    Returns:
        `(height, width)` uint8, values 0 and 1; all 1 where all pixels have one value but 0.

    Raises:
        ValueError: with the reason, if there are more labels than two, or two different masks.
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
    """Raises `ValueError` if areas of one grey level, as no smooth edge has, are of more than two."""
    square = np.ones((3, 3), np.uint8)
    levels = np.flatnonzero(np.bincount(grey[cv2.erode(grey, square) == cv2.dilate(grey, square)]))
    noise = span * _NOISE if np.count_nonzero(np.bincount(grey.ravel())) > _FEW else 0
    groups = np.split(levels, np.flatnonzero(np.diff(levels) > noise) + 1)
    if len(groups) > 2 or any(np.ptp(group) > span / 2 for group in groups if len(group)):
        raise ValueError(f"it holds more than two labels: {', '.join(map(str, levels[:5]))}")
