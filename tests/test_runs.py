"""Run folders without a network: found by their content, and never mixed up."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import SIZE

from pneumo_lib import _files, runs
from pneumo_lib.evaluation.operating_point import OperatingPoint
from pneumo_lib.training import state


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of all runs of an empty project."""
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    return tmp_path / "runs"


def write_run(folder, data, **settings):
    """A finished run on `data`, as far as finding it needs."""
    config = {"name": folder.name, "data_name": "squares", "size": SIZE, "backbone": "vgg19"}
    config |= {"decoder": "deconvolution", "data_checksum": runs.data_checksum(data), "seed": 0}
    folder.mkdir(parents=True)
    _files.write_json(folder / "config.json", config | settings)
    for table in ("history.csv", "scores.csv"):
        _files.write_csv(folder / table, pd.DataFrame({"epoch": [1]}))


def names(found):
    return [run.folder.name for run in found]


# -- finding


def test_find_runs_filters_and_orders_by_backbone(folder, data):
    for name, backbone in {"a": "small", "b": "resnet50", "c": "vgg16", "d": "a new one"}.items():
        write_run(folder / name, data, backbone=backbone)
    write_run(folder / "other-size", data, size=64)
    write_run(folder / "other-data", data, data_name="circles")
    write_run(folder / "a.old-1", data)
    assert names(runs.find_runs("squares", SIZE)) == ["c", "b", "a", "d"]


def test_find_runs_on_data_leaves_out_runs_on_another_split_of_it(folder, data):
    write_run(folder / "kept", data)
    write_run(folder / "other-split", data, data_checksum="another")
    assert names(runs.find_runs(data=data)) == ["kept"]


def test_find_runs_reads_no_table_of_a_run_that_does_not_fit(folder, data, caplog):
    write_run(folder / "kept", data)
    write_run(folder / "other-size", data, size=64)
    (folder / "other-size" / "scores.csv").unlink()
    assert names(runs.find_runs("squares", SIZE)) == ["kept"]
    assert caplog.text == ""


@pytest.mark.parametrize("file", ["config.json", "scores.csv"])
def test_a_damaged_run_is_left_out_with_a_warning(folder, data, caplog, file):
    write_run(folder / "kept", data)
    write_run(folder / "damaged", data)
    (folder / "damaged" / file).write_text("")
    assert names(runs.find_runs(data=data)) == ["kept"]
    assert "damaged cannot be read and is left out" in caplog.text


def test_find_runs_explains_how_to_train_when_there_is_none(folder):
    with pytest.raises(FileNotFoundError, match="Train one: papermill"):
        runs.find_runs(data_name="nowhere")


def test_unfinished_run_is_not_loaded(folder):
    (folder / "begun").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="must hold a finished training run"):
        runs.load_run("begun")


def test_operating_point_is_the_plain_one_unless_the_run_chose_another(folder, data):
    write_run(folder / "a", data)
    run = runs.load_run("a")
    assert runs.load_operating_point(run) == OperatingPoint(0.5, 0.0, 0.5)
    chosen = OperatingPoint(0.75, 0.01, 0.25)
    _files.write_json(folder / "a" / "operating_point.json", chosen._asdict())
    assert runs.load_operating_point(run) == chosen


# -- comparing


def test_without_names_the_runs_named_by_their_settings_are_compared(folder, data):
    write_run(folder / "squares-small-32", data, backbone="small")
    write_run(folder / "squares-vgg16-skips-32", data, backbone="vgg16", decoder="skips")
    write_run(folder / "squares-vgg19-32", data)
    write_run(folder / "squares-vgg19-fcn8s-32", data, decoder="fcn8s")
    write_run(folder / "squares-vgg19-32-fast", data)
    write_run(folder / "trial-base", data, backbone="resnet50")
    compared = names(runs.runs_to_compare(data))
    assert compared == ["squares-vgg16-skips-32", "squares-vgg19-32", "squares-small-32"]


def test_named_runs_are_compared_in_the_order_of_their_backbones(folder, data):
    write_run(folder / "squares-vgg19-32", data)
    write_run(folder / "mine", data, backbone="small")
    write_run(folder / "skips", data, decoder="skips")
    assert names(runs.runs_to_compare(data, ["mine", "skips"])) == ["skips", "mine"]
    write_run(folder / "again", data, seed=1)  # another training of the first
    compared = names(runs.runs_to_compare(data, ["mine", "skips", "again"]))
    assert compared == ["skips", "again", "mine"]


def test_only_runs_with_names_of_their_own_have_to_be_named(folder, data):
    write_run(folder / "mine", data)
    with pytest.raises(FileNotFoundError, match="Set `run_names` to the names of run folders"):
        runs.runs_to_compare(data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "small", "data_checksum": "another"}, "trained on exactly these images"),
        (
            {"decoder": "skips"},
            r"must differ in backbone or seed. Received: a, b with vgg19 \(seed 0\)",
        ),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(folder, data, settings, message):
    write_run(folder / "a", data)
    write_run(folder / "b", data, **settings)
    with pytest.raises(ValueError, match=message):
        runs.runs_to_compare(data, ["a", "b"])


def test_checksum_of_data_depends_on_the_split(data):
    cases = data.cases.assign(split=data.cases["split"][::-1].to_list())
    other = SimpleNamespace(cases=cases, meta=data.meta)
    assert runs.data_checksum(other) != runs.data_checksum(data)


# -- whose folder it is


def test_a_run_of_another_results_version_is_moved_aside(folder, caplog):
    state.create_run_folder("a", {"epochs": 3, "results_version": 1})
    assert state.create_run_folder("a", {"epochs": 3, "results_version": 1}) == folder / "a"
    assert not (folder / "a.old-1").exists()
    state.create_run_folder("a", {"epochs": 3, "results_version": 2})
    assert json.loads((folder / "a" / "settings.json").read_text())["results_version"] == 2
    assert "a was trained with other settings (results_version); kept as a.old-1" in caplog.text


def test_a_run_refuses_a_folder_that_holds_something_else(folder):
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "index.html").write_text("")
    with pytest.raises(ValueError, match="A run needs a folder of its own"):
        state.create_run_folder("report", {})
