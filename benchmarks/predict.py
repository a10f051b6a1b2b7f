"""How many X-rays a second does `predict()` get from file to mask?

Against its own frozen backbone on images that are already in memory (what no prediction can
beat), and against stock Keras: `keras.Model.predict()` of the same network with stock
`Conv2DTranspose`, on preprocessed images in memory. For each network of the report, on JPEG-DICOM
and PNG files of `../shared/data` where they are, and on phantoms of 1024 x 1024 as PNG. Random
features: the arithmetic is that of a real run. `make bench` runs it.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pandas as pd
from harness import check_same, compare, report
from train_step import stock_twin

import pneumo_lib as pl
from pneumo_lib.data.images import read_image, resize_image
from pneumo_lib.evaluation.operating_point import OperatingPoint
from pneumo_lib.inference import predict
from pneumo_lib.models import forward as features
from pneumo_lib.models.backbones import preprocess

SIZE, BATCH = 128, 32
SHARED = Path(__file__).parents[2] / "shared" / "data"


def measure(backbone, sources, folder, *, rounds):
    network = pl.build_fcn(backbone, size=SIZE, weights=None)
    images = {name: np.stack([read(path) for path in paths]) for name, paths in sources.items()}
    make_rare(network, np.concatenate([batch[:BATCH] for batch in images.values()]), backbone)
    network.save(folder / "model.keras")
    run = pl.runs.Run(folder, {"size": SIZE, "backbone": backbone}, None, None)
    encoder, _ = pl.models.split_fcn(network)
    twin = stock_twin(network)
    tables = []
    for name, paths in sources.items():
        few = np.asarray(preprocess(images[name][:BATCH], backbone))
        started = time.perf_counter()
        predictions = list(predict.predict(paths[:BATCH], run))
        setup = time.perf_counter() - started
        expected = twin.predict(few, batch_size=BATCH, verbose=0)[..., 1]
        check_same(name, [p.probability for p in predictions], expected, relative=2e-2)
        ways = {
            "ours": from_files(paths, run),
            "backbone alone": backbone_alone(encoder, images[name], backbone),
            "Keras predict": lambda few=few: twin.predict(few, batch_size=BATCH, verbose=0),
        }
        table = compare(ways, rounds=rounds)
        per_image = 1 / np.where(table["contender"] == "Keras predict", BATCH, len(paths))
        for column in ("median_ms", "lower_ms", "upper_ms", "cpu_ms"):
            table[column] *= per_image
        table["images a second"] = 1e3 / table["median_ms"]
        table["times ours"] = table["median_ms"] / table["median_ms"].iloc[0]
        table.insert(0, "files", name)
        table.insert(0, "network", backbone)
        tables.append(table.assign(**{"first batch, s": setup}))
    return pd.concat(tables)


def read(path):
    return resize_image(read_image(path), (SIZE, SIZE))


def make_rare(network, images, backbone):
    """Shift the scores until a quarter of the images holds foreground, as real X-rays do."""
    softmax = network(preprocess(images, backbone), training=False).numpy()
    scores = np.log(softmax[..., 1] / softmax[..., 0]).max(axis=(1, 2))
    last = [layer for layer in network.layers if hasattr(layer, "kernel_size")][-1]
    last.bias.assign([np.quantile(scores, 0.75), 0.0])


def from_files(paths, run):
    """`predict()` once it has loaded the network: the seconds of that are told apart."""
    foreground = predict.load_scored(run, batch_size=BATCH, xla=True)
    read, point = partial(predict.read_file, size=SIZE), OperatingPoint()
    todo = (paths, read, foreground, point, BATCH, None)
    return lambda: sum(1 for _ in predict.predictions(*todo))


def backbone_alone(encoder, images, backbone):
    forward = features.compiled(encoder, backbone, batch_size=BATCH)
    return lambda: [forward(images[i : i + BATCH]) for i in range(0, len(images), BATCH)]


def find_sources(folder, count):
    """Name -> paths of `count` files, repeated where there are fewer."""
    phantoms = pl.make_phantoms(folder / "phantoms", count=32, size=1024)
    sources = {"phantoms 1024, PNG": phantoms / "png_images"}
    if SHARED.is_dir():
        sources["siim_real 512, PNG"] = SHARED / "siim_real" / "png_images"
        sources["siim sample 1024, DICOM"] = SHARED / "siim_dicom_sample"
    found = {name: predict.find_images(place) for name, place in sources.items()}
    return {name: (paths * count)[:count] for name, paths in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--networks", nargs="+", default=["vgg19", "resnet50", "inceptionv3"])
    arguments = parser.parse_args()
    tables = []
    with TemporaryDirectory() as folder:
        sources = find_sources(Path(folder), arguments.files)
        for backbone in arguments.networks:
            table = measure(backbone, sources, Path(folder), rounds=arguments.rounds)
            print(table.to_string(index=False, float_format="{:,.3g}".format), flush=True)
            tables.append(table)
    report("predict", pd.concat(tables), unit="milliseconds per image", batch=BATCH)


if __name__ == "__main__":
    main()
