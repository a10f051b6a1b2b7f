"""Grey levels from the stored values of an X-ray: the one place where they are computed.

Stored bits -> stored values -> rescale or Modality LUT -> window or VOI LUT -> polarity -> 0 to 255
(DICOM PS3.4 N.2.1), or a palette. Each level depends on its stored value alone. So the whole way is
computed once for each of the at most 65,536 values, and then looked up for the pixels.
"""

import cv2
import numpy as np
from pydicom import uid

from pneumo_lib.data.dicom_fields import groups, number, numbers, text
from pneumo_lib.data.dicom_open import Refused

_GREY_SPREAD = 16  # levels between the channels of grey, which JPEG rounds
_COLOURED_SHARE = 0.01  # of the pixels of a grey X-ray, at most: letters
# whose Modality LUT leads back to the intensity of the beam, and is not for display
_ANGIOGRAPHY = (uid.XRayAngiographicImageStorage, uid.XRayRadiofluoroscopicImageStorage)


def grey_levels(pixels, header):
    """`(image, notes)`: `(height, width)` uint8, and sentences on fields that were ignored.

    Bone is brighter than air, and padding is black. `pixels` are `(height, width)` uint8 or uint16
    as decoded; bits outside of the stored ones may hold anything. `header` is a dataset with
    `BitsStored` (at most 16) and `PixelRepresentation`. Raises `Refused` if values that vary would
    become one grey level.
    """
    codes = _codes(pixels, header)
    table, notes = _grey_table(header, _count(codes, header.BitsStored))
    return _look_up(table, codes), notes


def _look_up(table, codes):
    if codes.dtype == np.uint8:
        return cv2.LUT(codes, np.resize(table, 256))
    return table[codes]


def keeps_means(header):
    """Whether levels are the 8-bit stored values or 255 less them: means of pixels stay means."""
    if (header.BitsStored, header.PixelRepresentation) != (8, 0):
        return False
    try:
        table, _ = _grey_table(header, np.ones(256))
    except Refused:  # the values that there are may differ, or be a single one
        return False
    return np.unique(np.diff(table.astype(int))).tolist() in ([1], [-1])


def _grey_table(header, counts):
    """Grey level of each code, `(2**BitsStored,)` uint8, and the notes, as in `grey_levels()`.

    `counts` is the number of pixels with each code, for the stretch of values without a window.
    """
    notes = []
    # unsigned, or in two's complement (PS3.3 C.7.6.3.1)
    sign = header.PixelRepresentation << (header.BitsStored - 1)
    stored = (np.arange(2**header.BitsStored) ^ sign) - sign
    padding = _padding(stored, header)
    varies = np.count_nonzero(counts) > 1
    if varies and not counts[~padding].any():
        notes.append("its padding range holds all of its values and is ignored")
        padding[:] = False
    seen = np.where(padding, 0, counts)
    values = _modality(stored, header)
    if text(header, "PhotometricInterpretation") == "PALETTE COLOR":
        share = _palette(stored, counts, header)
    elif values is None:
        notes.append("its rescale slope is 0 or no number: rescale and window are ignored")
        values, share = stored, None
    else:
        share = _voi(values, header)
    if share is None:
        share = _without_window(values, seen, bits=header.BitsStored)
    table = np.rint(255 * share).astype(np.uint8)
    table = 255 - table if _is_inverted(header, notes) else table
    shown = table[seen > 0]
    if len(shown) > 1 and shown.min() == shown.max():
        raise Refused("its window or lookup table makes all of its values one grey level")
    table[padding] = 0
    return table, notes


def luminance(pixels):
    """`(height, width)` uint8 of a grey image stored in three channels, as RGB or as YCbCr.

    Headers name the wrong one of the two, but grey pixels show it: equal channels, or no chroma.
    """
    if _are_grey(np.ptp(pixels, axis=2)):
        return cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if _are_grey(2 * abs(pixels[..., 1:].astype(np.int16) - 128).max(axis=2)):
        return pixels[..., 0].copy()
    raise Refused("a colour image")


