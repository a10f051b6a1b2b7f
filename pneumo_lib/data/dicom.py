"""Grey X-ray from the bytes of a DICOM file, with pixel spacing and orientation from its header.

Names, numbers, dates and free text of the header are never read, and never part of a message.
"""

from typing import NamedTuple

import cv2
import numpy as np
from pydicom import uid
from pydicom.encaps import generate_frames
from pydicom.multival import MultiValue
from pydicom.pixels import get_decoder

from pneumo_lib.data.dicom_fields import groups, number, numbers, text
from pneumo_lib.data.dicom_grey import grey_levels, keeps_means, luminance
from pneumo_lib.data.dicom_open import CODECS, Refused, open_dicom

SPACING_FIELDS = (  # that `pixel_spacing()` may need
    *("PixelSpacing", "ImagerPixelSpacing", "PixelSpacingCalibrationType"),
    "EstimatedRadiographicMagnificationFactor",
    *("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
)
# libjpeg computes the means of 8 x 8 or 4 x 4 pixels without the pixels
_REDUCED = {8: cv2.IMREAD_REDUCED_GRAYSCALE_8, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}


class XRay(NamedTuple):
    """One decoded X-ray, see `images.decode_xray()`."""

    image: np.ndarray  # (height, width) uint8, perhaps at 1/8 or 1/4 of the file's size
    shape: tuple  # (height, width) of the file
    spacing: tuple | None = None  # mm between rows and between columns, if the header has it
    spacing_source: str | None = None  # fields that `spacing` is from, see `pixel_spacing()`
    patients_left: str | None = "right"  # edge of the image; None: unknown
    side_source: str = "convention"  # or the header field that `patients_left` is from
    notes: tuple = ()  # sentences on header fields that were ignored


def decode_dicom(data, *, at_least=None):
    """`XRay` from the bytes of a DICOM file, see `open_dicom()` for those that lack parts.

    Transfer syntaxes: uncompressed, deflated, RLE, JPEG baseline; with imagecodecs also JPEG
    extended, JPEG lossless, JPEG-LS, JPEG 2000 and its high-throughput kind, JPEG XL. For
    `at_least` see `images.read_image()`. A ValueError gives the reason, if the file holds anything
    but one grey image.
    """
    try:
        file = open_dicom(data)
        shape, notes = (file.Rows, file.Columns), ()
        if file.SamplesPerPixel == 3:
            image = luminance(_decoded(file, (*shape, 3)))
        else:
            pixels = _decoded(file, shape, at_least=at_least if keeps_means(file) else None)
            image, notes = grey_levels(pixels, file)
        return XRay(image, shape, *pixel_spacing(file), *_patients_left(file), notes)
    except Refused:
        raise
    except ImportError:  # or an imagecodecs that was built without one of its codecs
        raise ValueError(
            "its compression needs the package imagecodecs: pip install 'pneumo[dicom]'"
        ) from None
    except Exception as error:  # pydicom and the codecs raise anything
        # without its text, which may quote the header, and without it as a cause
        raise ValueError(f"damaged, or not DICOM: {type(error).__name__}") from None


def claimed_shape(data):
    """`(height, width)` in the header of a complete PNG or of a JPEG, else `(0, 0)`.

    For OpenCV, which allocates memory for any size and opens 24 other formats.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        place, kind = 8, b""
        while kind != b"IEND":  # which has a length, too
            kind = data[place + 4 : place + 8]
            place += 12 + int.from_bytes(data[place : place + 4])
            if place > len(data):  # OpenCV would allocate 4 GB for a chunk that is not there
                return 0, 0
        return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    place = 2 if data[:2] == b"\xff\xd8" else len(data)
    # libjpeg skips bytes between two segments, so a small size in them could hide a huge one
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame's header
            height, width = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return int.from_bytes(height), int.from_bytes(width)
        place += 1 if marker == 0xFF else 2 + length  # fill bytes may precede a marker
    return 0, 0


def _decoded(file, shape, *, at_least=None):
    """Pixels as stored, unsigned; see `_decode_jpeg()` for `at_least`."""
    syntax = file.file_meta.TransferSyntaxUID
    if syntax not in CODECS:
        # Unused bits may be the stored ones. Of compressed pixels pydicom suspects, in a warning,
        # that they are not compressed if they are as long as that.
        options = {"correct_unused_bits": False, "validate": syntax != uid.RLELossless}
        options["as_rgb"] = False  # the header may name the wrong colours
        pixels, _ = get_decoder(syntax).as_array(file, **options)
        if pixels.shape != shape:
            raise Refused("its pixels do not have the size that its header claims")
        return pixels.astype(f"u{pixels.itemsize}")
    frame = next(generate_frames(file.PixelData, number_of_frames=1))
    if syntax == uid.JPEGBaseline8Bit:
        return _decode_jpeg(frame, shape, at_least)
    import imagecodecs  # of the extra "dicom"

    decode = getattr(imagecodecs, CODECS[syntax])
    # with `out`, a codec refuses a frame of another size instead of allocating memory for it
    bytes_, words = np.empty(shape, np.uint8), np.empty(shape, np.uint16)
    likely, other = (bytes_, words) if file.BitsStored <= 8 else (words, bytes_)
    try:
        return decode(frame, out=likely)
    except ValueError:  # its frame has bits of its own, of which the header's are stored
        return decode(frame, out=other)


def _decode_jpeg(frame, shape, at_least):
    """JPEG pixels, at 1/8 or 1/4 of `shape` if both sides stay multiples of `at_least`."""
    if claimed_shape(frame) != shape[:2] or frame[:2] != b"\xff\xd8":
        raise Refused("its pixels are no JPEG of the size that its header claims")
    fits = [d for d in _REDUCED if at_least and not any(side % (d * at_least) for side in shape)]
    flag = cv2.IMREAD_COLOR_RGB if len(shape) == 3 else cv2.IMREAD_GRAYSCALE
    flag = _REDUCED[fits[0]] if fits else flag
    pixels = cv2.imdecode(np.frombuffer(frame, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise Refused("its JPEG is damaged")
    return pixels


def pixel_spacing(file):
    """`((mm between rows, between columns), header fields that they are from)`; `None` without.

    Equal `PixelSpacing` and `ImagerPixelSpacing` are both those of the detector, unless a kind of
    calibration is named (PS3.3 10.7.1). There the X-ray is larger than the patient, by the
    factor that `EstimatedRadiographicMagnificationFactor` may give.
    """
    [group, *_] = groups(file, "PixelMeasuresSequence")
    patient, detector = (
        values if len(values) == 2 and all(v and v > 0 for v in values) else None
        for values in (numbers(group, "PixelSpacing"), numbers(file, "ImagerPixelSpacing"))
    )
    if patient and (patient != detector or text(file, "PixelSpacingCalibrationType")):
        return patient, "PixelSpacing"
    factor = number(file, "EstimatedRadiographicMagnificationFactor")
    if detector and factor and factor >= 1:
        by = "ImagerPixelSpacing, EstimatedRadiographicMagnificationFactor"
        return tuple(value / factor for value in detector), by
    return (detector, "ImagerPixelSpacing, on the detector") if detector else (None, None)


def _patients_left(file):
    """Edge of the image nearest to the patient's left, and the header field it is from."""
    directions = file.get("PatientOrientation")
    if isinstance(directions, MultiValue) and len(directions) == 2:
        of_rows, of_columns = (str(value)[:1] for value in directions)
        edge = {"L": "right", "R": "left"}.get(of_rows)
        return edge or {"L": "bottom", "R": "top"}.get(of_columns), "PatientOrientation"
    if text(file, "ViewPosition") in ("LL", "RL", "LATERAL"):
        return None, "ViewPosition"
    side = text(file, "ImageLaterality") or text(file, "Laterality")
    if side in ("L", "R"):
        return {"L": "everywhere", "R": "nowhere"}[side], "Laterality"
    return "right", "convention"
