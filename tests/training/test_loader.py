"""The cases of an epoch: each once, in an order that only seed and epoch decide."""

import keras
import numpy as np
import pytest

from pneumo_lib.training.loader import CaseBatches, epoch_order, fed, share_at

POSITIVE = np.arange(100) < 20  # case i has a pneumothorax


@pytest.mark.parametrize("flips", [False, True])
def test_epoch_order_holds_every_row_once(flips):
    order = epoch_order(np.arange(3, 50), seed=0, epoch=1, flips=flips)
    cases = np.where(order < 0, ~order, order)
    np.testing.assert_array_equal(np.sort(cases), np.arange(3, 50))


def test_epoch_order_mirrors_half_of_the_cases_and_changes_no_order():
    plain = epoch_order(np.arange(1000), seed=0, epoch=1)
    order = epoch_order(np.arange(1000), seed=0, epoch=1, flips=True)
    assert (plain >= 0).all()
    np.testing.assert_array_equal(np.where(order < 0, ~order, order), plain)
    assert 430 < (order < 0).sum() < 570


@pytest.mark.parametrize("share", [None, 0.5])
def test_epoch_order_depends_on_seed_and_epoch_alone(share):
    def order(seed, epoch):
        options = {"flips": True, "positive": POSITIVE, "share": share}
        return epoch_order(np.arange(100), seed=seed, epoch=epoch, **options).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 2) != order(0, 1)
    assert order(1, 1) != order(0, 1)


def batches_of(data, rows, batch_size, **options):
    return CaseBatches(data.images, data.masks, lambda epoch: rows, batch_size, **options)


def test_batches_have_one_size_and_what_fills_the_last_one_has_no_weight(data):
    rows = np.random.default_rng(0).permutation(14)
    batches = [batches_of(data, rows, 4)[index] for index in range(4)]
    assert {images.shape[0] for images, _, _ in batches} == {4}
    images, masks, weights = map(np.concatenate, zip(*batches, strict=True))
    np.testing.assert_array_equal(images, data.images[[*rows, *rows[:2]]])
    np.testing.assert_array_equal(masks, data.masks[[*rows, *rows[:2]]])
    np.testing.assert_allclose(weights, [16 / 14] * 14 + [0] * 2)


def test_fewer_cases_than_a_batch_fill_one(data):
    images, _, weights = batches_of(data, np.array([3, 5]), 5)[0]
    np.testing.assert_array_equal(images, data.images[[3, 5, 3, 5, 3]])
    np.testing.assert_allclose(weights, [2.5, 2.5, 0, 0, 0])


def test_what_fit_reads_are_the_batches_of_the_epoch(data):
    batches = CaseBatches(data.images, data.masks, lambda epoch: np.arange(7) + epoch, 4)
    read = fed(batches)
    assert len(read) == 2
    for epoch in (1, 2):
        batches.start_epoch(epoch)
        found = (read[0], read[1]) if read is batches else list(read)
        for given, wanted in zip(found, (batches[0], batches[1]), strict=True):
            for one, other in zip(given, wanted, strict=True):
                np.testing.assert_array_equal(one, other)


def test_the_features_of_a_mirrored_image_come_with_its_mirrored_mask():
    plain, mirrored = np.array([[0.0], [1.0], [2.0]]), np.array([[10.0], [11.0], [12.0]])
    masks = np.array([[[1, 0, 0]], [[0, 1, 0]], [[1, 1, 0]]])
    rows = np.array([2, ~0, ~2])
    x, y, _ = CaseBatches(plain, masks, lambda epoch: rows, 3, mirrored=mirrored)[0]
    np.testing.assert_array_equal(x, [[2], [10], [12]])
    np.testing.assert_array_equal(y, [[[1, 1, 0]], [[0, 0, 1]], [[0, 1, 1]]])
    np.testing.assert_array_equal(masks[0], [[1, 0, 0]])  # what was read from stays as it was


def test_images_and_masks_of_half_the_size_are_means_of_four_pixels():
    image = np.array([[[0, 1, 250, 255], [0, 0, 255, 255]]], "uint8")
    mask = np.zeros((1, 2, 4), int)
    mask[0, 0, 1] = mask[0, 0, 2] = mask[0, 1, 3] = 1
    batches = CaseBatches(image, mask, lambda epoch: np.array([0]), 1, halved=2)
    for epoch, halved in {1: True, 2: True, 3: False}.items():
        batches.start_epoch(epoch)
        x, y, _ = batches[0]
        np.testing.assert_array_equal(x, [[[0, 254]]] if halved else image)
        np.testing.assert_array_equal(y, [[[0, 1]]] if halved else mask)


def test_augmentation_depends_on_seed_epoch_and_batch_alone(data):
    def first(seed, epoch, index=0):
        batches = batches_of(data, np.zeros(8, int), 4, augmentation_seed=seed)
        batches.start_epoch(epoch)
        return batches[index][0]

    np.testing.assert_array_equal(first(0, 2), first(0, 2))
    for other in (first(1, 2), first(0, 3), first(0, 2, index=1)):
        assert np.abs(other - first(0, 2)).max() > 10


def test_seeds_of_augmentation_fit_into_the_int32_of_pytorch(data, monkeypatch):
    seeds = []
    kept = keras.random.SeedGenerator
    monkeypatch.setattr(keras.random, "SeedGenerator", lambda s: seeds.append(s) or kept(s))
    batches = batches_of(data, np.zeros(40, int), 2, augmentation_seed=0)
    for index in range(len(batches)):
        batches[index]
    assert len(set(seeds)) == 20
    assert max(seeds) < 2**31


def test_positives_make_up_the_share_that_was_asked_for():
    rows = np.arange(10, 100)  # 10 positives, 80 healthy
    for share in (0.0, 0.4, 0.8, 1.0):
        order = epoch_order(rows, seed=0, epoch=1, positive=POSITIVE, share=share)
        assert len(order) == 90
        assert POSITIVE[order].sum() == 90 * share
        assert set(order) <= set(rows)


def test_each_kind_is_drawn_in_turns():
    order = epoch_order(np.arange(100), seed=0, epoch=1, positive=POSITIVE, share=0.5)
    times = np.bincount(order, minlength=100)
    assert set(times[:20]) == {2, 3}  # 50 draws of 20 positives
    assert set(times[20:]) == {0, 1}  # 50 draws of 80 healthy cases


def test_no_share_takes_the_cases_as_they_come():
    plain = epoch_order(np.arange(100), seed=0, epoch=1)
    given = epoch_order(np.arange(100), seed=0, epoch=1, positive=POSITIVE, share=None)
    np.testing.assert_array_equal(plain, given)


@pytest.mark.parametrize("kind", [True, False])
def test_a_kind_that_is_missing_is_not_asked_for(kind):
    rows = np.flatnonzero(kind == POSITIVE)
    order = epoch_order(rows, seed=0, epoch=1, positive=POSITIVE, share=0.5)
    np.testing.assert_array_equal(np.sort(order), rows)


def test_the_share_goes_from_its_first_value_to_its_last_in_even_steps():
    shares = [share_at(epoch, 5, (0.8, 0.4)) for epoch in range(1, 6)]
    assert shares == pytest.approx([0.8, 0.7, 0.6, 0.5, 0.4])
    assert share_at(1, 1, (0.8, 0.4)) == 0.8
    assert share_at(3, 5, None) is None
