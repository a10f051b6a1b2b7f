"""Decoders against hand counts, OpenCV's bilinear resizing and their own halves."""

from functools import cache

import cv2
import keras
import numpy as np
import pytest

from pneumo_lib.models import fcn
from pneumo_lib.models.backbones import SKIP_TAPS, TAPS, build_backbone
from pneumo_lib.models.decoders import bilinear_kernel
from pneumo_lib.models.fcn import build_fcn, layer_table, parameters, split_fcn, unfreeze
from pneumo_lib.models.layers.conv_transpose import FourierConv2DTranspose
from pneumo_lib.models.names import DECODERS
from pneumo_lib.models.names import PRETRAINED as BACKBONES
from pneumo_lib.models.receptive_field import receptive_field
from pneumo_lib.models.skips import Coordinates

CHANNELS = {  # of the taps of levels 2 to 5
    "vgg16": (128, 256, 512, 512),
    "vgg19": (128, 256, 512, 512),
    "resnet50": (256, 512, 1024, 2048),
    "inceptionv3": (192, 288, 768, 2048),
}
FCNS = {"fcn32s": 32, "fcn16s": 16, "fcn8s": 8}  # and the stride of their last step
LAST_BLOCK = {  # convolutions, as the papers draw them
    "vgg16": {f"block5_conv{n}" for n in (1, 2, 3)},
    "vgg19": {f"block5_conv{n}" for n in (1, 2, 3, 4)},
    "resnet50": {"conv5_block1_0_conv"}
    | {f"conv5_block{block}_{n}_conv" for block in (1, 2, 3) for n in (1, 2, 3)},
    # 94 in all; mixed8 has 6 of them, mixed9 and mixed10 have 9 each
    "inceptionv3": {f"conv2d_{n}" for n in range(94 - 6 - 9 - 9, 94)},
}


