"""Paths mean the same file from every folder, and files are replaced whole."""

from pathlib import Path

import pytest

from pneumo_lib.paths import project_path, source_path, written_aside


def test_relative_path_is_resolved_against_the_checkout_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("PNEUMO_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert project_path("pyproject.toml").is_file()


def test_absolute_path_is_kept(tmp_path):
    assert project_path(tmp_path / "x") == tmp_path / "x"


def test_pneumo_home_moves_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    assert project_path("runs") == tmp_path / "runs"


def test_notebooks_and_parameters_stay_when_pneumo_home_moves(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    assert source_path("params/demo.yaml").is_file()
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "demo.yaml").touch()
    assert source_path("params/demo.yaml") == tmp_path / "params" / "demo.yaml"


def test_home_folder_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert project_path("~/x") == Path("/somewhere/x")


def test_written_aside_replaces_the_file_only_at_the_end(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with written_aside(path) as aside:
        aside.write_text("new")
        assert path.read_text() == "old"
        assert aside.suffix == ".csv"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_written_aside_keeps_the_old_file_after_an_error(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail_halfway():
        with written_aside(path) as aside:
            aside.write_text("half")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
