"""Entry point of `pneumo` and of `python -m pneumo_lib`."""

import atexit
import os
import sys

from pneumo_lib.apps.cli import main
from pneumo_lib.apps.interrupts import end_children


def run():
    """Run a command and end the process with its exit code, after Ctrl-C without delay.

    Python frees every object at its end, which takes seconds with a report's packages. After
    Ctrl-C only `atexit` handlers run, and child processes, such as a notebook's kernel, are ended.
    """
    status = None

    def leave():
        if status == 130:
            end_children()
            sys.stdout.flush()
            os._exit(status)

    atexit.register(leave)  # registered first, so called last
    status = main()
    sys.exit(status)


if __name__ == "__main__":
    run()
