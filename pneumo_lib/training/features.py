"""Features of a frozen backbone, and projections of them: computed once, kept on disk."""

import hashlib
import json
from functools import partial
from typing import NamedTuple

from pneumo_lib._startup import keras

import numpy as np

from pneumo_lib._checks import check_name
from pneumo_lib._files import atomic_write, file_lock, new_array, project_path
from pneumo_lib.models.backbones import preprocess
from pneumo_lib.models.fcn import tap_shapes
from pneumo_lib.models.forward import in_bfloat16, predict_batches
from pneumo_lib.models.skips import principal_projections
from pneumo_lib.training.config import FEATURE_PRECISIONS

_IMAGES = 64  # that components are found on: a million cells of VGG16's finest tap at 512 pixels
_FOLDER = "data/features"
_BATCHES_BETWEEN_FLUSHES = 32  # seconds of work to lose, and hardly any time to write


class TrainedPart(NamedTuple):
    """The part of a network that learns, and its inputs for every case."""

    network: keras.Model
    inputs: np.ndarray  # images, or features of a frozen backbone
    mirrored: np.ndarray | None  # the same of the mirrored images; None where nothing needs them
    backbone: str | None = None  # for which images are preprocessed; None: inputs are features
    shapes: tuple | list = ()  # of the taps in the features, see `fcn.tap_shapes()`


def part_on_features(encoder, head, data, settings):
    """`TrainedPart` of a head on the cached features of a frozen encoder, see `fcn.split_fcn()`.

    `settings` is the dict of a training's settings, `data` is `Prepared`.
    """
    name, precision = settings["backbone"], settings["feature_precision"]
    compute = partial(cached_features, encoder, data, name, precision=precision)
    both = settings["test_time_flip"] or settings.get("image_head")
    mirrored = both or settings.get("augmentation") == "flip"
    inputs = compute(), compute(flipped=True) if mirrored else None
    return TrainedPart(head, *inputs, shapes=tap_shapes(encoder))


def cached_features(
    encoder, data, backbone, *, flipped=False, precision="float32", batch_size=32, folder=_FOLDER
):
    """Features of every prepared image, from disk where they were computed before.

    The file's name holds a checksum of all that the features depend on: images, preprocessing,
    layers, weights and backend. A stale file is thus never read. A killed computation goes on
    where it stopped.

    Args:
        encoder: `keras.Model`, `(batch, size, size, 3)` -> features, see `fcn.split_fcn()`.
        data: `Prepared`, see `prepare.prepare()`.
        backbone: name that chooses the preprocessing, see `backbones.preprocess()`.
        flipped: features of the images mirrored left to right, a second file. They are not the
            mirrored features: a backbone's kernels are not symmetric.
        precision: "float32"; "float16": computed in float32 and kept in half the space; or
            "bfloat16": faster on processors with such instructions, slower on others; features
            move by about 1 %, and are kept as float16, which has more digits than they have.
        batch_size: images at a time.
        folder: where the files are kept.

    Returns:
        `(n, *encoder.output_shape[1:])` float32 or, for the other precisions, float16;
        memory-mapped, in the order of `data.cases`.

    Raises:
        ValueError: for an unknown `precision`.
    """
    check_name("precision", precision, FEATURE_PRECISIONS)
    if precision == "bfloat16":
        encoder = in_bfloat16(encoder)
    dtype = "float32" if precision == "float32" else "float16"
    folder = project_path(folder)
    view = ("-flipped" if flipped else "") + ("-float16" if precision == "float16" else "")
    path = folder / f"{backbone}-{checksum(encoder, data, backbone)}{view}.npy"
    if not path.exists():
        images = data.images[:, :, ::-1] if flipped else data.images
        with file_lock(path):
            if not path.exists():  # another process may have made it meanwhile
                _compute(encoder, images, backbone, path, batch_size=batch_size, dtype=dtype)
    return np.load(path, mmap_mode="r")


def checksum(encoder, data, backbone):
    """Checksum of all that the features depend on but their precision."""
    backend = keras.backend.backend()  # whose kernels round in their own way
    digest = hashlib.sha256(json.dumps([data.meta["checksum"], backend]).encode())
    probe = np.arange(256, dtype="uint8").reshape(1, 16, 16)
    digest.update(keras.ops.convert_to_numpy(preprocess(probe, backbone)).tobytes())
    digest.update(json.dumps(encoder.get_config(), default=str, sort_keys=True).encode())
    for weight in encoder.weights:
        digest.update(np.ascontiguousarray(weight.numpy()))
    return digest.hexdigest()[:16]


def _compute(encoder, images, backbone, path, *, batch_size, dtype):
    unfinished, count_file = path.with_suffix(".partial"), path.with_suffix(".count")
    done = int(count_file.read_text()) if unfinished.exists() and count_file.exists() else 0
    if done:
        features = np.load(unfinished, mmap_mode="r+")
    else:
        count_file.unlink(missing_ok=True)  # of other rows, if there is one
        features = new_array(unfinished, (len(images), *encoder.output_shape[1:]), dtype)
    options = {"batch_size": batch_size, "start": done, "desc": f"{backbone} features"}
    for rows, batch in predict_batches(encoder, images, backbone, **options):
        features[rows] = batch
        if rows.stop % (_BATCHES_BETWEEN_FLUSHES * batch_size) == 0:
            features.flush()
            with atomic_write(count_file) as unfinished_count:
                unfinished_count.write_text(str(rows.stop))
    features.flush()
    unfinished.rename(path)
    count_file.unlink(missing_ok=True)


def fit_projections(model, data, backbone, *, folder=_FOLDER, batch_size=8):
    """Give the layers of `project()`, if `model` has any, the principal components of their taps.

    Components of images outside the test part, up to 64 spread over them, every cell of each; no
    mask has a say in them. So they are the same for every seed and for every fold of a
    cross-validation. They are kept beside the features: runs share both to the last bit.

    Args:
        model: of `fcn.build_fcn()`.
        data: `Prepared`.
        backbone: name that chooses the preprocessing.
        folder: where the file is kept.
        batch_size: images at a time.
    """
    projections = [layer for layer in model.layers if layer.name.startswith("project_")]
    if not projections:
        return
    known = np.flatnonzero(data.cases["split"] != "test")
    rows = known[:: -(-len(known) // _IMAGES)]
    taps = keras.Model(model.input, [layer.input for layer in projections], name="taps")
    folder = project_path(folder)
    which = hashlib.sha256(rows.tobytes()).hexdigest()[:8]
    path = folder / f"{backbone}-{checksum(taps, data, backbone)}-{which}-projections.npz"
    with file_lock(path):  # another process may be at it
        if not path.exists():
            options = {"channels": [p.filters for p in projections], "batch_size": batch_size}
            found = principal_projections(taps, data.images[rows], backbone, **options)
            with atomic_write(path) as aside:
                np.savez(aside, *[array for pair in found for array in pair])
    with np.load(path) as file:
        arrays = [file[name] for name in file]
    for layer, kernel, bias in zip(projections, arrays[::2], arrays[1::2], strict=True):
        layer.set_weights([kernel, bias])
