"""Trainings by two workers: the networks against one process, kills, hangs, a pulled cable.

`python strategy_faults.py FOLDER STRATEGY SETTINGS` is one worker, or the one process.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TESTS = HERE.parent
SETTINGS = {"weights": None, "batch_size": 4, "epochs": 3, "run": "made"}
NETWORKS = {
    "head": {"backbone": "vgg19"},
    "skips": {"backbone": "vgg16", "decoder": "skips", "dropout": 0.0},  # see the documentation
    "skips tuned": {"backbone": "vgg16", "decoder": "skips", "fine_tune": "last"},
    # not Adam, which divides a gradient by its size: rounding alone may turn a step of it round
    "small": {"backbone": "small", "optimizer": "sgd", "learning_rate": 0.01},
}
LONG = {"backbone": "vgg16", "epochs": 1000}  # not over before the last kill


def equal(folder):
    """The largest differences between two workers, two devices and one process."""
    wrong, found = [], {}
    for name, settings in NETWORKS.items():
        settings = SETTINGS | settings
        place = folder / name.replace(" ", "-")
        for strategy in ("none", "mirrored", "multiworker"):
            with started(place / strategy, settings, strategy) as processes:
                if any(process.wait(900) for process in processes):
                    wrong.append(f"{name}, {strategy}: {said(place / strategy)}")
        if wrong:
            break
        for strategy in ("mirrored", "multiworker"):
            loss, weights = difference(place / "none", place / strategy)
            found[f"{name}, {strategy}"] = (loss, weights)
            if not (loss < 1e-5 and weights < 1e-3):
                wrong.append(f"{name}, {strategy}: losses differ by {loss}, weights by {weights}")
    return {"runs": 3 * len(NETWORKS), "largest": found, "wrong": wrong}


def kills(folder, *, count=10, seed=0):
    """One of two workers is killed or stopped at a random moment, again and again.

    After an epoch of both: TensorFlow waits without end for a worker that has not come yet.
    """
    rng, wrong, seconds, settings = random.Random(seed), [], [], SETTINGS | LONG
    with started(folder / "none", settings, "none") as [process]:
        process.wait(900)
    for _ in range(10 * count):
        with started(folder / "two", settings, "multiworker") as processes:
            victim, how = rng.randrange(2), rng.choice([signal.SIGKILL, signal.SIGSTOP])
            begun, history = time.time(), folder / "two" / "runs" / "made" / "history.csv"
            while not _is_newer(history, begun) and all(p.poll() is None for p in processes):
                time.sleep(0.1)
            time.sleep(rng.uniform(0, 5))
            if len(seconds) == count or any(process.poll() == 0 for process in processes):
                break
            processes[victim].send_signal(how)
            seconds.append(wait_for_the_end(processes[1 - victim], folder / "two", wrong))
    with started(folder / "two", settings, "multiworker") as processes:
        statuses = [process.wait(900) for process in processes]
    if any(statuses):
        wrong.append(f"the last call ended with {statuses}: {said(folder / 'two')}")
    elif max(difference(folder / "none", folder / "two")) > 1e-3:
        wrong.append("another result")
    return {"faults": len(seconds), "longest": max(seconds, default=0), "wrong": wrong}


def _is_newer(path, moment):
    return path.exists() and path.stat().st_mtime > moment


def pulled_cable(folder):
    """The second worker lies in a network of its own, whose cable is pulled in mid-training."""
    from archive_faults import INSIDE, OUTSIDE, _ip, network

    wrong, history = [], folder / "two" / "runs" / "made" / "history.csv"
    with (
        network() as inside,
        started(
            folder / "two", SETTINGS | LONG, "multiworker", hosts=[OUTSIDE, INSIDE], inside=inside
        ) as processes,
    ):
        while not history.exists():
            time.sleep(0.1)
        _ip("link", "set", "pneumo0", "down")
        seconds = [wait_for_the_end(one, folder / "two", wrong) for one in processes]
    return {"faults": 1, "seconds": seconds, "wrong": wrong}


def wait_for_the_end(process, folder, wrong):
    """Seconds until a worker that lost the other ends, as it should, with its sentence."""
    begun = time.monotonic()
    try:
        status = process.wait(120)
    except subprocess.TimeoutExpired:
        status = "never"
    if status != 1 or "All workers of a training must live" not in said(folder):
        wrong.append(f"the other ended with {status}: {said(folder)}")
    return round(time.monotonic() - begun, 1)


@contextmanager
def started(folder, settings, strategy, *, hosts=("127.0.0.1",) * 2, inside=()):
    """The processes of a training; at the end of the block there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = random.sample(range(20_000, 30_000), 2)
    cluster = [f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)]
    processes = []
    for number in range(2 if strategy == "multiworker" else 1):
        task = {"cluster": {"worker": cluster}, "task": {"type": "worker", "index": number}}
        config = {"TF_CONFIG": json.dumps(task)} if strategy == "multiworker" else {}
        before = inside if number else ()
        command = [*before, sys.executable, __file__, str(folder), strategy, json.dumps(settings)]
        with (folder / f"output-{number}.txt").open("w") as output:
            environment = os.environ | config | {"TQDM_DISABLE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
            processes.append(
                subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            )
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def said(folder):
    return " | ".join(path.read_text()[-800:] for path in sorted(folder.glob("output-*.txt")))


def difference(one, other):
    """Largest differences of the losses and of the last weights of two runs."""
    import keras

    from pneumo_lib import _files
    from pneumo_lib.models import fcn  # noqa: F401  (its layers must be known)

    both = [folder / "runs" / "made" for folder in (one, other)]
    losses = [_files.read_csv(folder / "history.csv")[["loss", "val_loss"]] for folder in both]
    networks = [keras.models.load_model(f / "model.keras", compile=False) for f in both]
    weights = [[w.numpy() for w in network.trainable_weights] for network in networks]
    apart = max(np.abs(a - b).max() for a, b in zip(*weights, strict=True))
    return float((losses[0] - losses[1]).abs().max().max()), float(apart)


def main():
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    import tensorflow as tf
    from conftest import make_data

    from pneumo_lib.training.train import train

    folder, strategy, settings = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    os.environ["PNEUMO_HOME"] = str(folder)
    chosen = {"none": None, "multiworker": "multiworker"}.get(strategy)
    if strategy == "mirrored":
        cpu = tf.config.list_physical_devices("CPU")[0]
        both = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, both)
        chosen = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    train(make_data(folder / "squares"), strategy=chosen, **settings)


SECTIONS = {
    "strategy equal": equal,
    "strategy kills": kills,
    "strategy cut off": pulled_cable,
}

if __name__ == "__main__":
    main()
