"""The Fourier form on a GPU, through Keras' JAX backend: the layer and whole training steps.

Run on a machine with JAX and a GPU: `KERAS_BACKEND=jax python benchmarks/gpu_jax.py`.
Every deconvolution of the three networks, forward with both gradients, batch 16; and an Adam step
of each head on cached features. Ours against `keras.ops.conv_transpose` (cuDNN).
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import numpy as np
import pandas as pd
from harness import check_same, compare, report
from keras import ops

from pneumo_lib.models.decoders import CLASSES, DECONVOLUTIONS
from pneumo_lib.models.layers.conv_transpose import FourierConv2DTranspose, fourier_conv_transpose

BATCH, REPEATS = 16, 50
FEATURES = {"vgg19": (4, 4, 512), "resnet50": (4, 4, 2048), "inceptionv3": (2, 2, 2048)}


def layers():
    """(side, channels, kernel, stride) of every deconvolution, each once."""
    shapes = []
    for backbone, (side, _, channels) in FEATURES.items():
        for kernel, stride in DECONVOLUTIONS[backbone]:
            shapes.append((side, channels, kernel, stride))
            side, channels = side * stride, CLASSES
    return sorted(set(shapes))


def forward_and_backward(operation, x, kernel, upstream):
    """A function that runs `REPEATS` passes and waits for the last."""

    def objective(x, kernel):
        outputs = operation(x, kernel)
        return ops.sum(outputs * upstream), outputs

    compiled = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))

    def run(repeats=REPEATS):
        for _ in range(repeats):
            results = compiled(x, kernel)
        return jax.block_until_ready(results)

    return run


def compare_layers():
    tables = []
    rng = np.random.default_rng(0)
    for side, channels, k, s in layers():
        x = jax.device_put(rng.normal(size=(BATCH, side, side, channels)).astype("float32"))
        kernel = jax.device_put(rng.normal(size=(k, k, CLASSES, channels)).astype("float32"))
        upstream = rng.normal(size=(BATCH, side * s, side * s, CLASSES)).astype("float32")
        upstream = jax.device_put(upstream)
        ways = {
            "Keras (cuDNN)": lambda x, w, s=s: ops.conv_transpose(x, w, s, "same"),
            "ours": lambda x, w, s=s: fourier_conv_transpose(x, w, (s, s)),
        }
        ways = {n: forward_and_backward(f, x, kernel, upstream) for n, f in ways.items()}
        (gradients, outputs), (own_gradients, own_outputs) = (run(1) for run in ways.values())
        for ours, theirs in zip((own_outputs, *own_gradients), (outputs, *gradients), strict=True):
            check_same("layer", ours, theirs, relative=5e-3)  # TF32 on both sides by default
        table = compare(ways)
        table.insert(0, "layer", f"{side} x {side} x {channels}, kernel {k}, stride {s}")
        tables.append(table)
    return pd.concat(tables)


def head(backbone, method):
    inputs = x = keras.Input(FEATURES[backbone])
    for number, (kernel, stride) in enumerate(DECONVOLUTIONS[backbone]):
        if number:
            x = keras.layers.Dropout(0.5, seed=number)(x)
        x = FourierConv2DTranspose(CLASSES, kernel, strides=stride, padding="same", method=method)(
            x
        )
    return keras.Model(inputs, keras.layers.Softmax()(x))


def compare_steps():
    tables = []
    rng = np.random.default_rng(0)
    for backbone, shape in FEATURES.items():
        x = rng.normal(size=(BATCH, *shape)).astype("float32")
        y = (rng.random((BATCH, 128, 128)) < 0.01).astype("int32")
        ways = {}
        for name, method in {"Keras (cuDNN)": "stock", "ours": "fourier", "auto": "auto"}.items():
            network = head(backbone, method)
            network.compile("adam", "sparse_categorical_crossentropy")
            ways[name] = trained(network, x, y)
        table = compare(ways)
        table.insert(0, "layer", f"training step, head of {backbone}")
        tables.append(table)
    return pd.concat(tables)


def trained(network, x, y):
    """A function that makes `REPEATS` Adam steps on one batch that stays on the device."""
    x, y = jax.device_put(x), jax.device_put(y)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(network.trainable_variables)

    def objective(trainable, state):
        softmax, state = network.stateless_call(trainable, state, x, training=True)
        return ops.mean(keras.losses.sparse_categorical_crossentropy(y, softmax)), state

    @jax.jit
    def step(trainable, state, optimizer_state):
        (_, state), gradients = jax.value_and_grad(objective, has_aux=True)(trainable, state)
        trainable, optimizer_state = optimizer.stateless_apply(
            optimizer_state, gradients, trainable
        )
        return trainable, state, optimizer_state

    variables = [
        [v.value for v in group]
        for group in (
            network.trainable_variables,
            network.non_trainable_variables,
            optimizer.variables,
        )
    ]

    def run():
        state = variables
        for _ in range(REPEATS):
            state = step(*state)
        return jax.block_until_ready(state)

    return run


def main():
    table = pd.concat([compare_layers(), compare_steps()])
    for column in ("median_ms", "lower_ms", "upper_ms"):
        table[column] /= REPEATS
    device = jax.devices()[0].device_kind
    report("gpu_jax", table, unit="milliseconds per batch of 16", device=device)


if __name__ == "__main__":
    main()
