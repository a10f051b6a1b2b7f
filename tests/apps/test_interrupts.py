"""Ctrl-C ends a command that does not react; `make torture` measures how soon."""

import os
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import psutil
import pytest

from pneumo_lib.apps import cli, doctor, interrupts
from pneumo_lib.apps.interrupts import ended_by_ctrl_c

posix = pytest.mark.skipif(os.name != "posix", reason="Windows sends Ctrl-C to a console only")
STOPPED = "\nStopped. What was finished is kept; the same command goes on.\n"
COMMAND = """
import hashlib, multiprocessing, signal, subprocess, sys, threading, time
from pneumo_lib.apps import cli

def compute(*_):  # for minutes, without a look at signals
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)

def deaf():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    time.sleep(600)

@cli.command("pneumo busy")
def busy():
    multiprocessing.get_context("spawn").Process(target=deaf).start()
    kernel = "import time; print(flush=True); time.sleep(600)"
    kernel = subprocess.Popen([sys.executable, "-c", kernel], stdout=-1, start_new_session=True)
    kernel.stdout.readline()
    threading.Timer(0.5, print, ["ready"], {"flush": True}).start()  # not before it computes
    compute()

if __name__ == "__main__":
    sys.exit(cli.main())
"""


@posix
def test_a_command_that_computes_in_c_is_ended_with_the_processes_that_it_started(tmp_path):
    script = tmp_path / "command.py"  # a file: the process of a pool imports it
    script.write_text(COMMAND)
    line = [sys.executable, str(script), "busy"]
    with subprocess.Popen(line, stdout=-1, stderr=-1, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGINT)  # to it alone, not to its group as a terminal would
            assert process.wait(60) == 130
        finally:
            process.kill()
        assert process.stderr.read() == STOPPED
    assert len(children) == 3  # of a pool, Python's tracker of the pool's locks, a kernel
    assert psutil.wait_procs(children, timeout=60)[1] == []


@posix
def test_a_command_that_handles_the_interrupt_ends_itself(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: signal.raise_signal(signal.SIGINT))
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err == STOPPED


AT_THE_END = """
import atexit, os, subprocess, sys
from pneumo_lib import __main__
from pneumo_lib.apps import cli

class Kept:
    def __del__(self):
        os.write(1, b"object by object")

@cli.command("pneumo end --parent")
def end(parent: bool = False):
    atexit.register(print, "registered")
    if parent:  # the child holds the screen open
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    raise KeyboardInterrupt

kept = Kept()
__main__.run()
"""


@pytest.mark.parametrize("options", [[], ["--parent"]])
def test_after_the_interrupt_only_exit_handlers_run_and_children_are_ended(options):
    line = [sys.executable, "-c", AT_THE_END, "end", *options]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "registered\n", STOPPED)


def gone():
    raise psutil.NoSuchProcess(1)


@pytest.mark.parametrize(
    ("children", "what_is_done"),
    [
        (lambda done: [SimpleNamespace(terminate=f) for f in (gone, lambda: done.append(2))],
         [2, 130]),
        (lambda done: gone(), [130]),
    ],
    ids=["one has ended meanwhile", "they cannot be listed"],
)  # fmt: skip
def test_children_that_cannot_be_ended_are_no_obstacle(children, what_is_done, monkeypatch):
    done = []
    process = SimpleNamespace(children=lambda recursive: children(done))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    monkeypatch.setattr(interrupts, "PATIENCE", 0)
    monkeypatch.setattr(interrupts.os, "_exit", lambda code: done.append(code) or writer.close())
    reader, writer = socket.socketpair()
    writer.send(bytes([signal.SIGINT]))
    with open(os.devnull, "w") as screen, reader, writer:
        interrupts._watch(reader, screen.fileno(), "Stopped.")
    assert done == what_is_done


def test_other_signals_do_not_end_a_command(monkeypatch):
    if not hasattr(signal, "SIGUSR1"):
        pytest.skip("Windows has no such signals")
    heard = []
    former = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    monkeypatch.setattr(doctor, "examine", lambda: signal.raise_signal(signal.SIGUSR1) or [])
    assert cli.main(["doctor"]) == 0
    signal.signal(signal.SIGUSR1, former)
    assert heard == [signal.SIGUSR1]


def test_nothing_is_left_of_the_watch_after_a_command():
    before = threading.active_count()
    with ended_by_ctrl_c("Stopped."):
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_command_runs_in_another_thread_which_signals_never_reach(monkeypatch):
    results = []
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("wrong", "disk", "full")])
    thread = threading.Thread(target=lambda: results.append(cli.main(["doctor"])))
    thread.start()
    thread.join()
    assert results == [1]
