"""`pneumo`, which is also `python -m pneumo_lib`: a command as a process of its own."""

import atexit
import os
import sys

from pneumo_lib.apps.cli import main
from pneumo_lib.apps.interrupts import end_children


def run():
    """Runs a command and ends the process with its exit code, after Ctrl-C without delay.

    Python ends by clearing up object by object, which takes seconds with a report's packages on a
    busy machine. After Ctrl-C only what was registered with `atexit` is done, and processes that
    are left, such as the kernel of a notebook that was just starting, are ended.
    """
    status = None

    def leave():
        if status == 130:
            end_children()
            sys.stdout.flush()
            os._exit(status)

    atexit.register(leave)  # before all others, so it is called after them
    status = main()
    sys.exit(status)


if __name__ == "__main__":
    run()
