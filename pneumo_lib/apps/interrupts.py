"""Ctrl-C that also ends a process while C code computes.

Python handles signals only between calls into C, and one call into TensorFlow or one compilation
by XLA can last many seconds. Results are kept at any moment, even under a kill, so a command that
does not react is ended. `pl.train()` in a notebook or script is not affected: it stops after the
call into C, or with its process, and continues from its last checkpoint when called again.
"""

import os
import select
import signal
import socket
import threading
from contextlib import contextmanager, suppress

PATIENCE = 1.0  # seconds for KeyboardInterrupt to end the block


@contextmanager
def ended_by_ctrl_c(message):
    """Context that ends the process with status 130 soon after Ctrl-C, at once after a second one.

    `message` is written to standard error before; not if KeyboardInterrupt leaves the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    screen = os.dup(2)  # standard error is redirected while Keras loads
    former = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, screen, message), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        writer.close()  # ends the watcher
        watcher.join()
        reader.close()
        os.close(screen)


def _watch(reader, screen, message):
    """Read a byte for each signal, and none once the block is left."""
    while number := reader.recv(1):
        if number[0] == signal.SIGINT:
            children = _children()
            if select.select([reader], [], [], PATIENCE)[0] and not reader.recv(1):
                return
            end_children(children)
            os.write(screen, f"{message}\n".encode())  # without a lock that another thread holds
            os._exit(130)


def end_children(children=None):
    """End child processes, by default all, which would outlive this one."""
    for child in _children() if children is None else children:
        with suppress(Exception):  # it has ended meanwhile
            child.terminate()


def _children():
    """Processes of pools and kernels of notebooks, with their descendants."""
    with suppress(Exception):  # they cannot be listed, which must not stop the end
        import psutil

        return psutil.Process().children(recursive=True)
    return []