def _are_grey(spread, counts=None):
    return np.average(spread > _GREY_SPREAD, weights=counts) <= _COLOURED_SHARE


def stretch(image):
    """`(height, width)` uint8 from uint16, as from a DICOM file of 16 bits without window."""
    share = _without_window(np.arange(2**16), _count(image, 16), bits=16)
    return _look_up(np.rint(255 * share).astype(np.uint8), image)


def _without_window(values, counts, *, bits):
    """Share of full brightness of each value where the file has no window.

    Up to 8 bits are grey levels already. Of more, the middle 99 % of the pixels are stretched,
    without the lowest and the highest value: those are often collimator borders and burnt-in
    letters, and a single hot pixel is no reason to darken an image.
    """
    seen = values[counts > 0] if bits > 8 and counts.any() else values
    low, high = seen.min(), seen.max()
    inner = (counts > 0) & (values > low) & (values < high)
    if bits > 8 and inner.any():
        options = {"weights": counts[inner], "method": "inverted_cdf"}
        ends = np.percentile(values[inner], (0.5, 99.5), **options)
        low, high = ends if ends[0] < ends[1] else (low, high)
    return np.clip((values - low) / ((high - low) or 1), 0, 1)


def _count(codes, bits):
    counts = cv2.calcHist([codes], [0], None, [2**bits], [0, 2**bits])
    return counts.ravel().astype(np.int64)


def _codes(pixels, header):
    """The stored bits of each pixel, unsigned, without what other bits hold (PS3.5 8.1.1)."""
    bits, high = header.BitsStored, number(header, "HighBit")
    shift = int(high) + 1 - bits if high is not None else 0
    syntax = header.file_meta.TransferSyntaxUID
    as_allocated = (*uid.UncompressedTransferSyntaxes, uid.RLELossless)
    if syntax not in as_allocated and not pixels.max() >> bits:
        shift = 0  # the codec has its own number of bits
    if 0 < shift <= 8 * pixels.itemsize - bits:
        pixels = pixels >> shift
    unused = 8 * pixels.itemsize > bits
    return pixels & pixels.dtype.type(2**bits - 1) if unused else pixels


