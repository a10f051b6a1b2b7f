"""Windows counted by hand, published ones, and the support of a gradient as the judge."""

from fractions import Fraction

import keras
import numpy as np
import pytest
from conftest import gradients_of
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from pneumo_lib.models.backbones import TAPS, build_backbone
from pneumo_lib.models.fcn import build_fcn
from pneumo_lib.models.receptive_field import convolution_depth, receptive_field
from pneumo_lib.models.related_work import build_related_fcn

SIDE = 64  # of random graphs: windows in the middle reach no border


def graph(*chain, side=SIDE):
    image = x = keras.Input((side, side, 1))
    for layer in chain:
        x = layer(x)
    return keras.Model(image, x)


def convolution(length, **arguments):
    return layers.Conv2D(1, length, **({"kernel_initializer": "ones"} | arguments))


def bilinear(factor):
    return layers.UpSampling2D(factor, interpolation="bilinear")


def window_of(model, pixel):
    """First and last row of the image with a gradient of one output pixel, weights positive."""
    image = np.ones((1, *model.input_shape[1:]), "float32")
    column = model.output_shape[2] // 2
    [slope] = gradients_of(lambda x: model(x, training=False)[0, pixel, column], image)
    rows = np.flatnonzero(np.any(slope[0], axis=(1, 2)))
    return rows[0], rows[-1]


def thin(model, layer):
    """The same windows, but one channel, positive weights and averages for maxima."""

    def clone(layer):
        config = layer.get_config()
        for key, value in {"filters": 1, "groups": 1, "method": "stock"}.items():
            config |= {key: value} if key in config else {}
        if "kernel_initializer" in config:
            config["kernel_initializer"] = keras.initializers.Constant(0.1)
        kind = type(layer)
        return (layers.AveragePooling2D if kind is layers.MaxPooling2D else kind).from_config(
            config
        )

    part = keras.Model(model.input, model.get_layer(layer).output)
    return keras.models.clone_model(part, clone_function=clone)


@pytest.mark.parametrize(
    ("chain", "size", "stride", "start"),
    [
        ([], 1, 1, 0),
        ([convolution(3)], 3, 1, 0),
        ([convolution(3, padding="same")], 3, 1, -1),
        ([convolution(3), convolution(3)], 5, 1, 0),
        ([convolution(3, strides=2), convolution(3, strides=2)], 7, 4, 0),  # 3 + 2 * 2
        ([convolution(3, strides=2, padding="same")], 3, 2, 0),  # the one zero lies behind
        ([convolution(3, dilation_rate=4)], 9, 1, 0),
        ([layers.DepthwiseConv2D(5)], 5, 1, 0),
        ([layers.SeparableConv2D(1, 5, strides=2)], 5, 2, 0),
        ([layers.MaxPooling2D(2), convolution(3)], 6, 2, 0),
        ([layers.AveragePooling2D(3, strides=1, padding="same")], 3, 1, -1),
        ([layers.ZeroPadding2D(((10, 3), (0, 0))), convolution(3)], 3, 1, -10),
        ([layers.Cropping2D(((4, 1), (0, 0)))], 1, 1, 4),
        ([convolution(3), layers.UpSampling2D(2)], 3, Fraction(1, 2), 0),
        # Pixel 1 lies a quarter beyond the middle of pixel 0, so it needs pixel 1 too.
        ([bilinear(2)], 2, Fraction(1, 2), -1),
        ([layers.Resizing(32, 32)], 2, 2, 0),
        ([layers.Resizing(32, 32, interpolation="nearest")], 1, 2, 1),
        # Kernel 4, stride 2: each output pixel is met by two stamps.
        ([layers.Conv2DTranspose(1, 4, strides=2, padding="same")], 2, Fraction(1, 2), -1),
        ([layers.Conv2DTranspose(1, 5, strides=2)], 3, Fraction(1, 2), -2),
        ([layers.MaxPooling2D(4), layers.UpSampling2D(4)], 4, 1, 0),
        ([layers.GlobalAveragePooling2D(keepdims=True)], 64, 64, 0),
        # Beyond the border of its one pixel there is no other window.
        ([layers.GlobalMaxPooling2D(keepdims=True), bilinear(4)], 64, 16, 0),
        ([convolution(3), layers.Flatten()], 64, 62, 0),
        ([layers.BatchNormalization(), layers.ReLU(), layers.Dropout(0.5)], 1, 1, 0),
    ],
)
def test_windows_are_those_counted_by_hand(chain, size, stride, start):
    assert receptive_field(graph(*chain)) == (size, stride, start)


@pytest.mark.parametrize("order", [1, -1])
def test_the_largest_of_several_paths_counts(order):
    image = keras.Input((SIDE, SIDE, 1))
    narrow, wide = convolution(3, padding="same")(image), convolution(7, padding="same")(image)
    early = layers.ZeroPadding2D(((5, 0), (0, 0)))(layers.Cropping2D(((0, 5), (0, 0)))(image))
    both = layers.Add(name="both")([narrow, wide][::order])
    joined = layers.Concatenate()([both, early][::order])
    model = keras.Model(image, joined)
    assert receptive_field(model) == (9, 1, -5)  # from 5 before to 3 behind
    assert receptive_field(model, "both") == (7, 1, -3)


def test_rows_and_columns_may_differ():
    model = graph(convolution((1, 7), strides=(1, 2)))
    assert receptive_field(model) == (1, 1, 0)
    assert receptive_field(model, axis="columns") == (7, 2, 0)
    assert receptive_field(model, axis="columns").centre == 3.0


