"""Project files: paths, locks, atomic writes, and whose results a folder holds."""

import errno
import glob
import json
import logging
import multiprocessing
import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib.format import open_memmap

logger = logging.getLogger(__name__)

_UNIQUE = 12  # hexadecimal digits before the name of an unfinished file
_CHECKOUT = Path(__file__).resolve().parent.parent
_ELSEWHERE = "choose another place, for all files by the environment variable PNEUMO_HOME"
IN_CHECKOUT = (
    "Notebooks and params/ come with the checkout of the repository (git clone), not with an "
    "installed package: work in the checkout, or set PNEUMO_HOME to it"
)
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: f"free some of your quota, or {_ELSEWHERE}",
    errno.EFBIG: "raise the limit on the size of a file (ulimit -f)",
    errno.EACCES: f"allow writing there, or {_ELSEWHERE}",
    errno.EPERM: f"allow writing there, or {_ELSEWHERE}",
    errno.EROFS: f"mount it for writing, or {_ELSEWHERE}",
}


def project_path(path="."):
    """Absolute `Path` of a file of the project; it need not exist, and an absolute one is kept.

    Papermill runs a notebook in the caller's folder and nbval in the notebook's own. So a relative
    path starts at the project's root: the folder in the environment variable `PNEUMO_HOME`, else
    the folder above this package if that is a checkout, else the current folder.
    """
    root = _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else Path.cwd()
    root = Path(os.environ.get("PNEUMO_HOME") or root).expanduser()
    return (root / Path(path).expanduser()).resolve()


def source_path(path):
    """Path of a notebook or parameter file: below `PNEUMO_HOME` if it is there, or the checkout."""
    moved = project_path(path)
    return moved if moved.exists() else (_CHECKOUT / path).resolve()


@contextmanager
def file_lock(path):
    """Lock between processes on a file or folder to be made; one that has to wait logs so.

    The operating system ends the lock with its process. A file system without locks gets none, and
    a warning: a marker file would stay after a kill and keep everybody out. What a killed process
    left unfinished, for `path` or in it, is removed. An OSError that is raised in the block names
    the remedy if the disk is full or not writable.
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
        with suppress(Timeout):
            lock.acquire(blocking=False)
        if not lock.is_locked:
            if getattr(multiprocessing.current_process(), "_inheriting", False):
                raise RuntimeError(
                    "A script must begin its work below `if __name__ == '__main__':`, because the "
                    "processes that help it read the script too. Received: one without, making "
                    f"{path}"
                )
            logger.info("Another process is making %s; waiting for it to end.", path)
            lock.acquire()
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        logger.warning("No locks where %s lies: let one process at a time make it.", path)
        Path(lock.lock_file).unlink(missing_ok=True)
    return lock.is_locked


def _remove_unfinished(path):
    """Removes what a killed `atomic_write()` left of `path`, in it, or in `path.partial`."""
    unique, name = f".{'[0-9a-f]' * _UNIQUE}-", glob.escape(path.name)
    patterns = [f"{unique}{name}", f"{unique}{glob.escape(path.stem)}.*"]
    patterns += [f"{name}{part}/{unique}*" for part in ("", "/*", ".partial")]
    for pattern in patterns:
        for unfinished in path.parent.glob(pattern):
            _remove(unfinished)


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path):
    """A `Path` to write a file or folder to, renamed to `path` at the block's end.

    Readers see the old content or the new, even if the writer is killed; an error keeps the old.
    It lies beside `path`, with the same suffixes, by which some writers choose the format.
    """
    path = Path(path)
    unfinished = _hidden(path)
    try:
        yield unfinished
        put_in_place(unfinished, path)
    finally:
        _remove(unfinished)


def _hidden(path):
    """A path beside `path`, unique among all machines that share the folder."""
    return path.with_name(f".{uuid.uuid4().hex[:_UNIQUE]}-{path.name}")


def put_in_place(finished, path):
    """Renames the file or folder `finished` to `path`, replacing what is there."""
    if path.is_dir():  # no call replaces a folder that is not empty
        former = _hidden(path)
        os.replace(path, former)
        os.replace(finished, path)
        _remove(former)
    else:
        os.replace(finished, path)


def made_from(folder, *, record):
    """The request that a folder of results was begun with, or `None` without a `record` file."""
    path = Path(folder) / record
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def begin_folder(folder, request, *, record, what):
    """Creates a folder of results and records its request, or continues one of the same request.

    Call it inside `file_lock(folder)`, before anything else is written there: after a kill at any
    moment the next call with the same request can then continue. Whether all is finished is not
    recorded here: the file that the work writes last shows it.

    `request`, a dict for JSON, is all that decides the content of the folder, `record` the name of
    the JSON file that keeps it, `what` as for `refuse_other_work()`, with the same ValueError.
    """
    former = made_from(folder, record=record)
    refuse_other_work(folder, request, former, holds_files(folder), what=what)
    folder.mkdir(parents=True, exist_ok=True)
    if former is None:
        write_json(folder / record, request)


def holds_files(folder):
    """Whether a folder holds more than hidden files, which locks and killed processes leave."""
    return folder.is_dir() and any(path.name[0] != "." for path in folder.iterdir())


def refuse_other_work(folder, request, former, occupied, *, what):
    """Raises ValueError if a folder holds other work than that of `request`.

    Args:
        folder: path or URL, for the error.
        request: dict for JSON.
        former: the request that the folder was begun with, or `None`.
        occupied: whether it holds more than hidden files, which needs a `former` request.
        what: the results with an article, such as "A training run", for the error.
    """
    request = json.loads(json.dumps(request))  # tuples become lists, as in `former`
    holds = "holds other files" if occupied else ""
    if former is not None:
        changed = [n for n in {**former, **request} if former.get(n) != request.get(n)]
        pairs = [f"{n}: {former.get(n)!r}, now {request.get(n)!r}" for n in changed]
        holds = f"was made with other settings ({'; '.join(pairs)})" if changed else ""
    if holds:
        raise ValueError(
            f"{what} needs a folder of its own: choose another, or delete this one. "
            f"Received: {folder}, which {holds}"
        )


def write_json(path, content):
    """Writes `content` as indented JSON, atomically."""
    with atomic_write(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_csv(path, table):
    """Writes a `DataFrame` without its index, atomically."""
    with atomic_write(path) as unfinished:
        table.to_csv(unfinished, index=False)


def read_csv(path):
    """Table written by `write_csv()`, with every bit of its numbers."""
    import pandas as pd  # slow to import, and most users of this module need none

    return pd.read_csv(path, dtype={"image_id": str})  # exact since pandas 3.1


def new_array(path, shape, dtype):
    """Writable memory map of a new `.npy` file of zeros whose disk space is reserved.

    Without the reservation a disk that fills up later would kill the process with SIGBUS, and no
    error, when a page is written. A former file is replaced. OSError: the disk is too full.
    """
    size = np.prod(shape, dtype=int) * np.dtype(dtype).itemsize
    free = shutil.disk_usage(path.parent).free
    try:
        if size > free:  # the only test on macOS and Windows
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
