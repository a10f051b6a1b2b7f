"""Where the project's files lie, whatever folder a notebook or command is started from."""

from pathlib import Path


def project_path(path="."):
    """Path inside the project for a relative `path`; an absolute one is kept.

    Papermill runs a notebook in the caller's folder and nbval in the notebook's own, so a
    relative path would mean a different file in each. Everything the project reads or
    writes is therefore resolved here, against the project's root: the folder above this
    package when that is a checkout, else the current folder.

    Args:
        path: `str` or `Path`; `~` stands for the home folder.

    Returns:
        Absolute `Path`; it need not exist.
    """
    checkout = Path(__file__).resolve().parent.parent
    root = checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()
    return (root / Path(path).expanduser()).resolve()
