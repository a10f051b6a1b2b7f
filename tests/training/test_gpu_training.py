"""The benchmark for GPUs runs where there is none, so that it runs when one is at hand."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_gpu_benchmark_measures_each_training(tmp_path):
    script = shutil.copytree(BENCHMARKS, tmp_path / "benchmarks") / "gpu_training.py"
    few = ["--images", "6", "--epochs", "2", "--tuned-images", "5", "--tuned-size", "64"]
    few += ["--heads", "vgg19"]
    done = subprocess.run(
        [sys.executable, script, *few],
        env=os.environ | {"KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((script.parent / "results" / "gpu_training.json").read_text())
    assert [row["training"] for row in found["rows"]] == ["head of vgg19", "fine-tuning at 64"]
    for row in found["rows"]:
        assert 0 < row["first epoch, s"] < row["all epochs, s"]
        assert row["steps/s with validation"] > 0
