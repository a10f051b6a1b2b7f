"""Where the project's files lie, and how they are replaced without ever being torn."""

import errno
import glob
import logging
import os
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

_UNIQUE = 12  # hexadecimal digits before the name of a file that is written aside
_ELSEWHERE = "choose another place, for all files by the environment variable PNEUMO_HOME"
_REMEDIES = {
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


def report_folder(data):
    """`runs/report` for phantoms; real data get a folder of their own."""
    return project_path(
        "runs/report" if data == "phantoms" else f"runs/report-{Path(str(data)).name}"
    )


def figures_folder(data):
    """Where notebooks export figures: those of real X-rays stay out of the repository."""
    return project_path("figures") if data == "phantoms" else report_folder(data) / "figures"


@contextmanager
def written_aside(path):
    """A temporary path to write to; it becomes `path` when the block ends without an error.

    A reader sees the old file or the new one, whenever the writer is killed.

    Args:
        path: file to replace; its folder must exist.

    Yields:
        `Path` beside it, with the same suffixes (some writers choose the format by them).
    """
    path = Path(path)
    # a name that no other process has, on whichever machine shares the folder
    aside = path.with_name(f".{uuid.uuid4().hex[:_UNIQUE]}-{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def alone(path):
    """Lets one process at a time make `path`, a file or folder; the next one waits, and logs so.

    Two reports, or a notebook and a test, may want the same arrays at once. The lock ends with
    its process, however that ends. Windows has none. What a process that was killed left aside,
    for `path` or in it, is removed.

    Args:
        path: what is to be made; its folder is made where it is missing.

    Raises:
        OSError: as it came, with what to do, where the disk is full or cannot be written.
    """
    lock = path.with_name(f".{path.name}.lock")
    handle = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _lock(lock, path) if fcntl else None
        if handle is not None:
            _remove_asides(path)
        yield
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise type(error)(
            error.errno,
            f"{error.strerror}. To go on, {_REMEDIES[error.errno]}, and call again: what was "
            "finished is kept. Received",
            error.filename or str(path),
        ) from error
    finally:
        if handle is not None:
            lock.unlink(missing_ok=True)  # before the lock ends: who waits will notice
            os.close(handle)


def _remove_asides(path):
    """Files that `written_aside()` had no time to rename or to remove."""
    for folder, name in ((path, "*"), (path.parent, f"{glob.escape(path.stem)}.*")):
        for aside in folder.glob(f".{'[0-9a-f]' * _UNIQUE}-{name}"):
            aside.unlink(missing_ok=True)


def _lock(lock, path):
    """Handle of the locked file `lock`, or `None` on a file system without locks."""
    while True:
        handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Another process is making %s; waiting for it to end.", path)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # some network file systems have no locks
            lock.unlink(missing_ok=True)
            os.close(handle)
            return None
        with suppress(FileNotFoundError):
            # else the one before removed the file that it locked, and a third may hold a new one
            if os.path.samestat(os.fstat(handle), os.stat(lock)):
                return handle
        os.close(handle)
