"""DICOM files for tests, with every field settable."""

from io import BytesIO

import numpy as np
import pydicom
import pytest
from pydicom import DataElement, uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate


def dicom_bytes(pixels, syntax=uid.ExplicitVRLittleEndian, *, frame=None, bits=None, **fields):
    """A DICOM X-ray; `frame` holds its pixels compressed. A field of `None` is left out."""
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = syntax
    file.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    file.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    file.SOPClassUID, file.SOPInstanceUID = uid.DigitalXRayImageStorageForPresentation, "1.2.3"
    bits = bits or 8 * pixels.itemsize
    settings = {
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    for name, value in (settings | fields).items():
        if isinstance(value, DataElement):
            file.add(value)
        elif value is not None:
            setattr(file, name, value)
    if syntax == uid.RLELossless:
        file.compress(syntax, pixels, generate_instance_uid=False)
    elif frame is not None:
        file.PixelData = encapsulate([frame])
    elif "PixelData" not in file and fields.get("PixelData", b"") is not None:
        order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
        stored = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
        file.add_new("PixelData", "OW" if pixels.itemsize == 2 else "OB", stored)
    stream = BytesIO()
    pydicom.dcmwrite(stream, file, enforce_file_format=True)
    return stream.getvalue()


def compressed(codec, pixels, **options):
    """Pixels as a frame of one of imagecodecs' codecs; without that package the test is skipped."""
    imagecodecs = pytest.importorskip("imagecodecs", reason="of the extra `dicom`")
    return getattr(imagecodecs, f"{codec}_encode")(pixels, **options)


def with_syntax(data, name):
    """The file with another transfer syntax in its file meta; `None` for none."""
    end = 144 + int.from_bytes(data[140:144], "little")
    start = data.index(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(data[start + 6 : start + 8], "little")
    text = (name or "").encode() + b"\0" * (len(name or "") % 2)
    element = data[start : start + 6] + len(text).to_bytes(2, "little") + text if name else b""
    meta = data[144:start] + element + data[start + 8 + length : end]
    return data[:140] + len(meta).to_bytes(4, "little") + meta + data[end:]


def palette(*colours, bits=8, **options):
    """Fields of a palette from the entries of red, green and blue, or of grey."""
    fields = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, entries in zip(("Red", "Green", "Blue"), colours * (3 // len(colours)), strict=True):
        [item] = lookup_table(np.asarray(entries).tolist(), bits, **options)
        for part, kind in (("Descriptor", "US"), ("Data", "OW")):
            field = f"{name}PaletteColorLookupTable{part}"
            fields[field] = DataElement(field, kind, item[f"LUT{part}"].value)
    return fields


def lookup_table(entries, bits, *, first=0, packed=True, order="<", count=None):
    """A sequence with one table of `count` entries; those of 8 bits are `packed`, two in a word."""
    item = Dataset()
    kind = "SS" if first < 0 else "US"
    item.add_new("LUTDescriptor", kind, [len(entries) % 2**16, first, bits])
    words = np.array(entries[:count]).astype("<u2")
    if bits == 8 and packed:  # the first in the lower byte
        pairs = np.append(entries, [0] * (len(entries) % 2)).astype(np.uint8)
        words = pairs.view("<u2")
    item.add_new("LUTData", "OW", words.astype(f"{order}u2").tobytes())
    return [item]


def table(entries, bits=12, *, name="VOILUTSequence", **options):
    """Fields of a file with a lookup table."""
    return {name: lookup_table(entries, bits, **options)}


def group(name="SharedFunctionalGroupsSequence", *, macro="FrameVOILUTSequence", **fields):
    """Fields of a file with a functional group of one macro."""
    item, inner = Dataset(), Dataset()
    for field, value in fields.items():
        setattr(inner, field, value)
    setattr(item, macro, [inner])
    return {name: [item]}
