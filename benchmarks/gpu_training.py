"""How long do the trainings of the study take on a GPU, by `train()` itself?

Run on a machine with a GPU and JAX (TensorFlow is not needed): `KERAS_BACKEND=jax python
benchmarks/gpu_training.py`, about ten minutes. Each head on cached features for 300 epochs of the
report's 7,710 images, the features of all 12,047 first; and fine-tuning at 512 pixels. Noise with
random weights: the arithmetic is that of a real run. On a processor the columns of the GPU stay
empty.
"""

import argparse
import os
import subprocess
import time
from tempfile import TemporaryDirectory

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
import pandas as pd
from harness import noise, report

from pneumo_lib.training.train import train

HEADS = ("vgg19", "resnet50", "inceptionv3")


class Clock(keras.callbacks.Callback):
    """Times of the beginning and of the end of each epoch, and of the beginning of all."""

    def on_train_begin(self, logs=None):
        self.times = [time.perf_counter()]

    def on_epoch_end(self, epoch, logs=None):
        self.times.append(time.perf_counter())


class Gpu:
    """While a block runs: how busy `nvidia-smi` finds the GPU, five times a second."""

    def __enter__(self):
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
        try:
            self.smi = subprocess.Popen(["nvidia-smi", *query], stdout=subprocess.PIPE, text=True)
        except FileNotFoundError:
            self.smi = None
        return self

    def __exit__(self, *error):
        self.samples = []
        if self.smi:
            self.smi.terminate()
            self.samples = [float(line) for line in self.smi.communicate()[0].splitlines()[:-1]]

    def busy(self, share):
        """Mean of the last `share` of the samples, 0 to 1; None without a GPU."""
        last = self.samples[len(self.samples) - round(share * len(self.samples)) :]
        return float(np.mean(last)) / 100 if last else None


def measure(name, data, **settings):
    """A row of the table: one call of `train()`."""
    clock, gpu = Clock(), Gpu()
    started = time.perf_counter()
    with gpu:
        train(data, run=name, weights=None, callbacks=[clock], milestones=[], **settings)
    ended = time.perf_counter()
    first, *later = np.diff(clock.times)
    steps = -(-int((data.cases["split"] == "train").sum()) // settings.get("batch_size", 16))
    epoch = float(np.median(later or [first]))
    return {
        "training": name,
        "before (features), s": clock.times[0] - started,
        "first epoch, s": first,
        "all epochs, s": clock.times[-1] - clock.times[0],
        "after (scores), s": ended - clock.times[-1],
        "steps/s with validation": steps / epoch,
        "peak memory so far, GiB": peak_memory(),
        "GPU waits, share": waits(gpu.busy((ended - clock.times[0]) / (ended - started))),
    }


def waits(busy):
    return None if busy is None else 1 - busy


def peak_memory():
    """GiB of the device, where its backend counts them."""
    if keras.backend.backend() != "jax":
        return None
    import jax

    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return peak and peak / 2**30


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=12_047)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--tuned-images", type=int, default=800)
    parser.add_argument("--tuned-size", type=int, default=512)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        os.environ["PNEUMO_HOME"] = folder
        data = noise(options.images, 128, training_share=0.64, folder=folder)
        rows = [
            measure(f"head of {b}", data, backbone=b, epochs=options.epochs) for b in options.heads
        ]
        size = options.tuned_size
        data = noise(options.tuned_images, size, training_share=0.8, folder=folder)
        tuned = {"backbone": "vgg16", "decoder": "skips", "fine_tune": "whole", "epochs": 3}
        rows.append(measure(f"fine-tuning at {size}", data, **tuned))
    report("gpu_training", pd.DataFrame(rows), unit="seconds", backend=keras.backend.backend())


if __name__ == "__main__":
    main()
