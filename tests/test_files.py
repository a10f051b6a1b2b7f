"""Paths mean the same file from every folder, and files are replaced whole."""

from pathlib import Path

import pandas as pd
import pytest

from pneumo_lib._files import (
    atomic_write,
    begin_folder,
    made_from,
    project_path,
    read_csv,
    source_path,
    write_csv,
)


def test_relative_path_is_resolved_against_the_checkout_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PNEUMO_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert project_path("pyproject.toml").is_file()


def test_pneumo_home_moves_the_root_of_relative_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", "/somewhere")
    assert project_path("runs") == tmp_path / "runs"
    assert project_path("/absolute") == Path("/absolute")
    assert project_path("~/x") == Path("/somewhere/x")


def test_notebooks_and_parameters_stay_when_pneumo_home_moves(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    assert source_path("params/demo.yaml").is_file()
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "demo.yaml").touch()
    assert source_path("params/demo.yaml") == tmp_path / "params" / "demo.yaml"


def test_atomic_write_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with atomic_write(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
        assert unfinished.suffix == ".csv"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_write_replaces_a_folder_and_all_in_it(tmp_path):
    path = tmp_path / "network"
    for content in ("old", "new"):
        with atomic_write(path) as unfinished:
            unfinished.mkdir()
            (unfinished / content).touch()
    assert [found.name for found in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("folder", [False, True])
def test_atomic_write_keeps_the_old_one_after_an_error(tmp_path, folder):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail_halfway():
        with atomic_write(path) as unfinished:
            unfinished.mkdir() if folder else unfinished.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_table_comes_back_to_the_last_bit(tmp_path):
    table = pd.DataFrame({"image_id": ["007"], "loss": [0.1 + 0.2]})
    write_csv(tmp_path / "table.csv", table)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "table.csv"), table, check_exact=True)


REQUEST = {"size": 64, "milestones": (1, 2)}


def begin(folder, request=REQUEST):
    begin_folder(folder, request, record="request.json", what="A test")


def test_folder_keeps_the_request_that_it_was_begun_with_and_is_taken_up_again(tmp_path):
    folder = tmp_path / "new" / "made"
    assert made_from(folder, record="request.json") is None
    begin(folder)
    (folder / "half of the work").touch()
    begin(folder)
    assert made_from(folder, record="request.json") == {"size": 64, "milestones": [1, 2]}


def test_folder_of_another_request_is_refused_with_the_difference(tmp_path):
    begin(tmp_path)
    with pytest.raises(ValueError, match=r"A test needs .* other settings \(size: 64, now 32\)"):
        begin(tmp_path, REQUEST | {"size": 32})


def test_folder_with_other_files_is_refused_but_not_one_with_what_a_kill_left(tmp_path):
    (tmp_path / ".0123456789ab-request.json").touch()
    begin(tmp_path)
    (tmp_path / "request.json").rename(tmp_path / "letter.txt")
    with pytest.raises(ValueError, match=r"choose another, or delete this one.*holds other files"):
        begin(tmp_path)
