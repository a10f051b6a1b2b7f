"""Augmentation: image and mask move together, and masks stay masks."""

import keras
import numpy as np

from pneumo_lib.training import augmentation
from pneumo_lib.training.augmentation import augment, move, relight

STILL = {"shift": 0.0, "scale": 0.0, "rotation": 0.0, "elastic": 0.0}


def seed(value=0):
    return keras.random.SeedGenerator(value)


def blobs(n=8, size=64):
    """A bright, smooth spot somewhere in each image; its mask is where it is bright."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size]
    centres = rng.uniform(0.3 * size, 0.7 * size, (n, 2, 1, 1))
    square = (rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2
    images = (255 * np.exp(-square / (2 * (size / 8) ** 2))).astype("uint8")
    return images, (images >= 128).astype("uint8")


def draws_of(monkeypatch, values):
    """Let `move()` draw these instead of random numbers: angle, size, down, across."""
    draws = np.float32([values])
    monkeypatch.setattr(augmentation, "_draw", lambda shape, seed: draws.repeat(shape[0], axis=0))


def test_masks_stay_0_and_1_and_shapes_stay_what_they_are():
    images, masks = blobs()
    changed, changed_masks = (np.asarray(a) for a in augment(images, masks, seed=seed()))
    assert changed.shape == changed_masks.shape == images.shape
    assert set(np.unique(changed_masks)) == {0, 1}
    assert changed.min() >= 0
    assert changed.max() <= 255


def test_image_and_mask_move_together():
    images, masks = blobs(32)
    moved, moved_masks = move(images, masks, seed=seed())
    # The mask is where the spot is bright, before and after.
    where_bright = np.asarray(moved) >= 127.5
    assert (where_bright != np.asarray(moved_masks)).mean() < 0.005
    assert (where_bright != masks).mean() > 0.02


def test_a_movement_of_nothing_changes_nothing():
    images, masks = blobs()
    moved, moved_masks = move(images, masks, seed=seed(), **STILL)
    np.testing.assert_allclose(moved, images, atol=0.01)
    np.testing.assert_array_equal(moved_masks, masks)


def test_a_shift_brings_black_and_healthy_pixels_in(monkeypatch):
    images, masks = np.full((2, 8, 8), 200, "uint8"), np.ones((2, 8, 8), "uint8")
    draws_of(monkeypatch, [0.0, 0.0, 1.0, 0.0])
    moved, moved_masks = move(images, masks, seed=seed(), **STILL | {"shift": 0.25})
    # Each pixel is read a quarter of a side further down: the last two rows come from outside.
    np.testing.assert_array_equal(moved_masks[0], [[1] * 8] * 6 + [[0] * 8] * 2)
    np.testing.assert_allclose(moved, 200.0 * np.asarray(moved_masks), atol=0.01)


def test_a_quarter_turn_is_that_of_numpy(monkeypatch):
    images, masks = blobs()
    draws_of(monkeypatch, [1.0, 0.0, 0.0, 0.0])
    moved, moved_masks = move(images, masks, seed=seed(), **STILL | {"rotation": 90.0})
    turned, turned_masks = (np.rot90(array, -1, axes=(1, 2)) for array in (images, masks))
    np.testing.assert_allclose(moved, turned, atol=0.05)
    np.testing.assert_array_equal(moved_masks, turned_masks)


def test_twice_the_size_is_four_times_the_area(monkeypatch):
    images, masks = blobs()
    masks[:, :, :], masks[:, 28:36, 28:36] = 0, 1
    draws_of(monkeypatch, [0.0, 1.0, 0.0, 0.0])
    _, moved = move(images, masks, seed=seed(), **STILL | {"scale": np.log(2)})
    np.testing.assert_array_equal(np.sum(moved, axis=(1, 2)), 16 * 16)


def test_bending_moves_pixels_by_about_what_it_says():
    size = 64
    columns = np.broadcast_to(np.arange(size, dtype="float32"), (200, size, size))
    bent, _ = move(columns, np.zeros(columns.shape), seed=seed(), **STILL | {"elastic": 0.02})
    moved = (np.asarray(bent) - columns)[:, 16:48, 16:48]  # in pixels, as columns count them
    assert 0.5 < moved.std() / (0.02 * size) < 1.1
    slope = np.abs(np.diff(moved, axis=2)).max()
    assert slope < 0.5  # smooth: nothing folds over


def test_relight_keeps_the_order_of_grey_levels_and_their_range():
    images = np.tile(np.arange(0, 256, dtype="float32"), (16, 4, 1))
    lit = np.asarray(relight(images, seed=seed()))
    assert (np.diff(lit, axis=2) >= 0).all()
    assert lit.min() >= 0
    assert lit.max() <= 255
    assert lit[:, 0, 128].std() > 5


def test_the_state_of_the_seed_decides_everything():
    images, masks = blobs()
    generator = seed(3)
    first = augment(images, masks, seed=generator)
    state = np.array(generator.state)
    second = augment(images, masks, seed=generator)
    generator.state.assign(state)
    again = augment(images, masks, seed=generator)
    np.testing.assert_array_equal(second[0], again[0])
    np.testing.assert_array_equal(second[1], again[1])
    assert np.abs(np.asarray(first[0]) - np.asarray(second[0])).max() > 10
