"""Fixtures that several test files share."""

import ctypes
import gc
import json
import os
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest

from pneumo_lib.data.prepare import load_prepared

CASES, SIZE = 24, 32  # of `make_data()`
_held = [0]  # bytes of this process when its memory was last given back
_MUCH = 3e8  # bytes that the tests of a process may leave before it looks for them
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

# XLA compiles in half the time what only a few steps run. JAX reads it once, which may be when the
# first test file is imported; a process that a test starts must compile as this one does.
_QUICK = "--xla_backend_optimization_level=0"
if os.environ.get("KERAS_BACKEND") == "jax":
    os.environ.setdefault("XLA_FLAGS", _QUICK)
# And what one process compiled the others need not: equal networks are trained in many tests.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jax-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

# The first run of a notebook would show progress bars, and its stored outputs have none.
os.environ.setdefault("TQDM_DISABLE", "1")

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and
# interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `-n 2`: a file at a time to each process; the notebooks, which use what the ones
    before them trained, are one file."""
    from xdist.scheduler import LoadFileScheduling

    class NotebooksTogether(LoadFileScheduling):
        def _split_scope(self, nodeid):
            path = super()._split_scope(nodeid)
            return "notebooks" if path.endswith(".ipynb") else path

    return NotebooksTogether(config, log)


@pytest.fixture(scope="module", autouse=True)
def small_networks():
    """XLA compiles quickly, and each file ends without networks.

    A run of all tests would hold every network: 10 GB in the end. Notebooks, which run all their
    steps, are no part of this.
    """
    with pytest.MonkeyPatch.context() as patch:
        if "XLA_FLAGS" not in os.environ:
            patch.setenv("XLA_FLAGS", _QUICK)
        yield
    if "keras" in sys.modules:
        sys.modules["keras"].utils.clear_session()
        _give_back()


@pytest.fixture(autouse=True)
def little_memory():
    """Networks refer to themselves, so those of earlier tests stay until they are looked for."""
    yield
    if psutil.Process().memory_info().rss > _held[0] + _MUCH:
        _give_back()


def _give_back():
    """Returns to the system what is freed, which glibc keeps."""
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
    _held[0] = psutil.Process().memory_info().rss


def _shared(name):
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"the real SIIM-ACR data is not here: {folder.name} (see README)")
    return folder


@pytest.fixture(scope="session")
def siim_real():
    """387 real cases in the layout of the Kaggle PNG release."""
    return _shared("siim_real")


@pytest.fixture(scope="session")
def siim_dicom():
    """The 10 official sample DICOM files with their run-length table."""
    return _shared("siim_dicom_sample")


@pytest.fixture(scope="session")
def siim_tables():
    """The data set's full tables, without images."""
    return _shared("siim_tables")


@pytest.fixture
def png_release(tmp_path):
    """A tiny data set in the layout of the PNG release: 8 train, 4 test images of noise.

    Every third image has a pneumothorax of 4 x 6 pixels; images 0 and 1 of each part are one
    patient's, so no patient is in both parts.
    """
    folder = tmp_path / "release"
    rng = np.random.default_rng(0)
    patients = []
    for part, count in (("train", 8), ("test", 4)):
        rows = []
        for index in range(count):
            positive = int(index % 3 == 0)
            name = f"{index}_{part}_{positive}_.png"
            image = rng.integers(0, 256, (64, 64), np.uint8)
            mask = np.zeros((64, 64), np.uint8)
            mask[10:14, 20:26] = 255 * positive
            for kind, pixels in (("png_images", image), ("png_masks", mask)):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / kind / name), pixels)
            rows.append((name, f"{part}.{index}", positive))
            patients.append((f"{part}.{index}", f"00{part == 'test':d}{max(index, 1)}"))
        table = pd.DataFrame(rows, columns=["new_filename", "ImageId", "has_pneumo"])
        table.to_csv(folder / f"stage_1_{part}_images.csv", index=False)
    table = pd.DataFrame(patients, columns=["ImageId", "patient_id"])
    table.to_csv(folder / "patients.csv", index=False)
    return folder


