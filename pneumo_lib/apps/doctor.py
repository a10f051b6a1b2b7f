"""What is in place to train and predict, and what to do where it is not."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NamedTuple

from packaging.requirements import Requirement

from pneumo_lib._files import project_path

_EXTRAS = {
    "": "everything",
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
    yield Finding("ok", "pneumo", f"{version('pneumo')}, Python {platform.python_version()}")
    for extra, purpose in _EXTRAS.items():
        versions = {name: _version(name) for name in _asked_for(extra)}
        missing = ", ".join(name for name in versions if versions[name] is None)
        if not missing:
            shown = ", ".join(f"{name} {number}" for name, number in versions.items())
            yield Finding("ok", f"extra {extra}" if extra else "packages", shown)
        elif extra:
            remedy = f"pip install -e '.[{extra}]'"
            yield Finding("missing", f"extra {extra}", f"no {missing} ({purpose})", remedy)
        else:
            yield Finding("wrong", "packages", f"no {missing}", "make env")


def _asked_for(extra):
    """Names of the packages of an extra, or of those that pneumo always needs."""
    requirements = [Requirement(line) for line in requires("pneumo")]
    if not extra:
        return [r.name for r in requirements if not r.marker]
    return [r.name for r in requirements if r.marker and r.marker.evaluate({"extra": extra})]


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices():
    import pneumo_lib._startup  # noqa: F401  (before TensorFlow)

    import tensorflow as tf

    from pneumo_lib.training.devices import device_name

    yield Finding("ok", "device", device_name())
    if not tf.config.list_physical_devices("GPU"):
        remedy = "with an NVIDIA GPU on Linux: pip install -e '.[gpu]'"
        yield Finding("missing", "GPU", "none that TensorFlow sees", remedy)


def _weights():
    """Files of ImageNet weights, where Keras keeps them."""
    from pneumo_lib.models.backbones import published_weights
    from pneumo_lib.models.names import PRETRAINED as BACKBONES

    for name in BACKBONES:
        file, url = published_weights(name)
        if file.is_file():
            yield Finding("ok", f"ImageNet {name}", str(file))
        else:
            remedy = f"downloaded at the first training; or put {url} into {file.parent}"
            yield Finding("missing", f"ImageNet {name}", "not here", remedy)


def _data():
    """Data sets below `data/`."""
    from pneumo_lib.data.siim import read_cases

    found = False
    for folder in sorted(project_path("data").glob("*")):
        if folder.is_dir() and folder.name not in ("prepared", "features"):
            try:
                cases = read_cases(folder)
            except (FileNotFoundError, ValueError):
                continue
            found |= not (folder / "phantoms.json").is_file()
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
    folder = next(p for p in (project_path(), *project_path().parents) if p.exists())
    free = shutil.disk_usage(folder).free / 1e9
    value = f"{free:.0f} GB free in {folder}"
    if not os.access(folder, os.W_OK):
        remedy = "allow writing there, or set PNEUMO_HOME to another folder"
        return Finding("wrong", "disk", f"{value}, which cannot be written", remedy)
    if free < _FREE_GB:
        remedy = f"free {_FREE_GB} GB, or set PNEUMO_HOME to a folder on another disk"
        return Finding("wrong" if free < 1 else "missing", "disk", value, remedy)
    return Finding("ok", "disk", value)
