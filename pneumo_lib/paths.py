"""Where the project's files lie, and how they are replaced without ever being torn."""

import os
from contextlib import contextmanager
from pathlib import Path


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


def report_folder(data):
    """`runs/report` for phantoms; real data get a folder of their own."""
    return project_path("runs/report" if data == "phantoms" else f"runs/report-{Path(data).name}")


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
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
