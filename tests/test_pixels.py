"""Mask files: the same few empty ones are decoded once, and nothing else changes."""

import cv2
import numpy as np
import pytest

from pneumo_lib import pixels


@pytest.fixture
def write_mask(tmp_path, monkeypatch):
    """A function that writes a mask file and returns its case; nothing is known before."""
    monkeypatch.setattr(pixels, "_EMPTY_MASKS", {})

    def write(name, mask):
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), 255 * mask)
        return {"image_id": name, "mask_path": str(path), "has_pneumothorax": bool(mask.any())}

    return write


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that were decoded."""
    names, decode = [], pixels._decode

    def look(data, path, *flags):
        names.append(path.stem)
        return decode(data, path, *flags)

    monkeypatch.setattr(pixels, "_decode", look)
    return names


def test_identical_empty_mask_files_are_decoded_once(write_mask, decoded):
    cases = [write_mask(name, np.zeros((5, 7), np.uint8)) for name in "abc"]
    masks = [pixels.read_mask(case, (5, 7)) for case in cases]
    assert decoded == ["a"]
    masks[1][0, 0] = 1  # each is the caller's own
    for mask, pixel in zip(masks, (0, 1, 0), strict=True):
        assert (mask.shape, mask.dtype, mask.sum()) == ((5, 7), np.uint8, pixel)


def test_empty_masks_of_two_sizes_are_told_apart(write_mask):
    for name, shape in (("a", (5, 7)), ("b", (6, 6))):
        case = write_mask(name, np.zeros(shape, np.uint8))
        assert pixels._read_mask_file(pixels.Path(case["mask_path"])).shape == shape


def test_masks_with_pixels_are_decoded_each(write_mask, decoded):
    mask = np.eye(6, dtype=np.uint8)
    for name in "ab":
        np.testing.assert_array_equal(pixels.read_mask(write_mask(name, mask), (6, 6)), mask)
    assert decoded == ["a", "b"]


def test_known_empty_mask_still_contradicts_a_positive_case(write_mask):
    case = write_mask("a", np.zeros((4, 4), np.uint8))
    pixels.read_mask(case, (4, 4))
    with pytest.raises(ValueError, match="has_pneumothorax=True for a"):
        pixels.read_mask(case | {"has_pneumothorax": True}, (4, 4))


def test_mask_file_that_gains_pixels_is_read_anew(write_mask):
    pixels.read_mask(write_mask("a", np.zeros((4, 4), np.uint8)), (4, 4))
    case = write_mask("a", np.ones((4, 4), np.uint8))
    assert pixels.read_mask(case, (4, 4)).all()


def test_only_so_many_empty_files_are_remembered(write_mask, monkeypatch):
    monkeypatch.setattr(pixels, "_EMPTY_MASKS_KEPT", 2)
    for side in range(3, 9):
        pixels.read_mask(write_mask("a", np.zeros((side, side), np.uint8)), (side, side))
    assert len(pixels._EMPTY_MASKS) == 2
