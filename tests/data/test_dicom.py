"""DICOM files: every compression and grey scale gives the right pixels, other objects a reason."""

import struct
import sys
import traceback
from io import BytesIO

import cv2
import numpy as np
import pydicom
import pytest
from dicom_files import compressed, dicom_bytes, group, with_syntax
from PIL import Image
from pydicom import DataElement, uid

from pneumo_lib.data import dicom_open
from pneumo_lib.data.dicom import decode_dicom
from pneumo_lib.data.images import read_image

RAMP = np.arange(20 * 24).reshape(20, 24)  # more grey levels than 8 bits hold


def stretched(pixels, low, high):
    """The judge: `low` to `high` become 0 to 255."""
    share = (np.clip(pixels, low, high).astype(float) - low) / (high - low)
    return np.rint(255 * share).astype(np.uint8)


# -- compressions


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
    ],
    ids=lambda syntax: syntax.keyword,
)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_uncompressed_deflated_and_rle_pixels_are_read(syntax, bits):
    pixels = (RAMP << (bits - 9) if bits > 8 else RAMP % 256).astype(f"u{1 if bits == 8 else 2}")
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    image = decode_dicom(dicom_bytes(pixels, syntax, bits=bits, **window)).image
    np.testing.assert_allclose(image, stretched(pixels, 0, 2**bits - 1), atol=1)


def test_rle_pixels_as_long_as_without_compression_are_read():
    pixels = np.tile(np.arange(16, dtype=np.uint8), (66, 1))  # no runs: RLE makes them longer
    pixels[:10] = 0  # and these make up for it
    data = dicom_bytes(pixels, uid.RLELossless)
    assert len(pydicom.dcmread(BytesIO(data)).PixelData) == pixels.size
    np.testing.assert_array_equal(decode_dicom(data).image, pixels)


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize(
    ("syntax", "codec", "options"),
    [
        (uid.JPEGLossless, "jpeg8", {"lossless": True}),
        (uid.JPEGLosslessSV1, "jpeg8", {"lossless": True}),
        (uid.JPEGLSLossless, "jpegls", {}),
        (uid.JPEG2000Lossless, "jpeg2k", {"level": 0, "reversible": True, "codecformat": "j2k"}),
        (uid.HTJ2KLossless, "htj2k", {}),
        (uid.HTJ2KLosslessRPCL, "htj2k", {}),
        ("1.2.840.10008.1.2.4.110", "jpegxl", {"lossless": True}),
        ("1.2.840.10008.1.2.4.112", "jpegxl", {"lossless": True}),
    ],
    ids=lambda value: getattr(value, "keyword", ""),
)
def test_lossless_compressions_lose_nothing(syntax, codec, options, bits):
    pixels = (RAMP << (bits - 9) if bits > 8 else RAMP % 256).astype(f"u{1 if bits == 8 else 2}")
    options = options | ({"bitspersample": bits} if codec in ("jpeg8", "jpeg2k") else {})
    frame = compressed(codec, pixels, **options)
    data = with_syntax(dicom_bytes(pixels, uid.JPEG2000, frame=frame, bits=bits), syntax)
    raw = decode_dicom(dicom_bytes(pixels, bits=bits)).image
    np.testing.assert_array_equal(decode_dicom(data).image, raw)


