"""Projections of taps, against scikit-learn's principal components; no test image counts."""

import keras
import numpy as np
import pytest
from conftest import SIZE, make_data
from keras import initializers
from sklearn.decomposition import PCA

from pneumo_lib._files import project_path
from pneumo_lib.inference.export import export_network
from pneumo_lib.inference.rescore import verify_run
from pneumo_lib.models import fcn, skips
from pneumo_lib.models.backbones import preprocess
from pneumo_lib.models.skips import principal_projection
from pneumo_lib.runs import load_network
from pneumo_lib.training import features
from pneumo_lib.training import train as training
from pneumo_lib.training.features import fit_projections
from pneumo_lib.training.train import train

SETTINGS = {"backbone": "vgg16", "decoder": "skips", "weights": None, "epochs": 1, "batch_size": 4}


def fitted(data, **arguments):
    """A network of two layers whose second one projects eight channels on two, fitted."""
    image = keras.Input((SIZE, SIZE, 3), name="image")
    start = initializers.HeNormal(0)
    tap = keras.layers.Conv2D(8, 3, strides=4, kernel_initializer=start, name="tap")(image)
    model = keras.Model(image, skips.project({3: tap})[3])
    fit_projections(model, data, "vgg16", **arguments)
    return model


def projections(model):
    return {
        layer.name: layer.get_weights()
        for layer in model.layers
        if layer.name.startswith("project_")
    }


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name in first:
        for one, other in zip(first[name], second[name], strict=True):
            np.testing.assert_array_equal(one, other)


def moments(cells):
    return cells.mean(axis=0), cells.T @ cells / len(cells)


def project(cells, channels):
    kernel, bias = principal_projection(*moments(cells), channels=channels)
    return cells @ kernel[0, 0] + bias


def test_two_cells_on_a_diagonal_become_minus_one_and_one():
    np.testing.assert_allclose(project(np.array([[0.0, 0], [2, 2]]), 1), [[-1], [1]], rtol=1e-6)


def test_principal_projection_is_that_of_scikit_learn_but_for_the_signs():
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6)) + 100
    judge = PCA(3, whiten=True).fit(cells)
    expected = judge.transform(cells) * np.sqrt(500 / 499)  # it divides by n - 1
    found = project(cells, 3)
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=1e-3)


def test_components_far_below_the_first_are_not_made_loud():
    cells = np.array([[x, y] for x in (-1000.0, 1000) for y in (-1, 1)])
    # The first has a deviation of 1000, and so the floor is 50 for the second's 1.
    np.testing.assert_allclose(project(cells, 2).std(axis=0), [1, 1 / 50], rtol=1e-5)


def test_cells_that_never_change_are_projected_on_zeros():
    np.testing.assert_array_equal(project(np.full((5, 4), 3.0), 2), np.zeros((5, 2)))


def test_fitted_layers_are_the_principal_components_of_all_cells_outside_the_test_part(data):
    model = fitted(data, folder="judged")
    rows = data.cases["split"] != "test"
    images = preprocess(data.images[rows], "vgg16")
    tap, found = keras.Model(model.input, [model.layers[1].output, model.output])(images)
    cells, found = (np.asarray(x).reshape(-1, x.shape[-1]) for x in (tap, found))
    expected = PCA(2, whiten=True).fit_transform(cells.astype("float64"))
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=0.01)


def test_projections_know_no_image_of_the_test_part(data):
    found = projections(fitted(data, folder="honest"))
    garbled = make_data(None)
    garbled.images[data.cases["split"] == "test"] = 255
    garbled.meta["checksum"] = "garbled"
    assert_same(projections(fitted(garbled, folder="honest")), found)
    garbled.images[0] = 255
    garbled.meta["checksum"] = "garbled in training"
    other = projections(fitted(garbled, folder="honest"))
    assert (other["project_3"][0] != found["project_3"][0]).any()


def test_projections_are_found_once_and_anew_for_another_test_part(data, home, monkeypatch):
    found = projections(fitted(data, folder="kept"))
    with monkeypatch.context() as patch:
        patch.setattr(features, "principal_projections", None)
        assert_same(projections(fitted(data, folder="kept")), found)
    fold = make_data(None)
    fold.cases["split"] = fold.cases["split"].to_numpy()[::-1]
    other = projections(fitted(fold, folder="kept"))
    assert (other["project_3"][0] != found["project_3"][0]).any()
    assert len(list((home / "kept").glob("*.npz"))) == 2


def test_networks_without_projections_need_no_data():
    fit_projections(fcn.build_small_fcn(size=32), None, "small")


@pytest.fixture(scope="module")
def run(data):
    return train(data, run="skips", **SETTINGS)


def test_the_saved_network_holds_the_fitted_projections_and_gives_the_saved_scores(run, data):
    network = load_network(run)
    with np.load(next((project_path("data/features")).glob("*-projections.npz"))) as file:
        kept = [file[name] for name in file]
    found = [array for pair in projections(network).values() for array in pair]
    for one, other in zip(found, kept, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not any(network.get_layer(name).trainable for name in projections(network))
    assert verify_run(run, data=data).matches


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="networks are exported by TensorFlow"
)
def test_other_programs_find_what_the_projected_network_finds(run, tmp_path):
    assert export_network(run, tmp_path / "network", format="litert")[1] < 1e-4


def test_a_run_that_starts_from_another_keeps_its_projections(run, home, monkeypatch):
    monkeypatch.setattr(training, "_fit", lambda *given, **settings: None)
    monkeypatch.setattr(training, "keep_results", lambda model, *given, **kept: built.append(model))
    monkeypatch.setattr(training.runs, "load_run", lambda name: run)
    built = []
    train(make_data(home, seed=1), run="started", initial="skips", **SETTINGS)
    assert_same(projections(built[0]), projections(load_network(run)))
