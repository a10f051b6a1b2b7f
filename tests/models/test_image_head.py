"""The image-level head: statistics counted by hand, the regression against scikit-learn."""

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pneumo_lib.models import fcn
from pneumo_lib.models.image_head import fit_image_head, image_statistics, pool_taps


def test_statistics_of_a_map_are_those_one_counts_by_hand():
    tap = np.zeros((1, 8, 8, 1), np.float32)
    tap[0, :2, :2, 0] = [[8, 0], [0, 4]]  # above, in the outer cell on the left
    tap[0, :2, 6:, 0] = 1  # its mirror cell
    tap[0, 7, 3, 0] = 4  # below, in the inner cell on the left
    halves, differences = pool_taps([tap]).reshape(2, 4, 2)  # rows, outer and inner pair
    assert halves.tolist() == [[2, 0], [0, 0], [0, 0], [0, 0.5]]
    assert differences.tolist() == [[2, 0], [0, 0], [0, 0], [0, 1]]


def test_mirrored_maps_have_the_same_statistics_and_channels_stay_apart():
    rng = np.random.default_rng(0)
    taps = [rng.normal(size=(3, 5, 5, 2)), rng.normal(size=(3, 2, 6, 1))]
    found = pool_taps(taps)
    assert found.shape == (3, 16 * 3)
    np.testing.assert_allclose(pool_taps([tap[:, :, ::-1] for tap in taps]), found, rtol=1e-4)
    np.testing.assert_allclose(found[:, :32:2], pool_taps([taps[0][..., :1]]), rtol=1e-4)


def test_cells_overlap_where_a_map_is_not_divisible():
    tap = np.zeros((1, 5, 1, 1), np.float32)
    tap[0, :, 0, 0] = [1, 3, 7, 15, 31]  # of a single column left and right are the same
    halves, differences = pool_taps([tap]).reshape(2, 4, 2)
    assert halves.tolist() == [[2, 2], [5, 5], [11, 11], [23, 23]]
    assert not differences.any()


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 13, 6, 2), (1, 3, 5, 1), (1, 1, 1, 2)])
def test_the_cells_are_those_of_keras(shape):
    tap = np.random.default_rng(0).normal(size=shape).astype("float32")
    pooled = keras.ops.adaptive_average_pool(keras.ops.convert_to_tensor(tap), 4)
    cells = keras.ops.convert_to_numpy(pooled)
    left, right = cells[:, :, [0, 1]], cells[:, :, [3, 2]]
    expected = np.concatenate([((left + right) / 2).ravel(), np.abs(left - right).ravel()])
    found = np.moveaxis(pool_taps([tap]).reshape(len(tap), 2, -1), 0, 1)
    np.testing.assert_allclose(found.ravel(), expected, atol=1e-6)


def test_packed_features_hold_the_taps_of_the_network():
    encoder, _ = fcn.split_fcn(fcn.build_fcn("vgg16", decoder="skips", size=64, weights=None))
    shapes = fcn.tap_shapes(encoder)
    rng = np.random.default_rng(0)
    taps = [rng.normal(size=(2, *shape)).astype("float32") for shape in shapes]
    packed = np.concatenate([tap.reshape(2, -1) for tap in taps], axis=1)
    assert packed.shape[1:] == encoder.output.shape[1:]
    mirrored = np.roll(packed, 1, axis=0)
    found = image_statistics(shapes, packed, mirrored)
    expected = (pool_taps(taps) + pool_taps([np.roll(tap, 1, axis=0) for tap in taps])) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_head_is_the_regression_of_scikit_learn_on_standardised_statistics():
    rng = np.random.default_rng(0)
    statistics = rng.normal(3, 2, (60, 5))
    statistics[:, 4] = 7  # a silent channel
    positive = statistics[:, 0] + rng.normal(size=60) > 3
    standardised = (statistics - statistics.mean(axis=0)) / np.where(
        statistics.std(axis=0) > 0, statistics.std(axis=0), 1
    )
    judge = LogisticRegression(C=0.001, max_iter=1000).fit(standardised, positive)
    found = fit_image_head(statistics, positive)(statistics)
    np.testing.assert_allclose(found, judge.predict_proba(standardised)[:, 1], atol=1e-5)
