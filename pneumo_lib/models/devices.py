"""The processor or GPU that computes, and the number format that suits it."""

import os
import platform
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from pneumo_lib._startup import keras


def has_gpu():
    """Whether the backend computes on a GPU."""
    if keras.backend.backend() == "torch":  # for which Keras lists no devices
        return False
    return any(name.startswith("gpu") for name in keras.distribution.list_devices())


def device_name():
    """The GPU that trains, or the processor and its number of cores."""
    for gpu in _tensorflow_gpus():
        details = sys.modules["tensorflow"].config.experimental.get_device_details(gpu)
        return details.get("device_name", gpu.name)
    if has_gpu():
        return keras.distribution.list_devices()[0]
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(": ")[1] for line in lines if line.startswith("model name"))
        return f"{model}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def prepare_gpus():
    """Whether there is a GPU; its memory is then taken as needed instead of all at once."""
    for gpu in _tensorflow_gpus():
        with suppress(RuntimeError):  # already in use: too late to change
            sys.modules["tensorflow"].config.experimental.set_memory_growth(gpu, True)
    return has_gpu()


def _tensorflow_gpus():
    if keras.backend.backend() != "tensorflow":
        return []
    return sys.modules["tensorflow"].config.list_physical_devices("GPU")  # Keras imported it


@contextmanager
def dtype_policy(precision):
    """Layers made inside the block compute in `precision`; their weights stay float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
