import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pneumo_lib.data.rle import rle_decode, rle_encode

masks = hnp.arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 1)
)


def decode_slowly(rle, shape):
    """One pixel after the other, as the competition's own script tells it."""
    height = shape[0]
    mask = np.zeros(shape, np.uint8)
    position = 0
    numbers = [] if rle == "-1" else [int(number) for number in rle.split()]
    while numbers:
        position += numbers.pop(0)
        for _ in range(numbers.pop(0)):
            mask[position % height, position // height] = 1
            position += 1
    return mask


def test_rle_decode_walks_down_the_columns_with_relative_offsets():
    expected = [[0, 0, 0], [1, 1, 0], [1, 0, 1]]
    assert rle_decode("1 2 1 1 3 1", shape=(3, 3)).tolist() == expected


def test_rle_decode_of_minus_one_is_empty_by_default_at_the_size_of_the_competitions_images():
    assert rle_decode("-1").shape == (1024, 1024)
    mask = rle_decode(" -1", shape=(3, 4))
    assert (mask.shape, mask.dtype, mask.any()) == ((3, 4), np.uint8, False)


def test_rle_decode_unites_a_list_even_where_its_masks_overlap():
    assert rle_decode(["0 2", "-1", "1 2"], shape=(2, 2)).T.ravel().tolist() == [1, 1, 1, 0]


def test_rle_decode_accepts_runs_that_touch_and_one_that_fills_the_image():
    assert rle_decode("0 2 0 2", shape=(2, 2)).all()
    assert rle_decode("0 4", shape=(2, 2)).all()


@given(masks)
def test_rle_encode_and_decode_are_inverse_and_agree_with_a_slow_loop(mask):
    rle = rle_encode(mask)
    np.testing.assert_array_equal(rle_decode(rle, mask.shape), mask)
    np.testing.assert_array_equal(decode_slowly(rle, mask.shape), mask)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ("5", "pairs"),
        ("", "pairs"),
        ("1 2 3", "3 numbers"),
        ("1 two", "whole numbers.*'1 two'$"),
        ("x" * 40, "whole numbers.*'x{40}'$"),
        ("x" * 41, r"whole numbers.*'x{40}\.\.\.'$"),
        ("1 " * 20 + "1", "21 numbers in '(1 ){20}'$"),
        ("1.5 2", "whole numbers"),
        ("99999999999999999999 1", "whole numbers"),
        ("0 2 0 1 1 0", "at least one pixel.*1 0 in run 3"),
        ("1 2 0 1 -1 2", "overlap.*-1 2 in run 3"),
        ("14 2 0 1", "inside the image of 16 pixels.*17"),
        ("9000000000000000000 9000000000000000000", "inside the image"),
    ],
)
def test_rle_decode_refuses_what_is_not_runs_inside_the_image(rle, message):
    with pytest.raises(ValueError, match=message):
        rle_decode(rle, shape=(4, 4))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros(4), r"height, width.*\(4,\)"),
        (np.zeros((2, 2, 2)), r"height, width.*\(2, 2, 2\)"),
        (np.full((2, 2), 0.5), "threshold"),
        ([[0, 255]], "0 to 255"),
    ],
)
def test_rle_encode_refuses_what_is_not_a_mask(mask, message):
    with pytest.raises(ValueError, match=message):
        rle_encode(mask)


def test_full_table_decodes_to_the_known_counts_and_encodes_back(siim_tables):
    table = pd.read_csv(siim_tables / "train-rle.csv.gz", skipinitialspace=True)
    rows = table.groupby("ImageId")["EncodedPixels"].agg(list)
    positive = rows[[group != ["-1"] for group in rows]]
    several = positive[positive.map(len) > 1]
    assert (len(table), len(rows), len(positive), len(several)) == (12954, 12047, 2669, 624)

    areas = np.array([int(rle_decode(group).sum()) for group in positive])
    last_row = sum(int(rle_decode(group[-1]).sum()) for group in several)
    assert (areas.min(), areas.max(), np.median(areas)) == (55, 161421, 8630)
    assert round(100 * areas.sum() / len(rows) / 1024**2, 3) == 0.303
    lost = 1 - last_row / sum(int(rle_decode(group).sum()) for group in several)
    assert round(100 * lost) == 53
    for rle in positive.iloc[0]:
        assert rle_encode(rle_decode(rle)) == rle
