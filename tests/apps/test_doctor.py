"""`pneumo doctor`: what is there is found, what is missing has a remedy."""

import importlib.metadata
import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from pneumo_lib.apps import doctor
from pneumo_lib.apps.cli import main
from pneumo_lib.apps.doctor import examine
from pneumo_lib.apps.weights_check import examine_weights
from pneumo_lib.data.phantom.draw import make_phantoms
from pneumo_lib.models.backbones import build_backbone

SHARED = Path(__file__).parents[3] / "shared" / "weights"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    return tmp_path


def found(what):
    return [finding for finding in examine() if finding.what == what]


@pytest.mark.parametrize(
    ("what", "remedy"),
    [("ImageNet vgg19", "vgg19_weights"), ("data", "fetch siim"), ("runs", "make report")],
)
def test_what_is_missing_has_a_remedy(home, what, remedy):
    [finding] = found(what)
    assert finding.state == "missing"
    assert remedy in finding.remedy


def test_what_is_in_place_is_found(home, png_release):
    (home / "keras" / "models").mkdir(parents=True)
    name = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
    (home / "keras" / "models" / name).touch()
    shutil.copytree(png_release, home / "data" / "mine")
    (home / "runs" / "first").mkdir(parents=True)
    (home / "runs" / "first" / "config.json").write_text("{}")
    findings = {finding.what: finding for finding in examine()}
    assert findings["ImageNet vgg19"].state == "ok"
    assert findings["ImageNet vgg16"].state == "missing"
    assert "12 X-rays, 5 positive" in findings["data"].value
    assert findings["runs"].value == "first"
    assert "tensorflow" in findings["packages"].value
    assert findings["device"].state == "ok"


def test_phantoms_and_a_folder_of_something_else_are_no_real_xrays(home):
    (home / "data" / "notes").mkdir(parents=True)
    (home / "data" / "notes.txt").touch()
    make_phantoms(home / "data" / "drawn", count=1, size=64)
    drawn, real = doctor._data()
    assert (drawn.state, real.state) == ("ok", "missing")
    assert real.value == "no real X-rays in data/"


def test_a_missing_package_is_wrong_only_if_pneumo_needs_it(home, monkeypatch):
    version = importlib.metadata.version

    def look(name):
        if name in ("highdicom", "scipy"):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", look)
    [extra], [needed] = found("extra dicom"), found("packages")
    assert (extra.state, extra.remedy) == ("missing", "pip install -e '.[dicom]'")
    assert "highdicom" in extra.value
    assert (needed.state, needed.remedy) == ("wrong", "make env")


@pytest.mark.parametrize(("free", "state"), [(5e11, "ok"), (5e9, "missing"), (5e8, "wrong")])
def test_a_disk_that_fills_up_is_reported(home, monkeypatch, free, state):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1e12, 0, free))
    assert doctor._disk().state == state


def test_a_home_that_cannot_be_written_is_not_mended_by_free_space(home, monkeypatch):
    monkeypatch.setattr(os, "access", lambda folder, mode: False)  # root may write anywhere
    assert doctor._disk().state == "wrong"
    assert doctor._disk().remedy == "allow writing there, or set PNEUMO_HOME to another folder"


def test_a_home_that_is_not_there_yet_has_the_disk_of_its_parent(home, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(home / "new" / "home"))
    assert doctor._disk().value.endswith(f"free in {home}")


def test_weights_that_were_learnt_are_told_from_random_ones(tmp_path):
    """Kernels of a Laplace distribution have an excess kurtosis of 3, normal ones of 0."""
    model = build_backbone("vgg16", size=224, weights=None)
    model.save_weights(tmp_path / "vgg16_random.weights.h5")
    states = {f.what: f.state for f in examine_weights(tmp_path / "vgg16_random.weights.h5")}
    assert states == {"vgg16": "ok", "kernels": "wrong", "last feature map": "ok"}
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if layer.weights:
            kernel = layer.get_weights()[0]
            layer.kernel.assign(rng.laplace(scale=kernel.std() / 2**0.5, size=kernel.shape))
    # a quarter of the channels never responds
    model.get_layer("block5_conv3").bias.assign(np.repeat([-1e9, 0], [128, 384]))
    model.save_weights(tmp_path / "vgg16_learnt.weights.h5")
    found = {f.what: f for f in examine_weights(tmp_path / "vgg16_learnt.weights.h5")}
    assert found["kernels"].state == "ok"
    assert "kurtosis 3.0" in found["kernels"].value
    assert found["last feature map"].state == "missing"
    silent = int(found["last feature map"].value.partition(" %")[0])
    assert 25 <= silent <= 32  # and some that are silent by chance


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real weights are not here: ../shared/weights")
def test_real_weights_are_recognised_and_what_a_file_lacks_is_said(capsys):
    assert main(["doctor", "--weights", str(SHARED), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {f["what"] for f in found[::3]} == {"vgg16", "vgg19", "resnet50", "inceptionv3"}
    assert {f["state"] for f in found if f["what"] == "kernels"} == {"ok"}
    [lacking] = [f for f in found if f["state"] != "ok"]
    assert (lacking["what"], lacking["state"]) == ("last feature map", "missing")
    assert lacking["value"].startswith("38 %")  # 768 of 2,048 channels of InceptionV3


def test_a_file_of_no_backbone_is_named(tmp_path):
    (tmp_path / "weights.npz").touch()
    with pytest.raises(FileNotFoundError, match=r"begins with one of vgg16, .*weights.npz"):
        examine_weights(tmp_path / "weights.npz")
