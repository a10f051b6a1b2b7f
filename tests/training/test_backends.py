"""The study on several Keras backends: from data to a verified run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import pneumo_lib as pl

HEAD = {"backbone": "vgg16", "epochs": 2, "milestones": [1], "ema": 0.5, "test_time_flip": True}
WHOLE = {"backbone": "small", "epochs": 2, "half_size": 0.5, "augmentation": "full"}
HERE = keras.backend.backend()
OTHER = "tensorflow" if HERE == "jax" else "jax"
ELSEWHERE = """
import json, os, sys
if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None  # as where it is not installed: an import of it fails
sys.path.insert(0, sys.argv[1])
from test_backends import study
print(json.dumps(study(*json.loads(sys.argv[2]))))
"""


def study(trained, opened):
    """Trains and opens runs; returns first probabilities of what is opened."""
    data = pl.prepare_data(phantom_count=20, size=32)
    for run, settings in trained.items():
        pl.train(data, run=run, weights=None, batch_size=4, **settings)
    paths, found = data.cases["image_path"].iloc[:2].tolist(), {}
    for run in opened:
        found[run] = [p.probability[::2, ::2].tolist() for p in pl.predict(paths, run)]
        assert pl.inference.verify_run(run, data=data).matches
    return found


def study_elsewhere(backend, *arguments):
    """`study()` on another backend, in a process of its own."""
    command = [sys.executable, "-c", ELSEWHERE, Path(__file__).parent, json.dumps(arguments)]
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))


def test_a_run_of_one_backend_is_opened_predicted_and_verified_on_another():
    names = ["head", "whole", "from here"]
    here = study({"from here": HEAD}, ["from here"])
    other = study_elsewhere(OTHER, {"head": HEAD, "whole": WHOLE}, names)
    here |= study({}, names[:2])
    for name in names:
        np.testing.assert_allclose(here[name], other[name], atol=1e-4)
        assert np.std(here[name]) > 1e-3
    assert [pl.load_run(name).config["backend"] for name in names] == [OTHER, OTHER, HERE]


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is an extra of the benchmarks"
)
def test_pytorch_trains_predicts_and_verifies():
    study_elsewhere("torch", {"head": HEAD, "whole": WHOLE}, ["head", "whole"])
    for name in ("head", "whole"):
        assert np.isfinite(pl.load_run(name).history["val_loss"]).all()
