"""Training: equal seeds, equal numbers; whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import CASES, SIZE

from pneumo_lib import fcn, features, metrics, runs, training
from pneumo_lib.training import train

SETTINGS = {"backbone": "vgg19", "weights": None, "epochs": 3, "milestones": [2], "batch_size": 4}


@pytest.fixture(scope="module")
def finished(data):
    """An undisturbed run, which several tests look at."""
    return train(data, run="finished", **SETTINGS)


def without_time(history):
    return history.drop(columns="seconds")


def test_run_folder_holds_everything_a_results_notebook_needs(finished, data):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "config.json",
        "settings.json",
        "history.csv",
        "scores.csv",
        "model.keras",
        "probabilities.npy",
        "epoch_2.weights.h5",
        "epoch_3.weights.h5",
    }
    assert list(finished.history["epoch"]) == [1, 2, 3]
    assert list(finished.scores.groupby("epoch").size()) == [CASES, CASES]
    assert list(finished.scores["image_id"][:CASES]) == list(data.cases["image_id"])
    config = finished.config
    assert config["weights"] == "random features"
    assert config["milestones"] == [2, 3]
    assert config["data"] == os.path.join("data", "squares")
    assert config["parameters"]["trainable"] == 282_630


def test_saved_network_gives_the_saved_probabilities_and_scores(finished, data):
    network = keras.models.load_model(finished.folder / "model.keras")
    softmax = np.concatenate(
        [batch for _, batch in features.predict_batches(network, data.images, "vgg19")]
    )
    kept = np.load(finished.folder / "probabilities.npy")
    np.testing.assert_allclose(kept / 255, softmax[..., 1], atol=0.5 / 255 + 1e-4)
    last = finished.scores[finished.scores["epoch"] == 3]
    counts = metrics.confusion_counts(data.masks, softmax[..., 1])
    for name in metrics.COUNTS:
        np.testing.assert_allclose(last[name], counts[name], atol=2)  # pixels at the threshold


def test_history_of_validation_agrees_with_the_scores_of_the_same_epoch(finished):
    row = finished.history.iloc[-1]
    part = finished.scores.query("epoch == 3 and split == 'validation'")
    expected = metrics.history_scores(metrics.pool(part))
    for name, value in expected.items():
        assert row[f"val_{name}"] == pytest.approx(value, nan_ok=True, abs=1e-5)


def test_history_logs_what_keras_mean_iou_reads_from_a_softmax(finished, data):
    network = keras.models.load_model(finished.folder / "model.keras")
    rows = np.flatnonzero(data.cases["split"] == "validation")
    softmax = network(training.preprocess(data.images[rows], "vgg19"), training=False)
    judge = keras.metrics.MeanIoU(num_classes=2)
    judge.update_state(np.eye(2, dtype="uint8")[data.masks[rows]], softmax)
    logged = finished.history["val_logged_mean_iou"].iloc[-1]
    assert logged == pytest.approx(float(judge.result()), abs=0.002)


def test_same_seed_gives_the_same_run_and_another_seed_another(finished, data):
    again = train(data, run="again", **SETTINGS)
    pd.testing.assert_frame_equal(without_time(again.history), without_time(finished.history))
    pd.testing.assert_frame_equal(again.scores, finished.scores)
    other = train(data, run="other", **SETTINGS | {"seed": 1})
    assert other.history["loss"].iloc[0] != finished.history["loss"].iloc[0]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from conftest import make_data
from test_training import SETTINGS
from pneumo_lib import runs, training
keep = runs.save_state
def keep_and_die(folder, variables, history, scores):
    keep(folder, variables, history, scores)
    if len(history) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
runs.save_state = keep_and_die
training.train(make_data(None), run="killed", **SETTINGS)
"""


def test_killed_run_goes_on_and_ends_with_the_same_numbers(finished, data, home):
    died = subprocess.run(
        [sys.executable, "-c", KILLED, os.path.dirname(__file__)], env=os.environ, check=False
    )
    assert died.returncode == -signal.SIGKILL
    assert not runs.is_finished(home / "runs" / "killed")
    first_rows = runs.read_csv(home / "runs" / "killed" / "history.csv")
    assert len(first_rows) == 2
    resumed = train(data, run="killed", **SETTINGS)
    pd.testing.assert_frame_equal(without_time(resumed.history), without_time(finished.history))
    pd.testing.assert_frame_equal(resumed.history.head(2), first_rows)
    pd.testing.assert_frame_equal(resumed.scores, finished.scores)


