"""The Fourier form must be the stock transposed convolution, number for number."""

import keras
import numpy as np
import pytest
from conftest import compiled_by_xla, gradients_of
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import convolve2d

from pneumo_lib.models.layers.conv_transpose import FourierConv2DTranspose, _costs
from pneumo_lib.models.layers.dropout import HashedDropout

# (input side, channels, kernel, stride) of every deconvolution of the three networks.
NETWORK_LAYERS = [
    (4, 512, 16, 4),
    (16, 2, 32, 4),
    (4, 2048, 4, 2),
    (8, 2, 16, 2),
    (16, 2, 32, 2),
    (32, 2, 32, 2),
    (2, 2048, 16, 4),
    (8, 2, 32, 4),
    (64, 2, 64, 2),
]


def pair(channels, kernel, stride, *, filters=2, **options):
    """A Fourier layer and a stock layer with the same weights."""
    arguments = dict(
        strides=stride,
        padding="same",
        kernel_initializer=keras.initializers.GlorotUniform(seed=0),
        bias_initializer=keras.initializers.RandomNormal(seed=0),
        **options,
    )
    fourier = FourierConv2DTranspose(filters, kernel, method="fourier", **arguments)
    stock = keras.layers.Conv2DTranspose(filters, kernel, **arguments)
    for layer in (fourier, stock):
        layer.build((None, None, None, channels))
    stock.set_weights(fourier.get_weights())
    return fourier, stock


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def relative_error(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def gradients(layer, x, upstream):
    return gradients_of(lambda x: layer(x) * upstream, x, [layer.kernel, layer.bias])


@pytest.mark.parametrize(("side", "channels", "kernel", "stride"), NETWORK_LAYERS)
def test_each_network_layer_has_the_stock_outputs_and_gradients(side, channels, kernel, stride):
    fourier, stock = pair(channels, kernel, stride)
    x = normal(2, side, side, channels)
    assert relative_error(fourier(x), stock(x)) < 1e-5
    upstream = normal(2, side * stride, side * stride, 2, seed=1)
    for ours, theirs in zip(
        gradients(fourier, x, upstream), gradients(stock, x, upstream), strict=True
    ):
        assert relative_error(ours, theirs) < 1e-4


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_fourier_form_gives_the_stock_outputs_for_any_size(data):
    height, width = (data.draw(st.integers(1, 12)) for _ in range(2))
    strides = tuple(data.draw(st.integers(1, 4)) for _ in range(2))
    kernel = tuple(data.draw(st.integers(s, 13)) for s in strides)
    channels, filters = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    fourier, stock = pair(channels, kernel, strides, filters=filters)
    x = normal(data.draw(st.integers(1, 3)), height, width, channels)
    expected = np.asarray(stock(x))
    assert fourier(x).shape == expected.shape
    np.testing.assert_allclose(fourier(x), expected, atol=1e-5 * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize("channels", [2, 16])
def test_compiled_form_takes_any_number_of_images(channels):
    fourier, stock = pair(channels, 8, 2)
    image = keras.Input((6, 6, channels))
    compiled = keras.Model(image, fourier(image))
    for count in (3, 1):
        x = normal(count, 6, 6, channels)
        assert relative_error(compiled.predict_on_batch(x), stock(x)) < 1e-5


def test_fourier_form_is_a_full_convolution_of_the_stuffed_input_cropped():
    side, kernel, stride = 5, 6, 2
    fourier, _ = pair(1, kernel, stride, filters=1)
    fourier.bias.assign([0.0])
    x = normal(1, side, side, 1)
    stuffed = np.zeros((stride * (side - 1) + 1,) * 2)
    stuffed[::stride, ::stride] = x[0, :, :, 0]
    full = convolve2d(stuffed, fourier.kernel.numpy()[:, :, 0, 0])
    crop = (kernel - stride) // 2
    expected = full[crop : crop + side * stride, crop : crop + side * stride]
    np.testing.assert_allclose(fourier(x)[0, :, :, 0], expected, atol=1e-5)


def test_single_pixel_paints_the_cropped_kernel():
    layer = FourierConv2DTranspose(1, 4, strides=2, padding="same", method="fourier")
    layer.build((None, 1, 1, 1))
    layer.kernel.assign(np.arange(16.0).reshape(4, 4, 1, 1))
    painted = layer(np.ones((1, 1, 1, 1), "float32"))[0, :, :, 0]
    np.testing.assert_allclose(painted, [[5, 6], [9, 10]], atol=1e-5)


def test_stock_weights_load_and_return():
    fourier, stock = pair(2, 8, 2)
    stock.set_weights([w + 1 for w in fourier.get_weights()])
    fourier.set_weights(stock.get_weights())
    x = normal(1, 4, 4, 2)
    assert relative_error(fourier(x), np.asarray(stock(x))) < 1e-5
    assert [v.path.split("/")[-1] for v in fourier.weights] == ["kernel", "bias"]


@pytest.mark.parametrize(
    "arguments",
    [{"method": "stock", "padding": "same"}, {"padding": "valid"}],
)
def test_stock_form_gives_the_stock_outputs(arguments):
    ours = FourierConv2DTranspose(2, 16, strides=2, **arguments)
    stock = keras.layers.Conv2DTranspose(2, 16, strides=2, padding=arguments["padding"])
    x = normal(2, 5, 4, 3)
    for layer in (ours, stock):
        layer.build(x.shape)
    stock.set_weights(ours.get_weights())
    np.testing.assert_array_equal(ours(x), stock(x))


def test_only_the_stock_form_calls_the_stock_operation(monkeypatch):
    def refuse(layer, inputs):
        raise AssertionError("the stock operation")

    monkeypatch.setattr(keras.layers.Conv2DTranspose, "call", refuse)
    x = normal(1, 4, 4, 2)
    arguments = dict(filters=2, kernel_size=8, strides=2, padding="same")
    assert FourierConv2DTranspose(method="fourier", **arguments)(x).shape == (1, 8, 8, 2)
    with pytest.raises(AssertionError, match="the stock operation"):
        FourierConv2DTranspose(method="stock", **arguments)(x)


def test_saved_network_keeps_layer_and_method(tmp_path):
    inputs = keras.Input((8, 8, 2))
    outputs = FourierConv2DTranspose(2, 16, strides=2, padding="same", method="fourier")(inputs)
    network = keras.Model(inputs, outputs)
    network.save(tmp_path / "network.keras")
    name = keras.saving.get_registered_name(FourierConv2DTranspose)
    assert name == "pneumo>FourierConv2DTranspose"  # in files saved before
    again = keras.models.load_model(tmp_path / "network.keras")
    assert again.layers[-1].method == "fourier"
    x = normal(1, 8, 8, 2)
    np.testing.assert_array_equal(again(x), network(x))


def test_activation_and_missing_bias_are_honoured():
    fourier, stock = pair(2, 8, 2, activation="relu", use_bias=False)
    x = normal(1, 6, 6, 2)
    assert np.min(fourier(x)) >= 0
    np.testing.assert_allclose(fourier(x), stock(x), atol=1e-5)


def test_mixed_precision_keeps_the_dtype_and_stays_near():
    fourier, _ = pair(2, 16, 2)
    half = FourierConv2DTranspose(
        2, 16, strides=2, padding="same", method="fourier", dtype="mixed_bfloat16"
    )
    half.build((None, 8, 8, 2))
    half.set_weights(fourier.get_weights())
    x = normal(1, 8, 8, 2)
    assert half(x).dtype == "bfloat16"
    assert relative_error(keras.ops.cast(half(x), "float32"), fourier(x)) < 0.02


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "expected"),
    [
        ((None, 64, 64, 2), 64, 2, "fourier"),
        ((None, 16, 16, 2), 32, 4, "fourier"),
        ((None, 16, 16, 2), 8, 2, "fourier"),
        ((None, 4, 4, 2048), 4, 2, "stock"),
        ((None, 64, 64, 2), 2, 2, "stock"),
        ((None, None, None, 2), 64, 2, "stock"),
    ],
)
def test_auto_takes_the_cheaper_form(shape, kernel, stride, expected):
    layer = FourierConv2DTranspose(2, kernel, strides=stride, padding="same")
    assert layer.chosen_method(shape) == expected