@pytest.fixture(scope="module", autouse=True)
def backbones_built_once():
    """Networks of this file share their backbones, as building InceptionV3 takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fcn, "build_backbone", built)
        yield
    built.cache_clear()


@cache
def built(name, *, size, weights, seed=0):
    return build_backbone(name, size=size, weights=weights, seed=seed)


@pytest.fixture(scope="module")
def tiny():
    """One network of each decoder on VGG16, with scores that are not the zeros of the start."""
    return {d: awake(build_fcn("vgg16", decoder=d, size=64, weights=None)) for d in DECODERS}


@pytest.fixture(scope="module")
def images():
    return normal(2, 64, 64, 3, scale=60)


def normal(*shape, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype("float32")


def awake(model):
    for number, layer in enumerate(model.layers):
        if layer.name.startswith("score_"):
            layer.set_weights([normal(*w.shape, scale=0.1, seed=number) for w in layer.weights])
    return model


def outputs(model, *names):
    return keras.Model(model.input, [model.get_layer(name).output for name in names])


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [96, 256])
def test_taps_are_the_last_layers_of_their_levels(name, size):
    backbone = built(name, size=size, weights=None)
    # InceptionV3 pads nothing: what is lost at each level is the same for every size.
    lost = (4, 3, 2, 2) if name == "inceptionv3" else (0, 0, 0, 0)
    for level, missing, channels in zip((2, 3, 4, 5), lost, CHANNELS[name], strict=True):
        side = size // 2**level - missing
        tap = backbone.get_layer(TAPS[name][level])
        assert tap.output.shape == (None, side, side, channels)
    assert tap.output is backbone.output


@pytest.mark.parametrize(
    ("name", "size"),
    [*((name, 96) for name in BACKBONES), ("vgg16", 32), ("vgg16", 160), ("inceptionv3", 256)],
)
@pytest.mark.parametrize("decoder", [*DECODERS][1:])
def test_every_decoder_leads_back_to_the_image_on_every_backbone(name, size, decoder):
    model = build_fcn(name, decoder=decoder, size=size, weights=None)
    assert model.output_shape == (None, size, size, 2)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    assert model.output.dtype == "float32"


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("decoder", FCNS)
def test_parameters_of_the_fcns_of_long_are_counted_by_hand(name, decoder):
    stride = FCNS[decoder]
    pool3, pool4, pool5 = CHANNELS[name][1:]
    scored = {32: [pool5], 16: [pool5, pool4], 8: [pool5, pool4, pool3]}[stride]
    # A score has 2 weights a channel and 2 biases; upscore2 and upscore_pool4 are 4 x 4 x 2 x 2.
    expected = sum(2 * c + 2 for c in scored) + 64 * (len(scored) - 1) + 4 * (2 * stride) ** 2
    model = build_fcn(name, decoder=decoder, size=96, weights=None)
    assert parameters(model)["trainable"] == expected
    table = layer_table(model).set_index("layer")
    assert table.loc[f"upscore{stride}", "parameters"] == 4 * (2 * stride) ** 2


def test_parameters_of_the_skip_decoder_are_counted_by_hand():
    # Of projected taps: levels 5 and 4 of the half view, 4 and 3; a quarter of 256 at level 2.
    lateral = (4 * 128) * 32 + 64 * 16
    narrow = 32 * 32 + 32 * 32 + 32 * 16
    decode = 9 * (3 * (32 + 3) * 32 + (16 + 3) * 16)  # 3 coordinates
    normalized = 2 * 2 * (3 * 32 + 16)  # scale and shift, before and behind each 3 x 3
    model = build_fcn("vgg16", decoder="skips", size=64, weights=None)
    found = parameters(model)["trainable"]
    assert found == lateral + narrow + decode + normalized + 2 * 16 + 2 == 53_426


def test_fcns_of_long_start_undecided(images):
    model = build_fcn("vgg16", decoder="fcn16s", size=64, weights=None)
    np.testing.assert_allclose(model(images, training=False), 0.5, rtol=1e-6)


def test_skips_start_at_about_one_percent(images):
    model = build_fcn("vgg16", decoder="skips", size=64, weights=None)
    # In training mode, as the moving averages of the normalization are still those of the start.
    softmax = np.asarray(model(images, training=True))
    assert 0.003 < np.median(softmax[..., 1]) < 0.03


def test_layers_have_the_names_of_the_paper_in_its_order(tiny):
    names = [layer.name for layer in tiny["fcn8s"].layers]
    chain = ["score_fr", "upscore2", "fuse_pool4", "upscore_pool4", "fuse_pool3", "upscore8"]
    assert [name for name in names if name in chain] == chain
    assert {"score_pool4", "score_pool3"} < set(names)


@pytest.mark.parametrize("stride", [2, 8, 16, 32])
def test_transposed_convolutions_start_as_bilinear_interpolation(stride):
    layer = FourierConv2DTranspose(
        2, 2 * stride, strides=stride, padding="same", kernel_initializer=bilinear_kernel
    )
    scores = normal(1, 5, 6, 2)
    bordered = np.pad(scores[0], ((1, 1), (1, 1), (0, 0)))  # zeros lie around the input
    expected = cv2.resize(bordered, None, fx=stride, fy=stride, interpolation=cv2.INTER_LINEAR)
    expected = expected[stride:-stride, stride:-stride]
    np.testing.assert_allclose(layer(scores)[0], expected, atol=1e-5)


def test_bilinear_kernel_is_the_tent_of_the_paper_for_odd_lengths_too():
    kernel = np.asarray(bilinear_kernel((3, 4, 2, 2)))
    rows, columns = [0.5, 1, 0.5], [0.25, 0.75, 0.75, 0.25]
    np.testing.assert_allclose(kernel[..., 0, 0], np.outer(rows, columns))
    np.testing.assert_allclose(kernel[..., 1, 1], kernel[..., 0, 0])
    assert not kernel[..., 0, 1].any()
    assert not kernel[..., 1, 0].any()


def test_fuse_layers_add_the_upsampled_coarse_scores_and_the_finer_ones(tiny, images):
    model = tiny["fcn8s"]
    score_fr, score_pool4, fuse_pool4, score_pool3, fuse_pool3 = (
        np.asarray(x)
        for x in outputs(
            model, "score_fr", "score_pool4", "fuse_pool4", "score_pool3", "fuse_pool3"
        )(images)
    )
    assert min(np.abs(s).max() for s in (score_fr, score_pool4, score_pool3)) > 0.01
    upsampled = np.asarray(model.get_layer("upscore2")(score_fr))
    np.testing.assert_allclose(fuse_pool4, upsampled + score_pool4, rtol=1e-5, atol=1e-5)
    upsampled = np.asarray(model.get_layer("upscore_pool4")(fuse_pool4))
    np.testing.assert_allclose(fuse_pool3, upsampled + score_pool3, rtol=1e-5, atol=1e-5)


def test_padded_taps_of_inception_lie_where_their_receptive_fields_do():
    model = build_fcn("inceptionv3", decoder="fcn8s", size=256, weights=None)
    taps = {level: model.get_layer(f"tap_{level}") for level in (3, 4, 5)}
    assert [tap.input.shape[1] for tap in taps.values()] == [29, 14, 6]
    assert [tap.output.shape[1] for tap in taps.values()] == [32, 16, 8]
    # The last one is in the table of Araujo et al. (2019): 1311 pixels, 32 apart.
    assert receptive_field(model, TAPS["inceptionv3"][5])[:2] == (1311, 32)
    for level, tap in taps.items():
        stride, before = 2**level, tap.padding[0][0]
        placed = stride * before + (stride - 1) / 2  # the middle of the first pixel
        seen = receptive_field(model, TAPS["inceptionv3"][level]).centre
        assert abs(placed - seen) < stride / 3


@pytest.mark.parametrize("decoder", [*DECODERS][1:])
def test_halves_in_a_row_give_what_the_whole_gives(tiny, images, decoder):
    encoder, head = split_fcn(tiny[decoder])
    features = encoder(images, training=False)
    assert len(features.shape) == (4 if decoder == "fcn32s" else 2)
    expected = tiny[decoder](images, training=False)
    np.testing.assert_array_equal(head(features, training=False), expected)


def test_packed_features_hold_every_tap_of_both_views_once(tiny, images):
    encoder, _ = split_fcn(tiny["skips"])
    half = images.reshape(2, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    backbone = built("vgg16", size=64, weights=None)
    at_half = build_backbone("vgg16", size=32, weights=None)
    at_half.set_weights(backbone.get_weights())
    full = [SKIP_TAPS["vgg16"][level] for level in (2, 3, 4)]
    views = [*outputs(backbone, *full)(images), *outputs(at_half, *full[1:])(half)]
    names = ["project_2", "project_3", "project_4", "project_half_4", "project_half_5"]
    expected = []
    for tap, name in zip(views, names, strict=True):
        kernel, bias = tiny["skips"].get_layer(name).get_weights()
        expected.append(np.ravel(np.asarray(tap[0]) @ kernel[0, 0] + bias))
    expected = np.sort(np.concatenate(expected))
    found = np.sort(np.asarray(encoder(images, training=False))[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_two_networks_agree_on_how_features_are_packed(tiny):
    first, second = (
        split_fcn(model)[0].get_config()
        for model in (tiny["fcn8s"], build_fcn("vgg16", decoder="fcn8s", size=64, weights=None))
    )
    assert first == second  # the key of cached features


@pytest.mark.parametrize("decoder", ["deconvolution", "fcn8s", "skips"])
def test_a_saved_network_comes_back_the_same_and_trains_by_its_head(
    tiny, images, tmp_path, decoder
):
    tiny[decoder].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert layer_table(loaded).equals(layer_table(tiny[decoder]))
    before = np.asarray(loaded(images, training=False))
    np.testing.assert_array_equal(before, tiny[decoder](images, training=False))
    encoder, head = split_fcn(loaded)
    features = encoder(images, training=False)
    head.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
    head.train_on_batch(features, np.ones((2, 64, 64)))
    after = np.asarray(loaded(images, training=False))
    assert not np.array_equal(after, before)
    np.testing.assert_array_equal(head(features, training=False), after)
    np.testing.assert_array_equal(encoder(images, training=False), features)


def test_dropout_comes_before_the_coarsest_scores_only(tiny):
    names = [layer.name for layer in tiny["fcn8s"].layers if "dropout" in layer.name]
    assert names == ["dropout"]
    dropout = tiny["fcn8s"].get_layer("dropout")
    assert dropout.input is tiny["fcn8s"].get_layer("tap_5").output
    assert dropout.rate == 0.5


def test_skips_drop_whole_channels_of_all_taps_but_the_finest(tiny):
    layers = {layer.name: layer for layer in tiny["skips"].layers if "dropout" in layer.name}
    assert set(layers) == {"dropout_half_5", "dropout_half_4", "dropout_4", "dropout_3"}
    assert all(isinstance(layer, keras.layers.SpatialDropout2D) for layer in layers.values())


def test_coordinates_are_equal_left_and_right_and_differ_from_top_to_bottom():
    place = np.asarray(Coordinates()(normal(2, 3, 5, 4)))
    assert place.shape == (2, 3, 5, 3)
    np.testing.assert_array_equal(place[0], place[1])
    np.testing.assert_array_equal(place, place[:, :, ::-1])
    np.testing.assert_array_equal(place[0, 0, :, 0], [1, 0.5, 0, 0.5, 1])
    np.testing.assert_array_equal(place[0, :, 0, 1], [-1, 0, 1])
    np.testing.assert_array_equal(place[0, 0, :, 2], [1, 0.25, 0, 0.25, 1])


def test_skip_taps_are_the_convolutions_before_the_next_pool():
    backbone = built("vgg16", size=96, weights=None)
    for level, name in SKIP_TAPS["vgg16"].items():
        assert backbone.get_layer(f"block{level + 1}_pool").input is backbone.get_layer(name).output


@pytest.mark.parametrize("name", BACKBONES)
def test_unfreeze_last_trains_the_last_block_alone(name):
    model = build_fcn(name, decoder="fcn8s", size=96, weights=None)
    table = layer_table(model)
    unfreeze(model, "last")
    changed = layer_table(model).query("trainable").index.difference(table.query("trainable").index)
    assert set(table.layer[changed]) == LAST_BLOCK[name]
    unfreeze(model, "none")
    assert layer_table(model).equals(table)


@pytest.mark.parametrize("name", BACKBONES)
def test_unfreeze_whole_trains_all_but_batch_normalization(name):
    model = build_fcn(name, size=96, weights=None)
    normalized = sum(
        layer.count_params()
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )
    unfreeze(model, "whole")
    assert parameters(model)["frozen"] == normalized
    unfreeze(model, "none")


def test_unfreeze_never_trains_projections_of_taps(tiny):
    unfreeze(tiny["skips"], "whole")
    frozen = {layer.name for layer in tiny["skips"].layers if layer.weights and not layer.trainable}
    assert frozen == {f"project_{name}" for name in ("2", "3", "4", "half_4", "half_5")}
    unfreeze(tiny["skips"], "none")


def test_unfreeze_works_on_a_loaded_network_and_for_its_encoder(tiny, tmp_path):
    tiny["skips"].save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    unfreeze(loaded, "last")
    weights = [weight.path for weight in split_fcn(loaded)[0].trainable_weights]
    expected = [f"block5_conv{n}/{kind}" for n in (1, 2, 3) for kind in ("kernel", "bias")]
    assert weights == expected


def test_an_unfrozen_backbone_keeps_the_statistics_of_its_normalization():
    model = awake(build_fcn("resnet50", decoder="fcn32s", size=96, weights=None, dropout=0.0))
    unfreeze(model, "whole")
    before = [np.asarray(weight) for weight in model.get_layer("conv1_bn").weights]
    image = normal(1, 96, 96, 3, scale=60)
    # The statistics of this one image would give other outputs, and would be remembered.
    np.testing.assert_array_equal(model(image, training=True), model(image, training=False))
    for old, new in zip(before, model.get_layer("conv1_bn").weights, strict=True):
        np.testing.assert_array_equal(old, new)
    unfreeze(model, "none")


def test_unfreeze_refuses_an_unknown_part(tiny):
    with pytest.raises(ValueError, match=r"`part` must be one of none, .* Received: part='all'"):
        unfreeze(tiny["fcn8s"], "all")
