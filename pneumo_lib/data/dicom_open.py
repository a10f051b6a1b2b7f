"""DICOM files opened, or refused with the reason: signature, transfer syntax, kind of object."""

import re
import zlib
from io import BytesIO

import pydicom
from pydicom import uid
from pydicom.encaps import generate_frames

from pneumo_lib.data.dicom_fields import number, text

MOST_PIXELS = 2**26  # more than any X-ray detector; a header may claim 65,535 x 65,535
_NATIVE = (
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian),
    *(uid.DeflatedExplicitVRLittleEndian, uid.RLELossless),
)
_JPEG_XL = tuple(f"1.2.840.10008.1.2.4.{number}" for number in (110, 111, 112))
# Codecs of imagecodecs. GDCM, pydicom's usual plugin, crashed on 2 of 10,800 damaged files; these
# raise errors.
CODECS = {
    **dict.fromkeys(uid.JPEGTransferSyntaxes, "jpeg8_decode"),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, "jpegls_decode"),
    **dict.fromkeys(uid.JPEG2000TransferSyntaxes, "jpeg2k_decode"),  # HTJ2K too
    **dict.fromkeys(_JPEG_XL, "jpegxl_decode"),
}
_NUMBERS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_GREY = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
# The first element of a data set without preamble: of group 2 or 8, with a type or a short length.
_FIRST_ELEMENT = re.compile(
    rb"[\x02\x08]\0[\0-\x20]\0([A-Z]{2}|..\0\0)|\0\x08\0[\0-\x20][A-Z]{2}", re.DOTALL
)
_PIXEL_DATA = bytes.fromhex("e07f1000")  # tag of the element
_ITEM = b"\xfe\xff\x00\xe0"  # begins compressed pixels


class Refused(ValueError):
    """A reason that quotes nothing but numbers, transfer syntaxes and names of the standard."""


def is_dicom(data):
    """Whether the first 140 bytes of a file are those of DICOM, with or without its preamble."""
    return data[128:132] == b"DICM" or bool(_FIRST_ELEMENT.match(data))


def open_dicom(data):
    """pydicom `Dataset` of the bytes of a file that holds one image.

    Preamble, file meta information and transfer syntax may be missing: then the encoding is that of
    the elements, and of the first compressed bytes. Its `file_meta.TransferSyntaxUID` is one that
    can be read. Raises `Refused` for anything but one image of 8 to 16 bits, in grey or in RGB of 8
    bits.
    """
    if data[128:132] != b"DICM":
        data = data if data[:128].strip(b"\0") else data[128:]
        if not _FIRST_ELEMENT.match(data):
            raise Refused("damaged, or not DICOM: it begins like no DICOM file")
        data = bytes(128) + b"DICM" + data
    _refuse_deflated_bombs(data)
    data_set = _end_of_meta(data)
    if _FIRST_ELEMENT.match(data, data_set) and not data[data_set]:
        # big-endian, whatever its file meta information names: the elements show it
        data = bytes(128) + b"DICM" + data[data_set:]
    # from memory: each of pydicom's many small reads of a file would switch threads
    file = pydicom.dcmread(BytesIO(data))
    _refuse_unknown_syntax(file.file_meta.get("TransferSyntaxUID"))
    _refuse_other_objects(file, data)
    # as pydicom takes them, whose own reading of these would fail
    file.PhotometricInterpretation = text(file, "PhotometricInterpretation")
    file.SamplesPerPixel = int(number(file, "SamplesPerPixel") or 1)
    file.NumberOfFrames = 1
    _correct_syntax(file)
    return file


def _end_of_meta(data):
    return 144 + int.from_bytes(data[140:144], "little")


