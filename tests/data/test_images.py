"""Decoding of X-rays and masks, their resizing, and frames."""

import cv2
import numpy as np
import pydicom
import pytest
from dicom_files import dicom_bytes
from PIL import Image

from pneumo_lib.data import images
from pneumo_lib.data.images import (
    inside_frame,
    read_image,
    read_mask,
    read_pair,
    resize_image,
    resize_mask,
)
from pneumo_lib.data.siim import read_cases


@pytest.fixture
def write_mask(tmp_path, monkeypatch):
    """A function that writes a mask file and returns its case; the cache starts empty."""
    monkeypatch.setattr(images, "_EMPTY_MASKS", {})

    def write(name, mask):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), 255 * mask)
        return {"image_id": name, "mask_path": str(path), "has_pneumothorax": bool(mask.any())}

    return write


def test_identical_empty_mask_files_are_decoded_once(write_mask, monkeypatch):
    decoded, decode = [], images._decode
    monkeypatch.setattr(images, "_decode", lambda *a: decoded.append(a[1].stem) or decode(*a))
    cases = [write_mask(name, np.zeros((5, 7), np.uint8)) for name in "abc"]
    masks = [images.read_mask(case, (5, 7)) for case in cases]
    assert decoded == ["a"]
    masks[1][0, 0] = 1  # each is the caller's own
    for mask, pixel in zip(masks, (0, 1, 0), strict=True):
        assert (mask.shape, mask.dtype, mask.sum()) == ((5, 7), np.uint8, pixel)


def test_mask_file_that_gains_pixels_is_read_anew(write_mask):
    images.read_mask(write_mask("a", np.zeros((4, 4), np.uint8)), (4, 4))
    case = write_mask("a", np.eye(4, dtype=np.uint8))
    assert images.read_mask(case, (4, 4)).sum() == 4


def test_only_so_many_empty_files_are_remembered(write_mask, monkeypatch):
    monkeypatch.setattr(images, "_EMPTY_MASKS_KEPT", 2)
    for side in range(3, 9):
        images.read_mask(write_mask("a", np.zeros((side, side), np.uint8)), (side, side))
    assert len(images._EMPTY_MASKS) == 2


# -- frames


CHEST = np.arange(20, 20 + 8 * 16, dtype=np.uint8).reshape(8, 16)


@pytest.mark.parametrize("level", [0, 255])
def test_frame_of_one_level_is_left_out(level):
    framed = np.pad(CHEST, ((2, 6), (3, 13)), constant_values=level)  # 16 rows, 32 columns
    assert inside_frame(framed) == (2 / 16, 10 / 16, 3 / 32, 19 / 32)


def test_letters_in_the_frame_do_not_end_it():
    framed = np.pad(CHEST, ((22, 2), (3, 13)))  # 32 rows and columns
    framed[2:5, 20:23] = 255  # 3 of 32 pixels
    assert inside_frame(framed) == (22 / 32, 30 / 32, 3 / 32, 19 / 32)


def test_noise_of_two_levels_is_still_a_frame():
    framed = np.pad(CHEST, 4, constant_values=10)
    framed[0, ::2] = 12
    assert inside_frame(framed) == (4 / 16, 12 / 16, 4 / 24, 20 / 24)


@pytest.mark.parametrize(
    "image",
    [
        CHEST,
        np.pad(CHEST, ((4, 0), (4, 4))),  # air above and beside the arms, not below
        np.pad(np.pad(CHEST, ((4, 0), (4, 4))), ((0, 4), (0, 0)), constant_values=255),
        np.zeros((8, 8), np.uint8),
        np.pad(CHEST[:2, :2], 4),  # 2 of 10 pixels would be left
    ],
    ids=["no frame", "three sides", "two levels", "nothing else", "almost nothing else"],
)
def test_everything_else_is_whole(image):
    assert inside_frame(image) == (0, 1, 0, 1)


def test_only_real_xrays_that_look_framed_are_taken_for_it(siim_real):
    """Two of 387, by eye: a child on a third of the film, and one turned by ten degrees."""
    paths = sorted((siim_real / "png_images").iterdir())
    framed = [path.name for path in paths if inside_frame(read_image(path)) != (0, 1, 0, 1)]
    assert framed == ["217_train_0_.png", "95_test_0_.png"]


