"""The cases of an epoch: each once, in an order that only seed and epoch decide."""

import numpy as np
import pytest
from conftest import SIZE

from pneumo_lib.batches import epoch_order, read_blocks


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


def test_epoch_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return epoch_order(np.arange(100), seed=seed, epoch=epoch, flips=True).tolist()

    assert order(0, 1) == order(0, 1)
    assert order(0, 2) != order(0, 1)
    assert order(1, 1) != order(0, 1)


def test_blocks_hold_every_case_once_in_whole_batches_and_a_rest(data):
    rows = np.random.default_rng(0).permutation(14)
    blocks = list(read_blocks(data.images, data.masks, rows, 4))
    assert [block[0].shape[:2] for block in blocks] == [(3, 4), (1, 2)]
    read = np.concatenate([images.reshape(-1, SIZE, SIZE) for images, _ in blocks])
    np.testing.assert_array_equal(read, data.images[rows])


def test_blocks_pair_the_features_of_a_mirrored_image_with_its_mirrored_mask():
    plain, flipped = np.array([[0.0], [1.0], [2.0]]), np.array([[10.0], [11.0], [12.0]])
    masks = np.array([[[1, 0, 0]], [[0, 1, 0]], [[1, 1, 0]]])
    [(x, y)] = read_blocks(plain, masks, np.array([2, ~0, ~2]), 3, flipped=flipped)
    np.testing.assert_array_equal(x[0], [[2], [10], [12]])
    np.testing.assert_array_equal(y[0], [[[1, 1, 0]], [[0, 0, 1]], [[0, 1, 1]]])
    np.testing.assert_array_equal(masks[0], [[1, 0, 0]])  # what was read from stays as it was


def test_blocks_are_read_as_they_are_needed_and_one_ahead(data):
    class Counted(np.ndarray):
        reads = 0

        def __getitem__(self, rows):
            Counted.reads += 1
            return np.asarray(self)[rows]

    rows = np.arange(3200) % 14
    blocks = read_blocks(data.images.view(Counted), data.masks, rows, 1)
    for _ in range(3):
        next(blocks)
    assert Counted.reads <= 5
    assert len(list(blocks)) == 97
