"""Prediction: X-ray files in, probability of pneumothorax and mask out."""

import logging
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import keras
import numpy as np
import tensorflow as tf

from pneumo_lib import fcn
from pneumo_lib.features import compiled
from pneumo_lib.pixels import read_reduced, resize_image
from pneumo_lib.runs import Run, load_run

logger = logging.getLogger(__name__)
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
_WORTH_COMPILING = 1000  # files: XLA takes 0.8 s for a head, and then 1 ms less for an image


class Prediction(NamedTuple):
    """What `predict()` says of one file; `error` alone where the file could not be read."""

    path: Path
    probability: np.ndarray | None = None  # (size, size) float32, of the foreground
    mask: np.ndarray | None = None  # (height, width) of the file, uint8 0 and 1
    error: str | None = None


def predict(files, run, *, threshold=0.5, batch_size=32, workers=None):
    """Probability and mask of each X-ray, from a finished run.

    Files are decoded in parallel, ahead of the network, exactly as `prepare()` does it. Memory
    does not grow with their number: a result is given up as soon as the next one is asked for.

    Args:
        files: path or list of paths: PNG, JPEG, DICOM, see `pixels.read_image()`; folders are
            searched for `SUFFIXES`, subfolders too.
        run: `Run`, or what `load_run()` takes.
        threshold: a pixel is foreground where its probability, at the file's size, is no less.
        batch_size: files a step of the network.
        workers: decoding threads; `None` is one per processor, at most 16.

    Returns:
        Iterator of `Prediction`, one a file, in their order (a folder's sorted). A file that
        cannot be read is logged and has an `error`; the others go on.

    Raises:
        FileNotFoundError: if there is no file, or no finished run.
    """
    paths = find_images(files)
    run = run if isinstance(run, Run) else load_run(run)
    network = keras.models.load_model(run.folder / "model.keras", compile=False)
    foreground = _foreground(network, run.config, batch_size, xla=len(paths) >= _WORTH_COMPILING)
    read = partial(_read, size=run.config["size"])
    return _predict(paths, read, foreground, threshold, batch_size, workers)


def find_images(files):
    """Paths of X-ray files: those given, and those of `SUFFIXES` below the folders given.

    Args:
        files: path or list of paths.

    Returns:
        List of `Path`; what lies in one folder is sorted.

    Raises:
        FileNotFoundError: if there is none.
    """
    given = [Path(p) for p in ([files] if isinstance(files, (str, Path)) else files)]
    found = []
    for path in given:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        else:
            found.append(path)
    if not found:
        raise FileNotFoundError(
            f"`files` must name image files or folders with {', '.join(SUFFIXES)} files. "
            f"Received: {', '.join(map(str, given)) or 'nothing'}"
        )
    return found


def _foreground(network, config, batch_size, *, xla):
    """A function `(n, size, size)` uint8 -> foreground probability, n at most `batch_size`.

    With `xla`, the head is compiled, which halves its time; the backbone would only lose.
    """
    shape, backbone = (config["size"], config["size"]), config["backbone"]
    if not xla or backbone == "small":
        whole = compiled(network, shape, "uint8", backbone)
        return lambda images: whole(images).numpy()[..., 1].copy()
    encoder, head = fcn.split_fcn(network)
    encode = compiled(encoder, shape, "uint8", backbone)
    decode = tf.function(lambda features: head(features, training=False)[..., 1], jit_compile=True)

    def foreground(images):
        batch = np.zeros((batch_size, *shape), np.uint8)  # XLA would compile each length anew
        batch[: len(images)] = images
        return decode(encode(batch)).numpy()[: len(images)].copy()

    return foreground


def _predict(paths, read, foreground, threshold, batch_size, workers):
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16)) as threads:
        decoded = zip(paths, _ahead(threads, read, paths, count=2 * batch_size), strict=True)
        while batch := list(islice(decoded, batch_size)):
            good = [(image, shape) for _, (image, shape, error) in batch if error is None]
            results = iter(())
            if good:
                images, shapes = zip(*good, strict=True)
                probabilities = foreground(np.stack(images))
                masks = threads.map(partial(_mask, threshold=threshold), probabilities, shapes)
                results = zip(probabilities, masks, strict=True)
            for path, (_, _, error) in batch:
                if error is None:
                    yield Prediction(path, *next(results))
                else:
                    logger.warning("%s: not predicted: %s", path, error)
                    yield Prediction(path, error=error)


def _read(path, *, size):
    """`(image, shape of the file, None)`, or `(None, None, what was wrong)`."""
    try:
        image, shape = read_reduced(path, at_least=size)
        return resize_image(image, (size, size)), shape, None
    except Exception as error:  # whatever a decoder raises: the other files go on
        return None, None, str(error).split("\n")[0] or repr(error)


def _mask(probability, shape, *, threshold):
    if probability.max() < threshold:  # nor is any value between: most X-rays end here
        return np.zeros(shape, np.uint8)
    return cv2.compare(resize_image(probability, shape), threshold, cv2.CMP_GE) & 1


def _ahead(threads, read, paths, *, count):
    """Yield `read(path)` in order, `count` of them under way."""
    paths = iter(paths)
    coming = deque(threads.submit(read, path) for path in islice(paths, count))
    while coming:
        yield coming.popleft().result()
        coming.extend(threads.submit(read, path) for path in islice(paths, 1))
