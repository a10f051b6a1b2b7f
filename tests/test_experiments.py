"""Experiments: names and parameters from a file, each trained once."""

import json
import re
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import yaml

from pneumo_lib import experiments, metrics, paths, runs, training
from pneumo_lib.experiments import (
    read_experiments,
    run_experiments,
    scores_at_operating_point,
)
from pneumo_lib.operating_point import OperatingPoint
from pneumo_lib.paths import project_path

DATA = SimpleNamespace(checksum="of the data")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with a training notebook and a file of three experiments."""
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    nb = nbformat.v4.new_notebook()
    source = 'data = "phantoms"\nsize = 64\nsplit = "auto"\nfold = None\n'
    source += "seed = 0\nphantom_count = 8\n"
    source += 'loss = "crossentropy"\nlearning_rate = 1e-3\nrun_name = None'
    nb.cells = [nbformat.v4.new_code_cell(source, metadata={"tags": ["parameters"]})]
    nbformat.write(nb, tmp_path / "notebooks" / "05_train_fcn.ipynb")
    content = {
        "base": {"size": 32},
        "experiments": {
            "loss": {"dice": {"loss": "dice"}},
            "rate": {0.1: {"learning_rate": "1e-1"}},
        },
    }
    write(tmp_path, content)
    return tmp_path


def write(project, content):
    (project / "small.yaml").write_text(yaml.safe_dump(content))


@pytest.fixture
def trained(monkeypatch):
    """Names of the runs that were trained, by a stand-in for papermill and the notebook."""
    names = []

    def execute(notebook, output, parameters, **settings):
        nb = nbformat.read(notebook, as_version=4)
        nb.metadata["papermill"] = {"parameters": parameters}
        nb.cells[0].execution_count = 1
        nbformat.write(nb, output)
        folder = project_path("runs") / parameters["run_name"]
        folder.mkdir(parents=True, exist_ok=True)
        config = {"results_version": runs.RESULTS_VERSION, "data_checksum": DATA.checksum}
        paths.write_json(folder / "config.json", config | {"loss": parameters.get("loss")})
        for name in ("history.csv", "scores.csv"):
            (folder / name).write_text("epoch\n1\n")
        names.append(parameters["run_name"])
        return nb

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.setattr(experiments, "prepare_data", lambda data, **settings: DATA)
    monkeypatch.setattr(runs, "data_checksum", lambda data: data.checksum)
    return names


def test_experiments_are_the_base_and_one_change_each(project):
    found = [(e.factor, e.level, e.run, e.parameters) for e in read_experiments("small.yaml")]
    base = {"size": 32}
    assert found == [
        ("base", "", "small-base", base | {"run_name": "small-base"}),
        ("loss", "dice", "small-loss-dice", base | {"loss": "dice", "run_name": "small-loss-dice"}),
        (
            "rate",
            "0.1",
            "small-rate-0.1",
            base | {"learning_rate": 0.1, "run_name": "small-rate-0.1"},
        ),
    ]


def test_overrides_are_stronger_than_the_base_and_weaker_than_a_level(project):
    overrides = {"size": 96, "loss": "focal"}
    base, dice, _ = read_experiments("small.yaml", overrides=overrides)
    assert (base.parameters["size"], base.parameters["loss"]) == (96, "focal")
    assert (dice.parameters["size"], dice.parameters["loss"]) == (96, "dice")


def test_a_finished_experiment_is_not_repeated(project, trained):
    first = run_experiments("small.yaml")
    assert [run.folder.name for run in first] == trained
    assert trained == ["small-base", "small-loss-dice", "small-rate-0.1"]
    again = run_experiments("small.yaml")
    assert len(trained) == 3
    assert [run.config["loss"] for run in again] == [None, "dice", None]


@pytest.mark.parametrize("change", ["parameter", "data", "version", "run"])
def test_an_experiment_is_repeated_when_what_it_was_made_from_changed(
    change, project, trained, monkeypatch
):
    run_experiments("small.yaml")
    if change == "parameter":
        write(project, {"base": {"size": 32}, "experiments": {"loss": {"dice": {"loss": "focal"}}}})
    elif change == "data":
        monkeypatch.setattr(DATA, "checksum", "of other data")
    elif change == "version":
        monkeypatch.setattr(runs, "RESULTS_VERSION", runs.RESULTS_VERSION + 1)
    else:
        (project / "runs" / "small-loss-dice" / "config.json").unlink()
    del trained[:]
    run_experiments("small.yaml")
    one = ["small-loss-dice"]
    every = ["small-base", "small-loss-dice", "small-rate-0.1"]
    assert trained == {"parameter": one, "run": one, "data": every, "version": every}[change]


def test_a_parameter_that_the_notebook_does_not_know_is_refused(project):
    write(project, {"base": {}, "experiments": {"loss": {"dice": {"los": "dice"}}}})
    with pytest.raises(ValueError, match="Did you mean `loss`"):
        read_experiments("small.yaml")


def test_a_file_without_the_two_parts_is_refused(project):
    write(project, {"loss": "dice"})
    with pytest.raises(ValueError, match=r"small.yaml must have the parts .* \['loss'\]"):
        read_experiments("small.yaml")


@pytest.mark.parametrize(("name", "at_least"), [("better", 15), ("siim_better", 4), ("trial", 3)])
def test_the_experiments_of_the_project_can_be_read(name, at_least):
    names = [experiment.run for experiment in read_experiments(f"params/{name}.yaml")]
    assert names[0] == f"{name}-base"
    assert len(set(names)) == len(names) > at_least
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_experiments_in_this_process_are_trained_on_their_own_data(project, monkeypatch):
    write(project, {"base": {"size": 32}, "experiments": {"seed": {1: {"seed": 1}}}})
    prepared = lambda data, **source: (data, source)  # noqa: E731
    monkeypatch.setattr(experiments, "prepare_data", prepared)
    monkeypatch.setattr(training, "train", lambda data, **settings: (data, settings))
    assert run_experiments("small.yaml", in_kernels=False) == [
        (("phantoms", {"size": 32}), {"run": "small-base", "seed": 0}),
        (("phantoms", {"size": 32, "seed": 1}), {"run": "small-seed-1", "seed": 1}),
    ]


def test_scores_at_the_operating_point_are_those_of_the_masks_it_draws(data):
    data.folder.mkdir(parents=True)
    for name in ("images", "masks"):
        np.save(data.folder / f"{name}.npy", getattr(data, name))
    data.cases.to_csv(data.folder / "cases.csv", index=False)
    columns = {"columns": dict.fromkeys(data.cases, "str")}
    (data.folder / "meta.json").write_text(json.dumps(data.meta | columns))
    rng = np.random.default_rng(0)
    probabilities = rng.integers(0, 256, data.masks.shape, dtype="uint8")
    np.save(data.folder / "probabilities.npy", probabilities)
    point = OperatingPoint(0.9, 0.1, 0.3)
    paths.write_json(data.folder / "operating_point.json", point._asdict())
    run = SimpleNamespace(folder=data.folder, config={"data": data.folder})
    scores = scores_at_operating_point(run)
    sure = (probabilities >= 230).mean(axis=(1, 2)) >= 0.1  # 0.9 of 255 is 229.5
    masks = (probabilities >= 77) & sure[:, None, None]  # 0.3 of 255 is 76.5
    expected = pd.DataFrame(metrics.confusion_counts(data.masks, masks))
    pd.testing.assert_frame_equal(scores[list(expected)], expected)
    assert list(scores["image_id"]) == list(data.cases["image_id"])
