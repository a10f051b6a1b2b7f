"""Backbones against Keras' own classifiers, weight files against what they hold."""

import re
import threading
import urllib.request
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from conftest import compiled_by_xla

from pneumo_lib.models import weights as weight_files
from pneumo_lib.models.backbones import build_backbone, preprocess
from pneumo_lib.models.names import PRETRAINED as BACKBONES

SHARED = Path(__file__).parents[3] / "shared" / "weights"
VGG16_FILE = SHARED / "vgg16_notop.npz"
KERAS_PREPROCESSING = {
    "vgg16": keras.applications.vgg16.preprocess_input,
    "vgg19": keras.applications.vgg19.preprocess_input,
    "resnet50": keras.applications.resnet50.preprocess_input,
    "inceptionv3": keras.applications.inception_v3.preprocess_input,
}
needs_real_weights = pytest.mark.skipif(
    not VGG16_FILE.is_file(), reason="the real weights are not here: ../shared/weights"
)
FORMATS = (".npz", ".weights.h5", "_notop.h5")


@pytest.fixture(scope="module")
def random_networks():
    return {name: build_backbone(name, weights=None) for name in BACKBONES}


@pytest.fixture(scope="module")
def vgg16_arrays(random_networks):
    return arrays_of(random_networks["vgg16"])


@pytest.fixture
def empty_keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path / "keras"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def arrays_of(model):
    return {f"{x.name}/{v.name}": np.array(v) for x in model.layers for v in x.weights}


