"""TensorFlow's start: what is set before it, and no messages that would open notebooks in red."""

import logging
import os
import sys
import tempfile
from contextlib import contextmanager

# TensorFlow runs one operation at a time, each on all cores, unless the user says otherwise: with
# several at a time, two trainings from one seed differ in the seventh digit of the loss after some
# steps and in the fourth after an epoch (seen on two cores, with `enable_op_determinism()` too).
# It costs InceptionV3 a tenth of its speed. Set here, with the package, whichever of its modules
# is imported: TensorFlow reads it when it first computes.
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")


@contextmanager
def quiet_start():
    """Inside the block, what TensorFlow says while it is loaded is kept from the screen.

    Its libraries write about oneDNN and missing GPU drivers to file descriptor 2 before any log
    level counts (seen with 2.21), and Jupyter stores that in the notebook. Looking for a GPU
    speaks too, so it is done here. If the block fails, everything said comes out after all.
    Later errors are shown as ever, notes and warnings only where `TF_CPP_MIN_LOG_LEVEL` says so.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if "tensorflow" in sys.modules:
        yield
        return
    screen = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
            if "tensorflow" in sys.modules:
                sys.modules["tensorflow"].config.list_physical_devices()
        except BaseException:
            said.seek(0)
            os.write(screen, said.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


@contextmanager
def log_levels(**levels):
    """Inside the block, loggers speak from another level on: `log_levels(pydicom=50)`.

    Args:
        levels: of `logging`, by the loggers' names, `__` in the place of a dot.
    """
    loggers = {logging.getLogger(name.replace("__", ".")): to for name, to in levels.items()}
    former = {logger: logger.level for logger in loggers}
    try:
        for logger, level in loggers.items():
            logger.setLevel(level)
        yield
    finally:
        for logger, level in former.items():
            logger.setLevel(level)
