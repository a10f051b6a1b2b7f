"""The mean of several networks, as a run of its own."""

import json
from dataclasses import fields
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pytest
from conftest import make_data, write_data

import pneumo_lib as pl
from pneumo_lib.apps.cli import main
from pneumo_lib.evaluation import metrics
from pneumo_lib.evaluation.operating_point import choose_operating_point, choose_out_of_fold
from pneumo_lib.inference import rescore
from pneumo_lib.study import ensemble
from pneumo_lib.study.ensemble import average_runs
from pneumo_lib.study.experiments import read_experiments
from pneumo_lib.training import features
from pneumo_lib.training.train import train

SETTINGS = {"weights": None, "epochs": 2, "milestones": [1], "batch_size": 4}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project of its own, with two heads of one backbone and two networks from scratch."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMO_HOME", str(folder))
        data = write_data(make_data(folder / "data"))
        train(data, run="a", backbone="vgg16", **SETTINGS)
        train(data, run="b", backbone="vgg16", initial="a", learning_rate=0.01, **SETTINGS)
        flip = {"test_time_flip": True}
        for seed in (0, 1):
            train(data, run=f"small-{seed}", backbone="small", seed=seed, **flip, **SETTINGS)
        yield SimpleNamespace(folder=folder, data=data)


@pytest.fixture(autouse=True)
def data(home, monkeypatch):
    """What all of them were trained on, in the folder that they name."""
    monkeypatch.setenv("PNEUMO_HOME", str(home.folder))
    return home.data


@pytest.fixture
def folder(home):
    return home.folder / "runs"


def probabilities(run):
    return np.load(pl.load_run(run).folder / "probabilities.npy") / 255


