"""SIIM run-length text to mask and back."""

import re

import numpy as np


def rle_decode(rle, shape=(1024, 1024)):
    """Mask of one image from its SIIM run-length text.

    The text is pairs `offset length`, down the columns. SIIM counts each offset from the END of
    the run before (most run-length formats count from the image's first pixel).

    Args:
        rle: one text, or a list of texts whose masks are united: the table has one row per
            lesion. `"-1"` is an empty mask.
        shape: `(height, width)` of the mask in pixels.

    Returns:
        `(height, width)` uint8, values 0 and 1.

    Raises:
        ValueError: if a text is not pairs of whole numbers, a run is empty, overlaps the run
            before it, or ends outside the image.

    Example:
        >>> rle_decode("1 2 1 1", shape=(3, 2))  # columns 0 1 1 and 0 1 0
        array([[0, 0],
               [1, 1],
               [1, 0]], dtype=uint8)

    Reference:
        `mask_functions.py` of the SIIM-ACR Pneumothorax Segmentation competition, Kaggle 2019.
    """
    height, width = shape
    mask = np.zeros((height, width), np.uint8)
    for text in [rle] if isinstance(rle, str) else rle:
        if text.strip() != "-1":
            columns, rows = np.divmod(_decode_runs(text, mask.size), height)
            mask[rows, columns] = 1  # of the foreground only: most masks are nearly empty
    return mask


def _decode_runs(text, size):
    """Foreground positions, down the columns, of one text for an image of `size` pixels."""
    try:
        if not re.fullmatch(r"[-\d\s]*", text, re.ASCII):  # Python also reads 1_0 and other digits
            raise ValueError
        numbers = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise ValueError(
            f"A run-length text holds whole numbers of 64 bits only. Received: {shown!r}"
        ) from None
    if not numbers.size or numbers.size % 2:
        raise ValueError(
            "A run-length text is pairs `offset length`, or `-1` for an empty mask. "
            f"Received: {numbers.size} numbers in {text[:40]!r}"
        )
    offsets, lengths = numbers[0::2], numbers[1::2]
    if (bad := (offsets < 0) | (lengths < 1)).any():
        run = int(np.argmax(bad))
        raise ValueError(
            "Runs must be at least one pixel long and not overlap; each offset counts from the end "
            f"of the run before. Received: {offsets[run]} {lengths[run]} in run {run + 1}"
        )
    # as float: the sum of absurd numbers would overflow int64 and look legal
    if numbers.sum(dtype=float) > size:
        raise ValueError(
            f"Runs must end inside the image of {size} pixels; is `shape` the image's own, and "
            f"are the offsets relative? Received: a last run that ends at {sum(numbers.tolist())}"
        )
    ends = np.cumsum(numbers)[1::2]
    return np.arange(lengths.sum()) + np.repeat(ends - np.cumsum(lengths), lengths)


def rle_encode(mask):
    """SIIM run-length text of a mask: the inverse of `rle_decode()`.

    Args:
        mask: `(height, width)`, values 0 and 1 (bool, integer or float).

    Returns:
        `str`, pairs `offset length`; `"-1"` for an empty mask.

    Raises:
        ValueError: if `mask` is not two-dimensional or holds anything but 0 and 1.

    Example:
        >>> rle_encode(np.array([[0, 0], [1, 1], [1, 0]]))
        '1 2 1 1'
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"`mask` must be (height, width). Received: shape={mask.shape}")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(
            "`mask` must hold 0 and 1 only; cut probabilities at a threshold first. "
            f"Received: values from {mask.min()} to {mask.max()}"
        )
    edges = np.flatnonzero(np.diff(mask.T.ravel().astype(np.int8), prepend=0, append=0))
    numbers = np.diff(edges, prepend=0)
    return " ".join(map(str, numbers)) or "-1"
