"""Masks as programs write them: read right, or refused with the reason."""

import cv2
import numpy as np
import pytest
from PIL import Image

from pneumo_lib.data.images import read_mask
from pneumo_lib.data.masks import binary_mask
from pneumo_lib.data.rle import rle_encode

TRUTH = np.zeros((64, 64), np.uint8)
TRUTH[10:30, 40:55] = 1
CIRCLE = cv2.circle(np.zeros((64, 64), np.uint8), (40, 30), 15, 1, -1)


def read(tmp_path, pixels, truth=TRUTH, *, suffix=".png", **case):
    """The mask of a file that OpenCV or Pillow writes."""
    path = tmp_path / f"mask{suffix}"
    if isinstance(pixels, Image.Image):
        pixels.save(path)
    else:
        path.write_bytes(cv2.imencode(suffix, pixels)[1].tobytes())
    positive = {"image_id": "x", "has_pneumothorax": True, "mask_path": str(path)}
    return read_mask(positive | case, truth.shape)


def layers(colour, alpha):
    return np.dstack([np.broadcast_to(colour, (64, 64, 3)), alpha]).astype(np.uint8)


PALETTE = Image.fromarray(TRUTH).convert("P")
PALETTE.putpalette([0, 0, 0, 128, 0, 0])
WRITTEN = {
    "alpha over white": layers(255, TRUTH * 255),
    "alpha over black": layers(0, TRUTH * 255),
    "white where it is opaque": layers(TRUTH[..., None] * 255, TRUTH * 255),
    "opaque": layers(TRUTH[..., None] * 255, np.full_like(TRUTH, 255)),
    "grey with alpha": Image.fromarray(TRUTH * 255).convert("LA"),
    "red on black": np.dstack([0 * TRUTH, 0 * TRUTH, TRUTH * 255]),
    "palette": PALETTE,
    "1 bit": Image.fromarray(TRUTH * 255).convert("1"),
    "0 and 1": TRUTH,
    "0 and 1 of 16 bits": TRUTH.astype(np.uint16),
    "0 and 65535": TRUTH.astype(np.uint16) * 65535,
    "100 and 255": np.where(TRUTH, 255, 100).astype(np.uint8),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_mask_of_two_levels_is_read_whatever_the_format(tmp_path, name):
    np.testing.assert_array_equal(read(tmp_path, WRITTEN[name]), TRUTH)


def test_smooth_edges_and_the_noise_of_jpeg_do_not_count_as_labels(tmp_path):
    wide = np.kron(CIRCLE, np.ones((4, 4), np.uint8)) * 255
    smooth = cv2.resize(wide, (64, 64), interpolation=cv2.INTER_LINEAR)
    assert (read(tmp_path, smooth) != CIRCLE).mean() < 0.03
    assert (read(tmp_path, cv2.GaussianBlur(CIRCLE * 255, (0, 0), 1)) != CIRCLE).mean() < 0.03
    assert (read(tmp_path, CIRCLE * 255, suffix=".jpg") != CIRCLE).mean() < 0.01


@pytest.mark.parametrize(
    "levels", [(0, 1, 2), (0, 1, 255), (0, 128, 255), (0, 100, 200), (0, 1000, 65535)]
)
def test_several_labels_are_refused(tmp_path, levels):
    labels = np.array(levels)[TRUTH + CIRCLE].astype(np.uint16 if levels[2] > 255 else np.uint8)
    with pytest.raises(
        ValueError, match=r"have one other value inside.*more than two labels: 0, 1"
    ):
        read(tmp_path, labels)


def test_xray_or_probability_in_place_of_a_mask_is_refused(tmp_path):
    ramp = np.repeat(np.arange(0, 256, 4, dtype=np.uint8)[:, None], 64, axis=1)
    steps = np.repeat(ramp[::4], 4, axis=0)
    with pytest.raises(ValueError, match="more than two labels"):
        read(tmp_path, steps)


def test_two_different_masks_in_colour_and_alpha_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mask\.png \(its colours and its alpha channel are diff"):
        read(tmp_path, layers(CIRCLE[..., None] * 255, TRUTH * 255))


@pytest.mark.parametrize("mask", [1 - TRUTH, np.ones_like(TRUTH)], ids=["inverted", "whole"])
def test_mask_that_fills_the_image_is_refused_as_file_and_as_run_lengths(tmp_path, mask):
    message = rf"less than half of the image.*Received: {mask.sum()} of 4096 pixels for x.*Invert"
    with pytest.raises(ValueError, match=message):
        read(tmp_path, mask * 255)
    with pytest.raises(ValueError, match=message):
        read(tmp_path, TRUTH, rles=[rle_encode(mask)])


def test_large_pneumothorax_is_no_inverted_mask():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 20:] = 1
    np.testing.assert_array_equal(mask_of((64, 64), rle_encode(mask)), mask)


def test_empty_and_full_masks_of_one_value_are_as_they_are():
    assert not binary_mask(np.zeros((3, 4), np.uint16)).any()
    assert binary_mask(np.full((3, 4), 7, np.uint8)).all()


# -- run lengths of 1,024 pixels on smaller images


def mask_of(shape, *texts, **case):
    """The mask of a positive case with these run lengths."""
    return read_mask({"image_id": "x", "has_pneumothorax": True, "rles": [*texts]} | case, shape)


def lesion(side):
    """A pneumothorax at the left edge of an image: the apex of a lung, in every size the same."""
    centre, axes = (side // 8, side // 4), (side // 16, side // 6)
    return cv2.ellipse(np.zeros((side, side), np.uint8), centre, axes, 10, 0, 360, 1, -1)


@pytest.mark.parametrize("side", [128, 256, 512])
def test_run_lengths_of_1024_pixels_are_scaled_to_a_smaller_image(side):
    mask = mask_of((side, side), rle_encode(lesion(1024)))
    factor = 1024 // side
    means = lesion(1024).reshape(side, factor, side, factor).mean(axis=(1, 3))
    np.testing.assert_array_equal(mask, means >= 0.5)


def test_small_regions_are_scaled_where_the_table_is_known_to_be_of_1024_pixels():
    small = np.zeros((1024, 1024), np.uint8)
    small[8:16, 8:12] = 1  # four runs, too few to tell
    mask = mask_of((256, 256), rle_encode(small), rle_side=1024)
    assert mask[2:4, 2].tolist() == [1, 1]
    assert mask.sum() == 2
    assert mask_of((1024, 1024), rle_encode(small), rle_side=1024).sum() == 32


def test_run_lengths_of_other_images_are_refused():
    with pytest.raises(ValueError, match=r"about 51\d pixels high, for x of 256 x 256"):
        mask_of((256, 256), rle_encode(lesion(512)))
    np.testing.assert_array_equal(mask_of((512, 512), rle_encode(lesion(512))), lesion(512))
    with pytest.raises(ValueError, match=r"a mask of 1024 x 1024 pixels, an image of 512 x 300"):
        mask_of((512, 300), rle_encode(lesion(1024)))


def absolute(mask):
    """Run lengths as most competitions count them: each offset from the first pixel, which is 1."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges[1::2] -= edges[0::2]
    return " ".join(map(str, edges))


@pytest.mark.parametrize("side", [64, 1024])
def test_offsets_that_count_from_the_first_pixel_are_refused(side):
    with pytest.raises(ValueError, match="offsets from the first pixel for x"):
        mask_of((side, side), absolute(lesion(side)))


def test_run_lengths_of_thin_and_slanted_regions_are_not_taken_for_other_formats():
    triangle = np.tri(64)
    corner = np.triu(np.ones((64, 64)), 40)
    for mask in (np.eye(64), triangle, np.fliplr(triangle), np.eye(64, k=-20), corner):
        np.testing.assert_array_equal(mask_of((64, 64), rle_encode(mask)), mask)
