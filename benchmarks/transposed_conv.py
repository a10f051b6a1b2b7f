"""How much faster is the Fourier form of the transposed convolution?

Ours against stock Keras (plain, XLA, bfloat16) and PyTorch (both memory formats), for every
deconvolution of the three networks; forward, and forward with the gradients of input and
kernel. Batch 16, two filters. `make bench` runs it; PyTorch is optional (`pip install .[bench]`).
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
import tensorflow as tf
from harness import check_same, compare, report
from keras import ops

from pneumo_lib.models.layers.conv_transpose import fourier_conv_transpose

try:
    import torch
except ImportError:
    torch = None

BATCH = 16
LAYERS = {  # (input side, channels, kernel, stride)
    "VGG19 1": (4, 512, 16, 4),
    "VGG19 2": (16, 2, 32, 4),
    "ResNet50 1": (4, 2048, 4, 2),
    "ResNet50 2": (8, 2, 16, 2),
    "ResNet50 3": (16, 2, 32, 2),
    "ResNet50 4": (32, 2, 32, 2),
    "InceptionV3 1": (2, 2048, 16, 4),
    "InceptionV3 2": (8, 2, 32, 4),
    "last of all": (64, 2, 64, 2),
}


def stock(x, kernel, stride):
    return ops.conv_transpose(x, kernel, strides=stride, padding="same")


def ours(x, kernel, stride):
    return fourier_conv_transpose(x, kernel, (stride, stride))


def keras_way(operation, x, kernel, upstream, *, stride, backward, xla=False, dtype="float32"):
    """A compiled function without arguments: outputs, and gradients if `backward`."""
    x, kernel, upstream = (tf.cast(a, dtype) for a in (x, kernel, upstream))

    def forward_and_backward(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            outputs = operation(x, kernel, stride)
        if not backward:
            return [outputs]
        return [outputs, *tape.gradient(outputs, [x, kernel], output_gradients=upstream)]

    compiled = tf.function(forward_and_backward, jit_compile=xla)
    return lambda: [tf.cast(result, "float32").numpy() for result in compiled(x, kernel)]


def torch_way(x, kernel, upstream, *, stride, backward, memory_format):
    """PyTorch's own operation; its symmetric padding equals "same" as kernel - stride is even."""
    x, upstream = (
        torch.from_numpy(a).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
        for a in (x, upstream)
    )
    kernel = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous(memory_format=memory_format)
    padding = (kernel.shape[-1] - stride) // 2

    def run():
        a, k = (t.clone(memory_format=torch.preserve_format) for t in (x, kernel))
        if not backward:
            with torch.inference_mode():
                y = torch.nn.functional.conv_transpose2d(a, k, stride=stride, padding=padding)
                return [y.permute(0, 2, 3, 1).numpy()]
        a.requires_grad_()
        k.requires_grad_()
        y = torch.nn.functional.conv_transpose2d(a, k, stride=stride, padding=padding)
        y.backward(upstream)
        return [
            y.detach().permute(0, 2, 3, 1).numpy(),
            a.grad.permute(0, 2, 3, 1).numpy(),
            k.grad.permute(2, 3, 1, 0).numpy(),
        ]

    return run


def contenders(side, channels, kernel_size, stride, *, backward):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, side, side, channels)).astype("float32")
    kernel = rng.normal(size=(kernel_size, kernel_size, 2, channels)).astype("float32")
    upstream = rng.normal(size=(BATCH, side * stride, side * stride, 2)).astype("float32")
    arguments = {"stride": stride, "backward": backward}
    ways = {
        "ours, XLA": keras_way(ours, x, kernel, upstream, xla=True, **arguments),
        "ours": keras_way(ours, x, kernel, upstream, **arguments),
        "Keras": keras_way(stock, x, kernel, upstream, **arguments),
        "Keras, XLA": keras_way(stock, x, kernel, upstream, xla=True, **arguments),
        "Keras, bfloat16": keras_way(stock, x, kernel, upstream, dtype="bfloat16", **arguments),
    }
    if torch is not None:
        for name in ("contiguous_format", "channels_last"):
            ways[f"PyTorch, {name.removesuffix('_format').replace('_', ' ')}"] = torch_way(
                x, kernel, upstream, memory_format=getattr(torch, name), **arguments
            )
    return ways


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", nargs="+", choices=LAYERS, default=list(LAYERS))
    arguments = parser.parse_args()
    rounds = arguments.rounds
    tables = []
    for layer, shape in ((layer, LAYERS[layer]) for layer in arguments.layers):
        for backward in (False, True):
            ways = contenders(*shape, backward=backward)
            expected = ways["Keras"]()
            for name, run in ways.items():
                tolerance = 3e-2 if "bfloat16" in name else 1e-4
                for result, reference in zip(run(), expected, strict=True):
                    check_same(f"{layer}, {name}", result, reference, relative=tolerance)
            table = compare(ways, rounds=rounds)
            for column in ("median_ms", "lower_ms", "upper_ms"):
                table[column] /= BATCH
            best = table["median_ms"].iloc[0]
            table["times ours, XLA"] = table["median_ms"] / best
            table.insert(0, "pass", "forward + backward" if backward else "forward")
            table.insert(0, "layer", layer)
            print(table.to_string(index=False, header=not tables, float_format="{:,.3g}".format))
            tables.append(table)
    report("transposed_conv", pd.concat(tables), unit="milliseconds per image", batch=BATCH)


if __name__ == "__main__":
    main()
