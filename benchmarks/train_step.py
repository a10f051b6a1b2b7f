"""How long does a training step of 16 images take, and an epoch of 7,710?

For each network of the report: ours on cached features, ours through the frozen backbone, stock
Keras `train_on_batch()` with stock layers through the frozen backbone, and PyTorch with the same
head on the same features (its backbone costs nothing here, which favours PyTorch). Random
features, synthetic masks: the arithmetic is that of a real run. `make bench` runs it; `commits.py`
compares two commits.
"""

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from harness import check_same, compare, report

from pneumo_lib.models import fcn
from pneumo_lib.models.backbones import preprocess
from pneumo_lib.training.loader import CaseBatches, fed
from pneumo_lib.training.train import compile_network

try:
    import torch
except ImportError:
    torch = None

BATCH, SIZE, EPOCH = 16, 128, 7710
STEPS = 32  # of ours in one measured call, as in a real epoch


def stock_twin(model):
    """The same network with `keras.layers.Conv2DTranspose`, and the same weights."""

    def to_stock(layer):
        config = layer.get_config()
        if "method" not in config:
            return layer.__class__.from_config(config)
        config.pop("method")
        return keras.layers.Conv2DTranspose.from_config(config)

    twin = keras.models.clone_model(model, clone_function=to_stock)
    twin.set_weights(model.get_weights())
    for layer, original in zip(twin.layers, model.layers, strict=True):
        layer.trainable = original.trainable
    return twin


def ours(network, inputs, masks, backbone, *, order=None):
    """One call of `fit()`: `STEPS` training steps, or those of an epoch in this `order`."""
    network = compile_network(
        network, keras.optimizers.Adam(1e-3), loss="crossentropy", backbone=backbone
    )
    order = order or (lambda epoch: np.arange(STEPS * BATCH) % len(inputs))
    batches = CaseBatches(inputs, masks, order, BATCH)
    return lambda: network.fit(fed(batches), shuffle=False, verbose=0)


def stock(twin, images, masks, backbone):
    x, y = np.asarray(preprocess(images, backbone)), masks.astype("int32")
    twin.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    return lambda: twin.train_on_batch(x, y)


def torch_head(head, features, masks):
    """The deconvolutions and dropouts of `head` in PyTorch, one Adam step at a call."""
    layers = []
    for layer in head.layers:
        if isinstance(layer, keras.layers.Conv2DTranspose):
            kernel, bias = (torch.tensor(w) for w in layer.get_weights())
            k, s = layer.kernel_size[0], layer.strides[0]
            conv = torch.nn.ConvTranspose2d(kernel.shape[3], 2, k, s, (k - s) // 2)
            conv.weight.data, conv.bias.data = kernel.permute(3, 2, 0, 1).contiguous(), bias
            layers.append(conv)
        elif isinstance(layer, keras.layers.Dropout):
            layers.append(torch.nn.Dropout(layer.rate))
    network = torch.nn.Sequential(*layers)  # contiguous: channels last is 15 times slower here
    x = torch.tensor(features).permute(0, 3, 1, 2).contiguous()
    y = torch.tensor(masks.astype("int64"))
    network.eval()
    with torch.no_grad():
        softmax = network(x).softmax(1).permute(0, 2, 3, 1).numpy()
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def step():
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    return step, softmax


def measure_network(backbone, *, rounds):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, SIZE, SIZE), dtype="uint8")
    masks = (rng.random((BATCH, SIZE, SIZE)) < 0.01).astype("uint8")
    model = fcn.build_fcn(backbone, size=SIZE, weights=None)
    encoder, head = fcn.split_fcn(model)
    twin = stock_twin(model)
    preprocessed = preprocess(images, backbone)
    features = encoder(preprocessed, training=False).numpy()
    expected = twin(preprocessed, training=False).numpy()
    check_same("cached features", head(features).numpy(), expected, relative=1e-4)

    once = lambda epoch: np.arange(BATCH)  # noqa: E731
    ways = {
        "ours, cached features": ours(head, features, masks, None),
        "ours, through the backbone": ours(model, images, masks, backbone, order=once),
        "Keras": stock(twin, images, masks, backbone),
    }
    if torch is not None:
        ways["PyTorch, head only"], softmax = torch_head(head, features, masks)
        check_same("PyTorch", softmax, expected, relative=1e-4)
    table = compare(ways, rounds=rounds)
    first = table["contender"] == "ours, cached features"
    table.loc[first, ["median_ms", "lower_ms", "upper_ms"]] /= STEPS
    table["times ours"] = table["median_ms"] / table["median_ms"].iloc[0]
    table.insert(0, "network", backbone)
    return table


def measure_epoch(backbone, matrix_rate):
    """Seconds of one real epoch, read from memory-mapped files, and its share of the peak."""
    model = fcn.build_fcn(backbone, size=SIZE, weights=None)
    encoder, head = fcn.split_fcn(model)
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        shape = (EPOCH, *encoder.output_shape[1:])
        features = np.lib.format.open_memmap(
            Path(folder) / "x.npy", mode="w+", dtype="float32", shape=shape
        )
        for part in np.array_split(features, 16):
            part[...] = rng.random(part.shape, dtype="float32")
        masks = (rng.random((EPOCH, SIZE, SIZE), dtype="float32") < 0.01).astype("uint8")
        epoch = ours(head, features, masks, None, order=lambda epoch: rng.permutation(EPOCH))
        seconds = compare({"epoch": epoch}, rounds=3)["median_ms"].iloc[0] / 1e3
    work = 3 * 2 * sum(direct_multiplications(layer) for layer in head.layers)
    return {
        "network": backbone,
        "seconds": seconds,
        "ms per step of 16": 1e3 * seconds / (EPOCH / BATCH),
        "direct GFLOP/s": work * EPOCH / seconds / 1e9,
        "of the matrix product rate": work * EPOCH / seconds / matrix_rate,
    }


def direct_multiplications(layer):
    """Multiplications per image of a transposed convolution in its direct form."""
    if not isinstance(layer, keras.layers.Conv2DTranspose):
        return 0
    height, width = layer.input.shape[1:3]
    return height * width * int(np.prod(layer.kernel.shape))


def matrix_product_rate():
    """FLOP/s of a float32 product of two 4096 x 4096 matrices on this machine."""
    a = tf.random.stateless_uniform((4096, 4096), (1, 2))
    milliseconds = compare({"product": lambda: (a @ a).numpy()}, rounds=5)["median_ms"].iloc[0]
    return 2 * 4096**3 / (1e-3 * milliseconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    rate = matrix_product_rate()
    print(f"matrix product: {rate / 1e9:.0f} GFLOP/s")
    networks = ("vgg19", "resnet50", "inceptionv3")
    epochs = pd.DataFrame([measure_epoch(backbone, rate) for backbone in networks])
    print(epochs.to_string(index=False, float_format="{:,.3g}".format))
    table = pd.concat([measure_network(backbone, rounds=rounds) for backbone in networks])
    report(
        "train_step",
        table,
        unit="milliseconds per step of 16 images",
        epochs=epochs.to_dict("records"),
        matrix_product_gflops=rate / 1e9,
    )


if __name__ == "__main__":
    main()
