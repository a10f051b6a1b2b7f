"""Array files of prepared data: filled in parallel, resumed after a kill, checked by digests."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from tqdm.auto import tqdm

from pneumo_lib._files import atomic_write, new_array
from pneumo_lib.data.images import READING, read_pair

PRINTS = "made_from.npy"  # fingerprints of the rows that are done
CHUNK = 256  # images between two flushes to the disk


def fingerprints(cases, *, size):
    """`(n,)` uint64, never 0: digest of all that the arrays' row of each case is made from."""
    sources = ("image_path", "mask_path", "rles", "rle_side", "has_pneumothorax")
    columns = [column for column in sources if column in cases]
    prints = np.zeros(len(cases), np.uint64)
    for row, values in enumerate(cases[columns].itertuples(index=False, name=None)):
        text = [READING, size, *values]
        for path in values[: 2 if "mask_path" in columns else 1]:
            with suppress(OSError):  # a missing file is reported when it is read
                found = os.stat(path)
                text += [found.st_size, found.st_mtime_ns]
        digest = hashlib.blake2b(repr(text).encode(), digest_size=8).digest()
        prints[row] = int.from_bytes(digest) | 1
    return prints


def digest(cases, made_from, *settings):
    """SHA-256 of fingerprints, table and settings."""
    parts = (made_from.tobytes(), cases.to_csv().encode(), repr(settings).encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def fill(cases, folder, made_from, *, size, workers):
    """Fills the rows of the arrays in `folder` that are not done; `{row: error}` of broken images.

    Raises FileNotFoundError if a folder of images has vanished, MemoryError if an image or mask
    needs more memory than there is.
    """
    shape = (len(cases), size, size)
    todo = np.flatnonzero(_open_arrays(folder, shape)[2] != made_from)
    records = cases.to_dict("records")
    broken = {}
    with (
        ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16)) as threads,
        tqdm(total=len(todo), desc="preparing", unit="image", delay=1) as bar,
    ):
        for start in range(0, len(todo), CHUNK):
            rows = todo[start : start + CHUNK]
            # reopened for each chunk: written pages would stay in this process's memory
            images, masks, done = _open_arrays(folder, shape)
            fill_row = partial(_fill_row, images, masks, records, size)
            # map(), unlike submit(), drops the queue after an error or Ctrl-C
            for row, error in zip(rows, threads.map(fill_row, rows), strict=True):
                if error:
                    _raise_if_not_the_files_fault(error, records[row])
                    broken[int(row)] = str(error).split("\n")[0] or repr(error)
                bar.update()
            images.flush()
            masks.flush()
            good = [row for row in rows if row not in broken]
            done[good] = made_from[good]  # marked only after the pixels are on the disk
            done.flush()
    return broken


def _fill_row(images, masks, records, size, row):
    """The error of a case that cannot be read, else `None`."""
    try:
        images[row], masks[row] = read_pair(records[row], size)
    except Exception as error:  # of whatever decoder
        return error


def _raise_if_not_the_files_fault(error, case):
    """Raises errors that would hit all other files too and are no reason to leave one out."""
    if isinstance(error, MemoryError):
        raise MemoryError(
            f"{case['image_id']} needs more memory than there is. Call again with fewer `workers`, "
            f"or close other programs: what was finished is kept. Received: {error or 'no more'}"
        ) from None
    folder = Path(getattr(error, "filename", None) or ".").parent
    if isinstance(error, FileNotFoundError) and not folder.is_dir():
        raise FileNotFoundError(
            "The data folder must stay while it is read. Bring it back (an unplugged disk?) and "
            f"call again: what was finished is kept. Received: no {folder}"
        ) from None


def _open_arrays(folder, shape):
    """Images, masks and fingerprints of the rows, writable; created if missing or damaged."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"images.npy": (shape, "u1"), "masks.npy": (shape, "u1"), PRINTS: (shape[:1], "u8")}
    try:
        arrays = [open_memmap(folder / name, mode="r+") for name in wanted]
        if [array.shape for array in arrays] == [shape for shape, _ in wanted.values()]:
            return arrays
    except (OSError, ValueError):
        pass  # missing, or its creation was killed
    # the fingerprints are removed first and made last: they must not describe new, empty arrays
    (folder / PRINTS).unlink(missing_ok=True)
    return [new_array(folder / name, shape, dtype) for name, (shape, dtype) in wanted.items()]


def drop_rows(folder, keep):
    """Removes the rows of both arrays where `keep` is False, without loading them whole."""
    for path in (folder / "images.npy", folder / "masks.npy"):
        whole = np.load(path, mmap_mode="r")
        shape = (int(keep.sum()), *whole.shape[1:])
        with atomic_write(path) as unfinished:
            kept = open_memmap(unfinished, "w+", "u1", shape)
            for row, source_row in enumerate(np.flatnonzero(keep)):
                kept[row] = whole[source_row]
            kept.flush()


def checksum(folder):
    """SHA-256 over the two array files, images first."""
    sha = hashlib.sha256()
    for name in ("images.npy", "masks.npy"):
        with open(folder / name, "rb") as file:
            hashlib.file_digest(file, lambda: sha)
    return sha.hexdigest()