@pytest.mark.parametrize(
    ("syntax", "codec", "bits", "options"),
    [
        (uid.JPEGBaseline8Bit, "jpeg8", 8, {"level": 95}),
        (uid.JPEGExtended12Bit, "jpeg8", 8, {"level": 95}),
        (uid.JPEGExtended12Bit, "jpeg8", 12, {"level": 95, "bitspersample": 12}),
        (uid.JPEGLSNearLossless, "jpegls", 12, {"level": 2}),
        (uid.JPEG2000, "jpeg2k", 12, {"level": 90, "codecformat": "j2k"}),
    ],
    ids=lambda value: getattr(value, "keyword", ""),
)
def test_lossy_compressions_lose_a_few_grey_levels(syntax, codec, bits, options):
    top = 2**bits - 1
    pixels = (RAMP * (top // RAMP.max())).clip(0, top) if bits > 8 else RAMP // 2
    pixels = pixels.astype(f"u{1 if bits == 8 else 2}")
    frame = compressed(codec, pixels, **options)
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    image = decode_dicom(dicom_bytes(pixels, syntax, frame=frame, bits=bits, **window)).image
    np.testing.assert_allclose(image, stretched(pixels, 0, top), atol=3)


@pytest.mark.parametrize("at_least", [None, 4])
def test_orientation_tag_of_a_jpeg_inside_dicom_is_ignored(at_least):
    pixels, stream, exif = np.zeros((32, 64), np.uint8), BytesIO(), Image.Exif()
    pixels[:, :16], exif[0x0112] = 255, 6  # turned by 90 degrees
    Image.fromarray(pixels).save(stream, "JPEG", exif=exif)
    data = dicom_bytes(pixels, uid.JPEGBaseline8Bit, frame=stream.getvalue())
    image = decode_dicom(data, at_least=at_least).image
    assert image.shape == ((32, 64) if at_least is None else (4, 8))
    np.testing.assert_allclose(image, pixels[:: 32 // len(image), :: 32 // len(image)], atol=20)


def test_missing_codecs_are_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    data = dicom_bytes(RAMP.astype("u2"), uid.JPEG2000, frame=b"frame")
    with pytest.raises(ValueError, match=r"needs the package imagecodecs: pip install"):
        decode_dicom(data)


# -- grey scales


def test_signed_pixels_keep_their_sign_in_every_number_of_bits():
    pixels = np.array([[-2000, -1000, 0, 1000, 2000]], np.int16)
    expected = decode_dicom(dicom_bytes(pixels)).image
    stored = (pixels & 0xFFF).astype(np.uint16)  # 12 bits, nothing above them
    image = decode_dicom(dicom_bytes(stored, bits=12, PixelRepresentation=1)).image
    np.testing.assert_array_equal(image, expected)
    assert expected[0, 2] in (127, 128)


def test_overlay_in_the_bits_above_the_stored_ones_is_not_seen():
    pixels = RAMP.astype(np.uint16)
    with_overlay = pixels | np.uint16(1 << 15)
    clean, drawn = (decode_dicom(dicom_bytes(p, bits=12)).image for p in (pixels, with_overlay))
    np.testing.assert_array_equal(drawn, clean)


def test_window_of_8_bit_pixels_is_applied():
    pixels = np.array([[0, 50, 100, 150, 255]], np.uint8)
    data = dicom_bytes(pixels, WindowCenter=100.5, WindowWidth=101)
    assert decode_dicom(data).image.tolist() == [[0, 0, 128, 255, 255]]


def test_first_of_several_windows_counts_and_an_empty_one_does_not():
    pixels = np.array([[0, 50, 100, 150, 255]], np.uint8)
    data = dicom_bytes(pixels, WindowCenter=[100.5, 10], WindowWidth=[101, 5])
    assert decode_dicom(data).image.tolist() == [[0, 0, 128, 255, 255]]
    for nothing in (None, "", 0):
        data = dicom_bytes(pixels, WindowCenter=nothing, WindowWidth=nothing)
        assert decode_dicom(data).image.tolist() == pixels.tolist()


def test_plain_monochrome1_is_inverted():
    data = dicom_bytes(np.array([[0, 10, 255]], np.uint8), PhotometricInterpretation="MONOCHROME1")
    assert decode_dicom(data).image.tolist() == [[255, 245, 0]]


@pytest.mark.parametrize("interpretation", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_becomes_black_and_does_not_count_for_the_stretch(interpretation):
    pixels = np.array([[1000, 1500, 2000, 60000, 60010]], np.uint16)
    data = dicom_bytes(
        pixels,
        PixelPaddingValue=60000,
        PixelPaddingRangeLimit=60010,
        PhotometricInterpretation=interpretation,
    )
    # three values are left: the middle one alone is no range, so all three are
    inverted = interpretation == "MONOCHROME1"
    expected = [255, 127, 0, 0, 0] if inverted else [0, 128, 255, 0, 0]
    assert decode_dicom(data).image.tolist() == [expected]


def test_image_of_padding_alone_is_black():
    data = dicom_bytes(np.full((2, 2), 7, np.uint16), PixelPaddingValue=7)
    assert not decode_dicom(data).image.any()


def test_borders_and_burnt_in_letters_leave_the_contrast_of_the_chest():
    chest = np.random.default_rng(0).integers(1000, 1400, (100, 100)).astype(np.uint16)
    framed = np.pad(chest, 20)  # black, as a collimator leaves it
    framed[25:35, 25:60] = 4095  # letters
    inside = decode_dicom(dicom_bytes(framed, bits=12)).image[60:120, 20:120]
    assert inside.min() < 10
    assert inside.max() > 245


# -- pixel spacing and orientation


@pytest.mark.parametrize(
    ("fields", "left", "source"),
    [
        ({}, "right", "convention"),
        ({"PatientOrientation": ""}, "right", "convention"),
        ({"PatientOrientation": ["L", "F"]}, "right", "PatientOrientation"),
        ({"PatientOrientation": ["R", "F"]}, "left", "PatientOrientation"),
        ({"PatientOrientation": ["F", "L"]}, "bottom", "PatientOrientation"),
        ({"PatientOrientation": ["F", "RA"]}, "top", "PatientOrientation"),
        ({"PatientOrientation": ["A", "F"]}, None, "PatientOrientation"),
        ({"ViewPosition": "LL"}, None, "ViewPosition"),
        ({"ViewPosition": "PA"}, "right", "convention"),
        ({"ImageLaterality": "L"}, "everywhere", "Laterality"),
        ({"Laterality": "R"}, "nowhere", "Laterality"),
        ({"ImageLaterality": "B"}, "right", "convention"),
    ],
)
def test_patients_left_is_where_the_header_says_or_by_convention(fields, left, source):
    xray = decode_dicom(dicom_bytes(RAMP.astype("u2"), **fields))
    assert (xray.patients_left, xray.side_source) == (left, source)


DETECTOR = "ImagerPixelSpacing, on the detector"
MAGNIFIED = "ImagerPixelSpacing, EstimatedRadiographicMagnificationFactor"
FACTOR = {"EstimatedRadiographicMagnificationFactor": 1.25}
BOTH = {"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.2, 0.1]}


@pytest.mark.parametrize(
    ("fields", "spacing", "source"),
    [
        ({}, None, None),
        ({"PixelSpacing": [0.2, 0.1]}, (0.2, 0.1), "PixelSpacing"),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, (0.2, 0.1), DETECTOR),
        ({"ImagerPixelSpacing": [0.2, 0.1]} | FACTOR, (0.16, 0.08), MAGNIFIED),
        ({"PixelSpacing": [0.2, 0.1]} | FACTOR, (0.2, 0.1), "PixelSpacing"),
        (BOTH | {"PixelSpacing": [0.3, 0.3]}, (0.3, 0.3), "PixelSpacing"),
        (BOTH, (0.2, 0.1), DETECTOR),  # PS3.3 10.7.1: equal ones are not calibrated
        (BOTH | FACTOR, (0.16, 0.08), MAGNIFIED),
        (BOTH | {"PixelSpacingCalibrationType": "FIDUCIAL"}, (0.2, 0.1), "PixelSpacing"),
        ({"ImagerPixelSpacing": [0.2, 0.1], next(iter(FACTOR)): 0}, (0.2, 0.1), DETECTOR),
        ({"PixelSpacing": [0, 0]}, None, None),
        ({"PixelSpacing": "0.2"}, None, None),
    ],
)
def test_spacing_is_in_mm_between_rows_and_columns_and_names_its_fields(fields, spacing, source):
    xray = decode_dicom(dicom_bytes(RAMP.astype("u2"), **fields))
    assert xray.spacing == pytest.approx(spacing)
    assert xray.spacing_source == source


def test_spacing_of_functional_groups_is_read():
    fields = group(macro="PixelMeasuresSequence", PixelSpacing=[0.3, 0.2])
    assert decode_dicom(dicom_bytes(RAMP.astype("u2"), **fields)).spacing == (0.3, 0.2)


def test_comma_as_decimal_point_is_read():
    assert decode_dicom(with_text("PixelSpacing", "0,25\\0,5")).spacing == (0.25, 0.5)


def with_text(name, text, **fields):
    """A DICOM file with any text as the value of a field of numbers (DS)."""
    tag = DataElement(name, "DS", None).tag
    held = "9" * (len(text) + len(text) % 2)
    data = dicom_bytes(RAMP.astype("u2"), bits=12, **fields | {name: held})
    new = text.encode().ljust(len(held))
    at = data.index(struct.pack("<HH", tag.group, tag.element) + b"DS") + 8
    return data[:at] + new + data[at + len(new) :]


# -- what is refused


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"NumberOfFrames": 2}, "it holds 2 frames, not one image"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "a colour image: RGB"),
        ({"SamplesPerPixel": 3}, "a colour image: MONOCHROME2, 3 x 16 bits a pixel"),
        ({"SamplesPerPixel": 2}, "a colour image: MONOCHROME2, 2 x 16 bits a pixel"),
        ({"PhotometricInterpretation": "CIELAB"}, "a colour image: of no known kind, 1 x 16 bits"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "its header lacks its palette"),
        ({"PixelData": None}, "it holds no image: Digital X-Ray Image Storage"),
        ({"Rows": None}, "it holds no image: Digital X-Ray Image Storage"),
        ({"Rows": None, "SOPClassUID": uid.BasicTextSRStorage}, "no image: Basic Text SR Storage"),
        ({"Rows": None, "SOPClassUID": "1.2.3"}, "an unknown kind of object"),
        ({"BitsStored": None}, "its header lacks BitsStored"),
        ({"Rows": 30_000, "Columns": 30_000}, "its header claims 30000 x 30000 pixels"),
        ({"Rows": 0}, "its header claims 0 x 24 pixels"),
        ({"BitsAllocated": 32, "BitsStored": 32}, "32 bits stored in 32; 8 to 16 are read"),
        ({"BitsStored": 17}, "17 bits stored in 16"),
        ({"Rows": 21}, "damaged, or not DICOM: ValueError"),
    ],
)
def test_other_objects_are_refused_with_the_reason(fields, reason):
    with pytest.raises(ValueError, match=reason):
        decode_dicom(dicom_bytes(RAMP.astype("u2"), **fields))


def test_frame_of_another_size_than_the_header_claims_is_refused():
    pixels = RAMP.astype("u1")
    frame = compressed("jpeg2k", np.zeros((40, 40), np.uint8), level=0)
    with pytest.raises(ValueError, match="damaged"):
        decode_dicom(dicom_bytes(pixels, uid.JPEG2000Lossless, frame=frame))
    frame = cv2.imencode(".jpg", np.zeros((40, 40), np.uint8))[1].tobytes()
    large = np.zeros((64, 64), np.uint8)
    for at_least in (None, 8):
        with pytest.raises(ValueError, match=r"damaged|size that its header claims"):
            decode_dicom(dicom_bytes(large, uid.JPEGBaseline8Bit, frame=frame), at_least=at_least)


def test_deflated_file_that_would_fill_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(dicom_open, "MOST_PIXELS", 10_000)
    pixels = np.zeros((90, 90), np.uint16)
    syntax = uid.DeflatedExplicitVRLittleEndian
    assert decode_dicom(dicom_bytes(pixels, syntax)).shape == (90, 90)
    data = dicom_bytes(pixels, syntax, ImageComments="." * 10_000)
    with pytest.raises(ValueError, match="inflates to more than any X-ray holds"):
        decode_dicom(data)


def test_no_error_quotes_a_header(tmp_path):
    """A name in every text field that reading or refusing a file might look at."""
    planted = "DOE^JOHN"
    fields = [
        {"PhotometricInterpretation": planted},
        {"BitsStored": None, "PatientName": planted},
        {"SOPClassUID": planted, "Rows": None},
        {"PatientOrientation": [planted, planted], "BitsAllocated": 32},
        {"ImageLaterality": planted, "Rows": 0},
        {"PixelData": planted.encode()},
    ]
    for number, field in enumerate(fields):
        path = tmp_path / f"{number}.dcm"
        with pydicom.config.disable_value_validation():
            path.write_bytes(dicom_bytes(RAMP.astype("u2"), **field))
        with pytest.raises(ValueError, match="must hold one grey image") as caught:
            read_image(path)
        shown = "".join(traceback.format_exception(caught.value))  # as `--debug` would
        assert "DOE" not in shown.replace(repr(path), "")


def test_no_note_on_an_ignored_field_quotes_a_header(tmp_path, caplog):
    path, planted = tmp_path / "a.dcm", "DOE^JOHN"
    fields = {name: DataElement(name, "LO", planted) for name in ("RescaleSlope", "WindowWidth")}
    path.write_bytes(dicom_bytes(RAMP.astype("u2"), PresentationLUTShape="INVERSE", **fields))
    read_image(path)
    assert caplog.text.count(str(path)) == 2
    assert "DOE" not in caplog.text
