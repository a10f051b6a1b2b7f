"""Checks of what training and prediction need, with remedies."""

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from itertools import compress
from typing import NamedTuple

from packaging.requirements import Requirement

from pneumo_lib._files import IN_CHECKOUT, project_path, source_path

_EXTRAS = {
    "notebooks": "notebooks and the report",
    "dicom": "compressed DICOM, DICOM SEG",
    "export": "ONNX",
    "talk": "slides",
    "kaggle": "`pneumo fetch`",
    "cluster": "sweeps and archives",
}
_FREE_GB = 10  # the data set, its arrays and the features of three backbones


class Finding(NamedTuple):
    """Result of one check."""

    state: str  # "ok", "missing" (works, with less) or "wrong" (must be mended)
    what: str
    value: str
    remedy: str = ""


def examine():
    """List of `Finding`s on versions, devices, weights, data, runs and disk. Downloads nothing."""
    return [*_packages(), *_devices(), *_weights(), *_data(), _runs(), _disk()]


def _packages():
    yield Finding("ok", "pneumo", f"{version('pneumo')}, Python {platform.python_version()}")
    required = [Requirement(line) for line in requires("pneumo")]
    for extra in ("", *_EXTRAS):
        chosen = (r.marker.evaluate({"extra": extra}) if r.marker else not extra for r in required)
        versions = {r.name: _version(r.name) for r in compress(required, chosen)}
        missing = ", ".join(name for name in versions if versions[name] is None)
        what = f"extra {extra}" if extra else "packages"
        if not missing:
            shown = ", ".join(f"{name} {number}" for name, number in versions.items())
            yield Finding("ok", what, shown)
        elif extra:
            value = f"no {missing} ({_EXTRAS[extra]})"
            yield Finding("missing", what, value, f"pip install -e '.[{extra}]'")
        else:
            yield Finding("wrong", what, f"no {missing}", "make env")


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices():
    from pneumo_lib._startup import keras

    from pneumo_lib.models.devices import device_name, has_gpu

    yield Finding("ok", "device", device_name())
    if not has_gpu():
        remedy = "with an NVIDIA GPU on Linux: pip install -e '.[gpu]'"
        yield Finding("missing", "GPU", f"none found by {keras.backend.backend()}", remedy)


def _weights():
    """Files of ImageNet weights in the cache of Keras."""
    from pneumo_lib.models.names import PRETRAINED
    from pneumo_lib.models.weights import published_weights

    for name in PRETRAINED:
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
    if finished := sorted(project_path("runs").glob("*/config.json")):
        return Finding("ok", "runs", ", ".join(path.parent.name for path in finished))
    remedy = "make report" if source_path("notebooks").is_dir() else IN_CHECKOUT
    return Finding("missing", "runs", "no trained network", remedy)


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
