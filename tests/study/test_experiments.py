"""Experiments: names and settings from a file, each trained once, as train() does it."""

import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from test_cases import make_run

import pneumo_lib as pl
from pneumo_lib import _files, runs
from pneumo_lib._files import project_path
from pneumo_lib.data.prepare import load_prepared, prepare
from pneumo_lib.evaluation import metrics
from pneumo_lib.evaluation.operating_point import OperatingPoint
from pneumo_lib.inference.rescore import scores_at_operating_point
from pneumo_lib.study.experiments import (
    is_finished,
    plan_run,
    prepare_each,
    read_experiments,
    run_experiments,
)
from pneumo_lib.training.config import TrainingConfig

ROOT = Path(__file__).parents[2]
BASE = {"phantom_count": 12, "size": 32, "backbone": "small", "epochs": 2, "batch_size": 4}


@pytest.fixture(scope="module")
def project(home):
    """A project with a file of three experiments."""
    write(home, {"loss": {"Dice": {"loss": "dice"}}, "rate": {0.1: {"learning_rate": "1e-1"}}})
    return home


def write(project, experiments, *, base=BASE, name="small"):
    content = yaml.safe_dump({"base": base, "experiments": experiments})
    (project / f"{name}.yaml").write_text(content)


def test_experiments_are_the_base_and_one_change_each(project):
    found = read_experiments("small.yaml")
    assert [(e.name, e.factor, e.level, e.changes) for e in found] == [
        ("small-base", "base", "", {}),
        ("small-loss-Dice", "loss", "Dice", {"loss": "dice"}),
        ("small-rate-0.1", "rate", "0.1", {"learning_rate": "1e-1"}),
    ]
    assert [e.config.loss for e in found] == ["crossentropy", "dice", "crossentropy"]
    assert [e.config.learning_rate for e in found] == [None, None, 0.1]
    assert all(e.source["size"] == 32 for e in found)


def test_levels_overrides_base_and_defaults_are_taken_in_this_order(project):
    base, dice, _ = read_experiments("small.yaml", overrides={"size": 96, "loss": "focal"})
    assert (base.source["size"], base.config.loss) == (96, "focal")
    assert (dice.source["size"], dice.config.loss) == (96, "dice")
    nothing = plan_run("a", {})
    assert (nothing.config, nothing.source) == (TrainingConfig(), {"data": "phantoms"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"los": "dice"}, "Did you mean loss"),
        ({"sise": 64}, "Did you mean size"),
        ({"zebra": 1}, r"parameter `zebra`\. Known: data, size"),
        ({"size": 100}, "`size` must be a multiple of 32"),
        ({"phantom_count": 0}, "`phantom_count` must be a whole number"),
        ({"epochs": 0}, "`epochs` must be a whole number"),
        ({"fold": "7/5"}, "fold"),
    ],
)
def test_a_wrong_setting_of_the_last_run_is_refused_before_the_first_is_trained(
    project, change, message
):
    write(project, {"a": {"right": {"seed": 1}, "wrong": change}}, name="wrong")
    with pytest.raises(ValueError, match=message):
        run_experiments("wrong.yaml")
    assert not list(project.glob("runs/wrong-*"))


def test_a_file_without_the_two_parts_is_refused(project):
    (project / "flat.yaml").write_text("loss: dice")
    with pytest.raises(ValueError, match=r"flat.yaml must have the parts .* \['loss'\]"):
        read_experiments("flat.yaml")


@pytest.mark.parametrize(
    ("name", "at_least"), [("better", 15), ("siim_better", 4), ("recipe", 4), ("trial", 3)]
)
def test_the_experiments_of_the_project_can_be_read(name, at_least):
    overrides = (
        {"data": "phantoms"} if name in ("siim_better", "recipe") else None
    )  # its data is not here
    names = [run.name for run in read_experiments(f"params/{name}.yaml", overrides=overrides)]
    assert names[0] == f"{name}-base"
    assert len(set(names)) == len(names) > at_least
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_the_recipe_holds_out_each_of_five_folds_once():
    planned = read_experiments("params/recipe.yaml", overrides={"data": "phantoms"})
    assert [run.source["fold"] for run in planned] == [f"{n}/5" for n in range(1, 6)]
    assert len({run.config for run in planned}) == 1  # nothing else differs


