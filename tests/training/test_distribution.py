"""Two devices of one machine train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TRAIN = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pneumo_lib._startup import keras
{two}
from conftest import make_data
from pneumo_lib.training.train import train
settings = {{"backbone": "vgg16", "weights": None, "epochs": 2, "batch_size": 4}}
settings |= {{"dropout": 0.0, "ema": 0.5, "optimizer": "sgd"}}
found = {{}}
for name, distribution in {{"one": None, "two": both}}.items():
    data = make_data(Path("squares").resolve())
    run = train(data, run=name, distribution=distribution, **settings)
    found[name] = [run.history[["loss", "val_loss", "val_dice"]].values.tolist()]
    found[name] += [run.config["distribution"]]
print(json.dumps(found))
"""
TWO_DEVICES = {
    "tensorflow": """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
both = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
""",
    "jax": """
both = keras.distribution.DataParallel(devices=["cpu:0", "cpu:1"])
""",
}


@pytest.mark.parametrize(
    ("backend", "kind"), [("tensorflow", "MirroredStrategy"), ("jax", "DataParallel")]
)
def test_two_devices_reach_the_losses_of_one(backend, kind, tmp_path):
    code = TRAIN.format(two=TWO_DEVICES[backend])
    environment = os.environ | {"PNEUMO_HOME": str(tmp_path), "KERAS_BACKEND": backend}
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"  # read by JAX
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parents[1])],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(found["two"][0], found["one"][0], rtol=1e-5)
    assert (found["one"][1], found["two"][1]) == (None, kind)
