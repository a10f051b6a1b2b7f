import errno
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pneumo_lib.data.download import fetch


@pytest.fixture
def kagglehub(monkeypatch, png_release):
    """A stand-in that "downloads" the tiny data set and records what was asked for."""
    asked = []

    def dataset_download(handle, *, output_dir):
        asked.append(handle)
        return shutil.copytree(png_release, output_dir, symlinks=True)

    module = SimpleNamespace(dataset_download=dataset_download, asked=asked)
    monkeypatch.setitem(sys.modules, "kagglehub", module)
    return module


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("png", "vbookshelf/pneumothorax-chest-xray-images-and-masks"),
        ("dicom", "seesee/siim-train-test"),
    ],
)
def test_fetch_downloads_once_and_checks_each_time(kagglehub, tmp_path, layout, name):
    for _ in range(2):
        folder = fetch(tmp_path / "siim", layout=layout)
        assert kagglehub.asked == [name]
    assert len(list((folder / "png_images").iterdir())) == 12
    (folder / "stage_1_train_images.csv").unlink()
    with pytest.raises(FileNotFoundError, match="stage_1_train_images"):
        fetch(folder)


def test_fetch_copies_where_kaggle_has_the_files_on_its_own_machine(
    kagglehub, png_release, tmp_path
):
    kagglehub.dataset_download = lambda handle, *, output_dir: str(png_release)
    assert (fetch(tmp_path / "siim") / "patients.csv").is_file()
    assert png_release.is_dir()


@pytest.mark.parametrize("target", ["/etc", "/etc/passwd", "../secret", "nowhere"])
def test_fetch_refuses_links_which_could_lead_out_of_the_archive(
    kagglehub, png_release, tmp_path, target
):
    (png_release / "png_images" / "link.png").symlink_to(target)
    with pytest.raises(ValueError, match=r"a link could lead.*link\.png"):
        fetch(tmp_path / "siim")
    assert not (tmp_path / "siim").exists()


def test_fetch_never_keeps_half_a_download(kagglehub, tmp_path):
    def tear(handle, *, output_dir):
        Path(output_dir).mkdir()
        (Path(output_dir) / "patients.csv").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), output_dir)

    kagglehub.dataset_download = tear
    with pytest.raises(OSError, match="free some space"):
        fetch(tmp_path / "siim")
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_fetch_refuses_a_download_that_is_not_whole(kagglehub, png_release, tmp_path):
    (png_release / "png_masks" / "0_train_1_.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 rows without a file in png_masks"):
        fetch(tmp_path / "siim")


def test_fetch_without_credentials_says_what_to_do(kagglehub, tmp_path):
    def dataset_download(handle, *, output_dir):
        raise RuntimeError("401 unauthorized")

    kagglehub.dataset_download = dataset_download
    with pytest.raises(FileNotFoundError, match=r"kaggle\.json or set KAGGLE_API_TOKEN.*401"):
        fetch(tmp_path / "siim")


def test_fetch_without_kagglehub_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'pneumo\[kaggle\]'"):
        fetch(tmp_path)


def test_fetch_refuses_an_unknown_layout(tmp_path):
    with pytest.raises(ValueError, match="layout='jpeg'"):
        fetch(tmp_path, layout="jpeg")
