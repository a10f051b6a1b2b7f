"""Fixtures that several test files share."""

from pathlib import Path

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
