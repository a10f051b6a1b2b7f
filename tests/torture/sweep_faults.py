"""A sweep under random kills of its workers, of its client, and with a worker cut off.

What must come out: every run finished, with the same numbers as undisturbed.
"""

import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pandas as pd
from archive_faults import ENVIRONMENT, OUTSIDE, _ip, network, scheduler, worker

PARAMS = """
base: {phantom_count: 40, size: 32, backbone: small, epochs: 8, milestones: [8], batch_size: 4}
grid: {loss: [crossentropy, dice], seed: [0, 1]}
"""
RUNS = 4


def random_worker_kills(folder, *, count=20, seed=0):
    """Two workers, one of which dies every few seconds, until `count` have or all runs are done."""
    rng, done = random.Random(seed), 0
    undisturbed = _undisturbed(folder)
    home = _home(folder / "killed")
    with scheduler(folder) as address, ExitStack() as stack:
        workers = [stack.enter_context(worker(address)) for _ in range(2)]
        client = _sweep(home, address)
        while client.poll() is None:
            time.sleep(rng.uniform(8, 25))  # a run takes about 20 s
            if done < count and client.poll() is None:
                victim = rng.randrange(2)
                workers[victim].send_signal(signal.SIGKILL)
                workers[victim] = stack.enter_context(worker(address))
                done += 1
    return {"faults": done, "wrong": _differences(client, home, undisturbed)}


def random_client_kills(folder, *, count=8, seed=0):
    """The call itself, with its scheduler and its workers' parent, killed and repeated."""
    rng, done = random.Random(seed), 0
    undisturbed = _undisturbed(folder, local=True)
    home = _home(folder / "killed")
    while True:
        client = _sweep(home, "local")
        try:
            client.wait(rng.uniform(10, 40) if done < count else None)
            break
        except subprocess.TimeoutExpired:
            client.kill()
            client.wait()
            done += 1
    return {"faults": done, "wrong": _differences(client, home, undisturbed)}


def cut_off_worker(folder):
    """A worker in a network of its own, whose cable is pulled while it trains."""
    undisturbed = _undisturbed(folder)
    home = _home(folder / "cut")
    with (
        network() as inside,
        scheduler(folder, OUTSIDE) as address,
        worker(address),
        worker(address, inside),
    ):
        client = _sweep(home, address)
        while client.poll() is None and len(list(home.glob("runs/*/state.npz"))) < 2:
            time.sleep(0.05)  # until both have trained an epoch
        _ip("link", "set", "pneumo0", "down")
        finished = len(list(home.glob("runs/*/config.json")))
        client.wait(timeout=1800)
        _ip("link", "set", "pneumo0", "up")
        time.sleep(15)  # whatever the lost one still writes
        wrong = _differences(client, home, undisturbed)
    return {"faults": 1, "runs finished after the cut": RUNS - finished, "wrong": wrong}


def _undisturbed(folder, *, local=False):
    """Tables of the runs of an undisturbed sweep.

    On workers of the same kind as those of the faults: with other numbers of threads TensorFlow
    adds in another order, and the ninth digit of a loss differs.
    """
    home = _home(folder / "undisturbed")
    with ExitStack() as stack:
        address = "local" if local else stack.enter_context(scheduler(home))
        if not local:
            stack.enter_context(worker(address))
        client = _sweep(home, address)
        if client.wait(timeout=1800):
            raise RuntimeError((home / "said.txt").read_text())
    return _tables(home)


def _home(folder):
    folder.mkdir(parents=True)
    (folder / "grid.yaml").write_text(PARAMS)
    return folder


def _sweep(home, scheduler):
    code = "import sys, pneumo_lib as pl; "
    code += "sys.exit(len(pl.cluster.run_sweep('grid.yaml', scheduler=sys.argv[1]).failed))"
    with (home / "said.txt").open("a") as said:
        return subprocess.Popen(
            [sys.executable, "-c", code, scheduler],
            env=ENVIRONMENT | {"PNEUMO_HOME": str(home)},
            stdout=said,
            stderr=said,
        )


def _tables(home):
    """Scores and curves of every run, without times."""
    paths = sorted(home.glob("runs/grid-*/history.csv")) + sorted(home.glob("runs/*/scores.csv"))
    return {
        str(path.relative_to(home)): pd.read_csv(path).drop(columns="seconds", errors="ignore")
        for path in paths
    }


def _differences(client, home, undisturbed):
    if client.returncode:
        return [f"ended with {client.returncode}: {(home / 'said.txt').read_text()[-800:]}"]
    found = _tables(home)
    if found.keys() != undisturbed.keys() or len(found) != 2 * RUNS:
        return [f"other runs: {sorted(found)}"]
    return [f"{name} differs" for name in found if not found[name].equals(undisturbed[name])]


SECTIONS = {
    "sweep kills": random_worker_kills,
    "sweep clients": random_client_kills,
    "sweep cut off": cut_off_worker,
}
