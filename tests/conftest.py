"""Fixtures that several test files share."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def _shared(name):
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"the real SIIM-ACR data is not here: {folder.name} (see README)")
    return folder


@pytest.fixture(scope="session")
def siim_real():
    """387 real cases in the layout of the Kaggle PNG release."""
    return _shared("siim_real")


@pytest.fixture(scope="session")
def siim_dicom():
    """The 10 official sample DICOM files with their run-length table."""
    return _shared("siim_dicom_sample")


@pytest.fixture(scope="session")
def siim_tables():
    """The data set's full tables, without images."""
    return _shared("siim_tables")


@pytest.fixture
def png_release(tmp_path):
    """A tiny data set in the layout of the PNG release: 8 train, 4 test images of noise.

    Every third image has a pneumothorax of 4 x 6 pixels; images 0 and 1 of each part are one
    patient's, so no patient is in both parts.
    """
    folder = tmp_path / "release"
    rng = np.random.default_rng(0)
    patients = []
    for part, count in (("train", 8), ("test", 4)):
        rows = []
        for index in range(count):
            positive = int(index % 3 == 0)
            name = f"{index}_{part}_{positive}_.png"
            image = rng.integers(0, 256, (64, 64), np.uint8)
            mask = np.zeros((64, 64), np.uint8)
            mask[10:14, 20:26] = 255 * positive
            for kind, pixels in (("png_images", image), ("png_masks", mask)):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / kind / name), pixels)
            rows.append((name, f"{part}.{index}", positive))
            patients.append((f"{part}.{index}", f"00{part == 'test':d}{max(index, 1)}"))
        table = pd.DataFrame(rows, columns=["new_filename", "ImageId", "has_pneumo"])
        table.to_csv(folder / f"stage_1_{part}_images.csv", index=False)
    table = pd.DataFrame(patients, columns=["ImageId", "patient_id"])
    table.to_csv(folder / "patients.csv", index=False)
    return folder
