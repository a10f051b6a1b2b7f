"""Mask files: the same few empty ones are decoded once, and nothing else changes. Frames."""

import cv2
import numpy as np
import pytest

from pneumo_lib.data import images
from pneumo_lib.data.images import inside_frame, read_image


@pytest.fixture
def write_mask(tmp_path, monkeypatch):
    """A function that writes a mask file and returns its case; nothing is known before."""
    monkeypatch.setattr(images, "_EMPTY_MASKS", {})

    def write(name, mask):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), 255 * mask)
        return {"image_id": name, "mask_path": str(path), "has_pneumothorax": bool(mask.any())}

    return write


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded."""
    names, decode = [], images._decode

    def look(data, path, *flags):
        names.append(path.stem)
        return decode(data, path, *flags)

    monkeypatch.setattr(images, "_decode", look)
    return names


def test_identical_empty_mask_files_are_decoded_once(write_mask, decoded):
    cases = [write_mask(name, np.zeros((5, 7), np.uint8)) for name in "abc"]
    masks = [images.read_mask(case, (5, 7)) for case in cases]
    assert decoded == ["a"]
    masks[1][0, 0] = 1  # each is the caller's own
    for mask, pixel in zip(masks, (0, 1, 0), strict=True):
        assert (mask.shape, mask.dtype, mask.sum()) == ((5, 7), np.uint8, pixel)


def test_empty_masks_of_two_sizes_are_told_apart(write_mask):
    for name, shape in (("a", (5, 7)), ("b", (6, 6))):
        case = write_mask(name, np.zeros(shape, np.uint8))
        assert images._read_mask_file(images.Path(case["mask_path"])).shape == shape


def test_masks_with_pixels_are_decoded_each(write_mask, decoded):
    mask = np.eye(6, dtype=np.uint8)
    for name in "ab":
        np.testing.assert_array_equal(images.read_mask(write_mask(name, mask), (6, 6)), mask)
    assert decoded == ["a", "b"]


def test_known_empty_mask_still_contradicts_a_positive_case(write_mask):
    case = write_mask("a", np.zeros((4, 4), np.uint8))
    images.read_mask(case, (4, 4))
    with pytest.raises(ValueError, match="has_pneumothorax=True for a"):
        images.read_mask(case | {"has_pneumothorax": True}, (4, 4))


def test_mask_file_that_gains_pixels_is_read_anew(write_mask):
    images.read_mask(write_mask("a", np.zeros((4, 4), np.uint8)), (4, 4))
    case = write_mask("a", np.ones((4, 4), np.uint8))
    assert images.read_mask(case, (4, 4)).all()


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
