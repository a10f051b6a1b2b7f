"""Distances of outlines by hand and against a slow search over all pairs of pixels."""

import numpy as np
import pandas as pd
import pytest

from pneumo_lib.data.siim import read_cases
from pneumo_lib.evaluation.surface_distance import boundary_scores, prepared_spacing


def square(row, column, *, side=4, size=20):
    mask = np.zeros((1, size, size), np.uint8)
    mask[0, row : row + side, column : column + side] = 1
    return mask


def outline_of(mask):
    """Pixels with a neighbour outside the mask, found one by one."""
    padded = np.pad(mask, 1)
    return np.array(
        [
            (r, c)
            for r, c in np.argwhere(mask)
            if 0 in (padded[r, c + 1], padded[r + 2, c + 1], padded[r + 1, c], padded[r + 1, c + 2])
        ]
    )


def slow_scores(truth, prediction):
    true, predicted = outline_of(truth), outline_of(prediction)
    gaps = np.linalg.norm(true[:, None] - predicted[None], axis=-1)
    there, back = gaps.min(axis=1), gaps.min(axis=0)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    return hd95, np.concatenate([there, back]).mean()


def test_equal_masks_are_at_distance_0_and_a_row_moved_away_as_far_as_it_was_moved():
    table = boundary_scores(square(3, 3), square(3, 3))
    assert table.loc[0].to_dict() == {"hd95": 0, "asd": 0}
    truth, prediction = np.zeros((2, 1, 9, 9))
    truth[0, 1], prediction[0, 4] = 1, 1
    assert boundary_scores(truth, prediction).loc[0].tolist() == [3, 3]


def test_a_thin_line_with_one_far_pixel_is_judged_without_its_worst_twentieth():
    truth, prediction = np.zeros((2, 1, 40, 40))
    truth[0, 0, :] = prediction[0, 0, :] = 1
    prediction[0, 39, 0] = 1  # 1 of 41 pixels, 39 away: Hausdorff 39, Hausdorff 95 none of it
    found = boundary_scores(truth, prediction).loc[0]
    assert found["hd95"] == 0
    assert found["asd"] == pytest.approx(39 / 81)


def test_the_larger_of_the_two_directions_counts():
    truth, prediction = np.zeros((2, 1, 3, 12))
    truth[0, 1, 0] = prediction[0, 1, :10] = 1  # there: 0; back: 0, 1, ... 9, of which 95 % is 8.55
    assert boundary_scores(truth, prediction).loc[0, "hd95"] == pytest.approx(8.55)


def test_distances_agree_with_a_search_over_all_pairs_of_pixels():
    rng = np.random.default_rng(0)
    masks = rng.random((2, 6, 12, 15)) < 0.3
    table = boundary_scores(masks[0], masks[1].astype(float))
    slow = [slow_scores(*pair) for pair in zip(*masks, strict=True)]
    np.testing.assert_allclose(table.to_numpy(), slow)


def test_the_edge_of_the_image_bounds_a_mask():
    whole = np.ones((1, 5, 5), int)
    assert boundary_scores(whole, square(1, 1, side=3, size=5)).loc[0].tolist() == pytest.approx(
        [2**0.5, (12 * 1 + 4 * 2**0.5 + 8 * 1) / 24]
    )


EMPTY = np.zeros((1, 20, 20))


@pytest.mark.parametrize(
    "pair", [(square(3, 3), EMPTY), (EMPTY, square(3, 3))], ids=["missed", "invented"]
)
def test_the_distance_to_an_empty_mask_is_the_diagonal_or_the_one_given(pair):
    assert boundary_scores(*pair).loc[0].tolist() == pytest.approx([800**0.5] * 2)
    assert boundary_scores(*pair, missed=7.0).loc[0].tolist() == [7, 7]
    assert boundary_scores(*pair, missed=float("nan")).isna().all(axis=None)


@pytest.mark.parametrize("missed", [None, 7.0])
def test_two_empty_masks_have_no_distance(missed):
    assert boundary_scores(EMPTY, EMPTY, missed=missed).isna().all(axis=None)


def test_millimetres_are_pixels_times_spacing_and_missing_where_it_is():
    truth, prediction = np.concatenate([square(0, 0)] * 2), np.concatenate([square(0, 3)] * 2)
    table = boundary_scores(truth, prediction, spacing=np.array([0.5, np.nan]))
    np.testing.assert_allclose(table["hd95_mm"], [table["hd95"][0] / 2, np.nan])
    np.testing.assert_allclose(table["asd_mm"], [table["asd"][0] / 2, np.nan])


def test_a_pixel_at_the_threshold_belongs_to_the_prediction():
    assert boundary_scores(square(3, 3), 0.3 * square(3, 3), threshold=0.3).loc[0, "hd95"] == 0


def test_masks_that_differ_in_shape_are_refused():
    with pytest.raises(ValueError, match="with equal lengths"):
        boundary_scores(square(3, 3), square(3, 3, size=21))


def test_the_spacing_of_prepared_masks_grows_as_the_image_shrinks():
    cases = pd.DataFrame({"pixel_spacing": [0.168, np.nan]})
    np.testing.assert_allclose(prepared_spacing(cases, size=128), [1.344, np.nan])
    widths = prepared_spacing(cases, size=128, pixels=np.array([2048, 2048]))
    np.testing.assert_allclose(widths, [2.688, np.nan])
    assert np.isnan(prepared_spacing(pd.DataFrame({"image_id": ["a", "b"]}), size=128)).all()


def test_the_spacing_in_the_official_headers_cannot_be_that_of_the_1024_pixels(siim_dicom):
    width = 1024 * prepared_spacing(read_cases(siim_dicom), size=1024)
    assert width.max() < 200  # mm: no adult's chest, see the docstring