def write_legacy_h5(path, model):
    """The layout of the files Keras publishes, as its version 2 wrote them."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{variable.name}:0" for variable in layer.weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, variable in zip(names, layer.weights, strict=True):
                group[name] = np.array(variable)


def write_weights(path, model):
    if path.name.endswith(".npz"):
        np.savez(path, **arrays_of(model))
    elif path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        write_legacy_h5(path, model)
    return path


def grey_batch(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (3, 8, 8), np.uint8)


def in_colour(images):
    return np.repeat(images[..., None], 3, axis=-1)


@pytest.mark.parametrize(
    ("name", "features", "parameters"),
    [
        ("vgg16", (4, 4, 512), 14_714_688),
        ("vgg19", (4, 4, 512), 20_024_384),
        ("resnet50", (4, 4, 2048), 23_587_712),
        ("inceptionv3", (2, 2, 2048), 21_802_784),
    ],
)
def test_backbone_is_frozen_and_has_the_output_and_parameters_of_the_report(
    random_networks, name, features, parameters
):
    model = random_networks[name]
    assert model.input_shape == (None, 128, 128, 3)
    assert model.output_shape == (None, *features)
    assert model.count_params() == parameters
    assert model.trainable_weights == []
    assert not any(layer.trainable for layer in model.layers)


def test_layer_names_do_not_depend_on_what_was_built_before(random_networks):
    keras.layers.Conv2D(1, 1)
    again = build_backbone("inceptionv3", weights=None)
    names = [layer.name for layer in again.layers]
    assert names == [layer.name for layer in random_networks["inceptionv3"].layers]
    assert len(set(names)) == len(names)
    assert {"input_layer", "conv2d", "conv2d_93", "batch_normalization_93"} <= set(names)


@pytest.mark.parametrize(
    ("name", "size", "refused"),
    [
        ("alexnet", 128, r"must be one of vgg16, vgg19.*backbone='alexnet'"),
        ("vgg16", 100, "a multiple of 32. Received: size=100"),
        ("vgg16", 33, "a multiple of 32. Received: size=33"),
        ("vgg16", 0, "a multiple of 32. Received: size=0"),
        ("inceptionv3", 64, "at least 96 for inceptionv3. Received: size=64"),
    ],
)
def test_build_backbone_refuses_unknown_names_and_sizes_that_do_not_fit(name, size, refused):
    with pytest.raises(ValueError, match=refused):
        build_backbone(name, size=size, weights=None)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_preprocess_equals_the_one_of_keras(name, dtype):
    images = grey_batch().astype(dtype)
    expected = KERAS_PREPROCESSING[name](in_colour(images).astype(np.float32))
    found = preprocess(images, name)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_preprocess_of_black_and_white_has_the_published_values():
    images = np.array([[[0, 255]]], np.uint8)
    blue_green_red = np.array([103.939, 116.779, 123.68])
    np.testing.assert_allclose(preprocess(images, "vgg19")[0, 0, 0], -blue_green_red, rtol=1e-6)
    np.testing.assert_allclose(
        preprocess(images, "vgg19")[0, 0, 1], 255 - blue_green_red, rtol=1e-6
    )
    for name in ("inceptionv3", "small"):
        np.testing.assert_allclose(preprocess(images, name)[0, 0], [[-1] * 3, [1] * 3])


@pytest.mark.parametrize("name", [*BACKBONES, "small"])
def test_preprocess_runs_inside_a_compiled_graph(name):
    images = grey_batch()
    compiled = compiled_by_xla(lambda batch: preprocess(batch, name))
    np.testing.assert_allclose(compiled(images), preprocess(images, name), rtol=0, atol=1e-5)


def test_preprocess_leaves_its_input_as_it_was():
    images = grey_batch().astype(np.float32)
    before = images.copy()
    preprocess(images, "inceptionv3")
    np.testing.assert_array_equal(images, before)


def test_preprocess_refuses_an_unknown_backbone():
    with pytest.raises(ValueError, match=r"must be one of .*inceptionv3, small. .*'unet'"):
        preprocess(grey_batch(), "unet")


def test_preprocess_refuses_images_with_channels():
    with pytest.raises(ValueError, match=r"\(batch, height, width\).*\(3, 8, 8, 3\)"):
        preprocess(in_colour(grey_batch()), "vgg19")


@pytest.mark.parametrize("name", BACKBONES)
def test_random_weights_keep_the_features_in_proportion(random_networks, name):
    shades = np.linspace(0, 255, 128, dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)
    images = np.stack([np.tile(shades, (128, 1)), np.tile(shades, (128, 1)).T, noise])
    features = np.asarray(random_networks[name](preprocess(images, name)))
    assert 0.1 < features.std() < 10
    assert np.abs(features).max() < 100
    assert features.std(axis=0).mean() > 0.01  # different images give different features


@pytest.mark.parametrize("name", BACKBONES)
def test_random_weights_come_from_the_seed_alone(random_networks, name):
    keras.utils.set_random_seed(99)
    again, expected = build_backbone(name, weights=None), arrays_of(random_networks[name])
    assert again.weights_used == "random features"
    for key, array in arrays_of(again).items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


def test_random_weights_differ_between_seeds_and_layers(random_networks):
    other = build_backbone("vgg16", weights=None, seed=1)
    names = [f"block5_conv{number}" for number in (1, 2, 3)]
    networks = (random_networks["vgg16"], other)
    kernels = [np.array(m.get_layer(n).kernel).ravel() for m in networks for n in names]
    correlations = np.corrcoef(kernels) - np.eye(len(kernels))
    assert np.abs(correlations).max() < 0.01


@pytest.mark.parametrize("name", ["resnet50", "inceptionv3"])
def test_random_weights_leave_batch_statistics_neutral(random_networks, name):
    neutral = {"gamma": 1, "beta": 0, "moving_mean": 0, "moving_variance": 1}
    for key, array in arrays_of(random_networks[name]).items():
        kind = key.split("/")[1]
        assert kind == "kernel" or (array == neutral.get(kind, 0)).all(), key


@needs_real_weights
def test_real_vgg16_weights_are_those_of_their_file():
    model = build_backbone("vgg16", weights=VGG16_FILE)
    assert model.weights_used == "vgg16_notop.npz (ImageNet, as Keras publishes it)"
    with np.load(VGG16_FILE) as expected:
        found = arrays_of(model)
        assert found.keys() == set(expected)
        for key, array in found.items():
            np.testing.assert_array_equal(array, expected[key], err_msg=key)


@needs_real_weights
@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("vgg19", r"vgg16_notop.npz \(VGG16 in VGG19's layers; ImageNet, as Keras publishes it\)"),
        ("resnet50", r"resnet50_notop.npz \(.* a quantised release, 72 % top-1 there\)"),
        ("inceptionv3", r"inceptionv3_notop.npz \(.* release of 2015; 2 of 94 kernels zero\)"),
    ],
)
def test_a_folder_has_a_file_for_each_backbone_and_its_limits_are_named(name, note):
    assert re.fullmatch(note, build_backbone(name, weights=SHARED).weights_used)


def test_vgg19_with_the_file_of_vgg16_has_its_features(random_networks, tmp_path):
    write_weights(tmp_path / "vgg16_notop.npz", random_networks["vgg16"])
    vgg19 = build_backbone("vgg19", weights=tmp_path)
    assert vgg19.weights_used == "vgg16_notop.npz (VGG16 in VGG19's layers)"
    images = np.random.default_rng(0).normal(0, 64, (2, 128, 128, 3)).astype("float32")
    found, expected = (m.predict_on_batch(images) for m in (vgg19, random_networks["vgg16"]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())


def test_a_folder_without_a_file_for_the_backbone_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Received: weights='.*resnet50_notop.npz'"):
        build_backbone("resnet50", weights=tmp_path)


@pytest.mark.parametrize(
    ("name", "suffix"), [*(("vgg16", suffix) for suffix in FORMATS), ("inceptionv3", FORMATS[2])]
)
def test_weights_in_each_file_format_arrive_unchanged(random_networks, tmp_path, name, suffix):
    path = write_weights(tmp_path / f"{name}{suffix}", random_networks[name])
    loaded = build_backbone(name, weights=str(path), seed=1)
    assert loaded.weights_used == path.name
    assert loaded.trainable_weights == []
    expected = arrays_of(random_networks[name])
    for key, array in arrays_of(loaded).items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


@pytest.mark.parametrize("suffix", FORMATS)
def test_weights_of_another_backbone_are_refused(random_networks, tmp_path, suffix):
    path = write_weights(tmp_path / f"vgg16{suffix}", random_networks["vgg16"])
    cause = r"(arrays do not fit|objects could not be loaded|Layer count mismatch)"
    with pytest.raises(ValueError, match=rf"`weights` must fit vgg19. .*vgg16.* \(.*{cause}"):
        build_backbone("vgg19", weights=path)


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({"block3_conv2/bias": None}, r"block3_conv2/bias in the file None, in .* \(256,\)"),
        ({"fc1/kernel": np.zeros(3)}, r"fc1/kernel in the file \(3,\), in the network None"),
        ({"block1_conv1/bias": np.zeros(3)}, r"block1_conv1/bias .* \(3,\), in .* \(64,\)"),
    ],
)
def test_npz_with_other_arrays_or_shapes_is_refused(vgg16_arrays, tmp_path, changed, refused):
    arrays = {k: v for k, v in (vgg16_arrays | changed).items() if v is not None}
    np.savez(tmp_path / "odd.npz", **arrays)
    with pytest.raises(ValueError, match=rf"1 arrays do not fit: shape of {refused}"):
        build_backbone("vgg16", weights=tmp_path / "odd.npz")


@pytest.mark.parametrize("suffix", FORMATS)
def test_weights_that_hold_nan_are_refused(tmp_path, suffix):
    model = build_backbone("vgg16", size=32, weights=None)
    bias = model.get_layer("block3_conv2").bias
    bias.assign(np.full(bias.shape, np.nan))
    path = write_weights(tmp_path / f"nan{suffix}", model)
    with pytest.raises(ValueError, match=r"must fit vgg16.*block3_conv2/bias holds NaN"):
        build_backbone("vgg16", size=32, weights=path)


@pytest.mark.parametrize("name", ["torn.npz", "torn.weights.h5", "torn.h5", "weights.txt"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04 but no more")
    with pytest.raises(ValueError, match=f"`weights` must fit vgg16. Received: .*{name}"):
        build_backbone("vgg16", weights=tmp_path / name)


def test_a_weight_file_that_does_not_exist_is_named():
    with pytest.raises(FileNotFoundError, match=r'"imagenet", "auto".*imagnet'):
        build_backbone("vgg16", weights="imagnet")


@pytest.mark.parametrize("name", BACKBONES)
def test_the_published_file_is_the_one_that_keras_loads(monkeypatch, name):
    asked = []

    def record(file, url, **settings):
        asked.append((settings["cache_subdir"], file, url))
        raise OSError("recorded")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", record)
    monkeypatch.setattr(weight_files, "_answers", lambda url: True)
    with pytest.raises(FileNotFoundError, match="recorded"):
        build_backbone(name, weights="imagenet")
    path, url = weight_files.published_weights(name)
    assert asked == [(path.parent.name, path.name, url)]


@pytest.mark.parametrize("weights", ["imagenet", "auto"])
def test_imagenet_weights_come_from_the_cached_file_without_network(
    random_networks, monkeypatch, no_network, empty_keras_home, weights
):
    file, _ = weight_files.published_weights("vgg16")
    file.parent.mkdir(parents=True)
    write_legacy_h5(file, random_networks["vgg16"])
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(empty_keras_home))
    # The published file is not here, so the stand-in cannot have its MD5.
    monkeypatch.setattr("keras.src.utils.file_utils.validate_file", lambda *given, **named: True)
    model = build_backbone("vgg16", weights=weights, seed=1)
    assert model.weights_used == "imagenet"
    expected = arrays_of(random_networks["vgg16"])
    for key, array in arrays_of(model).items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)


@pytest.mark.parametrize("name", BACKBONES)
def test_a_failed_download_names_the_file_and_its_folder(no_network, empty_keras_home, name):
    file = weight_files.published_weights(name)[0].name
    folder = empty_keras_home / "models"
    with pytest.raises(FileNotFoundError, match=f"{file} and put it into {folder} by hand"):
        build_backbone(name, weights="imagenet")


def test_a_download_that_breaks_off_is_reported_with_its_cause(monkeypatch, empty_keras_home):
    def break_off(*args, **settings):
        raise Exception("URL fetch failure on https://...: 502")  # as get_file() raises it

    monkeypatch.setattr(weight_files, "_answers", lambda url: True)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", break_off)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(URL fetch failure"):
        build_backbone("vgg16", weights="imagenet")


def test_auto_takes_random_weights_and_warns_without_network(no_network, empty_keras_home):
    with pytest.warns(UserWarning, match="random features: .*its host does not answer"):
        model = build_backbone("vgg16", weights="auto", seed=5)
    assert model.weights_used == "random features"
    same = build_backbone("vgg16", weights=None, seed=5)
    np.testing.assert_array_equal(*(m.get_layer("block5_conv3").kernel for m in (model, same)))


def test_auto_does_not_wait_for_a_silent_host(monkeypatch, empty_keras_home):
    released, answered = threading.Event(), []

    def stay_silent(*args, **kwargs):
        released.wait(20)
        answered.append(True)
        raise OSError("too late")

    monkeypatch.setattr(urllib.request, "urlopen", stay_silent)
    monkeypatch.setattr(weight_files, "_SECONDS_TO_ANSWER", 0.1)
    with pytest.warns(UserWarning, match="random features"):
        build_backbone("vgg16", weights="auto")
    assert not answered
    released.set()


def test_a_host_that_answers_is_recognised(tmp_path):
    (tmp_path / "weights.h5").write_bytes(b"")
    assert weight_files._answers((tmp_path / "weights.h5").as_uri())
    assert not weight_files._answers((tmp_path / "absent.h5").as_uri())