# Pixels


def test_read_image_scales_16_bits_and_greys_colour(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.array([[0, 32896, 65535]], np.uint16))
    cv2.imwrite(str(tmp_path / "colour.png"), np.full((1, 1, 3), 90, np.uint8))
    assert read_image(tmp_path / "deep.png").tolist() == [[0, 128, 255]]
    assert read_image(tmp_path / "colour.png").tolist() == [[90]]


def test_hot_pixel_of_a_16_bit_picture_leaves_the_contrast_of_the_chest(tmp_path):
    chest = np.random.default_rng(0).integers(1000, 1400, (100, 100)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "clean.png"), chest)
    chest[50, 50] = 65535
    cv2.imwrite(str(tmp_path / "hot.png"), chest)
    clean, hot = (read_image(tmp_path / f"{name}.png").astype(int) for name in ("clean", "hot"))
    hot[50, 50] = clean[50, 50]
    np.testing.assert_allclose(hot, clean, atol=2)
    assert (clean.min(), clean.max()) == (0, 255)


def test_picture_and_dicom_file_of_the_same_values_look_alike(tmp_path):
    rng = np.random.default_rng(0)
    for bits, kind in ((8, np.uint8), (12, np.uint16), (16, np.uint16)):
        pixels = (rng.normal(0.5, 0.1, (40, 30)).clip(0, 1) * (2**bits - 1)).astype(kind)
        cv2.imwrite(str(tmp_path / "a.png"), pixels)
        (tmp_path / "a.dcm").write_bytes(dicom_bytes(pixels, bits=bits))
        read = [read_image(tmp_path / name) for name in ("a.png", "a.dcm")]
        np.testing.assert_array_equal(*read)
        assert (read[0].min(), read[0].max()) == (0, 255) or bits == 8


def test_picture_of_one_value_is_black(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((3, 4), 5000, np.uint16))
    assert not read_image(tmp_path / "a.png").any()


@pytest.mark.parametrize("content", [b"", b"text"])
@pytest.mark.parametrize("name", ["a.png", "a.dcm"])
def test_read_image_refuses_what_is_no_image(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"must (be|hold).*{name}"):
        read_image(tmp_path / name)


def test_tiff_has_its_own_reason(tmp_path):
    for name, kind in (("a.tif", {"big_tiff": True}), ("b.png", {})):
        Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / name, "TIFF", **kind)
        with pytest.raises(ValueError, match=rf"{name}, a TIFF file\. Save it as PNG"):
            read_image(tmp_path / name)


def test_read_image_refuses_a_file_that_breaks_off(png_release):
    path = png_release / "png_images" / "0_train_1_.png"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="complete PNG"):
        read_image(path)


@pytest.mark.filterwarnings("ignore:End of file reached")  # pydicom's own word on such a file
def test_read_image_refuses_a_dicom_file_that_breaks_off(siim_dicom, tmp_path):
    path = next(siim_dicom.rglob("*.dcm"))
    (tmp_path / "a.dcm").write_bytes(path.read_bytes()[:50_000])
    for at_least in (None, 128):
        with pytest.raises(ValueError, match=r"a\.dcm"):
            read_image(tmp_path / "a.dcm", at_least=at_least)


