"""The cases of an epoch: each once, in an order that only seed and epoch decide."""

import numpy as np
import pytest
from conftest import SIZE

from pneumo_lib.training.loader import epoch_order, read_blocks, share_at


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


@pytest.mark.parametrize(("batches", "steps"), [(3.5, 3), (0.5, 1)])
def test_blocks_of_large_inputs_hold_fewer_steps(data, monkeypatch, batches, steps):
    batch_bytes = 4 * (data.images[0].nbytes + data.masks[0].nbytes)
    monkeypatch.setattr("pneumo_lib.training.loader._BLOCK", int(batches * batch_bytes))
    blocks = list(read_blocks(data.images, data.masks, np.arange(24), 4))
    assert [len(x) for x, _ in blocks] == [steps] * (6 // steps)
    np.testing.assert_array_equal(np.concatenate([x for x, _ in blocks])[5, 3], data.images[23])


POSITIVE = np.arange(100) < 20  # case i has a pneumothorax


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


def test_order_with_a_share_depends_on_seed_and_epoch_alone():
    def order(epoch):
        rows = np.arange(100)
        return epoch_order(rows, seed=0, epoch=epoch, positive=POSITIVE, share=0.5).tolist()

    assert order(1) == order(1) != order(2)


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


@pytest.mark.parametrize("value", [0.5, (0.5,), (0.8, 40)])
def test_a_share_that_is_no_pair_of_shares_is_refused(value):
    with pytest.raises(ValueError, match="`positive_share` must be two shares"):
        share_at(1, 5, value)