def gradients_of(function, x, variables=()):
    """Of the sum of `function(x)`, by `x` and by Keras variables: NumPy arrays, on any backend."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        x = tf.convert_to_tensor(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = tf.reduce_sum(function(x))
        found = tape.gradient(total, [x, *(v.value for v in variables)])
    else:
        import jax

        def total(x, values):
            with keras.StatelessScope(state_mapping=zip(variables, values, strict=True)):
                return keras.ops.sum(function(x))

        x = keras.ops.convert_to_tensor(x)
        found = jax.tree.leaves(jax.grad(total, (0, 1))(x, [v.value for v in variables]))
    return [np.asarray(gradient) for gradient in found]


def compiled_by_xla(function, *, stateful=False):
    """Compiled; as it is where it changes variables and the backend cannot compile that."""
    import keras

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    import jax

    return function if stateful else jax.jit(function)


def make_data(folder, *, seed=0, size=SIZE):
    """Noise with a dark square that the mask marks: 24 cases, 14 to train on (3.5 batches)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(100, 156, (CASES, size, size), dtype="uint8")
    masks = np.zeros((CASES, size, size), "uint8")
    masks[::3, 8:20, 4:12] = 1
    images[masks == 1] = 20
    cases = pd.DataFrame(
        {
            "image_id": [f"case.{number}" for number in range(CASES)],
            "has_pneumothorax": masks.any(axis=(1, 2)),
            "split": ["train"] * 14 + ["validation"] * 5 + ["test"] * 5,
        }
    )
    meta = {
        "source": "squares",
        "size": size,
        "checksum": f"seed {seed}",
        "synthetic": True,
        "split_scheme": "random",
        "leaked_patients": 0,
    }
    return SimpleNamespace(images=images, masks=masks, cases=cases, meta=meta, folder=folder)


def write_data(data):
    """`make_data()` as `prepare()` would leave it in its folder, opened."""
    data.folder.mkdir(parents=True)
    for name in ("images", "masks"):
        np.save(data.folder / f"{name}.npy", getattr(data, name))
    data.cases.to_csv(data.folder / "cases.csv", index=False)
    columns = {name: str(kind) for name, kind in data.cases.dtypes.items()}
    (data.folder / "meta.json").write_text(json.dumps(data.meta | {"columns": columns}))
    return load_prepared(data.folder)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project folder of its own, so that nothing touches the real runs."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMO_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def data(home):
    return make_data(home / "data" / "squares")


@pytest.fixture(scope="module")
def bright(tmp_path_factory):
    """A finished run whose network gives white probability 1 and black 0."""
    import keras

    from pneumo_lib.runs import load_run

    folder = tmp_path_factory.mktemp("runs") / "bright"
    folder.mkdir()
    image = keras.Input((SIZE, SIZE, 3))
    score = keras.layers.Conv2D(2, 1, name="scores")
    network = keras.Model(image, keras.layers.Softmax()(score(image)))
    score.set_weights([np.array([[[[-9, 9], [0, 0], [0, 0]]]], "float32"), np.zeros(2, "float32")])
    network.save(folder / "model.keras")
    config = {"size": SIZE, "backbone": "small"}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("history", "scores"):
        (folder / f"{name}.csv").write_text("epoch\n1\n")
    return load_run(folder)


@pytest.fixture
def xrays(tmp_path):
    """Two PNG files, one bright in its left half, and a DICOM file that is bright all over."""
    from test_dicom import dicom_bytes

    folder = tmp_path / "xrays"
    folder.mkdir()
    half = np.zeros((40, 60), np.uint8)
    half[:, :30] = 255
    cv2.imwrite(str(folder / "half.png"), half)
    cv2.imwrite(str(folder / "dark.png"), np.zeros((40, 60), np.uint8))
    white = dicom_bytes(np.full((50, 30), 255, np.uint8), PixelSpacing=[0.5, 0.2])
    (folder / "white.dcm").write_bytes(white)
    return folder


@pytest.fixture
def project_style():
    """Figures are drawn in the project's style and closed; nothing of it stays behind."""
    import matplotlib.pyplot as plt  # only the tests of figures wait for it

    from pneumo_lib.plots import style

    with plt.rc_context():
        style.use_style()
        yield
    plt.close("all")
