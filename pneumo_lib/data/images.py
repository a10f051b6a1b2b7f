"""From one case to pixels: decoding X-rays and masks, and resizing them."""

import logging
from pathlib import Path

import cv2
import numpy as np

from pneumo_lib.data.dicom import XRay, claimed_shape, decode_dicom
from pneumo_lib.data.dicom_grey import stretch
from pneumo_lib.data.dicom_open import MOST_PIXELS, is_dicom
from pneumo_lib.data.masks import binary_mask, rle_shape
from pneumo_lib.data.rle import rle_decode

logger = logging.getLogger(__name__)
READING = 2  # raised when the same file no longer gives the same pixels
# Shapes of empty masks by the bytes of their files: three quarters of the masks are empty, mostly
# the same few files, and decoding each would cost a third of the time of a preparation.
_EMPTY_MASKS = {}
_EMPTY_MASKS_KEPT = 64
_FRAME_SHARE = 0.9  # of a line's pixels; the rest may be letters burnt into the frame


def read_image(path, *, at_least=None):
    """Pixels of one X-ray file, `(height, width)` uint8.

    Args:
        path: PNG or JPEG (colour becomes grey, 16 bits become 8 as in a DICOM file without
            window) or DICOM, see `decode_dicom()`.
        at_least: pixels that height and width must keep. A JPEG inside DICOM is then decoded at
            1/8 or 1/4 of its size if both sides stay multiples of `at_least`: that takes a third
            of the time and equals area averaging to 2 grey levels. `None`: full size.

    Raises:
        ValueError: if the file cannot be decoded to one grey image.
    """
    path = Path(path)
    return decode_xray(path.read_bytes(), path, at_least=at_least).image


