"""X-rays as DICOM files with every field that decides grey levels, and what they must look like.

`expected()` is written from the standard, one pixel value at a time and without the library.
"""

import math
from io import BytesIO
from typing import NamedTuple

import numpy as np
from data.dicom_files import dicom_bytes, lookup_table
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset

NATIVE = (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian)
SYNTAXES = (
    *(*NATIVE, uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEGBaseline8Bit),
    *(uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless),
)
ORIENTATION = 0x0112  # tag of EXIF


class XRay(NamedTuple):
    """One generated file; `lut` and `voi` tables are `(first, entries, bits, bits declared)`."""

    syntax: str
    pixels: np.ndarray  # stored values, (height, width) int64
    bits: int
    signed: bool
    shift: int  # of the stored bits in their word
    photometric: str
    shape: str | None
    rescale: tuple | None  # slope, intercept; "" is an empty field
    lut: tuple | None
    window: tuple | None  # centres, widths, function
    voi: tuple | None
    place: str  # of rescale and window: file, frame, all frames
    padding: tuple  # (), (value,), (value, limit)
    turned: int | None  # EXIF orientation of a JPEG

    def values(self):
        """The stored values as a reader sees them, also after a lossy compression."""
        if self.syntax != uid.JPEGBaseline8Bit:
            return self.pixels
        return np.asarray(Image.open(BytesIO(self.frame()))).astype(int)

    def frame(self):
        """Compressed pixels, or `None`."""
        import imagecodecs

        pixels = (self.pixels % 2**self.bits).astype(np.uint8 if self.bits <= 8 else np.uint16)
        if self.syntax == uid.JPEGBaseline8Bit:
            stream, exif = BytesIO(), Image.Exif()
            exif[ORIENTATION] = self.turned or 1
            options = {"exif": exif} if self.turned else {}
            Image.fromarray(pixels).save(stream, "JPEG", quality=95, **options)
            return stream.getvalue()
        if self.syntax == uid.JPEGLosslessSV1:
            return imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=self.bits)
        if self.syntax == uid.JPEGLSLossless:
            return imagecodecs.jpegls_encode(pixels)
        if self.syntax == uid.JPEG2000Lossless:
            options = {"level": 0, "reversible": True, "codecformat": "j2k"}
            return imagecodecs.jpeg2k_encode(pixels, bitspersample=self.bits, **options)
        return None

    def content(self):
        """The bytes of the file."""
        words = np.uint8 if self.bits <= 8 else np.uint16
        stored = ((self.pixels % 2**self.bits) << self.shift).astype(words)
        if self.syntax == uid.RLELossless and self.signed:  # its encoder asks for it
            stored = self.pixels.astype(np.int8 if self.bits <= 8 else np.int16)
        fields = {
            "PixelRepresentation": int(self.signed),
            "HighBit": self.bits + self.shift - 1,
            "PhotometricInterpretation": self.photometric,
            "PresentationLUTShape": self.shape,
            "SOPInstanceUID": "1.2.3",
            "StudyInstanceUID": "1.2",
            "SeriesInstanceUID": "1.2.4",
            "Modality": "DX",
        }
        order = ">" if self.syntax == uid.ExplicitVRBigEndian else "<"
        names = ("PixelPaddingValue", "PixelPaddingRangeLimit")
        fields |= dict(zip(names, self.padding, strict=False))
        tables = {"ModalityLUTSequence": self.lut, "VOILUTSequence": self.voi}
        for name, table in tables.items():
            if table:
                first, entries, _, declared = table
                fields[name] = lookup_table(entries, declared, first=first, order=order)
        values, window = Dataset(), Dataset()
        if self.rescale:
            values.RescaleSlope, values.RescaleIntercept = self.rescale
        if self.window:
            window.WindowCenter, window.WindowWidth = (
                list(part) if len(part) > 1 else part[0] for part in self.window[:2]
            )
            window.VOILUTFunction = self.window[2]
        if self.place == "file":
            fields |= {e.keyword: e.value for e in [*values, *window]}
        else:
            group = Dataset()
            group.PixelValueTransformationSequence = [values]
            group.FrameVOILUTSequence = [window]
            fields[self.place] = [group]
        return dicom_bytes(stored, self.syntax, frame=self.frame(), bits=self.bits, **fields)


def looked_up(table, value):
    first, entries, bits, _ = table
    index = min(max(round(value - first), 0), len(entries) - 1)
    return entries[index], 2**bits - 1


def after_modality(xray, value):
    if xray.lut:
        return looked_up(xray.lut, value)[0]
    slope, intercept = xray.rescale or ("", "")
    return value * (1 if slope == "" else slope) + (0 if intercept == "" else intercept)


def usable_window(xray):
    centres, widths, function = xray.window or ((), (), None)
    for centre, width in zip(centres, widths, strict=False):
        if "" not in (centre, width) and width > 0:
            return centre, width, function
    return None


