"""Cache of the features of a frozen backbone: computed once, kept on disk."""

import hashlib
import json

from pneumo_lib._startup import keras

import numpy as np

from pneumo_lib._files import atomic_write, file_lock, new_array, project_path
from pneumo_lib.models.backbones import preprocess
from pneumo_lib.models.forward import predict_batches
from pneumo_lib.models.names import check_name
from pneumo_lib.training.config import FEATURE_PRECISIONS

_BATCHES_BETWEEN_FLUSHES = 32  # seconds of work to lose, and hardly any time to write


def cached_features(
    encoder,
    data,
    backbone,
    *,
    flipped=False,
    precision="float32",
    batch_size=32,
    folder="data/features",
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
            "bfloat16": on processors with such instructions 1.3 (ResNet50, InceptionV3) to 2.7
            times (VGG19) as fast, on others slower. Features move by about 1 %, the Dice that a
            trained head reaches by up to 0.004 (VGG16, phantoms). They are kept as float16,
            which has more digits than they have.
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
        encoder = _in_bfloat16(encoder)
    dtype = "float32" if precision == "float32" else "float16"
    folder = project_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    view = ("-flipped" if flipped else "") + ("-float16" if precision == "float16" else "")
    path = folder / f"{backbone}-{checksum(encoder, data, backbone)}{view}.npy"
    if not path.exists():
        images = data.images[:, :, ::-1] if flipped else data.images
        with file_lock(path):
            if not path.exists():  # another process may have made it meanwhile
                _compute(encoder, images, backbone, path, batch_size=batch_size, dtype=dtype)
    return np.load(path, mmap_mode="r")


def _in_bfloat16(encoder):
    """The same network with the same float32 weights, computing in bfloat16."""

    def in_bfloat16(layer):
        return type(layer).from_config(layer.get_config() | {"dtype": "mixed_bfloat16"})

    twin = keras.models.clone_model(encoder, clone_function=in_bfloat16)
    twin.set_weights(encoder.get_weights())
    return twin


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
