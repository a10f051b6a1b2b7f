"""An archive under random kills of its workers, and with a worker cut off from the network.

What must come out: one row for every file, the same bytes in every part as undisturbed.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

FILES, PARTITION = 600, 8
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TQDM_DISABLE": "1",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1000",
    # A worker that imports TensorFlow sends nothing meanwhile: on a busy machine 10 s were too few.
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "60s",
    "PYTHONPATH": str(ROOT),
}
SPACE, OUTSIDE, INSIDE = "pneumo-cut", "10.77.0.1", "10.77.0.2"


def random_worker_kills(folder, *, count=30, seed=0):
    """Two workers, one of which dies soon after each new part, until `count` have."""
    rng, done, calls, wrong = random.Random(seed), 0, 0, []
    folder.mkdir(parents=True)
    undisturbed = _undisturbed(folder)
    with scheduler(folder) as address, ExitStack() as stack:
        workers = [stack.enter_context(worker(address)) for _ in range(2)]
        while done < count and not wrong:
            calls += 1
            out = folder / f"killed-{calls}"
            client = _predict(folder, out, address)
            while _is_going_on(client, out):
                time.sleep(rng.uniform(0, 1))
                victim = rng.randrange(2)
                workers[victim].send_signal(signal.SIGKILL)
                done += client.poll() is None
                workers[victim] = stack.enter_context(worker(address))
            wrong = _differences(client, out, undisturbed)
            shutil.rmtree(out)
    return {"faults": done, "archives": calls, "wrong": wrong}


def slow_worker(folder):
    """Two workers, one of which stands still for nine tenths of the time."""
    folder.mkdir(parents=True)
    undisturbed = _undisturbed(folder)
    with scheduler(folder) as address, worker(address), worker(address) as slow:
        client, stops = _predict(folder, folder / "slow", address), 0
        while client.poll() is None:
            for signal_, seconds in ((signal.SIGSTOP, 1.8), (signal.SIGCONT, 0.2)):
                slow.send_signal(signal_)
                time.sleep(seconds)
            stops += 1
        wrong = _differences(client, folder / "slow", undisturbed)
    return {"faults": stops, "wrong": wrong}


def cut_off_worker(folder):
    """A worker in a network of its own, whose cable is pulled in mid-task and put back later."""
    folder.mkdir(parents=True)
    undisturbed = _undisturbed(folder)
    with (
        network() as inside,
        scheduler(folder, OUTSIDE) as address,
        worker(address),
        worker(address, inside),
    ):
        out = folder / "cut"
        client = _predict(folder, out, address)
        while len(list(out.glob("parts/*"))) < 8:  # both are at work
            time.sleep(0.05)
        _ip("link", "set", "pneumo0", "down")
        before = len(list(out.glob("parts/*")))
        ended = client.wait(timeout=300)
        _ip("link", "set", "pneumo0", "up")
        time.sleep(15)  # whatever the lost one still writes
        wrong = _differences(client, out, undisturbed)
    more = len(undisturbed["parts"]) - before
    return {"faults": 1, "ended with": ended, "parts made after the cut": more, "wrong": wrong}


def _is_going_on(client, out):
    """Waits for a new part; `False` once the client has ended."""
    there = len(list(out.glob("parts/*")))
    while client.poll() is None and len(list(out.glob("parts/*"))) == there:
        time.sleep(0.05)
    return client.poll() is None


def _undisturbed(folder):
    """Writes files and a network to `folder`; the results of one undisturbed call."""
    import cv2

    import pneumo_lib as pl

    (folder / "xrays").mkdir()
    images = [pl.draw_phantom(number, size=256)[0] for number in range(8)]
    for number in range(FILES):
        image = cv2.add(images[number % 8], number // 8)
        cv2.imwrite(str(folder / "xrays" / f"{number:03}.png"), cv2.resize(image, (512, 512)))
    (folder / "xrays" / "torn.png").write_bytes(b"torn")
    (folder / "run").mkdir()
    network = pl.build_small_fcn(size=64)
    network.save(folder / "run" / "model.keras")
    (folder / "run" / "config.json").write_text(json.dumps({"size": 64, "backbone": "small"}))
    for name in ("history", "scores"):
        (folder / "run" / f"{name}.csv").write_text("epoch\n1\n")
    out = folder / "undisturbed"
    client = _predict(folder, out, "local")
    if client.wait(timeout=600) != 1:  # for the torn file
        raise RuntimeError((folder / "said.txt").read_text())
    return contents(out)


def _predict(folder, out, scheduler):
    code = "import sys, pneumo_lib as pl; a = sys.argv; o = pl.cluster.predict_archive("
    code += f"a[1], a[2], a[3], scheduler=a[4], partition_files={PARTITION}); "
    code += f"sys.exit(2 - ((o.listed, o.rows, o.failed) == ({FILES + 1}, {FILES + 1}, 1)))"
    given = [folder / "xrays", folder / "run", out, scheduler]
    command = [sys.executable, "-c", code, *map(str, given)]
    with (folder / "said.txt").open("w") as said:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=said, stderr=said)


def contents(out):
    """Parts and checksums in a folder of results."""
    parts = {path.name: path.read_bytes() for path in (out / "parts").iterdir()}
    return {"parts": parts, "sums": (out / "SHA256SUMS").read_text()}


def _differences(client, out, undisturbed):
    if client.returncode != 1:
        said = (out.parent / "said.txt").read_text()[-500:]
        return [f"ended with {client.returncode}: {said}"]
    return [] if contents(out) == undisturbed else [f"another result in {out}"]


@contextmanager
def scheduler(folder, host="127.0.0.1"):
    """Address of a scheduler in a process of its own."""
    file = folder / "scheduler.json"
    command = ["-m", "distributed.cli.dask_scheduler", "--host", host, "--port", "0"]
    with _process([*command, "--no-dashboard", "--scheduler-file", str(file)]):
        while not file.exists():
            time.sleep(0.1)
        yield json.loads(file.read_text())["address"]


@contextmanager
def worker(address, before=()):
    """A process that works for the scheduler at `address`."""
    command = ["-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    with _process([*command, "--no-dashboard"], before) as process:
        yield process


@contextmanager
def _process(command, before=()):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*before, sys.executable, *command], env=ENVIRONMENT, **quiet)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def network():
    """Words before a command that run it in a network of its own; needs root on Linux."""
    try:
        _ip("netns", "add", SPACE)
        _ip("link", "add", "pneumo0", "type", "veth", "peer", "name", "pneumo1", "netns", SPACE)
        _ip("addr", "add", f"{OUTSIDE}/24", "dev", "pneumo0")
        _ip("link", "set", "pneumo0", "up")
        inside = ["ip", "netns", "exec", SPACE]
        for what in (f"addr add {INSIDE}/24 dev pneumo1", "link set pneumo1 up", "link set lo up"):
            subprocess.run([*inside, "ip", *what.split()], check=True)
        yield inside
    finally:
        subprocess.run(["ip", "netns", "del", SPACE], check=False)
        subprocess.run(["ip", "link", "del", "pneumo0"], check=False, capture_output=True)


def _ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


SECTIONS = {
    "archive kills": random_worker_kills,
    "archive slow": slow_worker,
    "archive cut off": cut_off_worker,
}
