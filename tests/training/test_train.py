"""Training: equal seeds, equal numbers; whatever happens in between."""

import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cv2
import keras
import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import CASES, SIZE, make_data

import pneumo_lib as pl
from pneumo_lib import _files, runs
from pneumo_lib.evaluation import logged_metrics, metrics
from pneumo_lib.evaluation.operating_point import choose_operating_point
from pneumo_lib.inference import predict
from pneumo_lib.models import backbones, fcn, forward
from pneumo_lib.runs import load_operating_point
from pneumo_lib.study.experiments import read_experiments
from pneumo_lib.training import train as training
from pneumo_lib.training.config import TrainingConfig
from pneumo_lib.training.train import train

ROOT = Path(__file__).parents[2]
SETTINGS = {"backbone": "vgg16", "weights": None, "epochs": 3, "milestones": [2], "batch_size": 4}
ONCE = SETTINGS | {"epochs": 1, "milestones": None}


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
        "operating_point.json",
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
        [batch for _, batch in forward.predict_batches(network, data.images, "vgg16")]
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
    expected = logged_metrics.history_scores(metrics.pool(part))
    for name, value in expected.items():
        assert row[f"val_{name}"] == pytest.approx(value, nan_ok=True, abs=1e-5)


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64:UserWarning")  # Keras' own
def test_history_logs_what_keras_mean_iou_reads_from_a_softmax(finished, data):
    network = keras.models.load_model(finished.folder / "model.keras")
    rows = np.flatnonzero(data.cases["split"] == "validation")
    softmax = network(backbones.preprocess(data.images[rows], "vgg16"), training=False)
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


TWICE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from conftest import make_data
from pneumo_lib.training.train import train  # which sets less up than pl.train
data = make_data(Path("data/squares"), size=128)
for name in "ab":
    run = train(data, run=name, backbone="small", epochs=12, batch_size=14)
    print(run.history["loss"].tolist())
"""


def test_runs_of_one_seed_are_equal_at_a_size_that_keeps_all_cores_busy(tmp_path):
    # a process of its own: here, TensorFlow was loaded before the library could set anything
    environment = os.environ | {"PNEUMO_HOME": str(tmp_path)}
    environment.pop("TF_NUM_INTEROP_THREADS", None)
    command = [sys.executable, "-c", TWICE, str(Path(__file__).parents[1])]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(lines := done.stdout.splitlines()) == 2
    assert len(set(lines)) == 1


FINE_TUNED = SETTINGS | {
    "fine_tune": "last",
    "optimizer": "sgd",
    "learning_rate": 0.01,
    "backbone_learning_rate": 1e-3,
    "augmentation": "full",
    "positive_share": (0.8, 0.4),
    "ema": 0.9,
    "test_time_flip": True,
}
TWO_SIZES = SETTINGS | {"backbone": "small", "half_size": 0.7}  # killed as the full size begins
KILLED = """
import os, signal, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/training"]
import keras
import test_train
from conftest import make_data
def die_in_the_third(epoch, logs):
    if epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