def test_costs_are_the_multiplications_counted_by_hand():
    stock, _ = _costs((4, 6), (8, 4), (2, 2), 32, 2)
    assert stock == (4 * 6) * (8 * 4) * 32 * 2  # each input meets the whole kernel
    for channels in (8, 12):  # part of a vector unit idles
        assert _costs((4, 6), (8, 4), (2, 2), channels, 2)[0] == pytest.approx(stock / 32 * 16)
    # kernels of 4 and of 6: 3 x 3 taps in each of 4 phases; transforms of length 5 down and 6 or
    # 5 across, of whose frequencies 4 or 3 differ
    for kernel, width, half in ((4, 5, 4), (4, 4, 3), (6, 5, 4), (6, 4, 3)):
        image = 4 * width * (2 * half) + (2 * half) * (2 * 4) * 5
        taps = 3 * 3 * (2 * half) + (2 * half) * (2 * 3) * 5
        products = 4 * (5 * half) * 4  # a complex one is four
        for channels, filters in ((1, 1), (6, 5)):
            pairs = channels * filters
            arguments = (4, width), (kernel, kernel), (2, 2), channels, filters
            for batch, named in ((16, {}), (7, {"batch": 7})):
                transforms = (channels + 4 * filters) * image + pairs * 4 * taps / batch
                expected = 2 * (transforms + pairs * products)
                assert _costs(*arguments, **named)[1] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("devices", "kernel", "expected"),
    [
        (["cpu:0"], 4, "stock"),
        (["cpu:0", "gpu:0"], 4, "fourier"),  # TensorFlow names the processor too
        (["gpu:0"], 64, "fourier"),
        (["gpu:0"], 3, "stock"),
    ],
)
def test_auto_takes_the_fourier_form_of_all_but_small_kernels_on_a_gpu(
    monkeypatch, devices, kernel, expected
):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: devices)
    layer = FourierConv2DTranspose(2, kernel, strides=2, padding="same")
    assert layer.chosen_method((None, 4, 4, 2048)) == expected
    forced = FourierConv2DTranspose(2, kernel, strides=2, padding="same", method="stock")
    assert forced.chosen_method((None, 4, 4, 2048)) == "stock"


