"""Where the project's files lie: written whole or not at all, by one process at a time."""

import errno
import glob
import json
import logging
import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap

logger = logging.getLogger(__name__)

_UNIQUE = 12  # hexadecimal digits before the name of what is not finished
_ELSEWHERE = "choose another place, for all files by the environment variable PNEUMO_HOME"
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: f"free some of your quota, or {_ELSEWHERE}",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EACCES: f"allow writing there, or {_ELSEWHERE}",
    errno.EPERM: f"allow writing there, or {_ELSEWHERE}",
    errno.EROFS: f"mount it for writing, or {_ELSEWHERE}",
}


def project_path(path="."):
    """Path inside the project for a relative `path`; an absolute one is kept.

    Papermill runs a notebook in the caller's folder and nbval in the notebook's own, so a
    relative path would mean a different file in each. Everything the project reads or
    writes is therefore resolved here, against the project's root: the folder named by the
    environment variable `PNEUMO_HOME` if it is set (another disk, say), else the folder above
    this package when that is a checkout, else the current folder.

    Args:
        path: `str` or `Path`; `~` stands for the home folder.

    Returns:
        Absolute `Path`; it need not exist.
    """
    checkout = Path(__file__).resolve().parent.parent
    root = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
    root = Path(os.environ.get("PNEUMO_HOME") or root).expanduser()
    return (root / Path(path).expanduser()).resolve()


def source_path(path):
    """Path of a notebook or parameter file, which lie in the checkout if not in `PNEUMO_HOME`."""
    path = Path(path)
    moved = project_path(path)
    return moved if moved.exists() else (Path(__file__).resolve().parent.parent / path).resolve()


@contextmanager
def file_lock(path):
    """Lets one process at a time make `path`, a file or folder; the next one waits, and logs so.

    Two reports, or a notebook and a test, may want the same arrays at once. The lock ends with
    its process, however that ends. A file system without locks gets none, and a warning: a
    marker file in its place would keep everybody out after its process was killed. What a killed
    process left unfinished, for `path` or in it, is removed.

    Args:
        path: what is to be made; its folder is made where it is missing.

    Raises:
        OSError: as it came, with what to do, where the disk is full or cannot be written.
    """
    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"), fallback_to_soft=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _acquire(lock, path):
            _remove_unfinished(path)
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        raise type(error)(
            error.errno,
            f"{error.strerror}. To go on, {REMEDIES[error.errno]}, and call again: what was "
            "finished is kept. Received",
            error.filename or str(path),
        ) from error
    finally:
        if lock.is_locked:
            with suppress(PermissionError):  # Windows removes the file when the lock ends
                os.unlink(lock.lock_file)  # a waiting process then locks a new one
            lock.release()


def _acquire(lock, path):
    """Waits for `lock`; False on a file system without locks."""
    try:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            logger.info("Another process is making %s; waiting for it to end.", path)
            lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        logger.warning("No locks where %s lies: let one process at a time make it.", path)
        Path(lock.lock_file).unlink(missing_ok=True)
    return lock.is_locked


def _remove_unfinished(path):
    """What `atomic_write()` had no time to rename or to remove."""
    unique = f".{'[0-9a-f]' * _UNIQUE}-"
    name, stem = glob.escape(path.name), glob.escape(path.stem)
    left = [path.glob(f"{unique}*"), path.glob(f"*/{unique}*")]
    left += [path.parent.glob(f"{unique}{beside}") for beside in (name, f"{stem}.*")]
    for unfinished in chain(*left):
        _remove(unfinished)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path):
    """A temporary path to write a file or a folder to; it becomes `path` at the block's end.

    A reader sees the old one or the new one, whenever the writer is killed; after an error the
    old one stays.

    Args:
        path: file or folder to replace; the folder it lies in must exist.

    Yields:
        `Path` beside it, with the same suffixes (some writers choose the format by them).
    """
    path = Path(path)
    unfinished = _hidden(path)
    try:
        yield unfinished
        put_in_place(unfinished, path)
    finally:
        _remove(unfinished)