die = keras.callbacks.LambdaCallback(on_epoch_begin=die_in_the_third)
settings = getattr(test_train, sys.argv[2])
test_train.train(make_data(None), run="killed", callbacks=[die], **settings)
"""


@pytest.mark.parametrize("settings", ["SETTINGS", "FINE_TUNED", "TWO_SIZES"])
def test_killed_run_goes_on_and_ends_with_the_same_numbers(settings, finished, data, home):
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), settings]
    died = subprocess.run(command, env=os.environ, check=False)
    assert died.returncode == -signal.SIGKILL
    assert not runs.is_finished(home / "runs" / "killed")
    first_rows = _files.read_csv(home / "runs" / "killed" / "history.csv")
    assert len(first_rows) == 2
    resumed = train(data, run="killed", **globals()[settings])
    if settings != "SETTINGS":
        finished = train(data, run="undisturbed", **globals()[settings])
    pd.testing.assert_frame_equal(without_time(resumed.history), without_time(finished.history))
    pd.testing.assert_frame_equal(resumed.history.head(2), first_rows)
    pd.testing.assert_frame_equal(resumed.scores, finished.scores)
    kept = [np.load(run.folder / "probabilities.npy") for run in (resumed, finished)]
    np.testing.assert_array_equal(*kept)


def test_state_that_a_kill_left_beside_a_finished_run_is_removed(finished, data):
    (finished.folder / "state.npz").touch()
    train(data, run="finished", **SETTINGS)
    assert not (finished.folder / "state.npz").exists()


def weights_of(run):
    network = keras.models.load_model(run.folder / "model.keras")
    return {variable.path: variable.numpy() for variable in network.weights}


def test_fine_tuning_moves_the_last_block_slowly_and_nothing_before_it(data):
    settings = ONCE | {"fine_tune": "last", "precision": "mixed_float16"}
    settings |= {"schedule": "constant", "learning_rate": 1e-2}
    tuned = weights_of(train(data, run="tuned", **settings))
    start = fcn.build_fcn("vgg16", size=SIZE, weights=None, seed=0)
    moved = {v.path: np.abs(tuned[v.path] - v.numpy()).max() for v in start.weights}
    steps_taken = 4  # of Adam, none longer than about the learning rate
    for path, distance in moved.items():
        if path.startswith("deconvolution"):
            assert distance > 0.01
        elif path.startswith("block5"):
            assert 0 < distance < 1.5 * steps_taken * 1e-5
        else:
            assert distance == 0


def test_full_augmentation_of_a_frozen_backbone_trains_the_head_alone(data):
    run = train(data, run="frozen", **ONCE | {"augmentation": "full"})
    learnt = weights_of(run)
    start = fcn.build_fcn("vgg16", size=SIZE, weights=None, seed=0)
    changed = {v.path for v in start.weights if (learnt[v.path] != v.numpy()).any()}
    assert changed == {v.path for v in start.trainable_weights}


def test_a_run_starts_from_the_weights_of_its_initial_run_at_any_size(finished, data, home):
    still = ONCE | {"initial": "finished", "learning_rate": 1e-12}
    run = train(make_data(home, size=2 * SIZE), run="started", **still)
    for path, weight in weights_of(finished).items():
        np.testing.assert_allclose(weights_of(run)[path], weight, atol=1e-9)
    assert run.config["initial"]["run"] == "finished"
    assert run.config["weights"] == "random features"


def test_an_initial_run_must_be_of_the_same_network(finished, data):
    settings = SETTINGS | {"backbone": "vgg19", "initial": "finished"}
    with pytest.raises(ValueError, match="`initial` must be a run of the same network"):
        train(data, run="misfit", **settings)


def test_averaged_weights_are_what_is_validated_and_kept(data):
    one_step = SETTINGS | {"batch_size": 14, "milestones": []}
    first = train(data, run="one-step", **one_step | {"epochs": 1, "milestones": None})
    # A momentum of nearly 1 never lets go of the first step, however long the training goes on.
    averaged = train(data, run="averaged", **one_step | {"epochs": 3, "ema": 1 - 1e-9})
    for path, weight in weights_of(first).items():
        np.testing.assert_allclose(weights_of(averaged)[path], weight, atol=1e-7)
    validated = averaged.history["val_loss"]
    np.testing.assert_allclose(validated, [first.history["val_loss"].iloc[0]] * 3, rtol=1e-5)
    assert averaged.history["loss"].nunique() == 3


@pytest.mark.parametrize("backbone", ["vgg16", "small"])
def test_test_time_flip_is_the_mean_of_the_image_and_of_its_mirror(backbone, data, tmp_path):
    settings = ONCE | {"backbone": backbone, "test_time_flip": True}
    run = train(data, run=f"test-time-flip-{backbone}", **settings)
    network = keras.models.load_model(run.folder / "model.keras")
    plain, mirrored = (
        np.asarray(network(backbones.preprocess(images, backbone), training=False))[..., 1]
        for images in (data.images, data.images[:, :, ::-1])
    )
    expected = (plain + mirrored[:, :, ::-1]) / 2
    kept = np.load(run.folder / "probabilities.npy")
    np.testing.assert_allclose(kept / 255, expected, atol=0.5 / 255 + 1e-4)
    assert np.abs(plain - expected).max() > 1e-3
    cv2.imwrite(str(tmp_path / "first.png"), data.images[0])
    [prediction] = predict.predict(tmp_path, run)
    np.testing.assert_allclose(prediction.probability, expected[0], atol=1e-4)


def test_the_operating_point_is_chosen_on_validation_cases_alone(finished, data):
    point = load_operating_point(finished)
    rng = np.random.default_rng(1)
    images, masks = data.images.copy(), data.masks.copy()
    of_test = np.flatnonzero(data.cases["split"] == "test")
    images[of_test] = rng.integers(0, 256, images[of_test].shape)
    masks[of_test] = rng.integers(0, 2, masks[of_test].shape)
    meta = data.meta | {"checksum": "garbled"}
    garbled = SimpleNamespace(**vars(data) | {"images": images, "masks": masks, "meta": meta})
    run = train(garbled, run="chosen-among-garbled", **SETTINGS)
    assert load_operating_point(run) == point
    rows = np.flatnonzero(data.cases["split"] == "validation")
    kept = np.load(run.folder / "probabilities.npy")
    assert choose_operating_point(masks[rows], kept[rows]) == point


def test_without_validation_cases_there_is_no_operating_point(data):
    cases = data.cases.replace({"split": {"validation": "test"}})
    unvalidated = SimpleNamespace(**vars(data) | {"cases": cases})
    run = train(unvalidated, run="unvalidated", **ONCE)
    assert not (run.folder / "operating_point.json").exists()


def test_training_on_cached_features_equals_training_through_the_frozen_backbone(data, monkeypatch):
    settings = SETTINGS | {"augmentation": "flip", "dropout": 0.0}  # half of the images as they are
    cached = train(data, run="cached", **settings)
    monkeypatch.setattr(TrainingConfig, "trains_on_images", lambda self: True)
    through = train(data, run="through", **settings)
    histories = [without_time(run.history) for run in (cached, through)]
    pd.testing.assert_frame_equal(*histories, rtol=1e-3, atol=1e-4)
    assert cached.history["loss"].iloc[2] < cached.history["loss"].iloc[0]
    weights = [weights_of(run) for run in (cached, through)]
    for path, weight in weights[0].items():
        np.testing.assert_allclose(weights[1][path], weight, atol=1e-4)


def test_finished_run_is_returned_without_building_a_network(finished, data, monkeypatch):
    monkeypatch.setattr(training, "_build", None)
    again = train(data, run="finished", **SETTINGS)
    pd.testing.assert_frame_equal(again.history, finished.history)


def test_run_with_other_settings_is_moved_aside_not_overwritten(finished, data, caplog):
    shutil.copytree(finished.folder, finished.folder.with_name("changed"))
    train(data, run="changed", **ONCE)
    assert len(runs.load_run("changed").history) == 1
    assert len(runs.load_run("changed.old-1").history) == 3
    assert "trained with other settings (epochs, milestones); kept as changed.old-1" in caplog.text


def test_small_fcn_learns_the_square_from_scratch(data):
    run = train(data, backbone="small", epochs=30, batch_size=4, learning_rate=3e-3)
    assert run.folder.name == "squares-small-32"
    assert run.config["weights"] == "from scratch"
    assert run.history["dice"].iloc[-1] > 0.9


def test_mixed_precision_trains_and_still_outputs_float32(data):
    run = train(data, run="mixed", **ONCE | {"precision": "mixed_bfloat16"})
    assert np.isfinite(run.history["loss"]).all()
    network = keras.models.load_model(run.folder / "model.keras")
    assert network.output.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize(
    ("settings", "inputs", "mirrored", "augmented"),
    [
        ({"backbone": "small"}, "images", True, False),
        ({"backbone": "small", "augmentation": "none"}, "images", False, False),
        ({}, "features", False, False),
        ({"augmentation": "flip"}, "features", True, False),
        ({"augmentation": "full"}, "images", True, True),
    ],
)
def test_each_augmentation_reaches_the_batches(settings, inputs, mirrored, augmented, data):
    config = TrainingConfig(**SETTINGS | settings).resolved()
    _, part = training._build(data, config)
    batches, validation = training._batches(part, data, config)
    halved = settings.get("backbone") == "small"  # in the first of three epochs
    for each in (batches, validation):
        assert (each[0][1].shape[1:] == (SIZE // 2, SIZE // 2)) == halved
    batches.start_epoch(config.epochs)
    assert (batches[0][0].shape[1:] == (SIZE, SIZE)) == (inputs == "images")
    assert bool((batches.rows < 0).any()) == mirrored
    assert (batches.augmentation_seed is not None) == augmented
    assert (validation.rows >= 0).all()
    assert validation.augmentation_seed is None


@pytest.mark.parametrize(("steps", "worth_it"), [(200, False), (300, True)])
def test_xla_compiles_heads_that_train_long_enough(steps, worth_it):
    features = keras.Input((4,))
    head = keras.Model(features, keras.layers.Dense(2)(features))
    optimizer = keras.optimizers.Adam()
    found = training.compile_network(head, optimizer, loss="crossentropy", steps=steps).jit_compile
    assert found == (worth_it or keras.backend.backend() == "jax")


def test_epochs_at_half_size_train_the_same_weights_and_meet_every_milestone(data):
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            steps = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
            seen.append(
                (self.model.input.shape[1], steps, float(self.model.optimizer.learning_rate))
            )

    settings = TWO_SIZES | {"epochs": 4, "milestones": [2]}  # 2 epochs at half the size
    run = train(data, run="two-sizes", callbacks=[Look()], **settings)
    # steps of 14 images in batches of 4; the second optimizer begins anew and ends at zero
    half, whole = SIZE // 2, SIZE
    expected = [(half, 4, 2e-3), (half, 8, 2e-3), (whole, 4, 1e-3), (whole, 8, 0)]
    assert seen == [(*first, pytest.approx(rate, abs=1e-8)) for *first, rate in expected]
    assert list(run.scores.groupby("epoch").size()) == [CASES, CASES]
    network = runs.load_network(run)
    assert network.input.shape[1:3] == (SIZE, SIZE)
    network.load_weights(run.folder / "epoch_2.weights.h5")
    start = fcn.build_small_fcn(size=SIZE, seed=0)
    assert all(
        (a.numpy() != b.numpy()).any()
        for a, b in zip(network.trainable_weights, start.trainable_weights, strict=True)
    )


@pytest.mark.parametrize("settings", [{}, TWO_SIZES])
def test_callbacks_of_the_user_see_each_epoch_and_may_stop_the_training(settings, data):
    seen = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(sorted(logs))
            self.model.stop_training = epoch == 1

    settings = SETTINGS | settings | {"epochs": 9}
    run = train(data, run=f"stopped-{settings['backbone']}", callbacks=[Look()], **settings)
    assert len(seen) == len(run.history) == 2
    assert {"loss", "dice", "logged_mean_iou", "val_loss", "val_dice"} <= set(seen[0])
    assert list(run.scores["epoch"].unique()) == [2]
    assert (run.folder / "epoch_2.weights.h5").exists()


def test_bfloat16_features_train_to_nearly_the_same_scores(finished, data):
    run = train(data, run="bfloat16", **SETTINGS | {"feature_precision": "bfloat16"})
    assert run.history["loss"].iloc[0] != finished.history["loss"].iloc[0]
    for prefix in ("", "val_"):
        for name, tolerance in {"loss": 1e-3, "accuracy": 2e-3, "dice": 5e-3}.items():
            near, exact = (r.history[prefix + name] for r in (run, finished))
            np.testing.assert_allclose(near, exact, atol=tolerance)


def test_weights_that_are_no_numbers_end_a_training_and_leave_what_was_finished(data, home):
    settings = SETTINGS | {"learning_rate": 1e30}
    with pytest.raises(ValueError, match=r"loss .* must stay finite. Received: .*'too-fast'. Take"):
        train(data, run="too-fast", **settings)
    assert (home / "runs" / "too-fast" / "settings.json").exists()
    assert not runs.is_finished(home / "runs" / "too-fast")


def test_a_training_that_diverged_says_so(finished, data, caplog):
    run = train(data, backbone="small", epochs=2, batch_size=7, learning_rate=1e9, dropout=0.3)
    assert run.config["diverged"]
    assert "squares-small-32 diverged" in caplog.text
    assert "dropout=0.3 changes nothing in this training: the small FCN" in caplog.text
    assert runs.caveats([run]).endswith("training diverged: small")
    assert not finished.config["diverged"]


def test_an_unknown_setting_is_refused(data):
    with pytest.raises(ValueError, match=r"no setting of that name\. Received: epoch"):
        train(data, epoch=1)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="judges TensorFlow's warning of retracing"
)
def test_runs_that_follow_each_other_are_no_retracing_to_tensorflow(data, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("tensorflow"), "propagate", True)
    config = TrainingConfig(backbone="small", epochs=1, batch_size=10)
    for seed in range(6):
        train(data, config, run=f"traced-{seed}", seed=seed)
    assert "retracing" not in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="psutil lists mapped files on Linux only")
def test_a_finished_training_holds_no_features(data):
    def mapped():
        keras.utils.clear_session()
        gc.collect()
        paths = [file.path for file in psutil.Process().memory_maps(grouped=False)]
        return len([path for path in paths if "/features/" in path])

    before = mapped()  # of trainings that an error ended
    train(data, run="let-go", **ONCE | {"augmentation": "flip"})
    assert mapped() == before


def test_a_file_means_the_same_training_in_the_notebook_and_in_this_process(tmp_path):
    """The notebook's own cells are run here: parameters, papermill's after them, settings."""
    path, base = tmp_path / "same.yaml", {"backbone": "small", "phantom_count": 40, "size": 32}
    path.write_text(json.dumps({"base": base, "experiments": {}}))
    [planned] = read_experiments(path)
    cells = json.loads((ROOT / "notebooks/05_train_fcn.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {"pl": pl}
    exec(sources[0], names)
    names |= base
    settings = next(source for source in sources if "config = pl.TrainingConfig(" in source)
    exec(settings.partition("\nrun = ")[0], names)
    assert planned.config.resolved() == names["config"].resolved()
    assert planned.config.backbone == "small"


def test_training_needs_training_cases(data):
    nothing = SimpleNamespace(**vars(data) | {"cases": data.cases.assign(split="test")})
    with pytest.raises(ValueError, match="needs cases in the split 'train'"):
        train(nothing, **SETTINGS)


def test_caveats_name_what_limits_the_numbers(finished):
    other = finished.config | {"synthetic": False, "weights": "imagenet", "leaked_patients": 2}
    other = finished._replace(config=other)
    assert runs.caveats([finished]) == (
        "synthetic radiographs · random features: vgg16 · split: random"
    )
    assert runs.caveats([other]) == "split: random · 2 patients in more than one subset"
