"""Conv2DTranspose computed in the Fourier domain."""

from functools import lru_cache
from typing import NamedTuple

from pneumo_lib._startup import keras

import numpy as np
from keras import ops

from pneumo_lib._checks import check_name
from pneumo_lib.models.devices import has_gpu

# Smallest kernel of the three networks. On an H100 the Fourier form was as fast or faster for each
# of their layers: cuDNN has no fast algorithm for two channels (`benchmarks/gpu_jax.py`).
_SMALLEST_ON_GPU = 4


@keras.saving.register_keras_serializable(package="pneumo")
class FourierConv2DTranspose(keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose`, computed in the Fourier domain where that is cheaper.

    Constructor, weights and shapes are those of the stock layer, so weights of either load into
    the other; outputs are equal up to float32 rounding.

    Method. Output pixel `s * q + r` of stride s (phase r = 0 ... s - 1) meets only the kernel taps
    `s * j + r`, so each of the s * s phases is an ordinary convolution of the input with a
    sub-kernel of about k / s taps a side. In the Fourier domain that is a product: transform input
    and sub-kernels, multiply at each frequency, sum over channels, transform back, interleave the
    phases. Samples that wrap around may fall into the border that `padding="same"` crops, so a
    transform of length `h + k / (2 s)` is enough (80 instead of 96 for inputs of 64 x 64 and a
    kernel of 64). At such lengths products with DFT matrices are fastest, and every Keras backend
    compiles and differentiates them.

    Args:
        filters, kernel_size, strides, padding, ...: as for `keras.layers.Conv2DTranspose`.
        method: `"fourier"`, `"stock"` or `"auto"`: the cheaper by an estimate; on a GPU Fourier
            for kernels of 4 and more. The Fourier form needs `padding="same"`, channels last, no
            dilation, no `output_padding` and kernels at least as long as the strides.

    Raises:
        ValueError: for an unknown `method`, or `"fourier"` where it does not apply.

    Reference:
        Mathieu, Henaff, LeCun (2014), Fast training of convolutional networks through FFTs,
        arXiv:1312.5851; for the phases Vaidyanathan (1993), Multirate Systems and Filter
        Banks, section 4.3 (polyphase form of an interpolator).
    """

    def __init__(self, filters, kernel_size, *args, method="auto", **kwargs):
        super().__init__(filters, kernel_size, *args, **kwargs)
        check_name("method", method, ("auto", "fourier", "stock"))
        self.method = method
        if method == "fourier" and not self._has_fourier_form:
            raise ValueError(
                "The Fourier form needs padding='same', channels last, no dilation, no "
                "`output_padding` and kernels at least as long as the strides. Received: "
                f"padding={self.padding!r}, data_format={self.data_format!r}, "
                f"dilation_rate={self.dilation_rate}, output_padding={self.output_padding}, "
                f"kernel_size={self.kernel_size}, strides={self.strides}. "
                "Use method='auto' to fall back to the stock operation."
            )

    @property
    def _has_fourier_form(self):
        return (
            self.padding == "same"
            and self.data_format == "channels_last"
            and set(self.dilation_rate) == {1}
            and self.output_padding is None
            and all(k >= s for k, s in zip(self.kernel_size, self.strides, strict=True))
        )

    def chosen_method(self, input_shape):
        """`"fourier"` or `"stock"`, the method for inputs of shape `(batch, h, w, channels)`."""
        size = tuple(input_shape[1:3])
        if self.method != "auto":
            return self.method
        if not self._has_fourier_form or None in size:
            return "stock"
        if has_gpu():
            return "fourier" if max(self.kernel_size) >= _SMALLEST_ON_GPU else "stock"
        stock, fourier = _costs(size, self.kernel_size, self.strides, input_shape[-1], self.filters)
        return "fourier" if fourier < stock else "stock"

    def call(self, inputs):
        if self.chosen_method(inputs.shape) == "stock":
            return super().call(inputs)
        outputs = fourier_conv_transpose(inputs, self.kernel, self.strides)
        if self.use_bias:
            outputs = ops.add(outputs, self.bias)
        return outputs if self.activation is None else self.activation(outputs)

    def get_config(self):
        return {**super().get_config(), "method": self.method}


def fourier_conv_transpose(inputs, kernel, strides):
    """Transposed convolution with "same" padding, computed in the Fourier domain.

    Args:
        inputs: `(batch, h, w, channels)` float; `h` and `w` must be known.
        kernel: `(k_h, k_w, filters, channels)`, as in `Conv2DTranspose`.
        strides: `(s_h, s_w)`, at most `(k_h, k_w)`.

    Returns:
        `(batch, h * s_h, w * s_w, filters)`, dtype of `inputs`; computed in float32.
    """
    _, h, w, channels = inputs.shape
    k_h, k_w, filters, _ = kernel.shape
    rows, columns = _plan(h, k_h, strides[0]), _plan(w, k_w, strides[1])

    x = ops.transpose(ops.cast(inputs, "float32"), (0, 3, 1, 2))
    x = _spectrum(x, rows.length, 0, columns.length, 0)

    k = ops.pad(ops.cast(kernel, "float32"), [rows.padding, columns.padding, (0, 0), (0, 0)])
    k = ops.reshape(k, (rows.taps, strides[0], columns.taps, strides[1], filters, channels))
    k = ops.transpose(k, (5, 4, 1, 3, 0, 2))  # channel, filter, phases, taps
    k = ops.reshape(k, (channels, -1, rows.taps, columns.taps))
    k = _spectrum(k, rows.length, rows.first_tap, columns.length, columns.first_tap)

    outputs = _from_spectrum(_multiply(x, k), (rows.length, h), (columns.length, w))
    outputs = ops.reshape(outputs, (-1, filters, *strides, h, w))
    outputs = ops.transpose(outputs, (0, 4, 2, 5, 3, 1))  # interleave the phases
    outputs = ops.reshape(outputs, (-1, h * strides[0], w * strides[1], filters))
    return ops.cast(outputs, inputs.dtype)


class _Plan(NamedTuple):
    """Phases of the kernel along one axis, and the length of their transform."""

    padding: tuple[int, int]  # zeros before and after the kernel, so that all phases are as long
    taps: int  # of each phase
    first_tap: int  # offset of a phase's first tap from the output pixel, 0 or negative
    length: int  # of the transform


def _plan(size, kernel_size, stride):
    crop = (kernel_size - stride) // 2  # by "same", before the first output pixel
    back = -(-crop // stride)
    front = stride * back - crop
    taps = -(-(kernel_size + front) // stride)
    # Samples that wrap around must fall outside 0 ... size - 1, where they are cropped.
    length = size + max(back, taps - 1 - back)
    return _Plan((front, stride * taps - front - kernel_size), taps, -back, length)


@lru_cache(maxsize=256)
def _dft(length, first, count):
    """`(length, count)` complex DFT matrix of samples at `first ... first + count - 1`."""
    positions = np.arange(first, first + count)
    # Reduced modulo one turn in integers, where this is exact.
    turns = np.outer(np.arange(length), positions) % length / length
    return np.exp(-2j * np.pi * turns)


def _as_real(matrix):
    """Complex `(m, n)` matrix as a float32 `(2 m, 2 n)` one, for (real, imaginary) vectors."""
    return np.block([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]]).astype("float32")


def _spectrum(x, length_h, first_h, length_w, first_w):
    """Spectrum of real `(a, b, h, w)`: `(a, b, 2, length_h, half)`, real and imaginary parts.

    `half = length_w // 2 + 1`, because the spectrum of a real signal is symmetric.
    """
    a, b, h, w = x.shape
    half = length_w // 2 + 1
    across = _dft(length_w, first_w, w)[:half].T
    x = _times(x, np.hstack([across.real, across.imag]))
    x = ops.transpose(ops.reshape(x, (-1, b, h, 2, half)), (0, 1, 3, 2, 4))
    down = _as_real(_dft(length_h, first_h, h))
    x = ops.matmul(down, ops.reshape(x, (-1, b, 2 * h, half)))
    return ops.reshape(x, (-1 if a is None else a, b, 2, length_h, half))


def _from_spectrum(x, rows, columns):
    """Inverse of `_spectrum()`, its first `(h, w)` samples: `(batch, n, h, w)` real."""
    (length_h, h), (length_w, w) = rows, columns
    n, half = x.shape[1], length_w // 2 + 1
    down = _as_real(_dft(length_h, 0, h).conj().T / length_h)
    x = ops.matmul(down, ops.reshape(x, (-1, n, 2 * length_h, half)))
    x = ops.transpose(ops.reshape(x, (-1, n, 2, h, half)), (0, 1, 3, 2, 4))
    # Every column frequency counts twice, but the first and the last of an even length.
    weight = np.full((half, 1), 2.0)
    weight[0] = 1.0
    if length_w % 2 == 0:
        weight[-1] = 1.0
    across = weight * _dft(length_w, 0, w)[:half].conj() / length_w
    across = np.vstack([across.real, -across.imag])
    return _times(ops.reshape(x, (-1, n, h, 2 * half)), across)


def _times(x, matrix):
    """`x @ matrix`, `(a, b, h, m)` by `(m, n)`, as a product of two matrices.

    With oneDNN, TensorFlow 2.20 and 2.21 multiply a batch of `(a, 1)` by a matrix wrongly and
    write out of bounds. Keras 3.11 passes the batch on; newer versions reshape it.
    """
    flat = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), matrix.astype("float32"))
    return ops.reshape(flat, (-1, *x.shape[1:-1], matrix.shape[-1]))


def _multiply(x, k):
    """Complex product `(batch, c, 2, u, v)` x `(c, n, 2, u, v)` -> `(batch, n, 2, u, v)`."""
    x_re, x_im, k_re, k_im = x[:, :, 0], x[:, :, 1], k[:, :, 0], k[:, :, 1]
    (c, u, v), n = x_re.shape[1:], k.shape[1]
    if c <= 8:  # elementwise: compilers fuse it, and products of 2 x 2 matrices would crawl
        x_re, x_im = x_re[:, :, None], x_im[:, :, None]
        real = ops.sum(x_re * k_re - x_im * k_im, axis=1)
        imaginary = ops.sum(x_re * k_im + x_im * k_re, axis=1)
        return ops.stack([real, imaginary], axis=2)
    # One matrix product per frequency, (batch, 2 c) @ (2 c, 2 n).
    x = ops.reshape(ops.transpose(x, (3, 4, 0, 2, 1)), (u * v, -1, 2 * c))
    k = ops.concatenate(
        [ops.concatenate([k_re, k_im], axis=1), ops.concatenate([-k_im, k_re], axis=1)], axis=0
    )
    k = ops.reshape(ops.transpose(k, (2, 3, 0, 1)), (u * v, 2 * c, 2 * n))
    product = ops.reshape(ops.matmul(x, k), (u, v, -1, 2, n))
    return ops.transpose(product, (2, 4, 3, 0, 1))


def _costs(size, kernel_size, strides, channels, filters, *, batch=16):
    """Multiplications per image of the stock and the Fourier form, weighted to be comparable.

    The stock form fills the processor's vector units only from 16 channels on; the Fourier form
    moves more memory per multiplication (factor 2). Both weights are fitted to the layers of the
    three networks (`benchmarks/transposed_conv.py`).
    """
    (h, w), (s_h, s_w) = size, strides
    rows, columns = (_plan(*axis) for axis in zip(size, kernel_size, strides, strict=True))
    length, half = rows.length, columns.length // 2 + 1
    phases = filters * s_h * s_w

    def transform(count_h, count_w):
        return 2 * half * count_h * (count_w + 2 * length)

    stock = h * w * kernel_size[0] * kernel_size[1] * channels * filters
    fourier = (
        (channels + phases) * transform(h, w)
        + 4 * channels * phases * length * half
        + channels * phases * transform(rows.taps, columns.taps) / batch
    )
    return stock * max(1, 16 / channels), 2 * fourier
