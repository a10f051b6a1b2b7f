"""DICOM files of the field: parts that are missing, syntaxes that lie, the reasons of refusals."""

import cv2
import numpy as np
import pydicom
import pytest
from dicom_files import compressed, dicom_bytes, with_syntax
from pydicom import DataElement, uid
from pydicom.encaps import encapsulate

from pneumo_lib.data.dicom import decode_dicom
from pneumo_lib.data.dicom_open import is_dicom
from pneumo_lib.data.images import read_image

# pydicom's own words on values that break the standard
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

RAMP = np.arange(20 * 24).reshape(20, 24).astype(np.uint16)  # 9 bits
SHOWN = np.rint(RAMP * (255 / 4095)).astype(np.uint8)  # by the window below
WINDOW = {"bits": 12, "WindowCenter": 2048, "WindowWidth": 4096}
GREY = cv2.GaussianBlur(
    (np.add.outer(np.arange(32), np.arange(48)) * 3).astype(np.uint8), (0, 0), 2
)
RGB = np.dstack([GREY] * 3)
COLOUR = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}


def without_meta(data):
    """A file as older programs wrote it: the data set alone."""
    return data[144 + int.from_bytes(data[140:144], "little") :]


def test_big_endian_elements_are_read_under_any_native_syntax():
    data = dicom_bytes(RAMP, uid.ExplicitVRBigEndian, **WINDOW)
    for syntax in (uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian):
        image = decode_dicom(with_syntax(data, syntax)).image
        np.testing.assert_allclose(image, SHOWN, atol=1)


# -- parts that are missing


@pytest.mark.parametrize(
    "syntax",
    [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian],
    ids=lambda syntax: syntax.keyword,
)
def test_file_without_preamble_meta_or_syntax_is_read_and_known_as_dicom(syntax, tmp_path):
    whole = dicom_bytes(RAMP, syntax, **WINDOW)
    files = [whole[132:], without_meta(whole), bytes(128) + without_meta(whole)]
    if syntax != uid.ExplicitVRBigEndian:  # its first element names no type in another order
        files.append(with_syntax(whole, None))
    for number, data in enumerate(files):
        np.testing.assert_allclose(decode_dicom(data).image, SHOWN, atol=1, err_msg=str(number))
    assert is_dicom(whole[:132])
    (tmp_path / "IM0001").write_bytes(without_meta(whole))
    np.testing.assert_allclose(read_image(tmp_path / "IM0001"), SHOWN, atol=1)


@pytest.mark.parametrize("codec", ["jpeg8", "jpegls", "jpeg2k", "jpegxl"])
@pytest.mark.parametrize("named", [None, uid.ExplicitVRLittleEndian])
def test_compressed_pixels_are_read_where_the_syntax_is_missing_or_uncompressed(codec, named):
    options = {"jpeg2k": {"level": 0, "codecformat": "j2k"}, "jpegls": {}}.get(codec, {})
    options |= {"lossless": True} if codec in ("jpeg8", "jpegxl") else {}
    frame = compressed(codec, GREY, **options)
    data = dicom_bytes(GREY, uid.JPEG2000, frame=frame)
    np.testing.assert_array_equal(decode_dicom(with_syntax(data, named)).image, GREY)


@pytest.mark.parametrize("named", [uid.JPEGLosslessSV1, uid.JPEGBaseline8Bit, uid.JPEGLSLossless])
def test_compressed_pixels_of_another_kind_than_named_are_read(named):
    frame = compressed("jpeg2k", GREY, level=0, codecformat="j2k")
    np.testing.assert_array_equal(decode_dicom(dicom_bytes(GREY, named, frame=frame)).image, GREY)


def test_pixels_without_their_end_are_called_so_and_not_another_kind_of_object():
    frame = cv2.imencode(".jpg", GREY)[1].tobytes()
    data = dicom_bytes(GREY, uid.JPEGBaseline8Bit, frame=frame)
    for cut in (-8, -100):
        with pytest.raises(ValueError, match="damaged: its pixels break off"):
            decode_dicom(data[:cut])


def test_pixels_with_fractions_have_their_own_reason():
    data = dicom_bytes(GREY, PixelData=None, FloatPixelData=GREY.astype("f4").tobytes())
    with pytest.raises(ValueError, match="its pixels are numbers with fractions"):
        decode_dicom(data)


@pytest.mark.parametrize(
    "fields", [{"PhotometricInterpretation": "monochrome2"}, {"SamplesPerPixel": None}]
)
def test_field_of_an_xray_that_is_badly_written_does_not_lose_it(fields):
    with pydicom.config.disable_value_validation():
        data = dicom_bytes(RAMP, **WINDOW, **fields)
    np.testing.assert_allclose(decode_dicom(data).image, SHOWN, atol=1)


def test_raw_pixels_under_a_compressed_syntax_are_read():
    data = with_syntax(dicom_bytes(RAMP, **WINDOW), uid.JPEGLosslessSV1)
    np.testing.assert_allclose(decode_dicom(data).image, SHOWN, atol=1)


def test_compressed_pixels_of_no_known_kind_have_a_reason():
    data = dicom_bytes(GREY, uid.JPEG2000, frame=b"other" * 9)
    with pytest.raises(ValueError, match="compressed, but its transfer syntax does not say how"):
        decode_dicom(with_syntax(data, None))


@pytest.mark.parametrize("begin", [b"", b"text, not DICOM. " * 20, b"\x89PNG\r\n\x1a\n" * 20])
def test_other_files_are_no_dicom(begin):
    assert not is_dicom(begin)
    with pytest.raises(ValueError, match="not DICOM: it begins like no DICOM file"):
        decode_dicom(begin)


