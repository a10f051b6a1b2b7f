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
from pneumo_lib.data.images import SUFFIXES, decode_xray, inside_frame, is_dicom, resize_image
from pneumo_lib.evaluation.image_level import image_level_score
from pneumo_lib.evaluation.operating_point import apply_operating_point
from pneumo_lib.models import fcn
from pneumo_lib.models.forward import as_graph, compiled
from pneumo_lib.runs import load_network, load_operating_point, load_run

logger = logging.getLogger(__name__)
_WORTH_COMPILING = 1000  # files: XLA takes 0.8 s for a head, and then 1 ms less for an image


class Prediction(NamedTuple):
    """Result of `predict()` for one file; without mask where the file could not be read."""

    path: Path  # or text, see `load` of `read_file()`
    probability: np.ndarray | None = None  # (size, size) float32, of the foreground
    mask: np.ndarray | None = None  # (height, width) of the file, uint8 0 and 1
    score: float | None = None  # image-level, 0 to 1, see `image_level.image_level_score()`
    error: str | None = None  # why there is no prediction
    xray: XRay | None = None  # what was read; its image with `keep` only
    sha256: str | None = None  # of the file
    inside: tuple = (0, 1, 0, 1)  # where the X-ray lies in a framed image, see `inside_frame()`


def predict(
    files,
    run,
    *,
    operating_point=None,
    shape=None,
    keep=False,
    batch_size=32,
    workers=None,
):
    """Probability and mask of each X-ray, from a finished run.

    Files are decoded in parallel, ahead of the network, exactly as `prepare()` does it, but for a
    frame of one grey level around all of the X-ray: the network does not see it, and nothing is
    found on it. Memory does not grow with the number of files: a result is given up as soon as
    the next one is asked for.

    Args:
        files: path or list of paths: PNG, JPEG, DICOM, see `images.read_image()`; folders are
            searched, see `find_images()`.
        run: `Run`, or what `load_run()` takes.
        operating_point: `OperatingPoint` that cuts the masks; `None` is the run's own. Whether
            enough pixels are sure is decided at the network's size, as it was chosen; the
            outline is cut at the file's.
        shape: `(height, width)` of all masks; `None` is that of each file.
        keep: whether results hold the image of the X-ray, at its full size.
        batch_size: files a step of the network.
        workers: decoding threads; `None` is one per processor, at most 16.

    Returns:
        Iterator of `Prediction`, one a file, in their order (a folder's sorted). A file that
        cannot be read is logged and has an `error`; the others go on.

    Raises:
        FileNotFoundError: if there is no file, or no finished run.
        ValueError: if the saved network is damaged or holds code.
    """
    paths = find_images(files)
    run = load_run(run)
    point = load_operating_point(run) if operating_point is None else operating_point
    foreground = load_foreground(run, batch_size=batch_size, xla=len(paths) >= _WORTH_COMPILING)
    read = partial(read_file, size=run.config["size"], exact=keep, keep=keep)
    return predictions(paths, read, foreground, point, batch_size, workers, shape=shape)


def load_foreground(run, *, batch_size, xla):
    """The probability of the foreground that a finished run computes, as a function.

    Args:
        run: `Run`.
        batch_size: images that the function takes at most.
        xla: whether to compile the head, which halves its time after a second.

    Returns:
        Function of `(n, size, size)` uint8 images, which gives `(n, size, size)` float32.

    Raises:
        ValueError: as `load_network()`.
    """
    foreground = _foreground(load_network(run), run.config, batch_size, xla=xla)
    if not run.config.get("test_time_flip"):
        return foreground
    # the mean over each image and its mirror, as the run was scored
    return lambda images: (foreground(images) + foreground(images[:, :, ::-1])[:, :, ::-1]) / 2


def find_images(files):
    """Paths of X-ray files: those given, and those below the folders given.

    Args:
        files: path or list of paths. In a folder, what ends in one of `SUFFIXES` counts, and
            what is DICOM by its content under another name; hidden files do not.

    Returns:
        List of `Path`; what lies in one folder is sorted.

    Raises:
        FileNotFoundError: if there is none.
    """
    given = [Path(p) for p in ([files] if isinstance(files, (str, Path)) else files)]
    found = []
    for path in given:
        found += sorted(filter(_is_image, path.rglob("*"))) if path.is_dir() else [path]
    if not found:
        raise FileNotFoundError(
            f"`files` must name image files or folders with {', '.join(SUFFIXES)} files. "
            f"Received: {', '.join(map(str, given)) or 'nothing'}"
        )
    return found