def decode_xray(data, path, *, at_least=None):
    """`dicom.XRay` from the bytes of a file; arguments and errors as for `read_image()`."""
    if is_dicom(data) or str(path).lower().endswith(".dcm"):
        try:
            xray = decode_dicom(data, at_least=at_least)
        except ValueError as error:
            raise ValueError(
                f"A DICOM file must hold one grey image. Received: {path} ({error})"
            ) from None
        for note in xray.notes:
            logger.warning("%s: %s", path, note)
        return xray
    image = _decode(data, path, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    if image.dtype != np.uint8:
        image = stretch(image)
    return XRay(image, image.shape)


def _decode(data, path, flags):
    # not cv2.imread, which on Windows opens only paths of ASCII letters
    height, width = claimed_shape(data)
    fits = 0 < height * width <= MOST_PIXELS
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if fits else None
    if image is None:
        claim = f", which claims {width} x {height} pixels" if height * width > MOST_PIXELS else ""
        if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            claim = ", a TIFF file. Save it as PNG"
        raise ValueError(
            f"An image must be a complete PNG, JPEG or DICOM file. Received: {path}{claim}"
        )
    return image


def read_mask(case, shape):
    """Mask of one case, on the pixels of its image: `(height, width)` uint8, values 0 and 1.

    Args:
        case: a row of the case table (Series or dict). See `binary_mask()` for what a mask file
            may hold, `rle_shape()` for the size of run lengths.
        shape: `(height, width)` of the image. A mask of another size with the same proportions is
            resized to it.

    Raises:
        ValueError: if the mask is missing or unreadable, has other proportions than the image,
            seems to be inverted, or contradicts `has_pneumothorax`.
    """
    rles, path = case.get("rles"), case.get("mask_path")
    if isinstance(rles, list):
        mask = rle_decode(rles, rle_shape(case, shape))
    elif isinstance(path, str | Path):
        mask = read_mask_file(Path(path))
    else:  # an empty cell of a table is NaN
        raise ValueError(
            "A case must have a `mask_path` or a list `rles`; one without pneumothorax has a mask "
            f"file of zeros, or the run lengths ['-1']. Received: {path} for {case['image_id']}"
        )
    (rows, columns), (height, width) = mask.shape, shape
    if abs(rows * width - columns * height) > max(shape):  # more than a rounded side
        raise ValueError(
            "A mask must cover its whole image and no more, with the same height to width. "
            f"Received: a mask of {rows} x {columns} pixels, an image of {height} x {width}, "
            f"for {case['image_id']}. Export the mask of that image again"
        )
    mask = mask if mask.shape == tuple(shape) else resize_mask(mask, shape)
    if mask.any() != case["has_pneumothorax"]:
        raise ValueError(
            "A mask holds pixels where the table says pneumothorax, and only there. "
            f"Received: {int(mask.sum())} pixels, has_pneumothorax={case['has_pneumothorax']} "
            f"for {case['image_id']}"
        )
    if mask[0, 0] & mask[0, -1] & mask[-1, 0] & mask[-1, -1] and mask.mean() > 0.5:
        raise ValueError(
            "A mask is 1 in the pneumothorax, which holds less than half of the image and not its "
            f"corners. Received: {int(mask.sum())} of {mask.size} pixels for {case['image_id']}. "
            "Invert the mask, if it is 0 there"
        )
    return mask


def read_mask_file(path):
    """`binary_mask()` of a file; a ValueError if it cannot be read or holds more than one mask."""
    data = path.read_bytes()
    if shape := _EMPTY_MASKS.get(data):
        return np.zeros(shape, np.uint8)
    try:
        # with its alpha channel; which would ignore the orientation of a JPEG
        flags = cv2.IMREAD_UNCHANGED if data[:4] == b"\x89PNG" else cv2.IMREAD_COLOR
        mask = binary_mask(_decode(data, path, flags))
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(
            "A mask file must be 0 outside of the pneumothorax and have one other value inside. "
            f"Received: {path} ({error})"
        ) from None
    if len(_EMPTY_MASKS) < _EMPTY_MASKS_KEPT and not mask.any():
        _EMPTY_MASKS[data] = mask.shape
    return mask


def read_pair(case, size):
    """`(image, mask)` of one case as `prepare()` writes them, both `(size, size)` uint8.

    Errors as for `read_image()` and `read_mask()`.
    """
    path = Path(case["image_path"])
    xray = decode_xray(path.read_bytes(), path, at_least=size)
    mask = read_mask(case, xray.shape)
    return resize_image(xray.image, (size, size)), resize_mask(mask, (size, size))


def resize_image(image, shape):
    """Image at another size: area averages where it shrinks, linear where it grows.

    An image that is not square is squashed, not padded: a padded border would be background that
    every score counts as correct.

    `image` is `(height, width)` uint8 or float32, and the result has its dtype.
    """
    height, width = shape
    smaller = (min(width, image.shape[1]), min(height, image.shape[0]))
    # in two steps: OpenCV's area mode turns linear on both axes when only one of them grows
    for mode, size in ((cv2.INTER_AREA, smaller), (cv2.INTER_LINEAR, (width, height))):
        if image.shape != size[::-1]:
            image = cv2.resize(image, size, interpolation=mode)
    return image


def resize_mask(mask, shape):
    """Mask at another size: 1 where at least half of the pixel's area is mask.

    `mask` is `(height, width)` of 0 and 1, the result uint8 of the wanted `shape`. A mask smaller
    than half a pixel vanishes.
    """
    if not mask.any():
        return np.zeros(shape, np.uint8)
    return (resize_image(mask.astype(np.float32), shape) >= 0.5).astype(np.uint8)


def inside_frame(image):
    """Bounds of the X-ray in an image that has a frame of one grey level on all four sides.

    Film holders, screenshots and padding add such frames. A collimator's edge or the air beside an
    arm is on fewer sides and belongs to the X-ray.

    `image` is `(height, width)` uint8. Returns `(top, bottom, left, right)` as shares of height and
    width; `(0, 1, 0, 1)` without a frame, or where less than a quarter of a side is inside it.
    """
    whole = (0.0, 1.0, 0.0, 1.0)
    sides = (image[0], image[-1], image[:, 0], image[:, -1])
    level = np.median(np.concatenate(sides))
    if any((abs(side - level) <= 2).mean() < _FRAME_SHARE for side in sides):
        return whole
    near = abs(image - level) <= 2
    shares = ()
    for axis in (1, 0):
        [inside] = np.nonzero(near.mean(axis) < _FRAME_SHARE)
        length = near.shape[1 - axis]
        if len(inside) == 0 or inside[-1] + 1 - inside[0] < length / 4:
            return whole
        shares += (inside[0] / length, (inside[-1] + 1) / length)
    return shares