def test_auto_asks_for_no_devices_where_keras_lists_none(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    monkeypatch.setattr(keras.distribution, "list_devices", None)
    layer = FourierConv2DTranspose(2, 4, strides=2, padding="same")
    assert layer.chosen_method((None, 4, 4, 2048)) == "stock"


@pytest.mark.parametrize(
    "arguments",
    [
        dict(padding="valid"),
        dict(padding="same", dilation_rate=2),
        dict(padding="same", dilation_rate=(1, 2)),
        dict(padding="same", data_format="channels_first"),
        dict(padding="same", strides=5),
        dict(padding="same", strides=2, output_padding=1),
    ],
)
def test_auto_stays_stock_and_fourier_is_refused_where_there_is_no_fourier_form(arguments):
    layer = FourierConv2DTranspose(2, 4, **arguments)
    assert layer.chosen_method((None, 64, 64, 2)) == "stock"
    with pytest.raises(ValueError, match="The Fourier form needs padding='same'"):
        FourierConv2DTranspose(2, 4, method="fourier", **arguments)


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"`method` must be .* Received: method='fft'"):
        FourierConv2DTranspose(2, 4, method="fft")


def test_dropout_drops_its_share_and_scales_the_rest():
    ones = np.ones((64, 32, 32, 2), "float32")
    dropped = np.asarray(HashedDropout(0.25, seed=3)(ones, training=True))
    assert set(np.unique(dropped)) == {0.0, np.float32(1 / 0.75)}
    deviation = np.sqrt(0.25 * 0.75 / ones.size)
    assert abs((dropped == 0).mean() - 0.25) < 4 * deviation


def test_dropout_noise_is_independent_between_calls_neighbours_and_seeds():
    ones = np.ones((16, 64, 64, 1), "float32")
    layer, other = HashedDropout(0.5, seed=0), HashedDropout(0.5, seed=1)
    first, second = (np.asarray(layer(ones, training=True)) - 1 for _ in range(2))
    foreign = np.asarray(other(ones, training=True)) - 1
    limit = 4 / np.sqrt(ones.size)
    for a, b in [
        (first, second),
        (first, foreign),
        (first[:, 1:], first[:, :-1]),
        (first[:, :, 1:], first[:, :, :-1]),
        (first[1:], first[:-1]),
    ]:
        assert abs((a * b).mean()) < limit
    # Neighbouring calls do not merely reorder the same noise.
    assert first.sum() != second.sum()


def test_dropout_repeats_with_its_seed_also_when_compiled_and_continues_from_its_state():
    ones = np.ones((2, 8, 8, 2), "float32")
    plain, compiled = HashedDropout(0.5, seed=7), HashedDropout(0.5, seed=7)
    compiled_call = compiled_by_xla(lambda x: compiled(x, training=True), stateful=True)
    for _ in range(3):
        expected = plain(ones, training=True)
        np.testing.assert_array_equal(compiled_call(ones), expected)
    resumed = HashedDropout(0.5, seed=0)
    resumed.seed_generator.state.assign(plain.seed_generator.state)
    np.testing.assert_array_equal(resumed(ones, training=True), plain(ones, training=True))


def test_dropout_passes_gradients_only_where_it_kept():
    x = np.ones((1, 8, 8, 2), "float32")
    y = HashedDropout(0.5, seed=0)(x, training=True)
    layer = HashedDropout(0.5, seed=0)
    [slope] = gradients_of(lambda x: layer(x, training=True), x)
    np.testing.assert_array_equal(slope, y)


def test_dropout_does_nothing_outside_training_or_at_rate_zero():
    x = normal(1, 4, 4, 2)
    np.testing.assert_array_equal(HashedDropout(0.5)(x, training=False), x)
    np.testing.assert_array_equal(HashedDropout(0.0)(x, training=True), x)


def test_dropout_refuses_a_noise_shape():
    with pytest.raises(ValueError, match=r"not supported; use keras.* noise_shape=\(1, 2\)"):
        HashedDropout(0.5, noise_shape=(1, 2))