def test_images_of_unknown_size_are_counted_as_if_strides_divided_them():
    model = graph(convolution(3, strides=2, padding="same"), convolution(3), side=None)
    assert receptive_field(model) == (7, 2, 0)


def test_convolutions_on_the_longest_path_are_counted():
    image = keras.Input((8, 8, 1))
    short = convolution(1)(image)
    long = convolution(1)(layers.ReLU()(convolution(1)(image)))
    x = layers.Conv2DTranspose(1, 2)(layers.Add()([short, long]))
    assert convolution_depth(keras.Model(image, x)) == 2


@pytest.mark.parametrize(
    ("name", "size"),
    # Araujo, Norris, Sim (2019), Distill; VGG16 and 19 also by the sum in notebook 04.
    [("vgg16", 212), ("vgg19", 268), ("resnet50", 483)],
)
def test_backbones_see_what_was_published(name, size):
    backbone = build_backbone(name, size=64, weights=None)
    field = receptive_field(backbone, TAPS[name][5])
    assert (field.size, field.stride) == (size, 32)


KINDS = {
    "convolution": lambda k, s: convolution(k, strides=s, padding="same"),
    "valid": lambda k, s: convolution(k, strides=s),
    "dilated": lambda k, s: convolution(k, dilation_rate=s, padding="same"),
    "pool": lambda k, s: layers.AveragePooling2D(k, strides=s, padding="same"),
    "depthwise": lambda k, s: layers.DepthwiseConv2D(k, depthwise_initializer="ones"),
    "transposed": lambda k, s: layers.Conv2DTranspose(
        1, k, strides=s, padding="same", kernel_initializer="ones"
    ),
    "nearest": lambda k, s: layers.UpSampling2D(s),
    "bilinear": lambda k, s: bilinear(s),
    "cropped": lambda k, s: layers.Cropping2D(((k, s), (k, s))),
}
STEP = st.tuples(st.sampled_from(sorted(KINDS)), st.integers(2, 4), st.integers(1, 2))


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(STEP, min_size=1, max_size=3), wide=st.sampled_from([0, 3, 5]))
def test_windows_are_where_the_gradient_is_not_zero(steps, wide):
    image = x = keras.Input((SIDE, SIDE, 1))
    for kind, length, stride in steps:
        x = KINDS[kind](length, stride)(x)
    if wide:
        x = layers.Add()([x, convolution(wide, padding="same")(x)])
    model = keras.Model(image, x)
    found = receptive_field(model)
    middle = model.output_shape[1] // 2
    period = found.stride.denominator * 8  # strides of 2 on three layers repeat after 8 pixels
    windows = {p: window_of(model, p) for p in range(middle, middle + min(period, middle // 2))}
    assert found.size == max(last - first + 1 for first, last in windows.values())
    if all(kind in ("convolution", "valid", "dilated", "pool", "cropped") for kind, *_ in steps):
        starts = {pixel: found.start + pixel * found.stride for pixel in windows}
        assert starts == {pixel: first for pixel, (first, _) in windows.items()}


@pytest.mark.parametrize(
    ("build", "layer", "size"),
    [
        (lambda: build_backbone("vgg16", size=512, weights=None), "block5_pool", 212),
        (lambda: build_related_fcn("fcn_alexnet", size=500), "score_fr", 355),
        (lambda: build_related_fcn("fcn_googlenet", size=1024), "score_fr", 907),
        # Where three upsamplings each read two cells, 32, 16 and 8 pixels apart, it is largest:
        # in 24 of 32 rows (4 is one); in the others (0 is one) the window has 244 pixels.
        (lambda: build_fcn("vgg16", decoder="fcn8s", size=512, weights=None), "upscore8", 276),
    ],
)
def test_the_gradient_of_whole_networks_covers_the_window(build, layer, size):
    model = build()
    judge = thin(model, layer)
    found = receptive_field(model, layer)
    middle = judge.output_shape[1] // 2
    windows = [window_of(judge, pixel) for pixel in {middle, middle + 4 * (found.stride == 1)}]
    assert found.size == size == max(last - first + 1 for first, last in windows)
    if found.stride == 32:
        assert windows[0][0] == found.start + 32 * middle


def test_a_layer_with_an_unknown_window_is_refused_by_name():
    model = graph(layers.Permute((2, 1, 3), name="turn"))
    with pytest.raises(ValueError, match=r"must be known. Received: layer 'turn' of type Permute"):
        receptive_field(model)


def test_a_global_layer_on_a_feature_map_of_unknown_size_is_refused():
    model = graph(layers.GlobalMaxPooling2D(name="all"), side=None)
    with pytest.raises(ValueError, match=r"layer 'all' of type .* on a feature map of None"):
        receptive_field(model)


def test_an_unknown_layer_or_axis_is_refused():
    with pytest.raises(ValueError, match=r"a layer of the model. Received: layer='pool9'"):
        receptive_field(graph(), "pool9")
    with pytest.raises(ValueError, match=r"`axis` must be .* Received: axis='depth'"):
        receptive_field(graph(), axis="depth")


def test_an_input_that_the_layer_does_not_read_is_left_out():
    image, other = keras.Input((8, 8, 1)), keras.Input((8, 8, 1))
    near = convolution(3, padding="same", name="near")(image)
    model = keras.Model([image, other], layers.Add()([near, other]))
    assert receptive_field(model, layer="near").size == 3
