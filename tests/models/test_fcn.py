"""Networks against the tables of the report, halves against the whole."""

import random

import keras
import numpy as np
import pytest

from pneumo_lib.models.backbones import build_backbone
from pneumo_lib.models.decoders import DECONVOLUTIONS
from pneumo_lib.models.fcn import build_fcn, build_small_fcn, layer_table, parameters, split_fcn
from pneumo_lib.models.names import PRETRAINED as BACKBONES

# The report's table: total, trainable, then output side and parameters of each deconvolution.
REPORT = {
    "vgg16": (14_997_318, 282_630, [(16, 262_146), (64, 4_098), (128, 16_386)]),
    "vgg19": (20_307_014, 282_630, [(16, 262_146), (64, 4_098), (128, 16_386)]),
    "resnet50": (
        23_678_858,
        91_146,
        [(8, 65_538), (16, 1_026), (32, 4_098), (64, 4_098), (128, 16_386)],
    ),
    "inceptionv3": (
        22_875_944,
        1_073_160,
        [(8, 1_048_578), (32, 4_098), (64, 4_098), (128, 16_386)],
    ),
}


@pytest.fixture(scope="module")
def networks():
    return {name: build_fcn(name, weights=None) for name in BACKBONES}


@pytest.fixture
def tiny():
    return build_fcn("vgg16", size=32, weights=None)


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(0, 60, (3, 32, 32, 3)).astype("float32")


def predict(model, inputs):
    return np.asarray(model(inputs, training=False))


def train_on(model, inputs, *, steps=3):
    """Towards "all pneumothorax", by hand, so that nothing but the weights changes."""
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    masks = np.ones((len(inputs), *model.output_shape[1:3]))
    for _ in range(steps):
        model.train_on_batch(inputs, masks)


@pytest.mark.parametrize("name", BACKBONES)
def test_parameters_are_those_of_the_report(networks, name):
    total, trainable, _ = REPORT[name]
    found = parameters(networks[name])
    assert found == {"total": total, "trainable": trainable, "frozen": total - trainable}


@pytest.mark.parametrize("name", BACKBONES)
def test_deconvolutions_are_those_of_the_report(networks, name):
    table = layer_table(networks[name]).set_index("layer")
    expected = REPORT[name][2]
    for number, (side, count) in enumerate(expected, start=1):
        row = table.loc[f"deconvolution_{number}"]
        assert (row.output_shape, row.parameters, row.trainable) == ((side, side, 2), count, True)
    assert f"deconvolution_{len(expected) + 1}" not in table.index


@pytest.mark.parametrize("name", BACKBONES)
def test_every_layer_of_the_backbone_is_there_and_frozen(networks, name):
    backbone = layer_table(build_backbone(name, weights=None))
    table = layer_table(networks[name]).iloc[: len(backbone)]
    assert table.equals(backbone)
    assert not table.trainable.any()


@pytest.mark.parametrize("name", BACKBONES)
def test_dropout_lies_between_the_deconvolutions_and_softmax_is_last(networks, name):
    count = len(DECONVOLUTIONS[name])
    expected = ["deconvolution_1"]
    for number in range(2, count + 1):
        expected += [f"dropout_{number - 1}", f"deconvolution_{number}"]
    names = list(layer_table(networks[name]).layer)
    assert names[-2 * count :] == [*expected, "softmax"]
    assert not any(other.startswith("dropout") for other in names[: -2 * count])


def test_deconvolutions_have_no_activation_and_the_asked_dropout():
    model = build_fcn("vgg16", size=32, weights=None, dropout=0.2)
    for number in (1, 2, 3):
        assert model.get_layer(f"deconvolution_{number}").activation is keras.activations.linear
    assert model.get_layer("dropout_1").rate == 0.2


def test_output_stays_float32_in_mixed_precision(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_fcn("vgg16", size=32, weights=None)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("deconvolution_1").compute_dtype == "bfloat16"
    assert model(images).dtype == "float32"


@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, 96) for name in BACKBONES), ("inceptionv3", 160), ("inceptionv3", 256)],
)
def test_output_is_a_float32_softmax_of_the_size_of_the_input(name, size):
    model = build_fcn(name, size=size, weights=None)
    assert parameters(model)["total"] == REPORT[name][0]
    images = np.random.default_rng(0).normal(0, 1, (2, size, size, 3)).astype("float32")
    probability = predict(model, images)
    assert probability.shape == (2, size, size, 2)
    assert probability.dtype == np.float32
    np.testing.assert_allclose(probability.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "side", "resized", "cropped"),
    [
        (128, 2, False, False),  # as in the report
        (160, 3, False, True),  # 3 * 64 = 192
        (256, 4, True, False),  # its own features are 6 x 6
    ],
)
def test_inception_features_fit_the_deconvolutions_at_other_sizes(size, side, resized, cropped):
    model = build_fcn("inceptionv3", size=size, weights=None)
    names = {layer.name for layer in model.layers}
    assert model.get_layer("deconvolution_1").input.shape == (None, side, side, 2048)
    assert ("resize" in names, "crop" in names) == (resized, cropped)