def _refuse_deflated_bombs(data):
    """Limits the size of a deflated file, which pydicom inflates without limit."""
    if uid.DeflatedExplicitVRLittleEndian.encode() in data[:1024]:
        inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        rest = data[_end_of_meta(data) :]
        while rest and size <= 2 * MOST_PIXELS:  # in pieces, none of which is kept
            size += len(inflater.decompress(rest, 1 << 20))
            rest = inflater.unconsumed_tail
        if size > 2 * MOST_PIXELS:
            raise Refused("it inflates to more than any X-ray holds")


def _refuse_unknown_syntax(syntax):
    if syntax and syntax not in (*_NATIVE, *CODECS):
        shown = syntax if re.fullmatch(r"[\d.]{1,64}", syntax) else "no UID"
        name = f"{uid.UID(syntax).name}, " if syntax in uid.UID_dictionary else ""
        raise Refused(f"its compression is not read: transfer syntax {name}{shown}")


def _refuse_other_objects(file, data):
    if "PixelData" not in file and _PIXEL_DATA in data:  # pydicom drops what has no end
        raise Refused("damaged: its pixels break off")
    if "FloatPixelData" in file or "DoubleFloatPixelData" in file:
        raise Refused("its pixels are numbers with fractions, not grey levels")
    if "Rows" not in file or "PixelData" not in file:
        kind = uid.UID(text(file, "SOPClassUID"))
        known = kind in uid.UID_dictionary
        raise Refused(f"it holds no image: {kind.name if known else 'an unknown kind of object'}")
    found = {name: number(file, name) for name in _NUMBERS}
    found["PhotometricInterpretation"] = colour = text(file, "PhotometricInterpretation") or None
    found["PixelData"] = file.PixelData or None
    if missing := [name for name, value in found.items() if value is None]:
        raise Refused(f"its header lacks {', '.join(missing)}")
    rows, columns, allocated, stored, _ = (int(found[name]) for name in _NUMBERS)
    if (frames := number(file, "NumberOfFrames") or 1) != 1:
        raise Refused(f"it holds {frames:.0f} frames, not one image")
    samples = number(file, "SamplesPerPixel") or 1
    read = {(1, allocated): _GREY, (3, 8): _COLOURS}.get((samples, allocated), ())
    if colour not in read:
        shown = colour if colour in (*_COLOURS, *_GREY) else "of no known kind"
        raise Refused(f"a colour image: {shown}, {samples:.0f} x {allocated} bits a pixel")
    if not 0 < rows * columns <= MOST_PIXELS:
        raise Refused(f"its header claims {rows} x {columns} pixels")
    if allocated not in (8, 16) or not 1 < stored <= allocated:
        raise Refused(f"{stored} bits stored in {allocated}; 8 to 16 are read")


def _correct_syntax(file):
    """Sets the transfer syntax that the pixels have, where the file names none or another."""
    meta, pixels = file.file_meta, file.PixelData
    size = file.Rows * file.Columns * file.SamplesPerPixel * file.BitsAllocated // 8
    syntax = meta.get("TransferSyntaxUID")
    named = syntax in (*CODECS, uid.RLELossless)
    if pixels[:4] == _ITEM and (named or len(pixels) not in (size, size + 1)):
        found = _syntax_of(next(generate_frames(pixels, number_of_frames=1)))
        if found and CODECS[found] != CODECS.get(syntax):
            meta.TransferSyntaxUID = found
        elif not named:
            raise Refused("its pixels are compressed, but its transfer syntax does not say how")
    elif not syntax or (named and len(pixels) >= size):
        implicit, little = file.original_encoding
        native = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else native


def _syntax_of(frame):
    """A transfer syntax of the codec that decodes a compressed frame, by its first bytes."""
    if frame[:3] == b"\xff\xd8\xff":
        return uid.JPEGLSLossless if b"\xff\xf7" in frame[:256] else uid.JPEGExtended12Bit
    if frame[:4] == b"\xff\x4f\xff\x51":
        return uid.JPEG2000
    return uid.UID(_JPEG_XL[2]) if frame[:2] == b"\xff\x0a" else None
