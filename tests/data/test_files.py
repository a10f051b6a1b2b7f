"""Files below folders: links are followed once, and what is left out is told in one line."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom_bytes

from pneumo_lib.data import files
from pneumo_lib.data.files import find_files, find_xrays


@pytest.fixture
def disk(tmp_path):
    """X-rays on another disk, and a data folder for links to them."""
    for name in ("disk/a/1.png", "disk/b/2.png", "data/own/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "data"


def names(folder):
    return [str(path.relative_to(folder)) for path in find_files(folder)]


def test_folder_that_is_a_link_is_followed_and_named(disk, caplog):
    (disk / "linked").symlink_to(disk.parent / "disk")
    assert names(disk) == ["linked/a/1.png", "linked/b/2.png", "own/3.png"]
    [line] = caplog.messages
    assert "1 links are followed (linked -> " in line


def test_each_folder_is_read_once_and_by_its_own_path_first(disk, caplog):
    for name, target in (("again", "../disk/a"), ("all", "../disk"), ("b", "own")):
        (disk / name).symlink_to(disk / target)
    assert names(disk) == ["again/1.png", "all/b/2.png", "own/3.png"]
    [line] = caplog.messages
    assert "2 links are followed (again -> " in line
    assert "2 links to folders that are read anyway are left out" in line


@pytest.mark.parametrize("target", [".", "..", "own/back"])
def test_link_that_leads_back_ends(disk, caplog, target):
    (disk / "own" / "back").symlink_to((disk / target).absolute())
    assert names(disk) == ["own/3.png"]
    assert "left out" in caplog.text


def test_data_folder_that_is_a_link_itself_is_no_news(disk, caplog):
    (disk.parent / "link").symlink_to(disk)
    assert names(disk.parent / "link") == ["own/3.png"]
    assert not caplog.messages


def test_link_to_nothing_and_folder_that_cannot_be_listed_are_counted(disk, caplog, monkeypatch):
    (disk / "gone.png").symlink_to("nowhere")
    scandir = files.os.scandir

    def refuse(place):  # as the file system does, except to root
        if Path(place).name == "own":
            raise PermissionError
        return scandir(place)

    monkeypatch.setattr(files.os, "scandir", refuse)
    assert names(disk) == []
    assert "1 links to nothing are left out" in caplog.text
    assert "1 folders that cannot be listed are left out" in caplog.text


def test_xrays_are_known_by_suffix_or_content_and_the_others_counted(tmp_path, caplog):
    xray = dicom_bytes(np.zeros((4, 4), np.uint8))
    contents = {
        "1.2.3": xray,
        "b.PNG": b"",
        "DICOMDIR": xray,
        "a.txt": b"",
        "c.txt": b"",
        "t.csv": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    found = find_xrays(tmp_path, find_files(tmp_path))
    assert [path.name for path in found] == ["1.2.3", "b.PNG"]
    assert "3 files that are no X-rays are left out (2 .txt, 1 DICOMDIR)" in caplog.text
