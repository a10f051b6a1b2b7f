"""Prediction: X-ray files in, probability of pneumothorax and mask out."""

import hashlib
import logging
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pneumo_lib.data.dicom import XRay
from pneumo_lib.data.files import SUFFIXES, find_files, find_xrays
from pneumo_lib.data.images import decode_xray, inside_frame, resize_image
from pneumo_lib.evaluation.image_level import image_level_score
from pneumo_lib.evaluation.operating_point import apply_operating_point
from pneumo_lib.inference.prediction_rows import text_of
from pneumo_lib.models import fcn
from pneumo_lib.models.devices import has_gpu
from pneumo_lib.models.folding import fold_normalizations
from pneumo_lib.models.forward import batch_in_memory, compiled
from pneumo_lib.models.image_head import image_statistics
from pneumo_lib.runs import load_image_head, load_network, load_operating_point, load_run

logger = logging.getLogger(__name__)
_WORTH_COMPILING = 1000  # files: XLA takes 0.8 s for a head, and then saves 1 ms an image


class Prediction(NamedTuple):
    """Result of `predict()` for one file; with `error`, all results are `None`."""

    path: Path  # or text, see `load` of `read_file()`
    probability: np.ndarray | None = None  # (size, size) float32, of the foreground
    mask: np.ndarray | None = None  # (height, width) of the file, uint8 0 and 1
    score: float | None = None  # image-level, 0 to 1, see `load_scored()`
    error: str | None = None  # why there is no prediction
    xray: XRay | None = None  # as decoded; its image with `keep` only
    sha256: str | None = None  # of the file
    inside: tuple = (0, 1, 0, 1)  # where the X-ray lies in a framed image, see `inside_frame()`


def predict(
    files, run, *, operating_point=None, shape=None, keep=False, batch_size=32, workers=None
):
    """Iterator of a `Prediction` of each X-ray file, in their order (sorted in a folder).

    Files are decoded in parallel, ahead of the network, as by `prepare()`, except that a frame of
    one grey level around the X-ray is cut off first and gets probability 0. Memory does not grow
    with the number of files. A file that cannot be read is logged and has an `error`; the others
    go on.

    Args:
        files: path or list of paths: PNG, JPEG, DICOM, see `images.read_image()`; folders are
            searched, see `find_images()`.
        run: `Run`, or what `load_run()` takes.
        operating_point: `OperatingPoint` that cuts the masks; `None` is the run's own. Its top
            threshold and area are applied at the network's size, where they were chosen, its
            bottom threshold at the mask's size.
        shape: `(height, width)` of all masks; `None` is that of each file.
        keep: whether results hold the image of the X-ray, at its full size.
        batch_size: images per step of the network, at most, see `batch_in_memory()`.
        workers: decoding threads; `None` is one per processor, at most 16.

    Raises:
        FileNotFoundError: if there is no file, or no finished run.
        ValueError: if the saved network is damaged or holds code.
    """
    paths = find_images(files)
    run = load_run(run)
    point = load_operating_point(run) if operating_point is None else operating_point
    network = load_scored(run, batch_size=batch_size, xla=len(paths) >= _WORTH_COMPILING)
    read = partial(read_file, size=run.config["size"], exact=keep, keep=keep)
    return predictions(paths, read, network, point, batch_size, workers, shape=shape)


def find_images(files):
    """List of `Path`s of X-ray files: those given, and, sorted, those below the folders given.

    `files` is a path or a list of paths. In a folder, files with one of `SUFFIXES` count, and DICOM
    files by their content; hidden ones do not. Links are followed, see `find_files()`. A
    FileNotFoundError if there is no file.
    """
    given = [Path(p) for p in ([files] if isinstance(files, (str, Path)) else files)]
    found = []
    for path in given:
        found += find_xrays(path, find_files(path)) if path.is_dir() else [path]
    if not found:
        raise FileNotFoundError(
            f"`files` must name image files or folders with {', '.join(SUFFIXES)} files. "
            f"Received: {', '.join(map(str, given)) or 'nothing'}"
        )
    return found


