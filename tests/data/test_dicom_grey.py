"""Grey levels of DICOM X-rays, as public reports of wrong ones and the standard ask for them.

Each case names the report, has the smallest input of its kind, and a value computed by hand or by a
straight line.
"""

import numpy as np
import pytest
from dicom_files import compressed, dicom_bytes, group, lookup_table, palette, table
from pydicom import DataElement, uid
from pydicom.dataset import Dataset

from pneumo_lib.data.dicom import decode_dicom

RAMP = (np.arange(48 * 64) * 4095 // (48 * 64 - 1)).reshape(48, 64).astype(np.uint16)
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}  # 0 to 4095 become 0 to 255
INVERTED = {"PhotometricInterpretation": "MONOCHROME1"}
SQUARES = np.rint(np.linspace(0, 1, 4096) ** 2 * 4095).astype(int).tolist()


def line(values, low, high):
    """The judge: `low` to `high` become 0 to 255."""
    return 255 * np.clip((np.asarray(values, float) - low) / (high - low), 0, 1)


def shown(pixels=RAMP, bits=12, **fields):
    return decode_dicom(dicom_bytes(pixels, bits=bits, **fields)).image


RESCALED = {"macro": "PixelValueTransformationSequence"}
FRAME = "PerFrameFunctionalGroupsSequence"
EMPTY_TABLE = Dataset()
EMPTY_TABLE.add_new("LUTDescriptor", "US", [4096, 0, 12])


