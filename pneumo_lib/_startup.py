"""Keras, imported once for the whole library, after the settings that TensorFlow reads at start.

Modules import it from here, `from pneumo_lib._startup import keras`, before anything else of Keras
or TensorFlow. Importing the package alone sets nothing.
"""

import os
import sys
import tempfile
from contextlib import contextmanager, nullcontext

# One TensorFlow operation at a time, on all cores, unless the user chose otherwise: with several,
# two trainings from one seed differ in the seventh digit of the loss after some steps and in the
# fourth after an epoch (on two cores, even with `enable_op_determinism()`). InceptionV3 becomes a
# tenth slower. TensorFlow reads the variable when it first computes.
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX: memory as it is needed


@contextmanager
def _stderr_held_back():
    """Redirects file descriptor 2 to a file, which is printed if the block fails.

    Before any log level counts, TensorFlow's libraries write there about oneDNN and missing GPU
    drivers (2.21), which Jupyter would store in the notebook.
    """
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        except BaseException:
            written.seek(0)
            os.write(stderr, written.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


with nullcontext() if "tensorflow" in sys.modules else _stderr_held_back():
    import keras

    if keras.backend.backend() == "tensorflow":  # looking for a GPU writes to stderr too
        sys.modules["tensorflow"].config.list_physical_devices()

__all__ = ["keras"]
