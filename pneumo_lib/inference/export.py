"""A trained network for other programs: ONNX, TensorFlow SavedModel, LiteRT."""

import warnings
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from pneumo_lib._startup import keras

import numpy as np
import tensorflow as tf

from pneumo_lib._checks import check_name
from pneumo_lib._files import atomic_write
from pneumo_lib.data.images import resize_image
from pneumo_lib.data.phantom.draw import draw_phantom
from pneumo_lib.inference.prediction_rows import NOTE
from pneumo_lib.models.backbones import preprocess
from pneumo_lib.runs import load_network, load_operating_point, load_run, run_id

SUFFIXES = {"onnx": ".onnx", "savedmodel": "", "litert": ".tflite"}
_KERAS_NAMES = {"onnx": "onnx", "savedmodel": "tf_saved_model", "litert": "litert"}
_PHANTOMS = 4
_AGREEMENT = 1e-4  # of probabilities: other kernels sum in another order


def export_network(run, to, *, format="onnx"):
    """Writes the network of a run with its preprocessing, and checks it against Keras.

    The exported network takes grey images `(batch, size, size)` float32, 0 to 255, of any batch
    length, and returns the probability of pneumothorax of each pixel, `(batch, size, size)`
    float32. It is run on phantoms before it gets its name; `<to>.txt` describes its use.

    Args:
        run: `Run`, or what `load_run()` takes.
        to: path; the format's suffix is added where it is missing. Must not exist.
        format: "onnx" (needs the extra "export"), "savedmodel" (a folder) or "litert".

    Returns:
        `(path, difference)`, the largest difference of a probability from that of Keras.

    Raises:
        ValueError: if `format` is unknown or its packages are missing, `to` exists, or the
            probabilities differ by more than 1e-4; FileNotFoundError as by `load_run()`.
    """
    run = load_run(run)
    to = _check(Path(to).expanduser(), format)
    size, backbone = run.config["size"], run.config["backbone"]
    grey = keras.Input((size, size), name="grey_levels")
    prepare = partial(preprocess, backbone=backbone)
    inputs = keras.layers.Lambda(prepare, output_shape=(size, size, 3), name="preprocess")(grey)
    whole = keras.Model(grey, load_network(run)(inputs)[..., 1])
    images = [resize_image(draw_phantom(i, seed=1)[0], (size, size)) for i in range(_PHANTOMS)]
    images = np.stack(images).astype(np.float32)
    expected = whole(images, training=False).numpy()
    to.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(to.with_name(f"{to.name}.txt")) as card, atomic_write(to) as unfinished:
        with warnings.catch_warnings(action="ignore"):  # of the converters, about their future
            whole.export(str(unfinished), format=_KERAS_NAMES[format], verbose=False)
            found = _READERS[format](unfinished, images)
        difference = float(np.abs(found - expected).max())
        if not difference <= _AGREEMENT:
            raise ValueError(
                f"An exported network must agree with Keras to {_AGREEMENT} in probability. "
                f"Received: {difference:.1e} as {format}. Try another --format"
            )
        card.write_text(_card(run, format, difference), encoding="utf-8")
    return to, difference


def _check(to, format):
    check_name("format", format, SUFFIXES)
    needed = ("tf2onnx", "onnxruntime") if format == "onnx" else ()
    if missing := [name for name in needed if find_spec(name) is None]:
        raise ValueError(
            "ONNX needs the packages tf2onnx and onnxruntime: pip install "
            f"'pneumo[export]'. Received: no {missing[0]}"
        )
    to = to if to.name.endswith(SUFFIXES[format]) else to.with_name(to.name + SUFFIXES[format])
    if to.exists():
        raise ValueError(f"An export replaces nothing: give another --to. Received: {to}")
    return to


def _run_onnx(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def _run_savedmodel(path, images):
    loaded = tf.saved_model.load(str(path))  # a name, or it is gone before its function runs
    return loaded.serve(images).numpy()


def _run_litert(path, images):
    with warnings.catch_warnings(action="ignore"):  # of its move to another package
        interpreter = tf.lite.Interpreter(str(path))
    [given], [found] = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], images.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], images)
    interpreter.invoke()
    return interpreter.get_tensor(found["index"])


_READERS = {"onnx": _run_onnx, "savedmodel": _run_savedmodel, "litert": _run_litert}


def _card(run, format, difference):
    size, point = run.config["size"], load_operating_point(run)
    gate = " (or its image-level head, which is not exported, calls it healthy)"
    gate = gate if point.min_score else ""
    return f"""Network of pneumo {version("pneumo")} as {format}: {NOTE}.

run       {run_id(run)}
input     grey images (batch, {size}, {size}) float32, 0 to 255, dense parts bright; resize by
          area averaging
output    probability of pneumothorax of each pixel, (batch, {size}, {size}) float32
mask      where a share of {point.min_area:g} of an image's pixels reaches {point.top_threshold:g},
          all pixels that reach {point.bottom_threshold:g}; else empty{gate}
checked   against Keras on {_PHANTOMS} synthetic X-rays: probabilities differ by {difference:.1e}
"""