@pytest.mark.parametrize("flips", [False, True])
def test_training_on_cached_features_equals_training_through_the_frozen_backbone(flips, data, home):
    histories = []
    for through_backbone in (False, True):
        model = fcn.build_fcn("vgg19", size=SIZE, weights=None, seed=0)
        encoder, head = fcn.split_fcn(model)
        network = model if through_backbone else head
        plain, mirrored = (
            (data.images, data.images[:, :, ::-1])
            if through_backbone
            else (
                features.cached_features(encoder, data, "vgg19", flipped=flipped)
                for flipped in (False, True)
            )
        )
        folder = home / f"through-{through_backbone}-{flips}"
        folder.mkdir()
        settings = {
            "learning_rate": 1e-3,
            "schedule": "constant",
            "precision": "float32",
            "seed": 0,
            "epochs": 2,
            "milestones": [2],
            "loss": "crossentropy",
            "backbone": "vgg19",
            "batch_size": 4,
            "flips": False,  # not inside the step: `flipped` brings its own
        }
        training._fit(network, plain, data, settings, folder, flipped=mirrored if flips else None)
        histories.append(without_time(runs.read_csv(folder / "history.csv")))
    pd.testing.assert_frame_equal(*histories, rtol=1e-3, atol=1e-4)


def test_finished_run_is_returned_without_building_a_network(finished, data, monkeypatch):
    monkeypatch.setattr(training, "_build", None)
    again = train(data, run="finished", **SETTINGS)
    pd.testing.assert_frame_equal(again.history, finished.history)


def test_run_with_other_settings_is_moved_aside_not_overwritten(data, home):
    train(data, run="changed", **SETTINGS | {"epochs": 1})
    train(data, run="changed", **SETTINGS | {"epochs": 2})
    assert len(runs.load_run("changed").history) == 2
    assert len(runs.load_run("changed.old-1").history) == 1


def test_small_fcn_learns_the_square_from_scratch(data):
    run = train(
        data,
        backbone="small",
        epochs=30,
        batch_size=4,
        learning_rate=3e-3,
    )
    assert run.folder.name == "squares-small-32"
    assert run.config["weights"] == "from scratch"
    assert run.history["dice"].iloc[-1] > 0.9


def test_auto_schedule_is_constant_as_in_the_report_and_cosine_from_scratch():
    assert training._choose_schedule("auto", "vgg19") == "constant"
    assert training._choose_schedule("auto", "small") == "cosine"
    assert training._choose_schedule("cosine", "vgg19") == "cosine"
    with pytest.raises(ValueError, match=r"`schedule` must be .* schedule='linear'"):
        training._choose_schedule("linear", "vgg19")


def test_cosine_schedule_ends_at_rate_zero(data):
    settings = SETTINGS | {"schedule": "cosine", "epochs": 2, "milestones": [1]}
    run = train(data, run="cosine", **settings)
    state = {}
    real = keras.optimizers.Adam
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras.optimizers, "Adam", lambda rate: state.setdefault("it", real(rate)))
        train(data, run="cosine-seen", **settings)
    assert float(state["it"].learning_rate) == pytest.approx(0, abs=1e-9)
    assert run.config["schedule"] == "cosine"


def test_mixed_precision_trains_and_still_outputs_float32(data):
    run = train(data, run="mixed", **SETTINGS | {"precision": "mixed_float16", "epochs": 1})
    assert np.isfinite(run.history["loss"]).all()
    network = keras.models.load_model(run.folder / "model.keras")
    assert network.output.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    ("backbone", "flips", "in_the_step", "as_features"),
    [
        ("small", "auto", True, False),
        ("small", False, False, False),
        ("vgg19", "auto", False, False),
        ("vgg19", True, False, True),
    ],
)
def test_flips_are_made_in_the_step_or_come_as_features(
    backbone, flips, in_the_step, as_features, data, monkeypatch
):
    seen = {}
    fit = training._fit

    def look(*args, flipped):
        seen["as_features"] = flipped is not None
        fit(*args, flipped=flipped)

    def stop(network, optimizer, settings, backbone, flips):
        seen["in_the_step"] = flips is not None
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_fit", look)
    monkeypatch.setattr(training, "_compile", stop)
    with pytest.raises(KeyboardInterrupt):
        train(data, run="looked-at", **SETTINGS | {"backbone": backbone, "flips": flips})
    assert seen == {"in_the_step": in_the_step, "as_features": as_features}


