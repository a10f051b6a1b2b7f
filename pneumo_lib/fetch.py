"""The SIIM-ACR data set from Kaggle, with the user's own account."""

import logging
import os
import shutil
from pathlib import Path

from .dataset import read_cases
from .paths import alone, written_aside

logger = logging.getLogger(__name__)

DATASETS = {
    "png": "vbookshelf/pneumothorax-chest-xray-images-and-masks",
    "dicom": "seesee/siim-train-test",
}


def fetch(to, layout="png"):
    """Downloads the SIIM-ACR data set and checks that it is whole.

    Args:
        to: folder for the files; those already there are kept. They share their disk space with
            kagglehub's own cache where the file system can link.
        layout: `"png"` (12,047 images and masks with tables) or `"dicom"` (the official files).

    Returns:
        `Path` of the folder.

    Raises:
        ValueError: for another layout, or if links came, which could lead anywhere.
        OSError: with what to do, if the disk is full or cannot be written.
        FileNotFoundError: if kagglehub is not installed, Kaggle refuses the download, or files
            are missing from what came.
    """
    if layout not in DATASETS:
        raise ValueError(f"`layout` must be one of {list(DATASETS)}. Received: layout={layout!r}")
    page = f"https://www.kaggle.com/datasets/{DATASETS[layout]}"
    by_hand = f"or download {page} in a browser and unpack it into {to}"
    try:
        import kagglehub
    except ImportError:
        raise FileNotFoundError(
            "Downloading needs the package kagglehub: pip install 'pneumo[kaggle]', "
            f"{by_hand}. Received: no kagglehub"
        ) from None
    try:
        source = kagglehub.dataset_download(DATASETS[layout])
    except Exception as error:  # kagglehub lets through whatever its HTTP library raises
        raise FileNotFoundError(
            "Kaggle must let you download: create an API token at kaggle.com/settings, save it as "
            "~/.kaggle/kaggle.json or set KAGGLE_API_TOKEN, accept the terms at the data set's "
            f"page, and try again, {by_hand}. Received: {type(error).__name__}: {error}"
        ) from error
    to = Path(to).expanduser().resolve()
    _refuse_links(Path(source))
    with alone(to):
        _copy(Path(source), to)
    cases = read_cases(to)
    positive = cases["has_pneumothorax"].sum()
    logger.info("%d images, %d with pneumothorax, are in %s", len(cases), positive, to)
    return to


def _refuse_links(folder):
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ValueError(
                "A data set holds files and folders only; a link could lead to any file of yours. "
                f"Look at what was downloaded, and delete it. Received: {path}"
            )


def _copy(source, to):
    """Not `shutil.copytree()`: on a full disk it goes on, and ends with an error for each file."""
    to.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*")):  # a folder comes before what it holds
        target = to / path.relative_to(source)
        if path.is_dir():
            target.mkdir(exist_ok=True)
        elif not target.exists():
            _link_or_copy(path, target)


def _link_or_copy(source, target):
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        with written_aside(target) as aside:  # a torn copy would be kept by the next call
            shutil.copy2(source, aside)
