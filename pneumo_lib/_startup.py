"""Keras, imported once for the whole library, with what must be set before.

Modules take it from here, `from pneumo_lib.quiet import keras`, before anything else of Keras or
TensorFlow. Importing the package alone sets nothing.
"""

import os
import sys
import tempfile
from contextlib import contextmanager, nullcontext

# TensorFlow runs one operation at a time, each on all cores, unless the user says otherwise: with
# several at a time, two trainings from one seed differ in the seventh digit of the loss after some
# steps and in the fourth after an epoch (seen on two cores, with `enable_op_determinism()` too).
# It costs InceptionV3 a tenth of its speed. TensorFlow reads it when it first computes.
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
# Errors of TensorFlow's libraries are shown, their notes and warnings are not.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextmanager
def held_back():
    """Inside the block, file descriptor 2 goes to a file, which is shown if the block fails.

    TensorFlow's libraries write about oneDNN and missing GPU drivers there before any log level
    counts (seen with 2.21), and Jupyter stores that in the notebook, in red.
    """
    screen = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        except BaseException:
            written.seek(0)
            os.write(screen, written.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


with nullcontext() if "tensorflow" in sys.modules else held_back():
    import keras

    if "tensorflow" in sys.modules:  # Keras' backend; looking for a GPU writes there too
        sys.modules["tensorflow"].config.list_physical_devices()

__all__ = ["held_back", "keras"]