def test_read_image_of_a_missing_file_is_a_missing_file(tmp_path):
    for name in ("a.png", "a.dcm"):
        with pytest.raises(FileNotFoundError, match=name):
            read_image(tmp_path / name)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_reduced_reading_is_area_averaging_to_two_grey_levels(siim_dicom, size):
    for path in siim_dicom.rglob("*.dcm"):
        full = pydicom.dcmread(path).pixel_array
        np.testing.assert_array_equal(read_image(path), full)
        judge = full.reshape(size, 1024 // size, size, -1).mean(axis=(1, 3))
        reduced = read_image(path, at_least=size)
        assert reduced.shape[0] < 1024
        assert np.abs(resize_image(reduced, (size, size)) - judge).max() <= 2.5


def test_reduced_reading_is_full_size_where_pixels_would_not_average_whole(siim_dicom):
    path = next(siim_dicom.rglob("*.dcm"))
    for at_least in (None, 100, 512):
        assert read_image(path, at_least=at_least).shape == (1024, 1024)


def test_official_masks_of_the_sample_have_their_published_pixel_counts(siim_dicom):
    cases = read_cases(siim_dicom).query("has_pneumothorax").to_dict("records")
    counted = {
        case["image_id"].split(".")[-3]: int(read_mask(case, (1024, 1024)).sum()) for case in cases
    }
    assert counted == {"4904": 9418, "1314": 29079, "4440": 2486, "4982": 5232, "12743": 2071}


@pytest.mark.parametrize("brightest", [1, 255])
def test_read_mask_cuts_a_file_at_half_of_its_brightest(tmp_path, brightest):
    grey = np.array([[0, brightest // 3, brightest]], np.uint8)
    cv2.imwrite(str(tmp_path / "mask.png"), grey)
    case = {"image_id": "a", "mask_path": tmp_path / "mask.png", "has_pneumothorax": True}
    mask = read_mask(case, (1, 3))
    assert mask.tolist() == [[0, 0, 1]]
    assert mask.dtype == np.uint8


def test_read_mask_brings_a_mask_file_to_the_size_of_its_image(write_mask):
    case = write_mask("a", np.kron([[1, 0], [0, 0]], np.ones((4, 4), int)))
    assert read_mask(case, (2, 2)).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(("rle", "label"), [("-1", True), ("0 3", False)])
def test_read_mask_refuses_a_mask_that_contradicts_its_label(rle, label, write_mask):
    drawn = {"image_id": "a", "rles": [rle]}
    for case in (drawn, write_mask("a", np.full((4, 4), not label, np.uint8))):
        for _ in range(2):  # an empty file is in the cache the second time
            with pytest.raises(ValueError, match=f"pixels, has_pneumothorax={label} for a"):
                read_mask(case | {"has_pneumothorax": label}, (4, 4))


def test_read_pair_lays_run_lengths_on_the_full_size_of_a_reduced_image(siim_dicom):
    case = read_cases(siim_dicom).query("has_pneumothorax").iloc[0]
    image, mask = read_pair(case, 128)
    full = read_mask(case, (1024, 1024)).reshape(128, 8, 128, 8).mean(axis=(1, 3))
    np.testing.assert_array_equal(mask, full >= 0.5)
    assert image.shape == (128, 128)


# Resizing


def test_resize_image_averages_areas():
    image = np.array([[0, 10, 100, 100], [20, 30, 100, 100]], np.uint8)
    assert resize_image(image, (1, 2)).tolist() == [[15, 100]]


def test_resize_image_averages_the_side_that_shrinks_while_the_other_grows():
    image = np.array([[0, 0, 0, 100, 200, 200, 200, 200]], np.float32)
    rows = resize_image(image, (4, 2))
    np.testing.assert_allclose(rows, [[25, 200]] * 4)


def test_resize_mask_keeps_a_pixel_at_half_of_its_area():
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, 0] = 1  # half of the first output pixel
    mask[0, 2] = 1  # a quarter of the second
    resized = resize_mask(mask, (2, 2))
    assert resized.tolist() == [[1, 0], [0, 0]]
    assert resized.dtype == np.uint8


def test_resize_mask_grows_a_square_to_a_square():
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 1
    grown = resize_mask(mask, (16, 16))
    expected = np.kron(mask, np.ones((2, 2), np.uint8))
    assert set(np.unique(grown)) == {0, 1}
    assert (grown != expected).sum() <= 4  # linear growth may round the four corners


def test_resize_mask_keeps_the_area_of_real_masks(siim_real):
    cases = read_cases(siim_real)
    full = small = 0
    for case in cases[cases["has_pneumothorax"]].to_dict("records"):
        mask = read_image(case["mask_path"]) // 255
        resized = resize_mask(mask, (128, 128))
        assert resized.any() or mask.sum() < 32  # two pixels of the resized mask
        full += mask.mean()
        small += resized.mean()
    assert small == pytest.approx(full, rel=0.02)  # ties at one half count as mask
