"""Time several ways of doing the same thing, in turns, and say on what machine."""

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).parent / "results"


def compare(contenders, *, rounds=9, seconds_each=20.0):
    """Median milliseconds of each contender, with the quartiles, measured in turns.

    Every contender runs once unmeasured (compilation, caches), then all run in turn, so that
    whatever slows the machine for a while slows them all. A contender stops taking part once it
    has used `seconds_each` and has run three times.

    Args:
        contenders: dict name -> function without arguments that returns when its work is done.
        rounds: measured runs of each.
        seconds_each: time after which three runs are enough.

    Returns:
        DataFrame, one row per contender: median_ms, lower_ms, upper_ms (quartiles), runs.
    """
    times = {name: [] for name in contenders}
    for function in contenders.values():
        function()
    for _ in range(rounds):
        for name, function in contenders.items():
            if len(times[name]) >= 3 and sum(times[name]) > seconds_each:
                continue
            started = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - started)
    rows = []
    for name, values in times.items():
        lower, median, upper = 1e3 * np.quantile(values, [0.25, 0.5, 0.75])
        rows.append([name, median, lower, upper, len(values)])
    return pd.DataFrame(rows, columns=["contender", "median_ms", "lower_ms", "upper_ms", "runs"])


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
