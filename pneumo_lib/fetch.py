"""The SIIM-ACR data set from Kaggle, with the user's own account."""

import logging
import os
import shutil
from pathlib import Path

from .dataset import read_cases

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
        ValueError: for another layout.
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
    shutil.copytree(source, to, copy_function=_link_or_copy, dirs_exist_ok=True)
    cases = read_cases(to)
    positive = cases["has_pneumothorax"].sum()
    logger.info("%d images, %d with pneumothorax, are in %s", len(cases), positive, to)
    return to


def _link_or_copy(source, target):
    if not Path(target).exists():
        try:
            os.link(source, target)
        except OSError:  # another disk, or a file system without links
            shutil.copy2(source, target)