def windowed(x, centre, width, function):
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1, C.11.2.1.3.2, for a range of 0 to 1."""
    if function == "SIGMOID":
        power = -4 * (x - centre) / width
        return 0.0 if power > 700 else 1 / (1 + math.exp(power))
    if function == "LINEAR_EXACT" or width < 1:
        if x <= centre - width / 2:
            return 0.0
        return 1.0 if x > centre + width / 2 else (x - centre) / width + 0.5
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0.0
    if x > centre - 0.5 + (width - 1) / 2:
        return 1.0
    return (x - (centre - 0.5)) / (width - 1) + 0.5


def ends(xray, values):
    """What becomes black and white without a window."""
    if xray.bits <= 8:
        low = -(2 ** (xray.bits - 1)) if xray.signed else 0
        every = [after_modality(xray, low + code) for code in range(2**xray.bits)]
        return min(every), max(every)
    held = sorted(after_modality(xray, v) for v in values)
    inner = [v for v in held if held[0] < v < held[-1]]
    if inner:
        low, high = (inner[max(math.ceil(q * len(inner)) - 1, 0)] for q in (0.005, 0.995))
        if low < high:
            return low, high
    return held[0], held[-1]


def is_padding(xray, value):
    return bool(xray.padding) and min(xray.padding) <= value <= max(xray.padding)


def expected(xray):
    """`(height, width)` float grey levels, or `None` where the file must be refused."""
    values = xray.values()
    every = [int(v) for v in values.ravel()]
    ignored = len(set(every)) > 1 and all(is_padding(xray, v) for v in every)
    inside = [v for v in every if ignored or not is_padding(xray, v)]
    low, high = ends(xray, inside) if inside else (0, 1)
    inverted = xray.photometric == "MONOCHROME1"
    inverted = {"IDENTITY": False, "INVERSE": True}.get(xray.shape, inverted)
    window = usable_window(xray)

    def level(value):
        x = after_modality(xray, value)
        if xray.voi and not (window and xray.place != "file"):
            entry, top = looked_up(xray.voi, x)
            share = entry / top
        elif window:
            share = windowed(x, *window)
        else:
            share = min(max((x - low) / ((high - low) or 1), 0), 1)
        return 255 * (1 - share if inverted else share)

    levels = {v: level(v) for v in set(inside)}
    if len(levels) > 1 and max(levels.values()) - min(levels.values()) < 1:
        shown = {math.floor(v + 0.5) for v in levels.values()}
        if len(shown) == 1:
            return None
    return np.array([levels.get(v, 0.0) for v in every]).reshape(values.shape)


# -- strategies


def tables(bits):
    """`(first, entries, bits, bits declared)` of a table that uses its depth."""

    @st.composite
    def table(draw):
        depth = draw(st.sampled_from([8, 10, 12, 16]))
        count = draw(st.sampled_from([2, 3, 256, 1000, 4096, 2 ** min(bits, 16)]))
        curve = np.linspace(0, 1, count) ** draw(st.sampled_from([0.5, 1, 2]))
        entries = np.rint(curve * (2**depth - 1)).astype(int).tolist()
        falls = draw(st.booleans())
        declared = draw(st.sampled_from([depth] * 3 + [16] * (depth in (10, 12))))
        first = draw(st.sampled_from([0, 0, 1, 100]))
        return first, entries[::-1] if falls else entries, depth, declared

    return table()


@st.composite
def xrays(draw):
    syntax = draw(st.sampled_from(SYNTAXES))
    baseline = syntax == uid.JPEGBaseline8Bit
    bits = 8 if baseline else draw(st.sampled_from([6, 8, 8, 10, 12, 12, 14, 15, 16]))
    signed = not baseline and syntax != uid.JPEG2000Lossless and draw(st.booleans())
    shifts = [0, 0, 16 - bits] if syntax in NATIVE and bits > 8 else [0]
    least = -(2 ** (bits - 1)) if signed else 0
    top = least + 2**bits - 1
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    size = draw(st.sampled_from([(32, 64), (64, 32), (9, 13), (8, 8)]))
    centre, spread = rng.uniform(least, top), (top - least) * rng.choice([0.02, 0.2, 0.5])
    pixels = np.rint(rng.normal(centre, spread, size)).clip(least, top).astype(np.int64)
    if draw(st.booleans()):  # a hot pixel, and a dead one
        pixels[0, :2] = least, top
    near = st.sampled_from([centre, (least + top) / 2, centre + spread, least])
    window = None
    if draw(st.booleans()):
        wide = st.sampled_from([0.25, 1, 2, spread + 1, 4 * spread + 1, top - least + 1])
        pairs = draw(st.lists(st.tuples(near, wide), min_size=1, max_size=2))
        # as they are in the text of the file
        pairs = [tuple(float(f"{v:.6g}") for v in pair) for pair in pairs]
        empty = draw(st.sampled_from(["no", "no", "no", "centre", "width", "both"]))
        centres, widths = zip(*pairs, strict=True)
        centres = ("",) * len(centres) if empty in ("centre", "both") else centres
        widths = ("",) * len(widths) if empty in ("width", "both") else widths
        window = centres, widths, draw(st.sampled_from(["", "LINEAR", "LINEAR_EXACT", "SIGMOID"]))
    lut = draw(st.none() | tables(bits)) if not signed else None
    slopes, intercepts = (
        st.sampled_from(["", 1, 1, -1, 0.25, -10, 2.5]),
        st.sampled_from(["", 0, -1024, 4095, 0.5]),
    )
    rescale = None if lut else draw(st.none() | st.tuples(slopes, intercepts))
    value = st.sampled_from([least, top, int(pixels[0, 0]), int(pixels.max())])
    padding = draw(st.just(()) | st.tuples(value) | st.tuples(value, value))
    places = ("file", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
    return XRay(
        *(syntax, pixels, bits, signed, draw(st.sampled_from(shifts))),
        photometric=draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2", "MONOCHROME2"])),
        shape=draw(st.sampled_from([None, None, "IDENTITY", "INVERSE"])),
        rescale=rescale,
        lut=lut,
        window=window,
        voi=draw(st.none() | st.none() | tables(bits)),
        place="file" if lut else draw(st.sampled_from(places)),
        padding=padding,
        turned=draw(st.none() | st.integers(1, 8)) if baseline else None,
    )
