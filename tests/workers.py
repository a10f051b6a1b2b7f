"""Trainings on several replicas, each worker a process of this machine; run by tests.

`python workers.py FOLDER` makes `FOLDER/found.json`. TensorFlow is imported once and each worker
is a fork of that: nothing of it has started by then.
"""

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from conftest import SIZE, make_data
from keras.initializers import GlorotUniform as glorot

from pneumo_lib.models.layers.dropout import HashedDropout, SharedSpatialDropout2D
from pneumo_lib.training import distribution, replicas, steps
from pneumo_lib.training import train as training
from pneumo_lib.training.optimizers import build_optimizer

SETTINGS = {"weights": None, "batch_size": 4, "epochs": 2}
HEAD = SETTINGS | {"backbone": "vgg16", "run": "head"}


class Recorded(np.ndarray):
    """An array that remembers which of its rows were read, a list a block."""

    def __getitem__(self, rows):
        if isinstance(rows, np.ndarray):
            read.append(rows.tolist())
        return np.asarray(super().__getitem__(rows))


read = []  # by this process


def workers(count, job, folder):
    """`job(number)` in so many processes that form a cluster: a dict of each.

    It holds `status`, its exit status (negative: the signal), and `output`.
    """
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    children = []
    for number in range(count):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}}
        children.append(fork(job, number, folder / f"output-{number}", TF_CONFIG=json.dumps(task)))
    statuses = {child: os.waitpid(child, 0)[1] for child in children}
    return [
        {
            "status": os.waitstatus_to_exitcode(statuses[child]),
            "output": (folder / f"output-{number}").read_text(),
        }
        for number, child in enumerate(children)
    ]


def fork(job, number, output, **environment):
    """Number of a new process in which `job(number)` runs, and ends with 1 if it fails."""
    if child := os.fork():
        return child
    signal.alarm(500)  # none outlives a test that hangs
    status = 1
    try:
        os.environ |= environment
        with open(output, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        job(number)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def train(folder, strategy, **settings):
    """A run under `folder`, on squares whose masks remember what was read of them."""
    os.environ["PNEUMO_HOME"] = str(folder)
    data = make_data(folder / "squares")
    data.masks = data.masks.view(Recorded)
    return training.train(data, strategy=strategy, **settings)


def two_workers(folder):
    """One run by two workers, of which the second is killed in the second epoch, begun again."""
    (folder / "two").mkdir()
    (folder / "one").mkdir()

    def work(number, *, killed):
        written = note_files_written(folder / "two" / "runs", folder / "two" / "data")
        if killed and number == 1:
            die_in_pass(3)
        train(folder / "two", "multiworker", **HEAD)
        record = {"read": read, "written": written}
        (folder / f"record-{number}.json").write_text(json.dumps(record))

    killed = workers(2, lambda n: work(n, killed=True), folder)
    again = workers(2, lambda n: work(n, killed=False), folder)
    child = fork(lambda _: train(folder / "one", None, **HEAD), 0, folder / "output-one")
    _, status = os.waitpid(child, 0)
    records = [json.loads((folder / f"record-{n}.json").read_text()) for n in range(2)]
    return {"killed": killed, "again": again, "alone": status, "records": records}


def die_in_pass(number):
    """This process is killed when it begins its pass of that number over the cases."""
    quick, passes = steps.run_epoch, []

    def run_epoch(*arguments, **options):
        passes.append(1)
        if len(passes) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return quick(*arguments, **options)

    steps.run_epoch = run_epoch


def note_files_written(*folders):
    """A list that grows with the files that this process opens for writing there, or renames."""
    written, folders = [], tuple(map(str, folders))

    def hook(event, arguments):
        changes = event == "os.rename"
        if event == "open":
            changes = (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        if changes and str(arguments[0]).startswith(folders):
            written.append(str(arguments[0]))

    sys.addaudithook(hook)
    return written


def mirrored(_):
    """A network with all that depends on the batch, trained on one device and on two."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    return {
        "one": train_tiny(None),
        "both": train_tiny(strategy),
        "overflow": overflow_on_one_replica(strategy),
    }


def train_tiny(strategy):
    """Losses of three passes, and all variables after them."""
    data = make_data(None)
    with distribution.scope(strategy):
        network = keras.Sequential(
            [
                keras.Input((SIZE, SIZE, 3)),
                keras.layers.Conv2D(8, 3, padding="same", kernel_initializer=glorot(seed=1)),
                keras.layers.BatchNormalization(momentum=0.9),
                SharedSpatialDropout2D(0.3, seed=2),
                HashedDropout(0.3, seed=3),
                keras.layers.Conv2D(2, 1, kernel_initializer=glorot(seed=4)),
                keras.layers.Softmax(),
            ]
        )
        variables = network.trainable_variables
        slow = {"slow": variables[:1], "slow_factor": 0.1}
        optimizer = build_optimizer("sgd", variables, learning_rate=0.1, ema=0.5, **slow)
        draws = keras.random.SeedGenerator(5)
    settings = {"loss": "crossentropy", "batch_size": 4, "backbone": "small", "seed": draws}
    step, evaluate = steps.compile_steps(
        network, optimizer, **settings, augmentation="flip", strategy=strategy
    )
    # Last batches of one image and of three.
    passes = [(step, 13), (step, 15), (evaluate, 13)]
    losses = [
        steps.run_epoch(one, data.images, data.masks, np.arange(n), 4, strategy=strategy)["loss"]
        for one, n in passes
    ]
    every = [*network.variables, *optimizer.variables]
    return {"losses": losses, "weights": [np.asarray(v).tolist() for v in every]}


def overflow_on_one_replica(strategy):
    """Weight and scale of the loss after a step whose gradient is infinite on one replica."""
    with strategy.scope():
        layer = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
        layer.build((None, 1))
        variables = layer.trainable_variables
        optimizer = build_optimizer("sgd", variables, learning_rate=0.1, scale_loss=True)

    @tf.function
    def apply():
        def one():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            gradient = tf.where(tf.equal(number, 1), np.inf, 1.0) * tf.ones((1, 1))
            replicas.apply_gradients(optimizer, layer, [gradient])

        strategy.run(one)

    apply()
    scale = optimizer.dynamic_scale
    copies = [strategy.experimental_local_results(v.value) for v in (layer.kernel, scale)]
    return [[float(np.squeeze(copy)) for copy in both] for both in copies]


def in_a_fork(job, folder):
    """What `job(folder)` returns, from a process of its own."""
    folder.mkdir()
    child = fork(
        lambda _: (folder / "found.json").write_text(json.dumps(job(folder))),
        0,
        folder / "output",
    )
    if os.waitpid(child, 0)[1]:
        sys.exit((folder / "output").read_text())
    return json.loads((folder / "found.json").read_text())


if __name__ == "__main__":
    os.environ["TQDM_DISABLE"] = "1"
    folder = Path(sys.argv[1])
    found = in_a_fork(mirrored, folder / "devices") | two_workers(folder)
    (folder / "found.json").write_text(json.dumps(found))
