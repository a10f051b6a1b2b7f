"""The study on several Keras backends: from data to a verified run, in processes of their own."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from pneumo_lib.runs import load_run

STUDY = """
import json, os, sys
import numpy as np
if os.environ["KERAS_BACKEND"] != "tensorflow":
    sys.modules["tensorflow"] = None  # as where it is not installed: an import of it fails
import pneumo_lib as pl
data = pl.prepare_data(phantom_count=20, size=32)
train, opened = json.loads(sys.argv[1])
for run, settings in train.items():
    pl.train(data, run=run, weights=None, batch_size=4, **settings)
found = {}
for run in opened:
    paths = data.cases["image_path"].iloc[:2].tolist()
    found[run] = [p.probability[::2, ::2].tolist() for p in pl.predict(paths, run)]
    assert pl.inference.verify_run(run, data=data).matches
print(json.dumps(found))
"""
HEAD = {"backbone": "vgg16", "epochs": 2, "milestones": [1], "ema": 0.5, "test_time_flip": True}
WHOLE = {"backbone": "small", "epochs": 1, "augmentation": "full", "positive_share": [0.5, 0.3]}


def study(backend, folder, *, train=None, opened=()):
    """Trains and opens runs in a new process; returns first probabilities of what is opened."""
    environment = os.environ | {"KERAS_BACKEND": backend, "PNEUMO_HOME": str(folder)}
    command = [sys.executable, "-c", STUDY, json.dumps([train or {}, opened])]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(("first", "second"), [("jax", "tensorflow"), ("tensorflow", "jax")])
def test_a_run_of_one_backend_is_opened_predicted_and_verified_on_another(
    first, second, tmp_path, monkeypatch
):
    runs = {"head": HEAD, "whole": WHOLE} if first == "jax" else {"head": HEAD}
    expected = study(first, tmp_path, train=runs, opened=list(runs))
    found = study(second, tmp_path, opened=list(runs))
    for name in runs:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
        assert np.std(found[name]) > 1e-3
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    assert load_run("head").config["backend"] == first


@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch is an extra of the benchmarks"
)
@pytest.mark.xfail(
    strict=True, reason="torch 2.15 on a processor, backward pass: grad_input must be contiguous"
)
def test_pytorch_trains_an_epoch(tmp_path, monkeypatch):
    study("torch", tmp_path, train={"head": HEAD, "whole": WHOLE}, opened=["head"])
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    for name in ("head", "whole"):
        assert np.isfinite(load_run(name).history["val_loss"]).all()
