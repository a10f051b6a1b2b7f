"""Ctrl-C that is obeyed while C code computes.

Python hears a signal between two calls into C only, and one call into TensorFlow, or a compilation
by XLA, can last many seconds. What is finished is kept at any moment, even by a kill, so a command
that does not end by itself is simply ended. `pl.train()` in a notebook or a script of yours is
left alone: it stops after the call, or at once with the kernel or the process, and goes on
from its last kept epoch when called again.
"""

import os
import select
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress

PATIENCE = 1.0  # seconds for the orderly way: KeyboardInterrupt, where Python hears it


@contextmanager
def ended_by_ctrl_c(message):
    """Ends the process with status 130 if a block is not left soon after Ctrl-C, or at a second.

    Args:
        message: what is then written to standard error; a block that is left says it itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # no signals come here
        return
    heard, told = socket.socketpair()
    told.setblocking(False)
    screen = os.dup(2)  # `quiet` turns 2 away from it while Keras is loaded
    former = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(heard, screen, message), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        told.close()  # the end of the watcher
        watcher.join()
        heard.close()
        os.close(screen)


def _watch(heard, screen, message):
    """Reads a byte for each signal, and nothing once the block is left."""
    while number := heard.recv(1):
        if number[0] == signal.SIGINT:
            end, children = time.monotonic() + PATIENCE, []
            with suppress(Exception):  # whatever it meets, this thread must end the process
                children = _children()
            wait = max(0, end - time.monotonic())
            if select.select([heard], [], [], wait)[0] and not heard.recv(1):
                return
            _end(children)
            os.write(screen, f"{message}\n".encode())  # no lock that another thread may hold
            os._exit(130)


def end_children():
    """Ends the processes that this one started and did not end itself; they would outlive it."""
    with suppress(Exception):  # they cannot be listed
        _end(_children())


def _end(children):
    for child in children:
        with suppress(Exception):  # one has ended meanwhile
            child.terminate()


def _children():
    """Processes of a pool, kernels of notebooks, and theirs."""
    import psutil

    return psutil.Process().children(recursive=True)
