"""Dropout that is fast on a processor."""

from pneumo_lib._startup import keras

import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="pneumo")
class HashedDropout(keras.layers.Dropout):
    """`keras.layers.Dropout` with noise that XLA computes fast on a processor.

    Compiled by XLA, TensorFlow's own generator takes 45 ms for one dropout of the report's
    networks, longer than the rest of a training step. Here each element's noise is a hash of its
    position and of the layer's seed, which counts the calls (0.13 ms), on every Keras backend, and
    kept and restored with the seed generator as in the stock layer.

    Args:
        rate: share of the elements set to zero; the rest is scaled by `1 / (1 - rate)`.
        seed, ...: as for `keras.layers.Dropout`; `noise_shape` is not supported.

    Raises:
        ValueError: if `noise_shape` is given.

    Reference:
        Srivastava et al. (2014), JMLR 15:1929-1958; the hash is lowbias32 of Wellons (2018),
        Hash Prospector, with the constants found since.
    """

    def __init__(self, rate, noise_shape=None, seed=None, **kwargs):
        if noise_shape is not None:
            raise ValueError(
                "`noise_shape` is not supported; use keras.layers.Dropout. "
                f"Received: noise_shape={noise_shape}"
            )
        super().__init__(rate, seed=seed, **kwargs)

    def call(self, inputs, training=False):
        if not training or self.rate == 0:
            return inputs
        seed = ops.cast(self.seed_generator.next(), "uint32")
        count = int(np.prod(inputs.shape[1:]))
        shape = (ops.shape(inputs)[0], *inputs.shape[1:])
        position = ops.cast(ops.arange(shape[0] * count, dtype="int32"), "uint32")
        # Positions are mixed first, or neighbouring seeds would only reorder the same noise.
        noise = _mix(ops.bitwise_xor(_mix(position), _mix(seed[0] + _mix(seed[1]))))
        dropped = np.uint32(min(self.rate * 2**32, 2**32 - 1))
        kept = ops.reshape(ops.greater_equal(noise, dropped), shape)
        scale = 1 / max(1 - self.rate, 1e-7)
        return ops.where(kept, inputs * scale, ops.zeros_like(inputs))


def _mix(x):
    """Hash of each uint32: every bit of the result depends on every bit of `x`."""
    x = _as_32_bits(x)
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ops.bitwise_xor(x, ops.right_shift(x, np.uint32(shift)))
        x = _as_32_bits(ops.multiply(x, np.uint32(factor)))
    return ops.bitwise_xor(x, ops.right_shift(x, np.uint32(15)))


def _as_32_bits(x):
    """`x` modulo 2**32: PyTorch has no uint32, so that Keras computes in int64 there."""
    return ops.bitwise_and(x, 2**32 - 1) if keras.backend.backend() == "torch" else x
