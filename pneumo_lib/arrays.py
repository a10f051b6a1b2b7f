"""The array files of a preparation: made in parallel, resumed after a kill, whole or not there."""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
from numpy.lib.format import open_memmap
from tqdm.auto import tqdm

from .pixels import read_pair

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHUNK = 256  # images between two moments when everything done is safely on the disk


@contextmanager
def alone_beside(folder):
    """Lets one process at a time work in and beside `folder`; the next one waits.

    A notebook and a test run may prepare the same data at once. The lock is on the parent folder,
    leaves no file, and ends with the process however that ends. Windows has none.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
    """Makes the rows that are not done yet; the broken ones as `{row: what was wrong}`."""
    shape = (len(cases), size, size)
    done = _open_arrays(aside, shape)[2]
    todo = np.flatnonzero(done != made_from)
    records = cases.to_dict("records")
    broken = {}
    with (
        ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16)) as threads,
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
                    broken[int(row)] = str(error).split("\n")[0] or repr(error)
                bar.update()
            images.flush()
            masks.flush()
            good = [row for row in rows if row not in broken]
            done[good] = made_from[good]  # marked only after the pixels are on the disk
            done.flush()
    return broken


def _open_arrays(folder, shape):
    """Images, masks and the fingerprints of their rows, writable; made where they are missing."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"images": (shape, "u1"), "masks": (shape, "u1"), "made_from": (shape[:1], "u8")}
    try:
        arrays = [open_memmap(folder / f"{name}.npy", mode="r+") for name in wanted]
        if [array.shape for array in arrays] == [shape for shape, _ in wanted.values()]:
            return arrays
    except (OSError, ValueError):
        pass  # not there, or killed while it was being made
    needed, free = 2 * np.prod(shape, dtype=int), shutil.disk_usage(folder).free
    if needed > free:  # a full disk would end the process without a word when a page is written
        raise ValueError(
            f"The arrays need {needed / 1e9:.1f} GB of disk: free some, or take a smaller `size`. "
            f"Received: {free / 1e9:.1f} GB free in {folder.parent}"
        )
    # fingerprints last: they must never tell of arrays that are made anew
    (folder / "made_from.npy").unlink(missing_ok=True)
    return [
        open_memmap(folder / f"{name}.npy", mode="w+", shape=shape, dtype=dtype)
        for name, (shape, dtype) in wanted.items()
    ]


def drop_rows(folder, keep):
    """Leaves the rows where `keep` is True, copying one after the other."""
    for path in (folder / "images.npy", folder / "masks.npy"):
        whole = np.load(path, mmap_mode="r")
        shape = (int(keep.sum()), *whole.shape[1:])
        kept = open_memmap(path.with_suffix(".kept"), "w+", "u1", shape)
        for row, source_row in enumerate(np.flatnonzero(keep)):
            kept[row] = whole[source_row]
        kept.flush()
        os.replace(path.with_suffix(".kept"), path)


def checksum(folder):
    """SHA-256 over the two array files, images first."""
    sha = hashlib.sha256()
    for name in ("images.npy", "masks.npy"):
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def swap(aside, folder):
    """Puts the finished `aside` where `folder` is or was."""
    former = folder.with_name(folder.name + ".former")
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        os.replace(folder, former)
    os.replace(aside, folder)
    (folder / "made_from.npy").unlink()
    shutil.rmtree(former, ignore_errors=True)