def test_experiments_are_trained_as_train_does_it_and_only_once(project):
    write(project, {"loss": {"Dice": {"loss": "dice"}}}, name="two")
    base, dice = run_experiments("two.yaml")
    settings = {name: BASE[name] for name in ("backbone", "epochs", "batch_size")}
    by_hand = pl.train(pl.prepare_data(phantom_count=12, size=32), run="by-hand", **settings)
    columns = by_hand.history.columns.drop("seconds")
    pd.testing.assert_frame_equal(base.history[columns], by_hand.history[columns])
    assert [dice.folder.name, dice.config["loss"]] == ["two-loss-Dice", "dice"]
    written = [(run.folder / "config.json").stat().st_mtime_ns for run in (base, dice)]
    again = run_experiments("two.yaml")
    assert [(run.folder / "config.json").stat().st_mtime_ns for run in again] == written


def test_a_run_is_finished_until_settings_data_results_initial_or_folder_change(
    project, monkeypatch
):
    write(project, {}, name="two")
    [base] = run_experiments("two.yaml")
    [planned] = read_experiments("two.yaml")
    [data] = prepare_each([planned])
    assert is_finished(planned, data)
    assert not is_finished(plan_run(planned.name, BASE | {"loss": "focal"}), data)
    other = plan_run(planned.name, BASE | {"phantom_count": 13})
    assert not is_finished(other, *prepare_each([other]))
    with monkeypatch.context() as patch:
        patch.setattr(runs, "RESULTS_VERSION", runs.RESULTS_VERSION + 1)
        assert not is_finished(planned, data)
    write(project, {}, base=BASE | {"initial": "two-base"}, name="more")
    run_experiments("more.yaml")
    [other] = read_experiments("more.yaml")
    assert is_finished(other, data)
    (base.folder / "model.keras").write_bytes(b"other weights")  # from which the other started
    assert not is_finished(other, data)
    (base.folder / "config.json").unlink()
    assert not is_finished(planned, data)


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """A finished run with its prepared data, see `make_run()`."""
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    return runs.load_run(make_run(tmp_path))


def test_scores_at_the_operating_point_are_those_of_the_masks_it_draws(finished):
    _, masks, cases, *_ = load_prepared(project_path(finished.config["data"]))
    probabilities = np.random.default_rng(0).integers(0, 256, masks.shape, dtype="uint8")
    np.save(finished.folder / "probabilities.npy", probabilities)
    point = OperatingPoint(0.9, 0.1, 0.3)
    _files.write_json(finished.folder / "operating_point.json", point._asdict())
    scores = scores_at_operating_point(finished)
    sure = (probabilities >= 230).mean(axis=(1, 2)) >= 0.1  # 0.9 of 255 is 229.5
    drawn = (probabilities >= 77) & sure[:, None, None]  # 0.3 of 255 is 76.5
    expected = pd.DataFrame(metrics.confusion_counts(masks, drawn))
    pd.testing.assert_frame_equal(scores[list(expected)], expected)
    assert list(scores["image_id"]) == list(cases["image_id"])


def notebook_08(run):
    """The cell of notebook 08 that shows the operating point of a run."""
    nb = nbformat.read(ROOT / "notebooks" / "08_better_fcn.ipynb", as_version=4)
    (cell,) = (cell for cell in nb.cells if "operating_point_chart" in cell.source)
    exec(cell.source, {"pl": pl, "np": np, "runs": [run], "figures": {}, "note": ""})


@pytest.mark.parametrize("pair", [scores_at_operating_point, notebook_08])
def test_predictions_are_not_scored_on_data_that_changed_after_the_training(finished, pair):
    data = load_prepared(project_path(finished.config["data"]))
    cases = data.cases.assign(split=["validation"] + ["test"] * (len(data.cases) - 1))
    prepare(cases, data.folder, size=32)
    with pytest.raises(ValueError, match=r"changed after phantoms-small was trained. Train the"):
        pair(finished)
