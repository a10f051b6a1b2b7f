"""Frozen features: computed once, for exactly these images, weights and settings."""

import numpy as np
import pytest
from conftest import SIZE, make_data

from pneumo_lib.models import fcn, forward
from pneumo_lib.models.backbones import preprocess
from pneumo_lib.training import features


@pytest.fixture(scope="module")
def encoder():
    return fcn.split_fcn(fcn.build_fcn("vgg19", size=SIZE, weights=None, seed=5))[0]


def test_features_are_computed_once_and_anew_for_other_weights_or_images(
    encoder, data, home, monkeypatch
):
    first = features.cached_features(encoder, data, "vgg19", folder="once")
    with monkeypatch.context() as patch:
        patch.setattr(features, "_compute", None)
        again = features.cached_features(encoder, data, "vgg19", folder="once")
    np.testing.assert_array_equal(first, again)
    other, _ = fcn.split_fcn(fcn.build_fcn("vgg19", size=SIZE, weights=None, seed=6))
    features.cached_features(other, data, "vgg19", folder="once")
    features.cached_features(encoder, make_data(None, seed=1), "vgg19", folder="once")
    assert len(list((home / "once").iterdir())) == 3


def test_interrupted_feature_computation_goes_on_where_it_was(encoder, data, home, monkeypatch):
    whole = features.cached_features(encoder, data, "vgg19", folder="whole", batch_size=2)
    batches, starts = forward.predict_batches, []

    def interrupted(*args, start=0, **kwargs):
        starts.append(start)
        for rows, batch in batches(*args, start=start, **kwargs):
            yield rows, batch
            if len(starts) == 1 and rows.stop == 16:
                raise KeyboardInterrupt

    monkeypatch.setattr(features, "predict_batches", interrupted)
    monkeypatch.setattr(features, "_BATCHES_BETWEEN_FLUSHES", 4)
    with pytest.raises(KeyboardInterrupt):
        features.cached_features(encoder, data, "vgg19", folder="part", batch_size=2)
    part = features.cached_features(encoder, data, "vgg19", folder="part", batch_size=2)
    assert starts == [0, 16]
    np.testing.assert_array_equal(part, whole)
    assert [path.suffix for path in (home / "part").iterdir()] == [".npy"]


def test_flipped_features_are_those_of_the_mirrored_images_in_a_file_of_their_own(
    encoder, data, home
):
    plain = features.cached_features(encoder, data, "vgg19", folder="views")
    flipped = features.cached_features(encoder, data, "vgg19", folder="views", flipped=True)
    assert len(list((home / "views").iterdir())) == 2
    expected = encoder(preprocess(data.images[:, :, ::-1], "vgg19"), training=False)
    np.testing.assert_allclose(flipped, expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(flipped, plain, rtol=0.1)


@pytest.mark.parametrize(
    ("backbone", "size"), [("vgg19", 64), ("resnet50", 64), ("inceptionv3", 128)]
)
def test_bfloat16_features_agree_and_lie_in_a_file_of_their_own(backbone, size, home):
    data = make_data(None, size=size)
    encoder, _ = fcn.split_fcn(fcn.build_fcn(backbone, size=size, weights=None))
    folder = f"bfloat16-{backbone}"
    exact = features.cached_features(encoder, data, backbone, folder=folder)
    near = features.cached_features(encoder, data, backbone, folder=folder, precision="bfloat16")
    assert len(list((home / folder).iterdir())) == 2
    assert near.dtype == np.float16
    assert 0 < np.abs(near - exact).max() < 0.03 * np.abs(exact).max()
    assert {layer.compute_dtype for layer in encoder.layers} == {"float32"}


def test_float16_features_are_the_exact_ones_rounded_in_a_file_of_their_own(encoder, data, home):
    exact = features.cached_features(encoder, data, "vgg19", folder="half")
    near = features.cached_features(encoder, data, "vgg19", folder="half", precision="float16")
    assert len(list((home / "half").iterdir())) == 2
    np.testing.assert_array_equal(near, np.asarray(exact).astype(np.float16))


def test_unknown_precision_of_features_is_refused(encoder, data):
    with pytest.raises(ValueError, match=r"`precision` must be .* Received: precision='half'"):
        features.cached_features(encoder, data, "vgg19", precision="half")