def test_bfloat16_features_train_to_nearly_the_same_scores(finished, data):
    run = train(data, run="bfloat16", **SETTINGS | {"feature_precision": "bfloat16"})
    assert run.history["loss"].iloc[0] != finished.history["loss"].iloc[0]
    for prefix in ("", "val_"):
        for name, tolerance in {"loss": 1e-3, "accuracy": 2e-3, "dice": 5e-3}.items():
            near, exact = (r.history[prefix + name] for r in (run, finished))
            np.testing.assert_allclose(near, exact, atol=tolerance)


def test_flip_some_mirrors_image_and_mask_together():
    images = np.arange(24, dtype="uint8").reshape(4, 1, 6)
    flipped, masks = training._flip_some(images, images % 2, keras.random.SeedGenerator(1))
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(flipped, images, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert any(mirrored)
    assert any(kept)
    assert all(np.logical_xor(mirrored, kept))
    np.testing.assert_array_equal(masks, np.asarray(flipped) % 2)


def test_training_needs_training_cases(data):
    nothing = SimpleNamespace(**vars(data) | {"cases": data.cases.assign(split="test")})
    with pytest.raises(ValueError, match="needs cases in the split 'train'"):
        train(nothing, **SETTINGS)


def test_unknown_precision_is_refused(data):
    with pytest.raises(ValueError, match=r"`precision` must be .* Received: precision='half'"):
        train(data, **SETTINGS | {"precision": "half"})


def test_run_refuses_a_folder_that_holds_something_else(data, home):
    (home / "runs" / "report").mkdir(parents=True)
    (home / "runs" / "report" / "index.html").write_text("")
    with pytest.raises(ValueError, match="A run needs a folder of its own"):
        train(data, run="report", **SETTINGS)


def test_unfinished_run_is_not_loaded(home):
    (home / "runs" / "begun").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="must hold a finished training run"):
        runs.load_run("begun")


def test_find_runs_filters_and_orders_by_backbone(finished, home):
    for number, backbone in enumerate(["small", "resnet50", "vgg16"]):
        folder = home / "runs" / f"found-{number}"
        folder.mkdir()
        config = finished.config | {"backbone": backbone, "data_name": "found"}
        (folder / "config.json").write_text(json.dumps(config))
        for name in ("history.csv", "scores.csv"):
            (folder / name).write_bytes((finished.folder / name).read_bytes())
    found = runs.find_runs(data_name="found", size=SIZE)
    assert [run.config["backbone"] for run in found] == ["vgg16", "resnet50", "small"]


def test_find_runs_on_data_leaves_out_runs_on_another_split_of_it(data, home):
    checksums = {"kept": runs.data_checksum(data), "other-split": "another"}
    for name, checksum in checksums.items():
        folder = home / "runs" / name
        folder.mkdir()
        config = {"data_name": "squares", "size": SIZE, "backbone": "vgg19"}
        config["data_checksum"] = checksum
        runs.write_json(folder / "config.json", config)
        for table in ("history.csv", "scores.csv"):
            runs.write_csv(folder / table, pd.DataFrame({"epoch": [1]}))
    found = {run.folder.name for run in runs.find_runs(data=data)}
    assert "kept" in found
    assert "other-split" not in found


def test_checksum_of_data_depends_on_the_split(data):
    cases = data.cases.assign(split=data.cases["split"][::-1].to_list())
    other = SimpleNamespace(cases=cases, meta=data.meta)
    assert runs.data_checksum(other) != runs.data_checksum(data)


def test_caveats_name_what_limits_the_numbers(finished):
    other = finished.config | {"synthetic": False, "weights": "imagenet", "leaked_patients": 2}
    other = finished._replace(config=other)
    assert runs.caveats([finished]) == (
        "synthetic radiographs · random features: vgg19 · split: random"
    )
    assert runs.caveats([other]) == "split: random · 2 patients on two sides of it"


def test_log_line_reads_like_the_log_of_the_report(finished):
    row = {"epoch": 1, "seconds": 2.0, "loss": 0.04441, "logged_dice": 0.9764}
    row |= {"accuracy": 0.984, "logged_mean_iou": 0.2523, "val_loss": 0.016}
    run = finished._replace(history=pd.DataFrame([row]))
    assert runs.log_line(run, 1) == (  # 14 cases in batches of 4
        "4/4 - 2s 500ms/step - loss: 0.0444 - accuracy: 0.9840 - mean_io_u: 0.2523 - "
        "dice: -0.9764 - val_loss: 0.0160"
    )


def test_find_runs_says_how_to_train_when_there_is_none(home):
    with pytest.raises(FileNotFoundError, match="Train one: papermill"):
        runs.find_runs(data_name="nowhere")
