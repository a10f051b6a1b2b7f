"""Timing of several implementations in turns, with a description of the machine."""

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd

_TURN, _PAUSE = 0.1, 0.25  # seconds
RESULTS = Path(__file__).parent / "results"


def compare(contenders, *, rounds=9, seconds_each=20.0):
    """Median milliseconds of each contender, with the quartiles, measured in turns.

    Every contender runs twice unmeasured (compilation, caches), then all run in turn, so that
    whatever slows the machine for a while slows them all. Short ones run several times within a
    turn, for a tenth of a second, and each turn starts after a pause: idle worker threads of the
    library before spin for up to 0.2 s and would take half of two cores from the next one. A
    contender stops taking part once it has used `seconds_each` and has had three turns.

    Args:
        contenders: dict name -> function without arguments that returns when its work is done.
        rounds: turns of each.
        seconds_each: time after which three turns are enough.

    Returns:
        DataFrame, one row per contender: median_ms, lower_ms, upper_ms (quartiles), cpu_ms (the
        median time of all processors, which other programs change less), turns.
    """
    times, processors = ({name: [] for name in contenders} for _ in range(2))
    repeats = {}
    for name, function in contenders.items():
        function()
        repeats[name] = max(1, round(_TURN / _seconds(function, 1)[0]))
    for _ in range(rounds):
        for name, function in contenders.items():
            if len(times[name]) >= 3 and repeats[name] * sum(times[name]) > seconds_each:
                continue
            time.sleep(_PAUSE)
            seconds, processor_seconds = _seconds(function, repeats[name])
            times[name].append(seconds)
            processors[name].append(processor_seconds)
    rows = []
    for name, values in times.items():
        lower, median, upper = 1e3 * np.quantile(values, [0.25, 0.5, 0.75])
        rows.append([name, median, lower, upper, 1e3 * np.median(processors[name]), len(values)])
    columns = ["contender", "median_ms", "lower_ms", "upper_ms", "cpu_ms", "turns"]
    return pd.DataFrame(rows, columns=columns)


def _seconds(function, repeats):
    """Mean seconds of one call, and those of this process on all processors."""
    clocks = (time.perf_counter, time.process_time)
    started = [clock() for clock in clocks]
    for _ in range(repeats):
        function()
    return [(clock() - start) / repeats for clock, start in zip(clocks, started, strict=True)]


def noise(images, size, *, training_share, folder):
    """`Prepared` noise with a patch of each third image marked, to train on and to validate."""
    from pneumo_lib.data.prepare import Prepared

    rng = np.random.default_rng(0)
    masks = np.zeros((images, size, size), "uint8")
    masks[::3, size // 4 : size // 2, size // 4 : size // 3] = 1
    training = round(training_share * images)
    splits = ["train"] * training + ["validation"] * (images - training)
    cases = pd.DataFrame({"image_id": np.arange(images).astype(str), "split": splits})
    cases["has_pneumothorax"] = masks.any(axis=(1, 2))
    meta = {"source": "noise", "size": size, "checksum": f"{images} {size}", "synthetic": True}
    meta |= {"split_scheme": "random", "leaked_patients": 0}
    pixels = rng.integers(0, 256, masks.shape, dtype="uint8")
    return Prepared(pixels, masks, cases, meta, Path(folder) / "noise")


def check_same(name, ours, theirs, *, relative):
    """Refuse to time two computations that do not give the same numbers."""
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not error <= relative:
        raise SystemExit(f"{name}: relative difference {error:.1e}, more than {relative:.0e}")
    return error


def machine():
    """Processor, cores, memory and package versions of this run."""
    processor = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [s for s in cpuinfo.read_text().splitlines() if s.startswith("model name")]
        processor = names[0].split(": ")[1] if names else processor
    versions = {"python": platform.python_version()}
    for package in ("tensorflow", "keras", "jax", "torch", "numpy", "opencv-python-headless"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"processor": processor, "cores": os.cpu_count(), "versions": versions}


def report(name, table, **more):
    """Print the table and write it, with the machine, to `benchmarks/results/<name>.json`."""
    print(table.to_string(index=False, float_format=lambda value: f"{value:,.3g}"))
    RESULTS.mkdir(exist_ok=True)
    content = {"benchmark": name, "date": time.strftime("%Y-%m-%d"), "machine": machine()}
    content |= more | {"rows": table.to_dict("records")}
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