def test_build_fcn_repeats_itself_from_the_seed(images):
    keras.utils.set_random_seed(7)
    first, second, other = (
        build_fcn("vgg16", size=32, weights=None, seed=seed) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(predict(first, images), predict(second, images))
    dropped = [np.asarray(model(images, training=True)) for model in (first, second)]
    np.testing.assert_array_equal(*dropped)
    assert not np.allclose(predict(first, images), predict(other, images))


@pytest.mark.parametrize("build", [lambda: build_fcn("vgg16", weights=None), build_small_fcn])
def test_building_leaves_the_global_random_state_as_it_was(build):
    python, numpy = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    build()
    assert random.getstate() == python
    np.testing.assert_array_equal(np.random.get_state()[1], numpy)  # noqa: NPY002


@pytest.mark.parametrize(
    ("build", "refused"),
    [
        (lambda: build_fcn("vgg16", decoder="unet"), "one of deconvolution, fcn32s,.*='unet'"),
        (lambda: build_fcn("vgg16", size=100), "`size` must be a multiple of 32.*size=100"),
        (lambda: build_small_fcn(size=100), "`size` must be a multiple of 32.*size=100"),
        (lambda: split_fcn(build_small_fcn(size=32)), r"made by build_fcn\(\).*model='small'"),
    ],
)
def test_unknown_decoders_sizes_and_networks_are_refused(build, refused):
    with pytest.raises(ValueError, match=refused):
        build()


def test_build_fcn_names_the_weights_it_used(tiny, tmp_path):
    assert tiny.weights_used == "random features"
    build_backbone("vgg16", weights=None).save_weights(tmp_path / "own.weights.h5")
    model = build_fcn("vgg16", size=32, weights=tmp_path / "own.weights.h5")
    assert model.weights_used == "own.weights.h5"


def test_training_the_head_trains_the_whole(tiny, images):
    encoder, head = split_fcn(tiny)
    assert encoder.output_shape == (None, 1, 1, 512)
    features, before = predict(encoder, images), predict(tiny, images)
    np.testing.assert_array_equal(predict(head, features), before)
    train_on(head, features)
    after = predict(tiny, images)
    assert after[..., 1].mean() > before[..., 1].mean()
    np.testing.assert_array_equal(predict(head, features), after)
    np.testing.assert_array_equal(predict(encoder, images), features)


def test_training_the_whole_trains_the_head_and_leaves_the_encoder(tiny, images):
    encoder, head = split_fcn(tiny)
    features = predict(encoder, images)
    before = predict(head, features)
    train_on(tiny, images)
    assert predict(head, features)[..., 1].mean() > before[..., 1].mean()
    np.testing.assert_array_equal(predict(encoder, images), features)


def test_head_drops_features_in_training_only(tiny, images):
    encoder, head = split_fcn(tiny)
    features = predict(encoder, images)
    once, again = (np.asarray(head(features, training=True)) for _ in range(2))
    assert not np.allclose(once, again)
    np.testing.assert_array_equal(predict(head, features), predict(head, features))


def test_layer_table_counts_a_network_by_hand():
    image = keras.Input((4, 4, 1), name="image")
    x = keras.layers.Conv2D(3, 2, name="two_by_two")(image)  # 2 * 2 * 1 * 3 weights, 3 biases
    x = keras.layers.BatchNormalization(name="norm")(x)  # 3 scales and 3 shifts, 3 + 3 statistics
    model = keras.Model(image, x)
    assert layer_table(model).to_dict("list") == {
        "layer": ["image", "two_by_two", "norm"],
        "type": ["InputLayer", "Conv2D", "BatchNormalization"],
        "output_shape": [(4, 4, 1), (3, 3, 3), (3, 3, 3)],
        "parameters": [0, 15, 12],
        "trainable": [False, True, True],
    }
    assert parameters(model) == {"total": 27, "trainable": 21, "frozen": 6}


def test_small_fcn_starts_at_one_percent_foreground_and_trains_all_of_itself():
    model = build_small_fcn(size=64)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype("float32")
    probability = predict(model, images)
    assert probability.shape == (2, 64, 64, 2)
    assert 0.002 < probability[..., 1].mean() < 0.05
    assert model.weights_used == "from scratch"


def test_small_fcn_repeats_itself_from_the_seed():
    images = np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 3)).astype("float32")
    first, second, other = (predict(build_small_fcn(size=32, seed=s), images) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)


def test_small_fcn_learns_to_find_a_bright_square():
    rng = np.random.default_rng(0)
    images, masks = rng.uniform(-1, 0, (16, 32, 32, 3)), np.zeros((16, 32, 32))
    for image, mask, (row, column) in zip(images, masks, rng.integers(0, 26, (16, 2)), strict=True):
        image[row : row + 6, column : column + 6] += 1
        mask[row : row + 6, column : column + 6] = 1
    model = build_small_fcn(size=32)
    model.compile(keras.optimizers.Adam(2e-3), "sparse_categorical_crossentropy")
    for _ in range(60):
        model.train_on_batch(images, masks)
    found = predict(model, images)[..., 1] >= 0.5
    assert 2 * (found * masks).sum() / (found.sum() + masks.sum()) > 0.9
