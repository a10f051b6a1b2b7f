"""Bad and hostile input, made by code: what an X-ray archive can hold that is no X-ray.

Each input is a file and what reading it must lead to: `REFUSED`, a `ValueError` that names the
file; an array, the right pixels; or `EITHER`, where a changed bit may or may not matter.
"""

import gzip
import io
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, SecondaryCaptureImageStorage

REFUSED, EITHER = "refused", "either"
SIDE = 24


class Input(NamedTuple):
    name: str  # of the file
    content: bytes
    expected: Any


def picture(side=SIDE):
    """A smooth grey ramp with a bright square, so that wrong decoding shows."""
    rows, columns = np.mgrid[:side, :side]
    pixels = (4 * rows + 5 * columns).astype(np.uint8)
    pixels[4:9, 12:18] = 250
    return pixels


def encoded(image, kind="PNG", **options):
    """Bytes of an array or a Pillow image."""
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(width, height, *, depth=8, colour=0, rows=0):
    """A PNG whose header promises more than its few bytes hold."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(bytes(rows * (width + 1)), 9)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def jpeg_bomb(width, height):
    """A whole JPEG whose frame header tells another size."""
    data = bytearray(encoded(picture(), "JPEG", quality=95))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def broken_copies(content, stem, suffix, *, cuts, flips, seed):
    """Copies that end early, and copies with one bit changed."""
    rng = np.random.default_rng(seed)
    for cut in np.unique(np.linspace(0, len(content) - 16, cuts).astype(int)):
        yield Input(f"{stem}-cut-{cut}{suffix}", content[:cut], REFUSED)
    for bit in np.sort(rng.choice(8 * len(content), flips, replace=False)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << (bit % 8)
        yield Input(f"{stem}-bit-{bit}{suffix}", bytes(changed), EITHER)


def images():
    """PNG and JPEG files, and what is called so."""
    grey = picture()
    png, jpeg = encoded(grey), encoded(grey, "JPEG", quality=95)
    colour = Image.fromarray(np.stack([grey, grey[::-1], grey.T], axis=-1))
    luma = np.asarray(colour.convert("L"))
    square = grey // 2  # values that a palette of 128 colours holds
    palette = Image.fromarray(square).convert("P")
    deep = grey.astype(np.uint16) * 257
    frames = [Image.fromarray(grey), Image.fromarray(255 - grey)]
    readable = {
        "one-pixel.png": (np.array([[7]], np.uint8),),
        "one-row.png": (grey[:1],),
        "one-column.png": (grey[:, :1].copy(),),
        "palette.png": (palette, square),
        "one-bit.png": (Image.fromarray(grey > 100), np.uint8(255) * (grey > 100)),
        "alpha.png": (Image.merge("LA", [Image.fromarray(grey)] * 2), grey),
        "colour-alpha.png": (Image.merge("RGBA", [*colour.split(), frames[1]]), luma),
        "colour.png": (colour, luma),
    }
    for name, (image, *right) in readable.items():
        yield Input(name, encoded(image), right[0] if right else image)
    yield Input("sixteen-bits.png", encoded(Image.fromarray(deep)), EITHER)  # may be stretched
    animated = encoded(frames[0], save_all=True, append_images=frames[1:])
    yield Input("animated.png", animated, grey)
    for name, options in {"progressive": {"progressive": True}, "coarse": {"quality": 100}}.items():
        content = encoded(grey, "JPEG", **{"quality": 95, **options})
        yield Input(f"{name}.jpg", content, np.asarray(Image.open(io.BytesIO(content))))
    content = encoded(colour, "JPEG", quality=95, subsampling=0)
    yield Input("colour.jpg", content, np.asarray(Image.open(io.BytesIO(content)).convert("L")))
    inks = encoded(colour.convert("CMYK"), "JPEG", quality=95)
    yield Input("cmyk.jpg", inks, np.asarray(Image.open(io.BytesIO(inks)).convert("L")))
    turned = Image.Exif()
    turned[0x0112] = 6
    content = encoded(grey, "JPEG", quality=95, exif=turned)
    yield Input("turned.jpg", content, np.rot90(np.asarray(Image.open(io.BytesIO(content))), -1))

    yield from broken_copies(png, "png", ".png", cuts=30, flips=30, seed=0)
    yield from broken_copies(jpeg, "jpeg", ".jpg", cuts=30, flips=30, seed=1)
    for name, content in {
        "empty.png": b"",
        "empty.jpg": b"",
        "zeros.png": bytes(4096),
        "text.png": b"This is not an image.\n" * 9,
        "page.jpg": b"<!DOCTYPE html><title>404</title>" * 9,
        "magic-only.png": png[:8],
        "magic-only.jpg": jpeg[:3],
        "wrong-magic.png": b"\x88" + png[1:],
        "packed.png": gzip.compress(png, mtime=0),
        "nan.png": encoded(np.full((8, 8), np.nan, np.float32), "TIFF"),
        "tiff.png": encoded(grey, "TIFF"),
        "gif.png": encoded(grey, "GIF"),
        "bitmap.png": encoded(grey, "BMP"),
        "webp.jpg": encoded(grey, "WEBP", lossless=True),
        "portable.png": b"P5 30000 30000 255\n" + bytes(99),
        "script.png": b"#!/bin/sh\ntouch /tmp/owned\n",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "archive.png": b"PK\x03\x04" + bytes(99),
        "pickle.png": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07posix.",
        "array.png": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False}",
        "chunk-of-4-GB.png": png[:33] + b"\xff\xff\xff\xf0IDAT" + png[41:],
        "chunk-of-1-GB.png": png[:33] + b"\x40\0\0\0tEXt" + png[33:],
        "end-of-4-GB.png": png[:8]  # found by fuzzing
        + bytes.fromhex("0000000d49484452 00000001 00000009 0800310000 3a7e9b55 0000000a44494154")
        + bytes.fromhex("789c6360010000feffff ffbe3c73 ff00000049454e44 ae426082"),
        "no-pixels.png": png[:33] + png_chunk(b"IEND", b""),
        "garbage-pixels.png": png[:33] + png_chunk(b"IDAT", b"garbage") + png_chunk(b"IEND", b""),
    }.items():
        yield Input(name, content, REFUSED)
    bombs = [(30000, 30000), (2**31, 2**31), (2**31 - 1, 1), (1, 2**31 - 1), (0, 9), (9, 0)]
    sized = [(12000, 9000), (16000, 16000), (65535, 65535)]
    for (width, height), rows in [*((b, 0) for b in bombs), *((s, 50) for s in sized)]:
        yield Input(f"bomb-{width}x{height}.png", png_bomb(width, height, rows=rows), REFUSED)
    for depth, colour in [(16, 6), (3, 0), (8, 1), (8, 7)]:
        content = png_bomb(20000 if depth == 16 else 9, 9999, depth=depth, colour=colour)
        yield Input(f"header-{depth}-{colour}.png", content, REFUSED)
    decoy = b"\0\xc0\0\x0b\x08\0\x10\0\x10\x01"  # bytes that libjpeg skips, and a parser may not
    huge = jpeg_bomb(30000, 30000)
    yield Input("decoy.jpg", huge[:2] + decoy + huge[2:], REFUSED)
    for width, height in [(30000, 30000), (65500, 65500), (65535, 2000), (0, 24), (24, 0)]:
        yield Input(f"bomb-{width}x{height}.jpg", jpeg_bomb(width, height), REFUSED)


def dicom(pixels=None, *, transfer=ExplicitVRLittleEndian, **fields):
    """Bytes of a DICOM file; a field of `None` is left out."""
    pixels = picture() if pixels is None else pixels
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = transfer
    file = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    settings = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": 8 * pixels.itemsize,
        "HighBit": 8 * pixels.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    }
    with pydicom.config.disable_value_validation():
        for name, value in {**settings, **fields}.items():
            if value is not None:
                setattr(file, name, value)
        if transfer == JPEGBaseline8Bit and "PixelData" in file:
            file["PixelData"].VR = "OB"
            file["PixelData"].is_undefined_length = True
        stream = io.BytesIO()
        file.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def jpeg_dicom(frame, **fields):
    """DICOM around one JPEG frame, or what is called so."""
    fields = {"PixelData": encapsulate([frame]), **fields}
    return dicom(transfer=JPEGBaseline8Bit, **fields)


def with_text(content, keyword, text):
    """DICOM with text where a number belongs; pydicom would not write it."""
    file = pydicom.dcmread(io.BytesIO(content))
    with pydicom.config.disable_value_validation():
        element = pydicom.DataElement(pydicom.datadict.tag_for_keyword(keyword), "LO", text)
        file.add(element)
        stream = io.BytesIO()
        file.save_as(stream, enforce_file_format=True)
    vr = pydicom.datadict.dictionary_VR(keyword).encode()
    tag = struct.pack("<HH", element.tag.group, element.tag.element)
    return stream.getvalue().replace(tag + b"LO", tag + vr)


def dicoms():
    """DICOM files, and what is called so."""
    grey = picture()
    plain, frame = dicom(), encoded(grey, "JPEG", quality=95)
    shown = np.asarray(Image.open(io.BytesIO(frame)))
    deep = grey.astype(np.uint16) * 16
    window = {"WindowCenter": 2040.5, "WindowWidth": 4081}  # 0 to 4080 become 0 to 255
    shift = {"RescaleIntercept": 999, "RescaleSlope": 1}
    for name, content, right in (
        ("plain", plain, grey),
        ("jpeg", jpeg_dicom(frame), shown),
        ("inverted", dicom(PhotometricInterpretation="MONOCHROME1"), 255 - grey),
        ("twelve-bits", dicom(deep, BitsStored=12, HighBit=11, **window), grey),
        ("signed", dicom(deep.astype(np.int16) - 999, **shift, **window), grey),
        ("no-samples", dicom(SamplesPerPixel=None), grey),
        ("zero-samples", dicom(SamplesPerPixel=0), grey),
        ("no-preamble", plain[132:], grey),
        ("frames-text", with_text(plain, "NumberOfFrames", "many"), grey),
        ("slope-text", with_text(dicom(RescaleIntercept=1), "RescaleSlope", "steep"), grey),
        ("one-pixel", dicom(np.array([[9]], np.uint8)), np.array([[9]], np.uint8)),
        ("named", dicom(PatientName="A^B", PatientID="=1+1", PatientAge="old"), grey),
    ):
        yield Input(f"{name}.dcm", content, right)

    colour = encoded(Image.fromarray(grey).convert("RGB"), "JPEG")
    yield Input("jpeg-colour.dcm", jpeg_dicom(colour), EITHER)
    text = with_text(dicom(deep, WindowCenter=1), "WindowWidth", "wide")
    yield Input("window-text.dcm", text, EITHER)
    yield Input("window-zero.dcm", dicom(deep, WindowCenter=9, WindowWidth=0), EITHER)
    yield from broken_copies(plain, "dicom", ".dcm", cuts=30, flips=30, seed=2)
    yield from broken_copies(jpeg_dicom(frame), "jpeg-dicom", ".dcm", cuts=30, flips=30, seed=3)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    megabyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    start = _meta_end(plain)
    meta = _with_transfer(plain, b"1.2.840.10008.1.2.1.99")
    fields = {  # one field of a good file, missing or with a value that cannot be right
        "PixelData": (None, b"", grey.tobytes()[:100]),
        "Rows": (None, 0, SIDE + 1),
        "Columns": (None,),
        "PhotometricInterpretation": (None, "", "RGB", "PALETTE COLOR", "YBR_FULL_422", "GREY"),
        "SamplesPerPixel": (3,),
        "BitsAllocated": (None, 0, 7, 16, 64),
        "BitsStored": (None,),
        "PixelRepresentation": (None,),
        "NumberOfFrames": (10**9,),
    }
    for field, values in fields.items():
        for number, value in enumerate(values):
            yield Input(f"{field}-{number}.dcm", dicom(**{field: value}), REFUSED)
    wrong = {
        "empty": b"",
        "text": b"This is not DICOM.\n" * 99,
        "a-png": encoded(grey),
        "preamble-only": bytes(128) + b"DICM",
        "meta-only": plain[:start],
        "rows-65535": dicom(Rows=65535, Columns=65535),
        "frames-2": dicom(NumberOfFrames=2, PixelData=grey.tobytes() * 2),
        "unknown-transfer": _with_transfer(plain, b"1.2.3.4"),
        "big-endian-said": _with_transfer(plain, b"1.2.840.10008.1.2.2"),
        "deflated-said": meta + plain[start:],
        "deflated-bomb": meta + 600 * megabyte,
        "raw-called-jpeg": dicom(
            transfer=JPEGBaseline8Bit, PixelData=encapsulate([grey.tobytes()])
        ),
        "jpeg-garbage": jpeg_dicom(b"\xff\xd8" + b"garbage" * 30),
        "jpeg-nothing": jpeg_dicom(b"\0\0"),
        "jpeg-no-pixel-data": dicom(transfer=JPEGBaseline8Bit, PixelData=None),
        "jpeg-bomb": jpeg_dicom(jpeg_bomb(65500, 65500), Rows=65500, Columns=65500),
        "jpeg-bomb-inside": jpeg_dicom(jpeg_bomb(65500, 65500)),
        "jpeg-lies": jpeg_dicom(frame, Rows=1024, Columns=1024),
        "jpeg-lies-less": jpeg_dicom(frame, Rows=8, Columns=8),
        "jpeg-lies-much": jpeg_dicom(frame, Rows=65280, Columns=65280),
        "png-inside": jpeg_dicom(encoded(grey)),
        "nested": _nested(plain, 3000),
        "length-lies": plain[:start] + struct.pack("<HH2sHI", 8, 5, b"OB", 0, 2**32 - 2),
    }
    for name, content in wrong.items():
        yield Input(f"{name}.dcm", content, REFUSED)


def _meta_end(content):
    return 144 + struct.unpack("<I", content[140:144])[0]


def _with_transfer(content, uid):
    """File header of a DICOM with another transfer syntax; nothing after it if it is deflated."""
    start = _meta_end(content)
    body = content[start:]
    uid += b"\0" * (len(uid) % 2)
    old = content.index(b"\x02\x00\x10\x00UI")
    length = struct.unpack("<H", content[old + 6 : old + 8])[0]
    new = b"\x02\x00\x10\x00UI" + struct.pack("<H", len(uid)) + uid
    meta = content[144:old] + new + content[old + 8 + length : start]
    head = content[:140] + struct.pack("<I", len(meta)) + meta
    return head if uid.startswith(b"1.2.840.10008.1.2.1.99") else head + body


def _nested(content, depth):
    """Sequences within sequences, each of undefined length."""
    start = _meta_end(content)
    sequence = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF)
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return content[:start] + (sequence + item) * depth


RLES = [  # texts that are no run lengths on a 16 x 16 image
    *("-3 4", "3 -4", "3 0", "4 6 -2 3"),  # negative, zero, overlapping
    *("250 7", "256 1", "0 257", "0 1 " * 300, "1 1 " * 200_000),  # beyond the image
    *("1 2 3", "12", "", " \t ", "-1 3", "-1 -1"),  # no pairs
    *("one two", "nan 3", "inf 3", "1.0 3.0", "1e2 3", "0x10 3", "1_0 3"),  # no whole numbers
    *("1,2,3,4", "[1, 2]", "1 2\x003 4", "=1+1 2", "<b>1</b> 2"),
    *("\uff11 \uff12", "\u0661 \u0662", "\u22121"),  # digits of other scripts, a minus sign
    *("2147483648 1", "9223372036854775808 1", "9223372036854775807 " * 2),  # overflow
    *("1" + "0" * 100 + " 1", "1" * 5000 + " 1", "4611686018427387904 " * 4),
]
HEAD = "new_filename,ImageId,has_pneumo\n"
GOOD = "a.png,a,0\nb.png,b,1\n"
_MANY = ",".join(f"c{i}" for i in range(3000))
TABLES = {  # stage_1_train_images.csv beside images a.png and b.png: none of them can be used
    "empty": b"",
    "newline": b"\n\n\n",
    "header only": HEAD.encode(),
    "no header": GOOD.encode(),
    "missing column": b"new_filename,has_pneumo\na.png,0\nb.png,1\n",
    "column twice": (b"new_filename,ImageId,ImageId,has_pneumo\na.png,x,a,0\nb.png,y,b,1\n"),
    "other names": b"file,id,label\na.png,a,0\nb.png,b,1\n",
    "other case": HEAD.upper().encode() + GOOD.encode(),
    "semicolons": (HEAD + GOOD).replace(",", ";").encode(),
    "tabs": (HEAD + GOOD).replace(",", "\t").encode(),
    "too few cells": (HEAD + "a.png\nb.png\n").encode(),
    "too many cells": (HEAD + GOOD + "c.png,c,1,2,3,4\n").encode(),
    "row missing": (HEAD + "a.png,a,0\n").encode(),
    "row too many": (HEAD + GOOD + "c.png,c,0\n").encode(),
    "row twice": (HEAD + GOOD + "a.png,a,0\n").encode(),
    "nul bytes": bytes(500),
    "open quote": (HEAD + 'a.png,"a,0\nb.png,b,1\n').encode(),
    "utf-16": (HEAD + GOOD).encode("utf-16"),
    "utf-32": (HEAD + GOOD).encode("utf-32"),
    "latin-1": (HEAD + "a.png,\xe4,0\nb.png,b,1\n").encode("latin-1"),
    "ebcdic": (HEAD + GOOD).encode("cp500"),
    "packed": gzip.compress((HEAD + GOOD).encode(), mtime=0),
    "png": encoded(picture()),
    "random": np.random.default_rng(0).bytes(5000),
    "html": b"<html><body>Sign in to continue</body></html>",
    "json": b'[{"new_filename": "a.png"}]',
    "many columns": f"{_MANY}\n{_MANY}\n".encode(),
    "long line": HEAD.encode() + b"a" * 2_000_000,
}
_CELLS = {  # one cell of the first row, which no table may hold
    "name": ("", ".", "../a.png", "../png_images/a.png", "/etc/passwd", "C:\\a.png", "~/a.png"),
    "address": ("http://localhost/a.png", "a.png\x00"),
    "id": ("", "b", "a\0b", "=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(1)"),
    "label": ("", "2", "yes", "1.0"),
}
_ROWS = {"id": "a.png,{},0", "label": "a.png,a,{}"}
TABLES |= {
    f"{kind} {number}": f"{HEAD}{_ROWS.get(kind, '{},a,0').format(cell)}\nb.png,b,1\n".encode()
    for kind, cells in _CELLS.items()
    for number, cell in enumerate(cells)
}
READABLE_TABLES = {  # the same, and each can be read
    "plain": (HEAD + GOOD).encode(),
    "bom": (HEAD + GOOD).encode("utf-8-sig"),
    "windows lines": (HEAD + GOOD).replace("\n", "\r\n").encode(),
    "old mac lines": (HEAD + GOOD).replace("\n", "\r").encode(),
    "no last newline": (HEAD + GOOD).strip().encode(),
    "blanks": (HEAD + GOOD).replace(",", " , ").encode(),
    "quotes": b'"new_filename","ImageId","has_pneumo"\n"a.png","a","0"\n"b.png","b","1"\n',
    "more columns": b"x,new_filename,ImageId,has_pneumo\n9,a.png,a,0\n8,b.png,b,1\n",
    "other order": b"has_pneumo,ImageId,new_filename\n0,a,a.png\n1,b,b.png\n",
    "blank lines": (HEAD + GOOD).replace("\n", "\n\n").encode(),
}
RLE_HEAD = "ImageId, EncodedPixels\n"
RLE_TABLES = {  # the run-length table beside a.dcm and b.dcm: none of them can be used
    "empty": b"",
    "header only": RLE_HEAD.encode(),
    "three columns": b"ImageId,EncodedPixels,more\na,-1,x\nb,0 4,x\n",
    "one column": b"ImageId\na\nb\n",
    "ragged": (RLE_HEAD + "a,-1\nb,0 4,5,6\n").encode(),
    "semicolons": b"ImageId;EncodedPixels\na;-1\nb;0 4\n",
    "row missing a file": (RLE_HEAD + "a,-1\nb,0 4\nc,-1\n").encode(),
    "other ids": (RLE_HEAD + "x,-1\ny,0 4\n").encode(),
    "up": (RLE_HEAD + "../a,-1\nb,0 4\n").encode(),
    "absolute": (RLE_HEAD + "/etc/passwd,-1\nb,0 4\n").encode(),
    "id empty": (RLE_HEAD + ",-1\nb,0 4\n").encode(),
    "utf-16": (RLE_HEAD + "a,-1\nb,0 4\n").encode("utf-16"),
    "latin-1": (RLE_HEAD + "\xe4,-1\nb,0 4\n").encode("latin-1"),
    "nul bytes": bytes(99),
    "random": np.random.default_rng(1).bytes(5000),
    "formula": (RLE_HEAD + "=1+1,-1\na,-1\nb,0 4\n").encode(),
    "open quote": (RLE_HEAD + 'a,"-1\nb,0 4\n').encode(),
}
