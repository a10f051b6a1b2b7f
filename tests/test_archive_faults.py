"""Archives on real processes: workers and schedulers that die in mid-task, and Ctrl-C.

One input is a named pipe: whoever reads it waits, so that a test knows which process is in
mid-task, and lets it go on when it wants to.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from test_archive import client, contents, rows_of, run  # noqa: F401  (fixtures)

from pneumo_lib.cluster.archive import predict_archive
from pneumo_lib.cluster.dask_client import LostCluster

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds readers in /proc")
PATIENCE = 90  # seconds, on a machine with much else to do


def until(found):
    """What `found()` gives once it is something."""
    end = time.monotonic() + PATIENCE
    while not (it := found()):
        if time.monotonic() > end:
            pytest.fail(f"nothing after {PATIENCE} s")
        time.sleep(0.05)
    return it


class Pipe:
    """A named pipe in the place of a PNG file."""

    def __init__(self, path, content):
        self.path, self.content = path, content
        os.mkfifo(path)

    def reader(self):
        """Id of a process that waits for the content."""
        # kept open from now on, or who waits would read an empty file
        self.writer = until(self._opened)
        return until(self._reading)

    def _opened(self):
        try:
            return os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody wants to read
                raise
            return None

    def _reading(self):
        # an open for reading waits for a writer before it has a file descriptor
        for place in Path("/proc").glob("[0-9]*/fd/*"):
            try:
                if int(place.parts[2]) != os.getpid() and place.samefile(self.path):
                    return int(place.parts[2])
            except OSError:  # a process that has ended
                continue
        return None

    def fill(self):
        """Let the reader go on."""
        os.write(self.writer, self.content)
        os.close(self.writer)


@pytest.fixture
def files(tmp_path):
    """A list of eight X-rays; the fourth is the pipe."""
    folder = tmp_path / "xrays"
    folder.mkdir()
    names = [folder / f"{number}.png" for number in range(8)]
    for number, name in enumerate(names):
        image = np.zeros((20 + number, 30), np.uint8)
        image[: 3 * number] = 255
        cv2.imwrite(str(name), image)
    content = names[3].read_bytes()
    names[3].unlink()
    (tmp_path / "list.txt").write_text("\n".join(map(str, names)))
    return f"@{tmp_path}/list.txt", Pipe(names[3], content)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address and processes of a scheduler and two workers."""
    file = tmp_path_factory.mktemp("cluster") / "scheduler.json"
    environment = os.environ | {"TF_NUM_INTRAOP_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    scheduler = ["scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard"]
    worker = ["worker", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{kind}", *more, "--scheduler-file", file],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for kind, *more in (scheduler, worker, worker)
    ]
    until(file.exists)
    yield json.loads(file.read_text())["address"], processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def predict(run):  # noqa: F811
    """`predict_archive()` in a thread, so that the test goes on while it waits."""
    thread = ThreadPoolExecutor(1)

    def call(source, out, scheduler):
        options = {"scheduler": scheduler, "partition_files": 2}
        return thread.submit(predict_archive, source, run, out, **options)

    yield call
    thread.shutdown(
        wait=False
    )  # in a test that failed, it waits for the pipe as long as the cluster


def test_partition_of_a_worker_that_is_killed_is_made_by_another(predict, cluster, files, tmp_path):
    address, processes = cluster
    source, pipe = files
    coming = predict(source, tmp_path / "out", address)
    reader = pipe.reader()
    (victim,) = [process for process in processes[1:] if process.pid == reader]
    victim.kill()
    os.close(pipe.writer)  # at once, or who comes next would read an empty file
    victim.wait()  # until then it has the pipe open
    assert pipe.reader() != victim.pid
    pipe.fill()
    outcome = coming.result(PATIENCE)
    assert (outcome.listed, outcome.rows, outcome.failed) == (8, 8, 0)
    assert list(rows_of(tmp_path / "out")["area_px"]) == [90 * number for number in range(8)]


def test_scheduler_that_is_killed_ends_in_one_error_and_the_call_again_goes_on(
    predict,
    cluster,
    client,  # noqa: F811
    files,
    tmp_path,
):
    address, processes = cluster
    source, pipe = files
    coming = predict(source, tmp_path / "out", address)
    pipe.reader()
    before = until(lambda: contents(tmp_path / "out"))
    processes[0].kill()
    with pytest.raises(LostCluster, match=r"must live until the end.*the same command"):
        coming.result(PATIENCE)
    for process in processes:  # the worker would wait for its pipe for ever
        process.kill()
        process.wait()
    os.close(pipe.writer)
    pipe.path.unlink()
    pipe.path.write_bytes(pipe.content)
    outcome = predict(source, tmp_path / "out", client).result(PATIENCE)
    assert outcome.rows == 8 > outcome.predicted
    assert before.items() <= contents(tmp_path / "out").items()


def test_ctrl_c_leaves_no_process_and_the_command_goes_on(run, client, files, tmp_path):  # noqa: F811
    source, pipe = files
    command = ["-m", "pneumo_lib", "predict", source, "--run", run.folder, "--out", tmp_path / "o"]
    process = subprocess.Popen(
        [sys.executable, *command, "--scheduler", "local", "--workers", "1"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
    )
    pipe.reader()
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=PATIENCE)[1]
    os.close(pipe.writer)
    assert process.returncode == 130
    assert "What was finished is kept; the same command goes on." in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert alive == []
    pipe.path.unlink()
    pipe.path.write_bytes(pipe.content)
    outcome = predict_archive(source, run, tmp_path / "o", scheduler=client)
    assert (outcome.listed, outcome.rows) == (8, 8)
