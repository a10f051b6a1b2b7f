"""What is in place to train and predict, and what to do where it is not."""

import importlib.metadata
import os
import platform
import re
import shutil
from typing import NamedTuple

from pneumo_lib import __version__
from pneumo_lib.paths import project_path
from pneumo_lib.quiet import quiet_start

_EXTRAS = {
    "notebooks": "notebooks and the report",
    "dicom": "compressed DICOM, DICOM SEG",
    "export": "ONNX",
    "kaggle": "`pneumo fetch`",
}
_FREE_GB = 10  # the data set, its arrays and the features of three backbones


class Finding(NamedTuple):
    """One line of `examine()`."""

    state: str  # "ok", "missing" (works without, for less) or "wrong" (must be mended)
    what: str
    value: str
    remedy: str = ""


def examine():
    """Look at versions, devices, weights, data, runs and disk. Downloads nothing.

    Returns:
        List of `Finding`.
    """
    return [*_packages(), *_devices(), *_weights(), *_data(), _runs(), _disk()]


def _packages():
    yield Finding("ok", "pneumo", f"{__version__}, Python {platform.python_version()}")
    groups = {"": [], **{extra: [] for extra in _EXTRAS}}
    for line in importlib.metadata.requires("pneumo") or []:
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        if (extra[1] if extra else "") in groups:
            groups[extra[1] if extra else ""].append(re.match(r"[\w.-]+", line)[0])
    for extra, names in groups.items():
        versions = {name: _version(name) for name in names}
        missing = [name for name, version in versions.items() if version is None]
        shown = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        what = f"extra {extra}" if extra else "packages"
        if missing:
            state, remedy = (
                ("missing", f"pip install -e '.[{extra}]'") if extra else ("wrong", "make env")
            )
            yield Finding(
                state,
                what,
                f"no {', '.join(missing)}{f' ({_EXTRAS[extra]})' if extra else ''}",
                remedy,
            )
        else:
            yield Finding("ok", what, shown)


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices():
    with quiet_start():
        import tensorflow as tf

        from pneumo_lib.devices import device_name
    yield Finding("ok", "device", device_name())
    if not tf.config.list_physical_devices("GPU"):
        remedy = "with an NVIDIA GPU on Linux: pip install -e '.[gpu]'"
        yield Finding("missing", "GPU", "none that TensorFlow sees", remedy)


def _weights():
    """Files of ImageNet weights, where Keras keeps them."""
    from pneumo_lib.backbones import BACKBONES, published_weights

    for name in BACKBONES:
        path, url = published_weights(name)
        if path.is_file():
            yield Finding("ok", f"ImageNet {name}", f"{path}")
        else:
            remedy = f"downloaded at the first training; or put {url} into {path.parent}"
            yield Finding("missing", f"ImageNet {name}", "not here", remedy)


def _data():
    """Data sets below `data/`."""
    from pneumo_lib.dataset import read_cases

    found = False
    for folder in sorted(project_path("data").glob("*")):
        if folder.is_dir() and folder.name not in ("prepared", "features"):
            try:
                cases = read_cases(folder)
            except (FileNotFoundError, ValueError):
                continue
            found |= not folder.name.startswith("phantoms")
            positive = int(cases["has_pneumothorax"].sum())
            yield Finding("ok", "data", f"{folder}: {len(cases)} X-rays, {positive} positive")
    if not found:
        remedy = "pneumo fetch siim --to data/siim; without it, phantoms are drawn"
        yield Finding("missing", "data", "no real X-rays in data/", remedy)


def _runs():
    from pneumo_lib.runs import is_finished

    names = sorted(p.parent.name for p in project_path("runs").glob("*/config.json"))
    names = [name for name in names if is_finished(project_path("runs") / name)]
    if names:
        return Finding("ok", "runs", ", ".join(names))
    return Finding("missing", "runs", "no trained network", "make report")


def _disk():
    folder = project_path()
    free = shutil.disk_usage(folder).free / 1e9
    writable = os.access(folder, os.W_OK)
    value = f"{free:.0f} GB free in {folder}{'' if writable else ', which cannot be written'}"
    if free >= _FREE_GB and writable:
        return Finding("ok", "disk", value)
    remedy = f"free {_FREE_GB} GB, or set PNEUMO_HOME to a folder on another disk"
    return Finding("wrong" if not writable or free < 1 else "missing", "disk", value, remedy)
