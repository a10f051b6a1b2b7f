"""Kills, full disks, vanished folders: one clear error, nothing lost, nothing done twice.

Kills at random moments are in the tests of `train()`; here work is killed at file events.
`make torture` does so at each of them.
"""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from nbformat import v4, write

from pneumo_lib._files import file_lock, new_array
from pneumo_lib.data import arrays
from pneumo_lib.data import images as data_images
from pneumo_lib.data import prepare as preparation
from pneumo_lib.data.phantom import draw
from pneumo_lib.data.phantom.draw import make_phantoms
from pneumo_lib.data.prepare import load_prepared, prepare
from pneumo_lib.data.siim import read_cases
from pneumo_lib.data.splits import split_cases
from pneumo_lib.study.notebooks import NotebookError
from pneumo_lib.study.report import run_report

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX systems")


@pytest.fixture
def cases(png_release):
    return split_cases(read_cases(png_release), near_duplicates=False, validation=0.3)


def start(*arguments):
    """Python in a process group of its own, which Ctrl-C reaches as in a terminal."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "torture")))
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"TQDM_DISABLE": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, process, *, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.01)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Killed at any moment


KILL_AT_EVENTS = """
import jobs, json, sys
from pathlib import Path
jobs.CHILDREN.set_forkserver_preload(jobs.LIGHT)
print(json.dumps(jobs.kill_everywhere(sys.argv[1], Path(sys.argv[2]), points=int(sys.argv[3]))))
"""


@posix
@pytest.mark.parametrize(("job", "points"), [("prepare", 10), ("phantoms", 3)])
def test_work_killed_at_a_file_event_ends_as_if_undisturbed(job, points, png_release, tmp_path):
    shutil.copytree(png_release, tmp_path / job / "data")
    process = start("-c", KILL_AT_EVENTS, job, tmp_path / job, points)
    out, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    result = json.loads(out.splitlines()[-1])
    assert result["wrong"] == []
    assert result["kills"] == points


# Two at once


def test_the_second_process_waits_says_so_and_then_finds_the_work_done(tmp_path, caplog):
    order = []

    def second():
        with file_lock(tmp_path / "made"):
            order.append("second")

    waiting = threading.Thread(target=second)
    with caplog.at_level("INFO", "pneumo_lib"), file_lock(tmp_path / "made"):
        waiting.start()
        while "waiting for it to end" not in caplog.text:
            time.sleep(0.005)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []  # no lock file is left


def test_who_waited_for_another_process_finds_its_work_and_does_none(cases, tmp_path, monkeypatch):
    works = {
        preparation._files: lambda: prepare(cases, tmp_path / "arrays", size=16),
        draw: lambda: make_phantoms(tmp_path / "phantoms", count=2, size=64),
    }
    for module, work in works.items():

        @contextmanager
        def after_another(path, module=module, work=work):
            monkeypatch.setattr(module, "file_lock", file_lock)
            work()
            monkeypatch.setattr(arrays, "fill", None)
            monkeypatch.setattr(draw, "_draw_all", None)
            yield

        monkeypatch.setattr(module, "file_lock", after_another)
        work()
        monkeypatch.undo()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_gets_a_warning_and_no_lock(
    number, tmp_path, monkeypatch, caplog
):
    fcntl = pytest.importorskip("fcntl", reason="Windows has no flock")

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with file_lock(tmp_path / "made"):
        (tmp_path / "made").touch()
    assert "let one process at a time make it" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from pneumo_lib._files import atomic_write, file_lock
made = Path(sys.argv[1])
with file_lock(made):
    names = ["made/history.csv", "made/masks/1.png", "made.count", "made", "other.count"]
    asides = [atomic_write(made.parent / name).__enter__() for name in names]
    for aside in asides:
        aside.mkdir() if aside.name.endswith("-made") else aside.touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@posix
def test_killed_writer_keeps_nobody_out_and_what_it_left_is_removed(tmp_path):
    made = tmp_path / "made"
    (made / "masks").mkdir(parents=True)
    (made / ".hidden-notes.txt").touch()
    process = start("-c", KILLED_WRITER, made)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob(".*"))) == 7  # five unfinished, the notes, the lock
    with file_lock(made):
        left = {path.name.split("-")[-1] for path in tmp_path.rglob(".*")}
    assert left == {".made.lock", "notes.txt", "other.count"}
    assert not (tmp_path / ".made.lock").exists()


@pytest.mark.parametrize("wanted", [lambda f: f / "made", lambda f: f / "new" / "made"])
def test_finished_work_is_opened_where_nothing_can_be_written(wanted, cases, tmp_path, monkeypatch):
    folder = wanted(tmp_path)
    prepare(cases, folder, size=16)
    make_phantoms(tmp_path / "phantoms", count=2, size=64)

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert len(prepare(cases, folder, size=16).images) == 12
    make_phantoms(tmp_path / "phantoms", count=2, size=64)


# Full disks and folders that cannot be written


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some of your quota"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EACCES, "PNEUMO_HOME"),
        (errno.EPERM, "PNEUMO_HOME"),
        (errno.EROFS, "mount it for writing.*PNEUMO_HOME"),
        (errno.ENOENT, None),
    ],
)
def test_errors_of_writing_come_with_what_to_do_and_others_pass_unchanged(number, remedy, tmp_path):
    def fail():
        with file_lock(tmp_path / "made"):
            raise OSError(number, "as it was", "here.npy")

    text = rf"{remedy}.*finished is kept.*here\.npy" if remedy else r"^\[Errno \d+\] as it was"
    with pytest.raises(OSError, match=text) as raised:
        fail()
    assert raised.value.errno == number


@posix
def test_new_array_reserves_its_disk_space_where_that_can_be_done(tmp_path, monkeypatch):
    array = new_array(tmp_path / "a.npy", (1000, 1000), "u1")
    status = (tmp_path / "a.npy").stat()
    assert not array.any()
    if hasattr(os, "posix_fallocate"):
        assert status.st_blocks * 512 >= status.st_size

    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    assert new_array(tmp_path / "b.npy", (3, 4), "u1").shape == (3, 4)


LIMITED = """
import resource, signal, sys
from pneumo_lib.data.prepare import prepare
from pneumo_lib.data.siim import read_cases
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
cases = read_cases(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
prepare(cases, sys.argv[2], size=64)
"""


@posix
def test_arrays_larger_than_files_may_be_are_one_error_and_no_half_file(png_release, tmp_path):
    process = start("-c", LIMITED, png_release, tmp_path / "out", 30_000)
    _, text = process.communicate()
    assert process.returncode == 1
    last = text.strip().splitlines()[-1]
    assert "ulimit -f" in last
    assert "finished is kept" in last
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("images.npy"))


@contextmanager
def mounted(folder, options):
    """A file system of its own in a new folder; only root may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def little_disk(tmp_path):
    """A file system of 400 kB."""
    with mounted(tmp_path / "disk", "size=400k") as folder:
        yield folder


@pytest.fixture
def read_only(tmp_path):
    """A folder in which nothing can be written, not by root either."""
    folder = tmp_path / "read-only"
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        with mounted(folder, "ro"):
            yield folder
    else:
        folder.mkdir(mode=0o555)
        yield folder
        folder.chmod(0o755)


def test_full_disk_keeps_what_was_made_before(cases, little_disk):
    first = prepare(cases, little_disk / "small", size=32)
    before = files(first.folder)
    with pytest.raises(OSError, match=r"free some space.*images\.npy|masks\.npy"):
        prepare(cases, little_disk / "large", size=128)
    with pytest.raises(OSError, match="free some space"):
        make_phantoms(little_disk / "phantoms", count=24, size=128, workers=1)
    assert files(load_prepared(little_disk / "small").folder) == before
    shutil.rmtree(little_disk / "phantoms")
    assert len(prepare(cases, little_disk / "large", size=64).images) == 12


def test_read_only_folder_is_one_error_that_names_pneumo_home(cases, read_only):
    for make in (
        lambda: prepare(cases, read_only / "made", size=32),
        lambda: make_phantoms(read_only / "phantoms", count=2, size=64),
        lambda: prepare(cases, read_only / "new" / "made", size=32),
    ):
        with pytest.raises(OSError, match=r"PNEUMO_HOME.*read-only"):
            make()


# Vanished data, short memory, killed workers


def test_vanished_data_folder_is_one_error_not_a_list_of_broken_images(
    cases, png_release, tmp_path, monkeypatch
):
    quick, read = data_images.read_pair, []

    def unplug(case, size):
        read.append(case["image_id"])
        if len(read) == 7:
            png_release.rename(tmp_path / "elsewhere")
        return quick(case, size)

    monkeypatch.setattr(arrays, "read_pair", unplug)
    monkeypatch.setattr(arrays, "CHUNK", 3)
    with pytest.raises(FileNotFoundError, match=r"data folder must stay.*png_images"):
        prepare(cases, tmp_path / "out", size=32, workers=1, skip_broken=True)
    (tmp_path / "elsewhere").rename(png_release)
    assert len(read) < 12
    read.clear()
    monkeypatch.setattr(arrays, "read_pair", lambda c, s: read.append(c["image_id"]) or quick(c, s))
    prepare(cases, tmp_path / "out", size=32)
    assert read == cases["image_id"][6:].tolist()  # two chunks of three were done


def test_short_memory_ends_the_preparation_and_leaves_no_image_out(cases, tmp_path, monkeypatch):
    quick = data_images.read_pair

    def starve(case, size):
        if case["image_id"] == "train.5":
            raise MemoryError
        return quick(case, size)

    with monkeypatch.context() as patch:
        patch.setattr(arrays, "read_pair", starve)
        with pytest.raises(MemoryError, match=r"train\.5 needs more memory.*fewer `workers`"):
            prepare(cases, tmp_path / "out", size=32, skip_broken=True)
    assert prepare(cases, tmp_path / "out", size=32).meta["left_out"] == []


DRAW = """
import sys
from pneumo_lib.data.phantom.draw import make_phantoms
if __name__ == "__main__":  # the processes of the pool import this file
    make_phantoms(sys.argv[1], count=60, size=64, workers=2)
"""


def drawing_children(process):
    """Processes that draw: not Python's resource tracker."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [c for c in children if "spawn_main" in " ".join(c.cmdline())]


@posix
def test_killed_drawing_process_is_one_error_and_the_next_call_goes_on(tmp_path):
    folder = tmp_path / "phantoms"
    (tmp_path / "draw.py").write_text(DRAW)
    process = start(tmp_path / "draw.py", folder)
    wait_for(lambda: len(list(folder.rglob("*.png"))) > 4, process)
    drawing_children(process)[0].kill()
    _, text = process.communicate()
    assert process.returncode == 1
    assert text.strip().splitlines()[-1].startswith("RuntimeError: The processes that draw")
    assert "workers=1" in text
    assert "one was killed" in text
    make_phantoms(folder, count=60, size=64, workers=1)
    make_phantoms(tmp_path / "whole", count=60, size=64, workers=1)
    assert files(folder) == files(tmp_path / "whole")


@posix
def test_interrupt_stops_the_drawing_keeps_it_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "phantoms"
    process = start(
        *("-m", "pneumo_lib", "phantoms", "--to", folder, "--count", "40", "--size", "64")
    )
    wait_for(lambda: len(list(folder.rglob("*.png"))) > 2, process)
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in text
    drawn = len(list((folder / "png_images").glob("[0-9]*.png")))
    assert 0 < drawn < 40
    make_phantoms(folder, count=40, size=64, workers=1)
    assert len(list((folder / "png_images").iterdir())) == 40


SLOW = """
import sys, time
from pneumo_lib.data import arrays
from pneumo_lib.data.prepare import prepare
from pneumo_lib.data.siim import read_cases
quick = arrays.read_pair

def slow(case, size):
    print(case["image_id"], flush=True)
    time.sleep(0.3)
    return quick(case, size)

arrays.read_pair = slow
prepare(read_cases(sys.argv[1]), sys.argv[2], size=32, workers=1)
"""


@posix
def test_interrupt_does_not_wait_for_the_images_that_are_queued(png_release, tmp_path):
    process = start("-c", SLOW, png_release, tmp_path / "out")
    for _ in range(2):  # the first of twelve was read, so all others are queued
        process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    out, text = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in text
    assert len(out.splitlines()) < 8
    assert len(prepare(read_cases(png_release), tmp_path / "out", size=32).images) == 12


# The report


def test_dead_kernel_is_one_error_and_the_notebooks_before_it_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    for name, code in {"01_fine": "1", "02_dies": "import os\nos.kill(os.getpid(), 9)"}.items():
        cells = [v4.new_markdown_cell("# A?"), v4.new_code_cell(code)]
        cells.insert(1, v4.new_code_cell("size = 1", metadata={"tags": ["parameters"]}))
        nb = v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
        write(nb, tmp_path / "notebooks" / f"{name}.ipynb")
    with pytest.raises(
        NotebookError, match=r"02_dies, cell In \[\d\]: the process was killed.*memory is short"
    ):
        run_report()
    assert (tmp_path / "runs" / "report" / "01_fine.ipynb").exists()
    assert not (tmp_path / "runs" / "report" / "02_dies.ipynb").exists()
    assert not list((tmp_path / "runs").glob(".*.lock"))


# No leak from test to training


def test_preparation_of_one_image_does_not_depend_on_the_others(cases, tmp_path):
    """Neither grey levels nor masks are normalised with statistics of other images."""
    whole = prepare(cases, tmp_path / "whole", size=32)
    train = prepare(cases[cases["split"] == "train"], tmp_path / "train", size=32)
    part = (whole.cases["split"] == "train").to_numpy()
    np.testing.assert_array_equal(train.images, whole.images[part])
    np.testing.assert_array_equal(train.masks, whole.masks[part])