@pytest.mark.parametrize(
    ("members", "seed"), [(["a", "b"], 0), (["small-0", "small-1"], "several")]
)
def test_mean_of_the_members_is_kept_scored_and_saved(data, members, seed, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("features of a shared backbone were computed before")

    monkeypatch.setattr(features, "_compute", refuse)
    run = average_runs(members, run=f"mean-{members[0]}")
    mean = np.mean([probabilities(member) for member in members], axis=0)
    kept = np.load(run.folder / "probabilities.npy")
    np.testing.assert_allclose(kept / 255, mean, atol=1 / 255 + 1e-4)
    assert [member.split("@")[0] for member in run.config["mean_of"]] == members
    assert run.config["seed"] == seed
    assert set(run.scores["epoch"]) == {2}
    counts = metrics.confusion_counts(data.masks, kept / 255)
    for name in metrics.COUNTS:
        np.testing.assert_allclose(run.scores[name], counts[name], atol=3)  # pixels at one half
    found = rescore.verify_run(run)  # from images, by the saved network
    assert found.matches
    validation = (data.cases["split"] == "validation").to_numpy()
    point = choose_operating_point(data.masks[validation], kept[validation])
    assert json.loads((run.folder / "operating_point.json").read_text()) == point._asdict()


def test_equal_backbones_are_run_once_and_others_each(data, folder):
    config = pl.load_run("a").config
    one, other = (
        keras.models.load_model(folder / name / "model.keras", compile=False) for name in "ab"
    )
    model, part = ensemble._join([one, other], data, config)
    assert model is not part.network
    kernel = other.get_layer("block1_conv1").kernel
    kernel.assign(kernel + 0.01)
    model, part = ensemble._join([one, other], data, config)
    assert model is part.network
    image = np.random.default_rng(0).normal(size=(2, *model.input.shape[1:])).astype("f4")
    first, second = np.asarray(one(image)), np.asarray(other(image))
    assert np.abs(first - second).max() > 1e-4
    np.testing.assert_allclose(np.asarray(model(image)), (first + second) / 2, atol=1e-6)


@pytest.fixture(scope="module")
def folds(home):
    """The recipe of few cases, in two folds of small phantoms, and what they were trained on."""
    made = pl.make_phantoms(home.folder / "folds", count=24, size=64, seed=0)
    source = {"data": str(made), "size": 32, "split": "patient"}
    prepared = [pl.prepare_data(**source, fold=f"{n}/2") for n in (1, 2)]
    small = {"data": "phantoms", "size": 32, "weights": None, "epochs": 1, "milestones": [1]}
    recipe = read_experiments("params/recipe.yaml", overrides=small)[0].config
    assert (recipe.decoder, recipe.image_head) == ("skips", True)
    for number, data in enumerate(prepared, start=1):
        train(data, recipe, run=f"fold-{number}")
    return prepared


def test_folds_choose_the_operating_point_on_what_each_did_not_train_on(folds):
    mean = average_runs(["fold-1", "fold-2"], run="folds")
    opened = [pl.runs.open_run(name) for name in ("fold-1", "fold-2", "folds")]
    assert set(opened[2].cases["split"]) == {"train", "test"}
    y_true, y_pred, scores = [], [], []
    for fold in opened[:2]:
        rows = np.flatnonzero(fold.cases["split"] == "validation")
        y_true += list(fold.data.masks[rows])
        y_pred += list(fold.probabilities[rows])
        scores += list(fold.cases["image_score"][rows])
    assert len(y_true) == (opened[2].cases["split"] == "train").sum()
    point = choose_operating_point(np.array(y_true), np.array(y_pred), scores=np.array(scores))
    assert pl.runs.load_operating_point(mean) == point
    each = np.mean([fold.probabilities for fold in opened[:2]], axis=0)
    np.testing.assert_allclose(opened[2].probabilities, each, atol=1)
    assert rescore.verify_run(mean).matches
    with pytest.raises(ValueError, match=r"hold out every case once.* 1 runs") as error:
        choose_out_of_fold(opened[:1], opened[2].data)
    assert f"{(opened[0].cases['split'] == 'train').sum()} of {len(y_true)}" in str(error.value)


@pytest.mark.parametrize("name", ["fold-1", "folds"])
def test_predictions_have_the_scores_of_the_image_level_head(folds, name):
    if name == "folds":
        average_runs(["fold-1", "fold-2"], run="folds")
    opened = pl.runs.open_run(name)
    found = list(pl.predict(list(opened.cases["image_path"]), name))
    np.testing.assert_allclose(
        [result.score for result in found], opened.cases["image_score"], atol=2e-3
    )
    members = [pl.load_run(member) for member in ("fold-1", "fold-2")]
    if name == "folds":  # the head of the ensemble gives the mean of the members'
        each = np.mean([run.scores["image_score"] for run in members], axis=0)
        np.testing.assert_allclose(opened.cases["image_score"], each, atol=1e-3)


def test_a_head_of_other_statistics_is_refused(folds):
    run = pl.load_run("fold-1")
    former = run._replace(config=run.config | {"results_version": 4})
    with pytest.raises(ValueError, match=r"5 or later\. Received: version 4 in .*fold-1\. Train"):
        pl.runs.load_image_head(former)


def test_members_of_other_splits_that_are_no_folds_are_refused(folds, home):
    other = pl.prepare_data(str(home.folder / "folds"), size=32, split="patient", seed=3)
    config = pl.load_run("fold-1").config
    recipe = {field.name: config[field.name] for field in fields(pl.TrainingConfig)}
    train(other, pl.TrainingConfig(**recipe | {"weights": None}), run="other-split")
    with pytest.raises(ValueError, match="the same split, or be the folds of a cross-validation"):
        average_runs(["other-split", "fold-1"], run="mixed")


def test_history_is_the_mean_and_the_time_the_sum():
    run = average_runs(["a", "b"], run="mean-history")
    a, b = pl.load_run("a").history, pl.load_run("b").history
    np.testing.assert_allclose(run.history["loss"], (a["loss"] + b["loss"]) / 2)
    assert run.config["seconds"] == pytest.approx((a["seconds"] + b["seconds"]).sum(), abs=1e-3)


def test_random_features_of_one_member_are_a_caveat_of_the_mean():
    pretrained = pl.load_run("a")
    pretrained = pretrained._replace(config=pretrained.config | {"weights": "ImageNet"})
    run = average_runs([pretrained, "b"], run="mean-mixed")
    assert run.config["weights"] == "random features"


def test_second_call_opens_the_run_and_other_members_make_another(folder, monkeypatch):
    first = average_runs(["a", "b"], run="again")
    with monkeypatch.context() as patch:
        patch.setattr(ensemble, "_keep_mean", None)
        assert average_runs(["a", "b"], run="again").config == first.config
    average_runs(["small-0", "small-1"], run="again")
    assert (folder / "again.old-1" / "config.json").exists()


def test_predictions_of_a_mean_are_the_mean(data, tmp_path):
    average_runs(["small-0", "small-1"], run="mean-small")
    cv2.imwrite(str(tmp_path / "x.png"), data.images[0])
    names = ("small-0", "small-1", "mean-small")
    found = [next(iter(pl.predict([tmp_path / "x.png"], n))).probability for n in names]
    np.testing.assert_allclose(found[2], (found[0] + found[1]) / 2, atol=1e-4)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "two or more different runs"),
        (["a"], "two or more different runs"),
        (["a", "b", "a"], "two or more different runs"),
        (["a", "small-0"], r"\['backbone', 'test_time_flip'\] differ between a and small-0"),
    ],
)
def test_what_has_no_mean_is_refused(members, message, folder):
    with pytest.raises(ValueError, match=message):
        average_runs(members, run="refused")
    assert not (folder / "refused").exists()


def test_member_is_not_replaced_by_the_mean(folder):
    with pytest.raises(ValueError, match="a name of its own"):
        average_runs(["a", "b"], run="a")
    assert "mean_of" not in pl.load_run("a").config
    assert not (folder / "a.old-1").exists()


def test_other_data_are_refused(data):
    other = pl.data.Prepared(
        data.images, data.masks, data.cases, {**data.meta, "checksum": "x"}, "here"
    )
    with pytest.raises(ValueError, match=r"scored on. Received: here, which changed"):
        average_runs(["a", "b"], run="refused", data=other)


def test_command_makes_the_run(capsys):
    assert not main(["average", "a", "b", "--to", "by-command"])
    assert "by-command, ensemble of 2" in capsys.readouterr().out
    assert pl.load_run("by-command").config["parameters"]["trainable"] > 0