PLAIN = line(RAMP, 0, 4095)
CURVED = line(np.array(SQUARES)[RAMP], 0, 4095)
MODALITY = table(SQUARES, 12, name="ModalityLUTSequence")
REPORTS = {
    "OHIF/Viewers#127: slope -10": (
        {"RescaleSlope": -10, "RescaleIntercept": 3000, "WindowCenter": 0, "WindowWidth": 4001},
        line(3000 - 10.0 * RAMP, -2000.5, 1999.5),
    ),
    "the same in MONOCHROME1": (
        {"RescaleSlope": -1, "RescaleIntercept": 4095} | WINDOW | INVERTED,
        PLAIN,
    ),
    "Enet4/dicom-rs#825, OHIF/Viewers#818: 16 bits declared, 12 used": (table(SQUARES, 16), CURVED),
    "16 bits declared, 8 used": (
        table([v // 16 for v in SQUARES], 16),
        line(np.array(SQUARES)[RAMP] // 16, 0, 255),
    ),
    "12 bits declared, 16 used": (
        table([v * 16 for v in SQUARES], 12),
        line(np.array(SQUARES)[RAMP] * 16, 0, 65535),
    ),
    "brightest entry at half of the depth": (
        table([v // 2 for v in SQUARES], 12),
        line(np.array(SQUARES)[RAMP] // 2, 0, 4095),
    ),
    "8 bits, two entries in a word": (
        table([v // 16 for v in SQUARES], 8),
        line(np.array(SQUARES)[RAMP] // 16, 0, 255),
    ),
    "fewer entries than declared: the last one goes on": (
        table(SQUARES, 12, count=3000),
        line(np.array(SQUARES)[RAMP.clip(0, 2999)], 0, 4095),
    ),
    "a table without data, and a window": ({"VOILUTSequence": [EMPTY_TABLE]} | WINDOW, PLAIN),
    "a table without data before one with data": (
        {"VOILUTSequence": [EMPTY_TABLE, *lookup_table(SQUARES, 12)]},
        CURVED,
    ),
    "dcm4che/dcm4che#1521, pydicom#942: first value above 32,767 of signed input": (
        {"RescaleSlope": 1, "RescaleIntercept": -1000} | table(SQUARES, 12, first=2**16 - 1000),
        CURVED,
    ),
    "a table and a window are alternatives": (
        table(SQUARES) | {"WindowCenter": 9, "WindowWidth": 9},
        CURVED,
    ),
    "pydicom#2317: Modality LUT of 12 bits": (MODALITY | WINDOW, CURVED),
    "fo-dicom#1986: a Modality LUT replaces the slope": (
        MODALITY | {"RescaleSlope": 0.01} | WINDOW,
        CURVED,
    ),
    "cornerstoneWADOImageLoader#259: entries of a Modality LUT are unsigned": (
        table([v * 16 for v in SQUARES], 16, name="ModalityLUTSequence")
        | {"WindowCenter": 2**15, "WindowWidth": 2**16},
        line(np.array(SQUARES)[RAMP] * 16, 0, 65535),
    ),
    "fo-dicom#1442: the Modality LUT of angiography is not for display": (
        MODALITY | {"SOPClassUID": uid.XRayRadiofluoroscopicImageStorage} | WINDOW,
        PLAIN,
    ),
    "a Modality LUT without data, and a slope": (
        {"ModalityLUTSequence": [EMPTY_TABLE], "RescaleSlope": 2} | WINDOW,
        line(2 * RAMP, 0, 4095),
    ),
    "pydicom#2353: window of the shared groups": (
        group(WindowCenter=1000, WindowWidth=500),
        line(RAMP, 749.5 + 0.5, 1249.5 - 0.5),
    ),
    "window of the frame before that of all frames": (
        group(WindowCenter=5, WindowWidth=5) | group(FRAME, WindowCenter=1000, WindowWidth=501),
        line(RAMP, 749.5, 1249.5),
    ),
    "an empty group, and a window of the file": (
        group(FRAME, WindowCenter=None, WindowWidth=None) | WINDOW,
        PLAIN,
    ),
    "fo-dicom#917: slope of the shared groups": (
        group(**RESCALED, RescaleSlope=-1, RescaleIntercept=4095) | WINDOW,
        line(4095.0 - RAMP, 0, 4095),
    ),
    "Weasis#372, Daikon#35: MONOCHROME1 and INVERSE are one inversion": (
        WINDOW
        | INVERTED
        | {"PresentationLUTShape": "INVERSE", "PixelIntensityRelationshipSign": -1},
        255 - PLAIN,
    ),
    "dcm4che#944: the shape decides where the two contradict": (
        WINDOW | {"PresentationLUTShape": "INVERSE"},
        255 - PLAIN,
    ),
    "fo-dicom#1891: empty function": (WINDOW | {"VOILUTFunction": ""}, PLAIN),
    "cornerstone3D#2856: function in small letters, one for each window": (
        {"WindowCenter": [2048, 1], "WindowWidth": [4000, 1]}
        | {"VOILUTFunction": DataElement("VOILUTFunction", "LO", ["Linear_exact", "LINEAR"])},
        line(RAMP, 48, 4048),
    ),
    "cornerstone3D#1717: a width below 1, of values between 0 and 1": (
        {"RescaleSlope": 1 / 8192, "WindowCenter": 0.25, "WindowWidth": 0.5},
        line(RAMP / 8192, 0, 0.5),
    ),
    "empty slope and intercept": (WINDOW | {"RescaleSlope": "", "RescaleIntercept": ""}, PLAIN),
    "an intercept alone": (
        {"RescaleIntercept": -1000, "WindowCenter": 0, "WindowWidth": 2000},
        line(RAMP - 1000.0, -1000, 999),
    ),
    "a centre of 0 is one": (
        {"RescaleIntercept": -2000, "WindowCenter": 0, "WindowWidth": 1001},
        line(RAMP - 2000.0, -500.5, 499.5),
    ),
    "cornerstone#508: smallest and largest value of the header are not believed": (
        WINDOW | {"SmallestImagePixelValue": 1000, "LargestImagePixelValue": 1001},
        PLAIN,
    ),
    "a range limit of 0 is one": (
        WINDOW | {"PixelPaddingValue": 100, "PixelPaddingRangeLimit": 0} | INVERTED,
        np.where(RAMP <= 100, 0, 255 - PLAIN),
    ),
    "an empty padding value is none": (
        WINDOW | INVERTED | {"PixelPaddingValue": None, "PixelPaddingRangeLimit": 4095},
        255 - PLAIN,
    ),
}


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian])
def test_reported_headers_give_the_grey_levels_of_the_standard(report, syntax):
    fields, expected = REPORTS[report]
    image = decode_dicom(dicom_bytes(RAMP, syntax, bits=12, **fields)).image
    np.testing.assert_allclose(image, expected, atol=0.51)


@pytest.mark.parametrize(("count", "first"), [(65536, 0), (40000, -100)])
def test_tables_may_have_more_entries_than_a_signed_number_holds(count, first):
    """pydicom#942: 0 stands for 65,536, and the number of entries has no sign."""
    entries = np.linspace(0, 65535, count).round().astype(int).tolist()
    fields = table(entries, 16, first=first) | {"RescaleIntercept": first}
    image = shown(16 * RAMP, 16, **fields)
    np.testing.assert_allclose(image, line(16.0 * RAMP, 0, count - 1), atol=0.51)


@pytest.mark.parametrize(
    "fields",
    [
        {"WindowWidth": 4096},  # bioformats#3619
        {"WindowWidth": 4096, "WindowCenter": ""},  # fo-dicom#161
        {"WindowWidth": "", "WindowCenter": 2048},
        {"WindowWidth": 0, "WindowCenter": 2048},
        {"WindowWidth": -5, "WindowCenter": 2048},
        {"WindowWidth": ["", ""], "WindowCenter": ["", ""]},
        {"VOILUTSequence": []},
        {"VOILUTSequence": [EMPTY_TABLE]},
    ],
)
def test_a_window_that_lacks_a_part_is_none(fields):
    np.testing.assert_array_equal(shown(**fields), shown())


def test_without_a_window_the_sign_of_the_slope_is_kept():
    np.testing.assert_array_equal(shown(RescaleSlope=-3, RescaleIntercept=9), 255 - shown())


def test_high_bit_says_where_the_stored_bits_lie():
    """dicom-numpy#15, PS3.5 8.1.1: bits 15 to 4, and others may hold anything."""
    image = shown(RAMP << 4 | 9, HighBit=15, **WINDOW)
    np.testing.assert_allclose(image, PLAIN, atol=0.51)


def test_high_bit_of_a_compressed_file_may_be_that_before_compression():
    for pixels in (RAMP, RAMP << 4):
        fields = WINDOW | {"HighBit": 15, "frame": compressed("jpegls", pixels), "bits": 12}
        image = decode_dicom(dicom_bytes(pixels, uid.JPEGLSLossless, **fields)).image
        np.testing.assert_allclose(image, PLAIN, atol=0.51)


@pytest.mark.parametrize(("stored", "frame"), [(8, "u2"), (12, "u1")])
def test_frame_may_have_other_bits_than_the_header_says(stored, frame):
    """pydicom#2012: 16 bits in the header, 14 in the frame."""
    pixels = RAMP % 256
    window = {"WindowCenter": 128, "WindowWidth": 256}
    encoded = compressed("jpegls", pixels.astype(frame))
    data = dicom_bytes(pixels, uid.JPEGLSLossless, frame=encoded, bits=stored, **window)
    np.testing.assert_array_equal(decode_dicom(data).image, pixels)


def test_8_stored_of_16_allocated_bits_are_grey_levels():
    """Weasis#94, dcm4che#741, fo-dicom#1992."""
    pixels = (RAMP % 256).astype(np.uint16)
    np.testing.assert_array_equal(shown(pixels, bits=8), pixels)


def test_8_bits_with_a_slope_and_no_window_are_grey_levels():
    pixels = (RAMP % 256).astype(np.uint8)
    fields = {"RescaleSlope": 2, "RescaleIntercept": -100}
    np.testing.assert_array_equal(shown(pixels, 8, **fields), pixels)
    fields["RescaleSlope"] = -2
    np.testing.assert_array_equal(shown(pixels, 8, **fields), 255 - pixels)


@pytest.mark.parametrize(
    "fields",
    [
        {"WindowCenter": 60000, "WindowWidth": 100},  # fo-dicom#752
        {"WindowCenter": -60000, "WindowWidth": 100},
        table([7] * 4096),
        table(SQUARES, first=5000),
        {"WindowCenter": 1e-300, "WindowWidth": 1e300, "VOILUTFunction": "SIGMOID"},
    ],
)
def test_values_that_vary_never_become_one_grey_level(fields):
    with pytest.raises(ValueError, match="makes all of its values one grey level"):
        shown(**fields)


def test_a_single_value_outside_of_the_window_is_no_reason_to_refuse():
    assert not shown(np.full((4, 6), 7, np.uint8), 8, WindowCenter=6000, WindowWidth=10).any()


def with_text(name, text, **fields):
    """A DICOM file with any text as the value of a field of numbers."""
    value = DataElement(name, "LO", text)
    return dicom_bytes(RAMP, bits=12, **fields | {name: value})


@pytest.mark.parametrize("value", ["0", "NaN", "INF", "1e999", "1e308", "one"])
def test_slope_that_is_of_no_use_is_ignored_with_the_window_and_noted(value):
    """GateTools#68: the window counts in units that are not known."""
    fields = WINDOW | {"RescaleIntercept": 0}
    xray = decode_dicom(with_text("RescaleSlope", value, **fields))
    np.testing.assert_array_equal(xray.image, shown())
    assert "its rescale slope is 0 or no number" in xray.notes[0]


@pytest.mark.parametrize("name", WINDOW)
@pytest.mark.parametrize("value", ["NaN", "-INF", "wide"])
def test_window_that_is_no_number_is_none(name, value):
    np.testing.assert_array_equal(decode_dicom(with_text(name, value, **WINDOW)).image, shown())


def test_padding_range_that_holds_all_values_is_ignored_and_noted():
    xray = decode_dicom(
        dicom_bytes(RAMP, bits=12, PixelPaddingValue=0, PixelPaddingRangeLimit=4095, **WINDOW)
    )
    np.testing.assert_allclose(xray.image, PLAIN, atol=0.51)
    assert "padding range holds all" in xray.notes[0]


def test_a_shape_that_contradicts_the_photometric_interpretation_is_noted():
    for fields in (
        INVERTED | {"PresentationLUTShape": "IDENTITY"},
        {"PresentationLUTShape": "INVERSE"},
    ):
        [note] = decode_dicom(dicom_bytes(RAMP, bits=12, **WINDOW | fields)).notes
        assert "PresentationLUTShape contradicts" in note


def test_sign_of_an_ambiguous_padding_value_is_that_of_the_pixels():
    """An implicit file does not say it, and pydicom warns of a negative one."""
    pixels = RAMP.astype(np.int16) - 2000
    for value in (-2000, 2**16 - 2000):
        padding = DataElement("PixelPaddingValue", "SS" if value < 0 else "US", value)
        fields = {"PixelPaddingValue": padding, "WindowCenter": 0, "WindowWidth": 4000} | INVERTED
        image = decode_dicom(dicom_bytes(pixels, uid.ImplicitVRLittleEndian, **fields)).image
        assert image[0, 0] == 0
        assert image[1, 0] > 200


# -- palettes (dwv#663, cornerstone3D#1857: shown as if the indices were grey levels)

INDICES = (np.arange(16 * 32) % 256).reshape(16, 32).astype(np.uint8)
FALLING = np.arange(256)[::-1]


@pytest.mark.parametrize(
    "fields",
    [
        palette(FALLING),
        palette(FALLING, packed=False),
        palette(FALLING * 257, bits=16),
        palette(FALLING, bits=16),  # 8 bits in a table that says 16
    ],
)
def test_grey_palette_is_looked_up(fields):
    np.testing.assert_array_equal(shown(INDICES, 8, **fields), 255 - INDICES)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRBigEndian, uid.RLELossless])
def test_grey_palette_is_looked_up_in_every_encoding(syntax):
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    fields = palette(FALLING * 257, bits=16, order=order)
    image = decode_dicom(dicom_bytes(INDICES, syntax, **fields)).image
    np.testing.assert_array_equal(image, 255 - INDICES)


def test_palette_of_12_bits_has_more_entries_than_8_bits_count():
    fields = palette(np.arange(4096) >> 4)
    np.testing.assert_array_equal(shown(RAMP, 12, **fields), RAMP >> 4)


def test_coloured_entries_of_few_pixels_are_letters_and_of_more_a_colour_image():
    blue = np.arange(256)
    blue[255] = 0  # yellow, in 2 of 512 pixels
    fields = palette(np.arange(256), np.arange(256), blue)
    image = shown(INDICES, 8, **fields)
    np.testing.assert_array_equal(image[INDICES < 255], INDICES[INDICES < 255])
    assert image.max() == 254
    fields = palette(np.arange(256), np.arange(256), FALLING)
    with pytest.raises(ValueError, match="a colour image: PALETTE COLOR"):
        shown(INDICES, 8, **fields)
