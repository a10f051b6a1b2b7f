"""Several replicas train as one does, and a dead one ends the others; real processes throughout."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from pneumo_lib import _files
from pneumo_lib.models.layers import replica_share
from pneumo_lib.models.layers.dropout import HashedDropout, SharedSpatialDropout2D
from pneumo_lib.training import augmentation, distribution, loader
from pneumo_lib.training.train import train

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forks here")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What workers.py found: two workers, of which one is killed in the second epoch and that are
    both begun again; one process; and two devices of one process."""
    folder = tmp_path_factory.mktemp("found")
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    environment = {name: v for name, v in os.environ.items() if name != "TF_CONFIG"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", TESTS / "workers.py", folder],
        env=environment | {"PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return SimpleNamespace(folder=folder, **json.loads((folder / "found.json").read_text()))


def test_a_killed_worker_ends_the_other_with_one_sentence_that_says_how_to_go_on(found):
    other, killed = found.killed
    assert (other["status"], killed["status"]) == (1, -9)
    last = other["output"].strip().splitlines()[-1]
    assert last.startswith("RuntimeError: All workers of a training must live to its end.")
    assert "worker 1 no longer answers" in last
    assert "same command: run 'head' goes on" in last


def test_two_workers_begun_again_end_as_one_undisturbed_process_does(found):
    assert [worker["status"] for worker in found.again] == [0, 0]
    assert found.alone == 0
    folders = [found.folder / name / "runs" / "head" for name in ("two", "one")]
    histories = [_files.read_csv(f / "history.csv").drop(columns="seconds") for f in folders]
    pd.testing.assert_frame_equal(*histories, rtol=1e-5, atol=1e-7)
    weights = [keras.models.load_model(f / "model.keras").get_weights() for f in folders]
    for two, one in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5)
    scores = [_files.read_csv(folder / "scores.csv") for folder in folders]
    pd.testing.assert_frame_equal(*scores, rtol=1e-5)


def test_each_worker_reads_its_own_rows_and_both_a_rest_that_is_too_small_to_share(found):
    chief, other = (record["read"] for record in found.records)
    order = loader.epoch_order(np.arange(14), seed=0, epoch=2)  # the first epoch was done
    whole = order[:12].reshape(3, 4)
    assert chief[:2] == [whole[:, :2].ravel().tolist(), [order[12]]]
    assert other[:2] == [whole[:, 2:].ravel().tolist(), [order[13]]]
    # Validation: 5 cases, the last of them for two workers. What the chief reads then is for the
    # operating point.
    assert chief[2:4] == [[14, 15], [18]]
    assert other[2:] == [[16, 17], [18]]


def test_the_chief_alone_writes(found):
    chief, other = (record["written"] for record in found.records)
    assert any(path.endswith("state.npz") for path in chief)
    assert other == []


def test_config_says_how_many_trained_and_the_identity_of_the_run_does_not(found):
    folder = found.folder / "two" / "runs" / "head"
    config = json.loads((folder / "config.json").read_text())
    assert config["strategy"]["workers"] == config["strategy"]["replicas"] == 2
    settings = [
        json.loads((found.folder / one / "runs/head/settings.json").read_text())
        for one in ("two", "one")
    ]
    assert settings[0] == settings[1]


def test_two_devices_train_as_one_with_batch_moments_dropout_flips_and_uneven_batches(found):
    one, both = found.one, found.both
    np.testing.assert_allclose(both["losses"], one["losses"], rtol=1e-5)
    for pair in zip(both["weights"], one["weights"], strict=True):
        np.testing.assert_allclose(*pair, atol=1e-4)


def test_a_loss_scale_falls_on_all_replicas_where_one_overflows(found):
    weights, scales = found.overflow
    assert weights == [1, 1]
    assert scales == [2**14, 2**14]  # half of Keras' first


# Parts


@pytest.mark.parametrize(("images", "replicas"), [(4, 2), (7, 3), (2, 2), (16, 5)])
def test_shares_cover_the_batch_once_and_differ_by_one_image_at_most(images, replicas):
    shares = [replica_share.share_of(images, replicas=replicas, number=n) for n in range(replicas)]
    rows = [row for share in shares for row in range(share.first, share.stop)]
    assert rows == list(range(images))
    sizes = [share.stop - share.first for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert {share.weight for share in shares} == {1}


def test_fewer_images_than_replicas_are_shared_as_parts_of_each():
    shares = {replica_share.share_of(2, replicas=4, number=n) for n in range(4)}
    assert shares == {(0, 2, 2, 0.25)}


def draws():
    x = tf.ones((4, 6, 6, 8))
    images = tf.reshape(tf.range(4 * 36, dtype="float32"), (4, 6, 6))
    masks = tf.cast(images > 70, "uint8")

    def augmented(kind, rows):
        seed = keras.random.SeedGenerator(3)
        return augmentation.augment(images[rows], masks[rows], kind=kind, seed=seed)[0]

    return {
        "dropout": lambda rows: HashedDropout(0.5, seed=1)(x[rows], training=True),
        "channels": lambda rows: SharedSpatialDropout2D(0.5, seed=2)(x[rows], training=True),
        "flip": lambda rows: augmented("flip", rows),
        "full": lambda rows: augmented("full", rows),
    }


@pytest.mark.parametrize("what", ["dropout", "channels", "flip", "full"])
def test_random_numbers_of_a_share_are_those_of_its_rows_in_the_whole_batch(what):
    draw = draws()[what]
    whole = np.asarray(draw(slice(0, 4)))
    parts = []
    for number in range(2):
        with replica_share.sharing(replica_share.share_of(4, replicas=2, number=number)):
            parts.append(np.asarray(draw(slice(2 * number, 2 * number + 2))))
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-6)
    assert np.ptp(whole[:2] - whole[2:]) > 0


def test_without_a_share_the_batch_is_whole_again_after_an_error():
    with (
        pytest.raises(KeyboardInterrupt),
        replica_share.sharing(replica_share.share_of(4, replicas=2, number=0)),
    ):
        raise KeyboardInterrupt
    assert replica_share.current_share() is None


class TwoReplicas(tf.distribute.Strategy):
    """Numbers are all that is asked of it."""

    def __init__(self, local):
        self.local = local

    num_replicas_in_sync = 2

    def experimental_distribute_values_from_function(self, value):
        return [value(SimpleNamespace(replica_id_in_sync_group=n)) for n in self.local]


def test_an_unknown_strategy_is_refused(data):
    with pytest.raises(ValueError, match=r"`strategy` must be None.* Received: strategy='many'"):
        train(data, strategy="many")


def test_a_batch_that_replicas_cannot_share_evenly_is_refused(data):
    with pytest.raises(ValueError, match=r"multiple of the number of replicas.*=5, 2 replicas"):
        train(data, strategy=TwoReplicas([0, 1]), batch_size=5)


@pytest.mark.parametrize("value", [None, "{}"])
def test_multiworker_needs_a_cluster(value, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if value:
        monkeypatch.setenv("TF_CONFIG", value)
    with pytest.raises(ValueError, match="needs the environment variable TF_CONFIG"):
        distribution.choose_strategy("multiworker", batch_size=4)


def test_multiworker_needs_a_process_that_has_not_used_tensorflow(monkeypatch):
    tf.constant(1)
    cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    with pytest.raises(ValueError, match=r"first that uses TensorFlow.*Start a new process"):
        distribution.choose_strategy("multiworker", batch_size=4)


def test_workers_with_other_settings_are_refused_on_each(monkeypatch):
    others = np.full((2, 4), 7)
    monkeypatch.setattr(
        distribution, "total", lambda strategy, digests: digests + others * (digests == 0)
    )
    with pytest.raises(ValueError, match=r"same settings, data and code.*'seed': 3"):
        distribution.check_settings(TwoReplicas([1]), {"seed": 3})


@pytest.mark.parametrize(
    ("text", "who"),
    [
        ("from remote target /job:chief/replica:0/task:0 while calling", "chief 0"),
        ("(stopped sending heartbeats):\n/job:worker/replica:0/task:3\nThe", "worker 3"),
        ("something else", "another worker"),
    ],
)
def test_errors_of_collectives_name_the_worker_that_is_gone(text, who):
    error = tf.errors.UnavailableError(None, None, text)
    with (
        pytest.raises(RuntimeError, match=f"Received: {who} no longer answers.*run 'mine'"),
        distribution.one_error(TwoReplicas([0]), "mine"),
    ):
        raise error


@pytest.mark.parametrize("strategy", [None, TwoReplicas([0, 1])])
def test_errors_within_one_process_pass_unchanged(strategy):
    error = tf.errors.UnavailableError(None, None, "as it was")
    with (
        pytest.raises(tf.errors.UnavailableError, match="as it was"),
        distribution.one_error(strategy, "mine"),
    ):
        raise error
