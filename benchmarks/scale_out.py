"""Do two workers do twice the work of one, and what would 8 and 64 do?

Prediction of an archive (`pneumo predict --scheduler`) and runs of a sweep (`pneumo sweep`) with
one and with two local workers, each worker held to one core; the rows are checked to be the same
first. Then Dask's own scheduler in a process of its own with 1, 8 and 64 workers, whose tasks
carry the same 256 names and sleep as long as a partition took: so scheduler and network are real
and only the arithmetic is simulated. And the most tasks a second that the scheduler manages.

The X-rays are phantoms of 512 pixels as PNG, brightened by a few grey levels so that no two have
the same bytes. `make bench` runs it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import pandas as pd
import psutil
from distributed import Client, LocalCluster
from harness import report

from pneumo_lib.cluster.archive_files import Partition
from pneumo_lib.cluster.dask_client import as_finished

HERE = Path(__file__).parent
PARTITION, DRAWN, SIDE = 256, 32, 512
ONE_CORE = dict.fromkeys(
    ("TF_NUM_INTRAOP_THREADS", "OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)


# -- real work with one and two workers


@contextmanager
def local_workers(count):
    """A client of `count` worker processes, each on a core of its own."""
    with (
        LocalCluster(
            n_workers=count, threads_per_worker=1, env=ONE_CORE, memory_limit=0,
            dashboard_address=":0", silence_logs=50,
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        cores = sorted(os.sched_getaffinity(0))
        for number, worker in enumerate(client.scheduler_info(n_workers=-1)["workers"]):
            client.run(os.sched_setaffinity, 0, {cores[number % len(cores)]}, workers=[worker])
        yield client


def make_inputs(folder, count):
    """`count` PNG files of phantoms, none with the bytes of another, in folders of a thousand."""
    import cv2

    import pneumo_lib as pl

    images = [cv2.resize(pl.draw_phantom(n, size=SIDE // 2)[0], (SIDE, SIDE)) for n in range(DRAWN)]
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.add(images[number % DRAWN], number // DRAWN % 64)
        cv2.imwrite(str(path), cv2.flip(image, 1) if number // DRAWN >= 64 else image)
    return folder


def network(folder, backbone):
    """A finished run without a training: random features, of which a quarter holds foreground."""
    from predict import make_rare, read

    import pneumo_lib as pl

    size = 128
    built = (
        pl.build_small_fcn(size=size)
        if backbone == "small"
        else pl.build_fcn(backbone, size=size, weights=None)
    )
    few = pl.make_phantoms(folder / f"few-{backbone}", count=32, size=128) / "png_images"
    make_rare(built, np.stack([read(path) for path in sorted(few.iterdir())]), backbone)
    built.save(folder / "model.keras")
    return pl.runs.Run(folder, {"size": size, "backbone": backbone}, None, None)


def predict_archives(folder, *, files, backbone, rounds):
    """A row for each number of workers, and the seconds of a partition on one."""
    import pneumo_lib as pl

    xrays = make_inputs(folder / "xrays", files)
    warm = make_inputs(folder / "warm", 2 * PARTITION)
    (folder / backbone).mkdir()
    run = network(folder / backbone, backbone)
    sums, seconds, memory, busy = {}, {1: [], 2: []}, {}, {1: [], 2: []}
    for turn in range(rounds):
        for workers in seconds:
            out = folder / f"{backbone}-{workers}-{turn}"
            with local_workers(workers) as client:
                pl.cluster.predict_archive(
                    warm, run, f"{out}-warm", scheduler=client
                )  # loads TensorFlow
                pids = list(client.run(os.getpid).values())
                before, started = sum(map(_cpu_seconds, pids)), time.perf_counter()
                outcome = pl.cluster.predict_archive(
                    xrays, run, out, scheduler=client, partition_files=PARTITION
                )
                seconds[workers].append(time.perf_counter() - started)
                busy[workers].append(sum(map(_cpu_seconds, pids)) - before)
                if (outcome.rows, outcome.failed) != (files, 0):
                    raise SystemExit(f"rows were lost or failed: {outcome}")
                memory[workers] = max(map(_megabytes, pids))
            sums[workers, turn] = (out / "SHA256SUMS").read_text()
            print(workers, "workers", f"{seconds[workers][-1]:.1f} s", flush=True)
    if len(set(sums.values())) != 1:
        raise SystemExit("one and two workers gave different rows")
    rates = {w: files / statistics.median(seconds[w]) for w in seconds}
    rows = [
        {
            "what": f"archive, {backbone}, files",
            "workers": w,
            "a second": rates[w],
            "efficiency": rates[w] / (w * rates[1]),
            "CPU, ms": 1e3 * statistics.median(busy[w]) / files,
            "worker, MB": memory[w],
        }
        for w in rates
    ]
    return rows, PARTITION / rates[1]


def _cpu_seconds(pid):
    return sum(psutil.Process(pid).cpu_times()[:2])


def _megabytes(pid):
    return psutil.Process(pid).memory_info().rss / 2**20


def sweeps(folder, *, rounds):
    """Runs an hour of a small sweep, with one and two workers."""
    os.environ["PNEUMO_HOME"] = str(folder)
    import yaml

    from pneumo_lib.cluster.sweep import run_sweep

    base = {
        "data": "phantoms", "phantom_count": 100, "size": 64, "backbone": "small", "epochs": 4,
        "milestones": [4],
    }  # fmt: skip
    seconds = {1: [], 2: []}
    for turn in range(rounds):
        for workers in seconds:
            grid = {"learning_rate": [1e-3 + 1e-5 * (10 * turn + n) for n in range(6)]}
            params = folder / f"sweep{workers}{turn}.yaml"
            params.write_text(yaml.safe_dump({"base": base, "grid": grid}))
            with local_workers(workers) as client:
                started = time.perf_counter()
                sweep = run_sweep(params, scheduler=client)
                seconds[workers].append(time.perf_counter() - started)
            if sweep.failed:
                raise SystemExit(f"runs failed: {sweep.failed}")
            print(workers, "workers", f"{seconds[workers][-1]:.1f} s", flush=True)
    rates = {w: 6 / statistics.median(seconds[w]) for w in seconds}
    return [
        {
            "what": "sweep, runs",
            "workers": w,
            "a second": rates[w],
            "an hour": 3600 * rates[w],
            "efficiency": rates[w] / (w * rates[1]),
        }
        for w in rates
    ]


# -- simulated work with many workers


def simulate(partition, seconds):
    """A task of a prediction that sends and receives the same, without its arithmetic."""
    time.sleep(seconds)
    return len(partition.files)


def partitions(count):
    """Partitions with names as long as those of a bucket."""
    names = tuple(f"s3://hospital-archive/2026/11/{number:012}.dcm" for number in range(PARTITION))
    return (Partition(f"part-{number:020}.parquet", names) for number in range(count))


def host(count, address):
    """Workers in one process; sleeping tasks need no more."""
    import asyncio

    from distributed import Worker

    async def work():
        workers = [
            await Worker(address, nthreads=1, memory_limit=0, dashboard=False) for _ in range(count)
        ]
        await asyncio.gather(*(worker.finished() for worker in workers))

    asyncio.run(work())


@contextmanager
def many_workers(count, folder):
    """A client of a scheduler in a process of its own, and of `count` workers, 8 a process."""
    file = folder / f"scheduler-{count}.json"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1"]
    command += ["--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    processes = [subprocess.Popen(command, **quiet)]
    try:
        while not file.exists():
            time.sleep(0.1)
        with Client(scheduler_file=str(file)) as client:
            for start in range(0, count, 8):
                share = str(min(8, count - start))
                command = [sys.executable, str(HERE / "scale_out.py"), "--host"]
                command += [share, client.scheduler.addr]
                processes.append(subprocess.Popen(command, **quiet))
            client.wait_for_workers(count, timeout=300)
            yield client, psutil.Process(processes[0].pid)
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()


def simulated(folder, *, count, task_seconds, rounds=4):
    """Rows of sleeping tasks and of empty ones with `count` workers."""
    with many_workers(count, folder) as (client, scheduler):
        list(as_finished(client, simulate, partitions(4 * count), seconds=0))  # imports
        cases = [("archive, simulated, files", rounds * count, task_seconds), ("tasks", 3000, 0)]
        rows = []
        for what, tasks, seconds in cases:
            before = sum(scheduler.cpu_times()[:2])
            started = time.perf_counter()
            finished = as_finished(client, simulate, partitions(tasks), seconds=seconds)
            done = sum(files for _, files, _ in finished)
            took = time.perf_counter() - started
            if done != tasks * PARTITION:
                raise SystemExit(f"{done} files instead of {tasks * PARTITION}")
            rows.append(
                {
                    "what": "tasks, empty" if not seconds else what,
                    "workers": count,
                    "a second": tasks / took * (PARTITION if seconds else 1),
                    "efficiency": rounds * seconds / took if seconds else None,
                    "scheduler, ms a task": 1e3 * (sum(scheduler.cpu_times()[:2]) - before) / tasks,
                }
            )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--backbones", nargs="+", default=["small", "vgg19"])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64], help="simulated")
    parser.add_argument("--skip", nargs="*", default=[], choices=["archive", "sweep", "simulated"])
    parser.add_argument("--host", nargs=2, help="for the processes this script starts")
    arguments = parser.parse_args()
    if arguments.host:
        return host(int(arguments.host[0]), arguments.host[1])
    rows, task_seconds = [], {"assumed": 8.0}
    for backbone in arguments.backbones if "archive" not in arguments.skip else []:
        with TemporaryDirectory() as folder:
            found, task_seconds[backbone] = predict_archives(
                Path(folder), files=arguments.files, backbone=backbone, rounds=arguments.rounds
            )
            rows += found
    if "sweep" not in arguments.skip:
        with TemporaryDirectory() as folder:
            rows += sweeps(Path(folder), rounds=arguments.rounds)
    for count in arguments.workers if "simulated" not in arguments.skip else []:
        with TemporaryDirectory() as folder:
            seconds = task_seconds.get("small", task_seconds["assumed"])
            rows += simulated(Path(folder), count=count, task_seconds=seconds)
            print(count, "simulated workers done", flush=True)
    return report(
        "scale_out", pd.DataFrame(rows), unit="a second", partition_files=PARTITION,
        files=arguments.files, partition_seconds=task_seconds,
    )  # fmt: skip


if __name__ == "__main__":
    main()
