"""Download of the SIIM-ACR data set from Kaggle with the user's own account."""

import logging
import shutil
from pathlib import Path

from pneumo_lib._checks import check_name
from pneumo_lib._files import REMEDIES, atomic_write, file_lock, holds_files
from pneumo_lib.data.siim import read_cases

logger = logging.getLogger(__name__)

DATASETS = {
    "png": "vbookshelf/pneumothorax-chest-xray-images-and-masks",
    "dicom": "seesee/siim-train-test",
}


def fetch(to, layout="png"):
    """Downloads the SIIM-ACR data set and checks that it is complete.

    Args:
        to: folder for the files, returned as `Path`; one that holds files already is only checked.
        layout: `"png"` (12,047 images and masks with tables) or `"dicom"` (the official files).

    Raises:
        ValueError: for another layout, or if the download contains links.
        OSError: with what to do, if the disk is full or cannot be written.
        FileNotFoundError: without kagglehub or access to Kaggle, or if files are missing.
    """
    check_name("layout", layout, DATASETS)
    by_hand = (
        f"or download https://www.kaggle.com/datasets/{DATASETS[layout]} in a browser and unpack "
        f"it into {to}"
    )
    try:
        import kagglehub
    except ImportError:
        raise FileNotFoundError(
            "Downloading needs the package kagglehub: pip install 'pneumo[kaggle]', "
            f"{by_hand}. Received: no kagglehub"
        ) from None
    to = Path(to).expanduser().resolve()
    with file_lock(to):
        if not holds_files(to):
            with atomic_write(to) as unfinished:
                _download(kagglehub, layout, unfinished, by_hand)
    cases = read_cases(to)
    positive = cases["has_pneumothorax"].sum()
    logger.info("%d images, %d with pneumothorax, are in %s", len(cases), positive, to)
    return to


def _download(kagglehub, layout, to, by_hand):
    try:
        found = kagglehub.dataset_download(DATASETS[layout], output_dir=str(to))
    except Exception as error:  # kagglehub lets through whatever its HTTP library raises
        if isinstance(error, OSError) and error.errno in REMEDIES:
            raise
        raise FileNotFoundError(
            "Kaggle must let you download: create an API token at kaggle.com/settings, save it as "
            "~/.kaggle/kaggle.json or set KAGGLE_API_TOKEN, accept the terms at the data set's "
            f"page, and try again, {by_hand}. Received: {type(error).__name__}: {error}"
        ) from error
    if Path(found) != to:  # on Kaggle's and Colab's own machines, which have the files
        shutil.copytree(found, to, symlinks=True)
    for path in to.rglob("*"):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ValueError(
                "A data set holds files and folders only; a link could lead to any file of yours. "
                "Nothing was kept: look at the data set's page for what it should hold. "
                f"Received: {path.relative_to(to)}"
            )