def load_scored(run, *, batch_size, xla):
    """Function `(n, size, size)` uint8 -> `(n, size, size)` and `(n,)` float32, both in [0, 1].

    They are the foreground probabilities and the image-level scores: of the run's image-level
    head, or `image_level_score()` where it has none.

    Args:
        run: `Run`. A ValueError as by `load_network()`.
        batch_size: images per step of the network, at most.
        xla: whether to compile the head, which halves its time; the backbone would only lose.
    """
    network, config, head = load_network(run), run.config, load_image_head(run)
    if xla:
        network = fold_normalizations(network)
    backbone = config["backbone"]
    batch_size = batch_in_memory(config["size"], most=batch_size)
    members = [layer for layer in network.layers if layer.name.startswith("member_")]
    encode, shapes = None, ()
    if (xla or head) and backbone != "small" and not members:
        encoder, decoder = _encoder_and_decoder(network)
        shapes = fcn.tap_shapes(encoder)
        encode = compiled(encoder, backbone, batch_size=batch_size)
        networks = [compiled(decoder, batch_size=batch_size, xla=xla)]
    else:  # of an ensemble one network after the other: each alone fills the memory
        whole = members or [network]
        networks = [compiled(part, backbone, batch_size=batch_size) for part in whole]

    def foreground(features):
        return np.mean([part(features)[..., 1] for part in networks], axis=0)

    def step(images):
        flip = config.get("test_time_flip")  # as the run was scored
        views = [images, images[:, :, ::-1]] if head or flip else [images]
        views = [encode(view) for view in views] if encode else views
        probability = foreground(views[0])
        if flip:
            probability = (probability + foreground(views[1])[:, :, ::-1]) / 2
        if head:
            return probability, head(image_statistics(shapes, *views))
        return probability, image_level_score(probability)

    def in_steps(images):
        steps = range(0, len(images), batch_size)
        found = [step(images[first : first + batch_size]) for first in steps]
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))

    return in_steps


def _encoder_and_decoder(network):
    """`(encoder, decoder)` of a network, or of an ensemble behind one encoder."""
    names = [layer.name for layer in network.layers]
    if "heads" in names:
        return network.layers[names.index("heads") - 1], network.get_layer("heads")
    return fcn.split_fcn(network)


def predictions(paths, read, network, point, batch_size, workers, *, shape=None):
    """`predict()` with its parts given: `read_file()` as `read`, `load_scored()`'s result."""
    finish, paths = partial(_finish, point=point, shape=shape), iter(paths)
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16)) as threads:

        def start():
            return [threads.submit(read, path) for path in islice(paths, batch_size)]

        coming = start()
        while coming:
            files, images = zip(*(task.result() for task in coming), strict=True)
            readable = [image for image in images if image is not None]
            beside = has_gpu() and start()  # a network on the processor takes all of it
            found = iter(zip(*network(np.stack(readable)), strict=True) if readable else ())
            results = [None if image is None else next(found) for image in images]
            finished = threads.map(finish, files, results)
            coming = beside or start()
            yield from finished


def read_file(path, *, size, exact=False, keep=False, load=Path.read_bytes):
    """`(Prediction, image)`: without results yet, and the network's input or `None` on error.

    `load` returns the bytes of `path`, `size` is that of the network's images. An `exact` reading
    decodes at full size what could be decoded faster at a reduced one; `keep` as for `predict()`.
    """
    file = Prediction(path)
    try:
        data = load(path)
        file = file._replace(sha256=hashlib.sha256(data).hexdigest())
        xray = decode_xray(data, path, at_least=None if exact else size)
        inside = inside_frame(xray.image)
        image = resize_image(_crop(xray.image, inside), (size, size))
        return file._replace(xray=xray if keep else xray._replace(image=None), inside=inside), image
    except Exception as error:  # whatever a decoder raises: the other files go on
        reason = str(error).split("\n")[0] or repr(error)
        logger.warning("%s", text_of(f"{path}: not predicted: {reason}"))
        return file._replace(error=reason), None


def _crop(image, inside):
    """View of the part of `image` that `inside_frame()` gives."""
    (height, width), (top, bottom, left, right) = image.shape, inside
    rows = slice(round(top * height), round(bottom * height))
    return image[rows, round(left * width) : round(right * width)]


def _finish(file, result, *, point, shape):
    """`file` with the results of the network, put back into the frame."""
    if result is None:
        return file
    probability, score = result
    whole = np.zeros_like(probability)
    xray = _crop(whole, file.inside)
    xray[:] = resize_image(probability, xray.shape)
    mask = np.zeros(shape or file.xray.shape, np.uint8)
    drawn = apply_operating_point(probability[None], point, scores=[score])
    if drawn.any():  # few X-rays are upsampled
        xray = _crop(mask, file.inside)
        upsampled = resize_image(probability, xray.shape)
        xray[:] = cv2.compare(upsampled, point.bottom_threshold, cv2.CMP_GE) & 1
    return file._replace(probability=whole, mask=mask, score=float(score))


def ahead(threads, do, items, *, count):
    """Yields `do(item)` of an `Executor` in order; at most `count` calls run or wait ahead."""
    items = iter(items)
    coming = deque(threads.submit(do, item) for item in islice(items, count))
    while coming:
        yield coming.popleft().result()
        coming.extend(threads.submit(do, item) for item in islice(items, 1))
