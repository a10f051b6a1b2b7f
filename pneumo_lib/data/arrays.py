"""The array files of a preparation: made in parallel, resumed after a kill, whole or not there."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
import numpy as np
from numpy.lib.format import open_memmap
from tqdm.auto import tqdm
from pneumo_lib._files import atomic_write, new_array
from pneumo_lib.data.images import read_pair

PRINTS = "made_from.npy"  # fingerprints of the rows that are done
CHUNK = 256  # images between two moments when everything done is safely on the disk


def fingerprints(cases, *, size):
    """`(n,)` uint64: what the arrays' row of each case is made from, never 0."""
    columns = [c for c in ("image_path", "mask_path", "rles", "has_pneumothorax") if c in cases]
    prints = np.zeros(len(cases), np.uint64)
    for row, values in enumerate(cases[columns].itertuples(index=False, name=None)):
        text = [size, *values]
        for path in values[: 2 if "mask_path" in columns else 1]:
            with suppress(OSError):  # a missing file is reported when it is read
                found = os.stat(path)
                text += [found.st_size, found.st_mtime_ns]
        digest = hashlib.blake2b(repr(text).encode(), digest_size=8).digest()
        prints[row] = int.from_bytes(digest) | 1
    return prints


def digest(cases, made_from, *settings):
    """One text for a whole call: the files behind the table, the table, the settings."""
    parts = (made_from.tobytes(), cases.to_csv().encode(), repr(settings).encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def fill(cases, aside, made_from, *, size, workers):
    """Makes the rows that are not done yet; the broken ones as `{row: what was wrong}`.

    Raises:
        FileNotFoundError: if a folder of images is there no more.
        MemoryError: if one image or mask needs more memory than there is.
    """
    shape = (len(cases), size, size)
    done = _open_arrays(aside, shape)[2]
    todo = np.flatnonzero(done != made_from)
    records = cases.to_dict("records")
    broken = {}
    with (
        _threads(workers or min(os.cpu_count() or 1, 16)) as threads,
        tqdm(total=len(todo), desc="preparing", unit="image", delay=1) as bar,
    ):
        for start in range(0, len(todo), CHUNK):
            rows = todo[start : start + CHUNK]
            # opened anew for each chunk: pages once written would stay in this process's memory
            images, masks, done = _open_arrays(aside, shape)

            def make(row, images=images, masks=masks):
                images[row], masks[row] = read_pair(records[row], size)

            for row, future in [(row, threads.submit(make, row)) for row in rows]:
                if error := future.exception():
                    _raise_if_not_the_files_fault(error, records[row])
                    broken[int(row)] = str(error).split("\n")[0] or repr(error)
                bar.update()
            images.flush()
            masks.flush()
            good = [row for row in rows if row not in broken]
            done[good] = made_from[good]  # marked only after the pixels are on the disk
            done.flush()
    return broken


@contextmanager
def _threads(count):
    """A pool that ends at once after an error or Ctrl-C, not when its whole queue is done."""
    threads = ThreadPoolExecutor(count)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)


def _raise_if_not_the_files_fault(error, case):
    """What would befall every other file as well must not count as one broken image."""
    if isinstance(error, MemoryError):
        raise MemoryError(
            f"{case['image_id']} needs more memory than there is. Call again with fewer `workers`, "
            f"or close other programs: what was finished is kept. Received: {error or 'no more'}"
        ) from None
    for path in (case["image_path"], case.get("mask_path")):
        if isinstance(error, FileNotFoundError) and isinstance(path, str):
            folder = Path(path).parent
            if not folder.is_dir():
                raise FileNotFoundError(
                    "The data folder must stay while it is read. Bring it back (an unplugged "
                    f"disk?) and call again: what was finished is kept. Received: no {folder}"
                ) from None


def _open_arrays(folder, shape):
    """Images, masks and the fingerprints of their rows, writable; made where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"images.npy": (shape, "u1"), "masks.npy": (shape, "u1"), PRINTS: (shape[:1], "u8")}
    try:
        arrays = [open_memmap(folder / name, mode="r+") for name in wanted]
        if [array.shape for array in arrays] == [shape for shape, _ in wanted.values()]:
            return arrays
    except (OSError, ValueError):
        pass  # not there, or killed while it was being made
    # fingerprints last: they must never tell of arrays that are made anew
    (folder / PRINTS).unlink(missing_ok=True)
    return [new_array(folder / name, shape, dtype) for name, (shape, dtype) in wanted.items()]


def drop_rows(folder, keep):
    """Leaves the rows where `keep` is True, copying one after the other."""
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
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()