def _is_image(path):
    if path.name[0] == "." or path.name == "DICOMDIR" or not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as file:
        return is_dicom(file.read(132))


def _foreground(network, config, batch_size, *, xla):
    """A function `(n, size, size)` uint8 -> foreground probability, n at most `batch_size`.

    With `xla`, the head is compiled, which halves its time; the backbone would only lose.
    """
    shape, backbone = (config["size"], config["size"]), config["backbone"]
    if not xla or backbone == "small" or "mean_of" in config:
        whole = compiled(network, shape, "uint8", backbone)
        return lambda images: whole(images).numpy()[..., 1].copy()
    encoder, head = fcn.split_fcn(network)
    encode = compiled(encoder, shape, "uint8", backbone)
    decode = as_graph(lambda features: head(features, training=False)[..., 1], jit_compile=True)

    def foreground(images):
        batch = np.zeros((batch_size, *shape), np.uint8)  # XLA would compile each length anew
        batch[: len(images)] = images
        return decode(encode(batch)).numpy()[: len(images)].copy()

    return foreground


def predictions(paths, read, foreground, point, batch_size, workers, *, shape=None):
    """`predict()` with its parts given: `read` as `read_file()`, `foreground` as loaded."""
    finish = partial(_finish, point=point, shape=shape)
    with ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16)) as threads:
        decoded = ahead(threads, read, paths, count=2 * batch_size)
        while batch := list(islice(decoded, batch_size)):
            files, images = zip(*batch, strict=True)
            readable = [image for image in images if image is not None]
            found = iter(foreground(np.stack(readable)) if readable else ())
            probabilities = [None if image is None else next(found) for image in images]
            yield from threads.map(finish, files, probabilities)


def read_file(path, *, size, exact=False, keep=False, load=Path.read_bytes):
    """`(Prediction, still without one, image for the network)`; no image where there is none.

    Args:
        path: of the file, as `load` takes it.
        size: height and width of the network's images.
        exact: whether to decode at full size what could be decoded faster at a reduced one.
        keep: as for `predict()`.
        load: function from the path to the bytes of the file.
    """
    file = Prediction(path)
    try:
        data = load(path)
        file = file._replace(sha256=hashlib.sha256(data).hexdigest())
        xray = decode_xray(data, path, at_least=None if exact else size)
        inside = inside_frame(xray.image)
        image = resize_image(_part(xray.image, inside), (size, size))
        return file._replace(xray=xray if keep else xray._replace(image=None), inside=inside), image
    except Exception as error:  # whatever a decoder raises: the other files go on
        reason = str(error).split("\n")[0] or repr(error)
        logger.warning("%s: not predicted: %s", path, reason)
        return file._replace(error=reason), None


def _finish(file, probability, *, point, shape):
    if probability is None:
        return file
    return file._replace(
        probability=_framed(probability, file.inside),
        mask=_mask(probability, shape or file.xray.shape, file.inside, point=point),
        score=float(image_level_score(probability[None])[0]),
    )


def _part(image, inside):
    """View of the part of an image that `inside_frame()` gives."""
    (height, width), (top, bottom, left, right) = image.shape, inside
    return image[
        round(top * height) : round(bottom * height), round(left * width) : round(right * width)
    ]


def _framed(probability, inside):
    """Probability of the whole image from that of the X-ray within its frame."""
    whole = np.zeros_like(probability)
    part = _part(whole, inside)
    part[:] = resize_image(probability, part.shape)
    return whole


def _mask(probability, shape, inside, *, point):
    mask = np.zeros(shape, np.uint8)
    if apply_operating_point(probability[None], point).any():  # of few X-rays
        part = _part(mask, inside)
        enlarged = resize_image(probability, part.shape)
        part[:] = cv2.compare(enlarged, point.bottom_threshold, cv2.CMP_GE) & 1
    return mask


def ahead(threads, do, items, *, count):
    """Yield `do(item)` in order, `count` of them under way.

    Args:
        threads: `Executor`.
        do: function of one item.
        items: iterable; read only so far ahead.
        count: results that may wait.
    """
    items = iter(items)
    coming = deque(threads.submit(do, item) for item in islice(items, count))
    while coming:
        yield coming.popleft().result()
        coming.extend(threads.submit(do, item) for item in islice(items, 1))