def test_number_of_frames_that_is_text_does_not_lose_the_xray():
    with pydicom.config.disable_value_validation():
        frames = DataElement("NumberOfFrames", "LO", "one")
        data = dicom_bytes(RAMP, NumberOfFrames=frames, **WINDOW)
    np.testing.assert_allclose(decode_dicom(data).image, SHOWN, atol=1)


@pytest.mark.parametrize("name", ["PhotometricInterpretation", "BitsStored", "Columns"])
def test_field_that_decides_how_pixels_look_is_named_where_it_is_missing(name):
    with pytest.raises(ValueError, match=f"its header lacks {name}$"):
        decode_dicom(dicom_bytes(RAMP, **{name: None}))


# -- compressions


@pytest.mark.parametrize(
    ("syntax", "reason"),
    [
        ("1.2.840.113619.5.2", "transfer syntax 1.2.840.113619.5.2"),  # of one manufacturer
        (uid.MPEG2MPML, "transfer syntax MPEG2 Main Profile / Main Level, 1.2.840.10008.1.2.4.100"),
        ("1.2.840.10008.1.2.4.94", "transfer syntax JPIP Referenced"),
        ("DOE^JOHN", "transfer syntax no UID"),
    ],
)
def test_compression_that_is_not_read_is_named_and_not_called_damaged(syntax, reason):
    data = with_syntax(dicom_bytes(RAMP), syntax)
    with pytest.raises(ValueError, match=f"its compression is not read: {reason}") as caught:
        decode_dicom(data)
    assert "damaged" not in str(caught.value)


# -- grey stored as colour


def colour_files():
    """Name and bytes of the grey image in each encoding of colour."""
    ybr = np.dstack([GREY, np.full_like(GREY, 128), np.full_like(GREY, 128)])
    full, subsampled = (
        COLOUR | {"PhotometricInterpretation": "YBR_FULL"},
        COLOUR | {"PhotometricInterpretation": "YBR_FULL_422"},
    )
    planes = COLOUR | {"PlanarConfiguration": 1, "PixelData": np.moveaxis(RGB, 2, 0).tobytes()}
    jpeg = cv2.imencode(".jpg", RGB, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    yield "interleaved", dicom_bytes(RGB, **COLOUR), 0
    yield "planes", dicom_bytes(RGB, **planes), 0
    yield "luminance", dicom_bytes(ybr, **full), 0
    # miele-lxiv#48: RGB that its header calls luminance, and the other way round
    yield "RGB called luminance", dicom_bytes(RGB, **full), 0
    yield "luminance called RGB", dicom_bytes(ybr, **COLOUR), 0
    yield "RLE", dicom_bytes(RGB, uid.RLELossless, **COLOUR), 0
    yield "JPEG", dicom_bytes(RGB, uid.JPEGBaseline8Bit, frame=jpeg, **subsampled), 2
    yield "JPEG extended", dicom_bytes(RGB, uid.JPEGExtended12Bit, frame=jpeg, **subsampled), 2


def test_grey_xray_stored_as_colour_is_read_as_its_png(tmp_path):
    cv2.imwrite(str(tmp_path / "x.png"), RGB)
    png = read_image(tmp_path / "x.png")
    for name, data, tolerance in colour_files():
        image = decode_dicom(data, at_least=4).image
        np.testing.assert_allclose(image, png.astype(int), atol=tolerance, err_msg=name)


@pytest.mark.parametrize("called", ["YBR_FULL", "YBR_FULL_422", "RGB"])
@pytest.mark.parametrize("stored", ["RGB", "luminance"])
@pytest.mark.parametrize("codec", ["jpegls", "jpeg2k", "jpeg8"])
def test_grey_in_three_channels_is_read_behind_every_lossless_codec(codec, stored, called):
    """dcm4che#543, dcm4che#566, cornerstoneWADOImageLoader#308: no codec converts these."""
    imagecodecs = pytest.importorskip("imagecodecs", reason="of the extra `dicom`")
    flat = np.full_like(GREY, 128)
    pixels = RGB if stored == "RGB" else np.dstack([GREY, flat, flat])
    syntax, options = {
        "jpegls": (uid.JPEGLSLossless, {}),
        "jpeg2k": (uid.JPEG2000Lossless, {"level": 0, "codecformat": "j2k", "mct": False}),
        "jpeg8": (uid.JPEGLosslessSV1, {"lossless": True}),
    }[codec]
    frame = getattr(imagecodecs, f"{codec}_encode")(pixels, **options)
    fields = COLOUR | {"PhotometricInterpretation": called}
    image = decode_dicom(dicom_bytes(pixels, syntax, frame=frame, **fields)).image
    np.testing.assert_array_equal(image, GREY)


def test_coloured_letters_are_read_and_a_colour_image_is_refused():
    letters = RGB.copy()
    letters[:2, :5] = 255, 255, 0
    np.testing.assert_array_equal(decode_dicom(dicom_bytes(letters, **COLOUR)).image[2:], GREY[2:])
    letters[:, :24] = 255, 255, 0
    with pytest.raises(ValueError, match="a colour image"):
        decode_dicom(dicom_bytes(letters, **COLOUR))


def test_encapsulated_syntax_of_a_later_standard_has_its_name():
    """Encapsulated uncompressed: pixels in items, as they are."""
    data = dicom_bytes(GREY, uid.JPEG2000, PixelData=encapsulate([GREY.tobytes()]))
    with pytest.raises(ValueError, match=r"transfer syntax .*1\.2\.840\.10008\.1\.2\.1\.98"):
        decode_dicom(with_syntax(data, "1.2.840.10008.1.2.1.98"))
