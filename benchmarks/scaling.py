"""Do time and memory grow with the number of cases?

`prepare()` of 500 to 32,000 cases of tiny files, and one training epoch of FCN-VGG19's head on as
many memory-mapped features, each in a process of its own; then 12,047 cases as the data set has,
with ResNet50's features too, the largest, and computing features of that size (by one convolution
instead of the backbone: memory is the question). Time should be linear, memory flat. `make bench`
runs it.

Memory is what the process holds for itself (`RssAnon` of Linux, its peak). The resident size as
other tools show it, also given, counts the pages of memory-mapped files too: those are the page
cache, which the system takes back whenever anyone needs the memory.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np
import pandas as pd
from harness import report

COUNTS, ALL, SIZE, BATCH = (500, 2_000, 8_000, 32_000), 12_047, 128, 16
GRIDS = {"vgg19": (4, 4, 512), "resnet50": (4, 4, 2048)}


def memory(kind):
    """Megabytes of this process: `RssAnon`, or `VmHWM` for the peak of all resident pages."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(kind)).split()[1]) / 1024


def watched(function):
    """Seconds of `function()`, and the peak of `RssAnon` while it ran."""
    peak, done = [memory("RssAnon")], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], memory("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    function()
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    return seconds, peak[0]


def write_cases(folder, count):
    """A case table of `count` tiny files, every fifth with a pneumothorax."""
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), "uint8")
    rows = []
    for number in range(count):
        positive = number % 5 == 0
        mask[4:8, 4:8] = 255 * positive
        paths = [folder / f"{number}.png", folder / f"{number}_mask.png"]
        for path, pixels in zip(
            paths, (rng.integers(0, 256, (32, 32), "uint8"), mask), strict=True
        ):
            cv2.imwrite(str(path), pixels)
        rows.append((str(number), *map(str, paths), positive))
    return pd.DataFrame(rows, columns=["image_id", "image_path", "mask_path", "has_pneumothorax"])


def prepare(folder, count, _):
    import pneumo_lib as pl

    cases = write_cases(folder, count)
    return watched(lambda: pl.data.prepare.prepare(cases, folder / "prepared", size=SIZE))


def train(folder, count, backbone):
    import keras

    import pneumo_lib as pl
    from pneumo_lib.training.loader import CaseBatches, fed
    from pneumo_lib.training.train import compile_network

    _, head = pl.models.split_fcn(pl.build_fcn(backbone, size=SIZE, weights=None))
    network = compile_network(head, keras.optimizers.Adam(1e-3), loss="crossentropy")
    features = filled(folder / "features.npy", (count, *GRIDS[backbone]), "float32")
    masks = filled(folder / "masks.npy", (count, SIZE, SIZE), "uint8")
    rows = np.random.default_rng(0).permutation(count)

    def epoch(rows):
        network.fit(fed(CaseBatches(features, masks, lambda epoch: rows, BATCH)), verbose=0)

    epoch(rows[:BATCH])  # compilation
    return watched(lambda: epoch(rows))


def compute_features(folder, count, backbone):
    import keras

    from pneumo_lib.training.features import cached_features

    side, _, channels = GRIDS[backbone]
    image = keras.Input((SIZE, SIZE, 3))
    stride = SIZE // side
    encoder = keras.Model(image, keras.layers.Conv2D(channels, stride, strides=stride)(image))
    images = filled(folder / "images.npy", (count, SIZE, SIZE), "uint8")
    data = SimpleNamespace(images=images, meta={"checksum": ""})
    return watched(lambda: cached_features(encoder, data, backbone, folder=folder))


def filled(path, shape, dtype):
    """Random numbers in a file, memory-mapped; written a piece at a time."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    rng = np.random.default_rng(0)
    for start in range(0, len(array), 256):
        part = rng.random(array[start : start + 256].shape, dtype="float32")
        array[start : start + 256] = part if dtype == "float32" else part < 0.01
    array.flush()
    del array
    return np.load(path, mmap_mode="r")


TASKS = {"prepare": prepare, "train": train, "features": compute_features}


def measure(task, count, backbone=""):
    """A row of the table, from a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--task", task, str(count), backbone],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{task} {count} {backbone} failed:\n{done.stderr}")
    seconds, anonymous, resident = map(float, done.stdout.split()[-3:])
    return {
        "task": f"{task} {backbone}".strip(),
        "cases": count,
        "seconds": seconds,
        "ms a case": 1e3 * seconds / count,
        "own memory, MB": anonymous,
        "resident with mapped files, MB": resident,
    }


def run_task(task, count, backbone):
    with TemporaryDirectory() as folder:
        seconds, anonymous = TASKS[task](Path(folder), count, backbone)
        print(seconds, anonymous, memory("VmHWM"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--task", nargs=3, help="for the processes this script starts")
    arguments = parser.parse_args()
    if arguments.task:
        task, count, backbone = arguments.task
        return run_task(task, int(count), backbone)
    plan = [("prepare", count) for count in [*arguments.counts, ALL]]
    plan += [("train", count, "vgg19") for count in [*arguments.counts, ALL]]
    plan += [("train", ALL, "resnet50"), ("features", ALL, "resnet50")]
    rows = []
    for what in plan:
        rows.append(measure(*what))
        print(*what, f"{rows[-1]['seconds']:.1f} s", flush=True)
    return report("scaling", pd.DataFrame(rows), unit="seconds", size=SIZE)


if __name__ == "__main__":
    main()
