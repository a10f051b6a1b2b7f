"""`pneumo verify`: a run matches as it was scored, and no more after any change."""

import keras
import numpy as np
import pandas as pd
import pytest
from conftest import CASES

import pneumo_lib as pl
from pneumo_lib.inference.rescore import verify_run
from pneumo_lib.runs import data_checksum


@pytest.fixture
def run(bright, data):
    """A network that marks what is brighter than 127, with the scores that follow from it."""
    truth, marked = data.masks == 1, data.images > 127
    counts = {
        "tp": truth & marked, "fp": ~truth & marked, "fn": truth & ~marked, "tn": ~truth & ~marked,
    }  # fmt: skip
    last = data.cases.assign(epoch=2, **{k: v.sum(axis=(1, 2)) for k, v in counts.items()})
    scores = pd.concat([last.assign(epoch=1, tp=0), last], ignore_index=True)
    config = {"data_checksum": data_checksum(data), "data_name": "squares", "size": 32}
    config |= {"split_scheme": "random", "data": "data/squares"}
    return bright._replace(config=bright.config | config, scores=scores)


def test_scores_of_a_run_are_those_of_its_network(run, data):
    found = verify_run(run, data=data)
    assert found.matches
    assert (found.images, found.images_that_differ, found.worst) == (CASES, 0, [])
    last = run.scores[run.scores["epoch"] == 2]
    assert found.siim_dice == (pl.evaluation.siim_dice(last),) * 2


def test_changed_network_is_noticed(run, data, tmp_path):
    network = keras.models.load_model(run.folder / "model.keras")
    bias = network.get_layer("scores").bias
    bias.assign(np.array([0.0, 0.5], "float32"))  # a few grey levels darker are marked too
    network.save(tmp_path / "model.keras")
    found = verify_run(run._replace(folder=tmp_path), data=data)
    assert not found.matches
    assert found.images_that_differ == CASES


def test_changed_score_is_noticed_and_its_image_named(run, data):
    scores = run.scores.copy()
    row = (scores["epoch"] == 2) & (scores["image_id"] == "case.7")
    scores.loc[row, "tn"] -= 4
    scores.loc[row, "fp"] += 4  # four pixels recorded as false positives
    found = verify_run(run._replace(scores=scores), data=data)
    assert (found.matches, found.worst, found.images_that_differ) == (False, ["case.7"], 1)
    assert found.pixels_that_differ == pytest.approx(4 / data.masks.size)


def test_other_data_than_those_scored_are_refused(run, data):
    other = pl.data.Prepared(
        data.images, data.masks, data.cases, {**data.meta, "checksum": "x"}, "here"
    )
    with pytest.raises(ValueError, match=r"it was scored on. Received: here, which changed"):
        verify_run(run, data=other)