def _hidden(path):
    """A path beside `path` that no other process has, on whichever machine shares the folder."""
    return path.with_name(f".{uuid.uuid4().hex[:_UNIQUE]}-{path.name}")


def put_in_place(finished, path):
    """Renames the file or folder `finished` to `path`, replacing what is there."""
    if path.is_dir():  # no call replaces a folder that holds something
        former = _hidden(path)
        os.replace(path, former)
        os.replace(finished, path)
        _remove(former)
    else:
        os.replace(finished, path)


def made_from(folder, *, record):
    """The request that `folder` was begun with, see `begin_folder()`; `None` if it has no record.

    Args:
        folder: of any kind of results.
        record: name of the JSON file in it.
    """
    path = Path(folder) / record
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def begin_folder(folder, request, *, record, what):
    """Begins `folder` for `request`, or goes on where that was begun before.

    To be called inside `file_lock(folder)`, before anything else is written there: a kill at any
    moment then leaves a folder that the next call with the same request takes up again. That
    all is finished is read off the file that the work writes last.

    Args:
        folder: `Path`, made where it is missing.
        request: dict that JSON can hold: all that decides what the folder will hold.
        record: name of the JSON file that keeps it, see `made_from()`.
        what: the results with an article, such as "A training run"; begins the error.

    Raises:
        ValueError: if the folder was begun with another request or holds other files.
    """
    former = made_from(folder, record=record)
    others = former is None and holds_files(folder)
    refuse_other_work(folder, request, former, others=others, what=what)
    folder.mkdir(parents=True, exist_ok=True)
    if former is None:
        write_json(folder / record, request)


def holds_files(folder):
    """Whether there is more in `folder` than hidden files, such as a killed process leaves."""
    return folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir())


def refuse_other_work(folder, request, former, *, others, what):
    """The check of `begin_folder()`, for a `folder` anywhere, such as in an object store.

    Args:
        folder: where the results go, as path or text.
        request: as for `begin_folder()`.
        former: the request that the folder was begun with, or `None`.
        others: whether there is none, and the folder holds something.
        what: as for `begin_folder()`.

    Raises:
        ValueError: if `former` is another request, or for `others`.
    """
    request = json.loads(json.dumps(request))  # tuples are lists there
    if others:
        holds = "holds other files"
    elif former in (None, request):
        return
    else:
        names = [n for n in {**former, **request} if former.get(n) != request.get(n)]
        pairs = [f"{n}: {former.get(n)!r}, now {request.get(n)!r}" for n in names]
        holds = f"was made with other settings ({'; '.join(pairs)})"
    raise ValueError(
        f"{what} needs a folder of its own: choose another, or delete this one. "
        f"Received: {folder}, which {holds}"
    )


def write_json(path, content):
    """Writes `content` as indented JSON, whole or not at all."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path, table):
    """Writes a `DataFrame` without its index, whole or not at all."""
    with atomic_write(path) as unfinished:
        table.to_csv(unfinished, index=False)


def read_csv(path):
    """Table written by `write_csv()`, every number to its last bit."""
    import pandas as pd  # not for those who only ask for a path

    # The C parser of pandas before 3.1 loses the last bit; the Python one never did.
    return pd.read_csv(path, dtype={"image_id": str}, engine="python")


def new_array(path, shape, dtype):
    """A new array file of zeros, memory-mapped, with all of its disk space reserved.

    Without the reservation a disk that fills up later would end the process without a word, when
    a page of the map is written.

    Args:
        path: of the file; replaced where it exists.
        shape, dtype: of the array.

    Returns:
        `np.memmap`, writable.

    Raises:
        OSError: if the disk is too full.
    """
    size = np.prod(shape, dtype=int) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(path.parent).free
    try:
        if size > free:  # all that can be known on macOS and Windows
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        array = open_memmap(path, "w+", dtype, shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return array  # some network file systems cannot reserve
        path.unlink(missing_ok=True)
        text = f"{error.strerror}: {size / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free"
        raise OSError(error.errno, text, str(path)) from None
    return array
