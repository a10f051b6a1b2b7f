"""Keras, imported once for the whole library, after the settings that TensorFlow reads at start.

Modules import it from here, `from pneumo_lib._startup import keras`, before anything else of Keras
or TensorFlow. Importing the package alone sets nothing.
"""

import ctypes
import os
import sys
import tempfile
from contextlib import contextmanager, nullcontext, suppress

# One TensorFlow operation at a time, on all cores, unless the user chose otherwise: with several,
# two trainings from one seed differ in the seventh digit of the loss after some steps and in the
# fourth after an epoch (on two cores, even with `enable_op_determinism()`). InceptionV3 becomes a
# tenth slower. TensorFlow reads the variable when it first computes.
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # errors only
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX: memory as it is needed


# mallopt(3) of the GNU C library. By default the large tensors of a training step go back to the
# system, which clears the next one's pages: 140,000 page faults and 0.8 s a step of a small U-Net
# on two cores; 1,000 and 0.45 s when the process keeps what was freed, in one arena.
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
if not any(name.startswith("MALLOC_") for name in os.environ):
    with suppress(AttributeError, OSError, TypeError):  # another C library
        for name, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**30)):
            ctypes.CDLL(None).mallopt(name, value)


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
