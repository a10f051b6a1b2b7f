"""The processor or GPU that trains, and the number format that suits it."""

import os
import platform
from contextlib import contextmanager, suppress
from pathlib import Path

from pneumo_lib._startup import keras

import tensorflow as tf


def device_name():
    """The GPU that TensorFlow uses, or the processor and its number of cores."""
    for gpu in tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
        return f"{model}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def prepare_gpus():
    """Whether TensorFlow has a GPU; its memory is then taken as needed instead of all at once."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with suppress(RuntimeError):  # already in use: too late to change
            tf.config.experimental.set_memory_growth(gpu, True)
    return bool(gpus)


@contextmanager
def dtype_policy(precision):
    """Layers made inside the block compute in `precision`; their weights stay float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