def _padding(stored, header):
    """Which stored values pad the image to a rectangle (PS3.3 C.7.5.1.1.2)."""
    ends = [number(header, n) for n in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if ends[0] is None:
        return np.zeros(stored.shape, bool)
    # the header may hold the bits of a signed value as an unsigned one
    ends = [_as_fits(end, stored, header.BitsStored) for end in ends if end is not None]
    return (stored >= min(ends)) & (stored <= max(ends))


def _as_fits(value, values, bits=16):
    """`value`, or what its bits mean with the other sign, if only that is among `values`."""
    low, high = values.min(), values.max()
    for width in (16, bits):
        turn = 2**width if value < 0 else -(2**width) if value >= 2 ** (width - 1) else 0
        if not low <= value <= high and low <= value + turn <= high:
            return value + turn
    return value


def _modality(stored, header):
    """Values after Modality LUT or rescale (PS3.3 C.11.1); `None` if no use can be made of it."""
    for group in groups(header, "PixelValueTransformationSequence"):
        lut = _first_lut(group, "ModalityLUTSequence", stored, header)
        if lut and header.get("SOPClassUID") not in _ANGIOGRAPHY:
            return _looked_up(stored, *lut[:2])
        slope, intercept = (numbers(group, n) for n in ("RescaleSlope", "RescaleIntercept"))
        if None in slope + intercept:
            return None
        if slope or intercept:
            with np.errstate(over="ignore"):
                values = stored * (*slope, 1)[0] + (*intercept, 0)[0]
            return values if 0 < np.ptp(values) < np.inf else None
    return stored


def _voi(values, header):
    """Share of full brightness by VOI LUT or window (PS3.3 C.11.2); `None` without any.

    Where a file has both, they are alternatives (C.11.2.1.2); the lookup table is taken.
    """
    for group in groups(header, "FrameVOILUTSequence"):
        if lut := _first_lut(group, "VOILUTSequence", values, header):
            first, data, bits = lut
            return _looked_up(values, first, data) / (2**bits - 1)
        centres, widths = numbers(group, "WindowCenter"), numbers(group, "WindowWidth")
        function = text(group, "VOILUTFunction")
        for centre, width in zip(centres, widths, strict=False):
            if None not in (centre, width) and width > 0:
                return _windowed(values, centre, width, function)
    return None


def _windowed(values, centre, width, function):
    """Share of full brightness: PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2.

    A width below 1, which a slope below 1 may ask for, is not allowed as LINEAR: it counts as
    LINEAR_EXACT.
    """
    if function == "SIGMOID":
        # the logistic function, without the overflow of its exponential
        return (1 + np.tanh(2 * (values - centre) / width)) / 2
    if function != "LINEAR_EXACT" and width >= 1:
        centre, width = centre - 0.5, width - 1
    low, high = centre - width / 2, centre + width / 2
    return np.where(values > high, 1, np.clip((values - low) / (width or 1), 0, 1))


def _is_inverted(header, notes):
    """Whether the lowest value is white (PS3.3 C.7.6.3.1.2, C.8.11.3, C.11.6)."""
    inverted = text(header, "PhotometricInterpretation") == "MONOCHROME1"
    shape = text(header, "PresentationLUTShape")
    if shape == ("IDENTITY" if inverted else "INVERSE"):
        notes.append("its PresentationLUTShape contradicts the photometric interpretation; it wins")
        return not inverted
    return inverted


def _palette(stored, counts, header):
    """Share of full brightness of each value by a palette (PS3.3 C.7.6.3.1.5) that is grey."""
    names = (f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue"))
    tables = [_lut(header, stored, header, name) for name in names]
    if None in tables:
        raise Refused("its header lacks its palette, or has it in segments")
    rgb = np.stack([_looked_up(stored, first, data) for first, data, _ in tables])
    rgb = rgb / (255 if rgb.max() < 256 else 65535)
    if not _are_grey(255 * np.ptp(rgb, axis=0), counts):
        raise Refused("a colour image: PALETTE COLOR")
    return np.array([0.299, 0.587, 0.114]) @ rgb  # ITU-R BT.601, as of RGB


def _first_lut(group, name, values, header):
    """`(first, data, bits)` of the first item that holds a table, else `None`."""
    found = (_lut(item, values, header) for item in group.get(name) or ())
    return next((lut for lut in found if lut), None)


def _lut(item, values, header, name="LUT"):
    """First value mapped, `(n,)` entries, their bits (PS3.3 C.11.1.1, C.11.2.1.1)."""
    descriptor, data = numbers(item, f"{name}Descriptor"), item.get(f"{name}Data")
    if len(descriptor) != 3 or None in descriptor or data is None:
        return None
    entries, first, bits = map(int, descriptor)
    entries = entries % 2**16 or 2**16
    if isinstance(data, bytes):
        order = ">" if header.original_encoding[1] is False else "<"
        data = np.frombuffer(data[: len(data) // 2 * 2], order + "u2")
    data = np.atleast_1d(np.asarray(data, np.int64)) % 2**16
    if len(data) == (entries + 1) // 2:  # two of 8 bits in a word, the first in its lower byte
        data = data.astype("<u2").view(np.uint8).astype(np.int64)
    data = data[:entries]
    if not data.size:
        return None
    # the sign of the first value depends on what comes out of the step before
    first = _as_fits(first, values)
    # A table of 16 bits often holds values of 12. One whose brightest entry is below a quarter
    # of the range that it declares, or above that range, has the depth of its entries.
    needed = max(1, int(data.max()).bit_length())
    return first, data, bits if needed <= bits <= min(needed + 1, 16) else needed


def _looked_up(values, first, data):
    """Entries of the table; values before and after it have its first and its last one."""
    return data[np.rint(values - first).clip(0, len(data) - 1).astype(np.int64)]
