"""Parameters of the study are checked before anything runs."""

import os
import subprocess
import sys

import pytest
import yaml

from pneumo_lib.study.parameters import absolute_paths, check_parameters
from pneumo_lib.study.report import run_report

KNOWN = {"size": 128, "seed": 0, "epochs": 20, "milestones": None, "weights": "auto"}
KNOWN |= {"learning_rate": None, "dropout": 0.5, "run_name": None, "train_here": True}


READ = """
import locale, sys
from pneumo_lib.study.parameters import read_params
print(locale.getencoding(), ascii(read_params(sys.argv[1])))
"""


def test_a_parameter_file_is_utf8_under_any_locale(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("data: data/Röntgen", encoding="utf-8")
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", READ, path]
    done = subprocess.run(command, env=os.environ | plain, capture_output=True, text=True)
    encoding, found = done.stdout.split(maxsplit=1)
    assert encoding != "utf-8"  # the file is not read by luck
    assert found == "{'data': 'data/R\\xf6ntgen'}\n"


def test_an_unknown_parameter_that_resembles_none_lists_them():
    with pytest.raises(ValueError, match=r"`zebra`\. Known: size, seed"):
        check_parameters({"zebra": 1}, KNOWN)


def test_a_parameter_of_no_training_has_the_type_of_its_default():
    with pytest.raises(ValueError, match="`train_here` must be bool, as its default True"):
        check_parameters({"train_here": "maybe"}, KNOWN)
    given = {"train_here": "False", "run_name": "x", "data": 2024}
    assert check_parameters(given, KNOWN) == {"train_here": False, "run_name": "x", "data": "2024"}


def test_values_may_be_written_the_way_yaml_and_papermill_read_as_text():
    text = {"learning_rate": yaml.safe_load("1e-3"), "dropout": 0, "milestones": "[1]"}
    numbers = {"learning_rate": 0.001, "dropout": 0.0, "milestones": [1]}
    assert text["learning_rate"] == "1e-3"
    assert check_parameters(text | {"weights": None}, KNOWN) == numbers | {"weights": None}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbones": ["small", "resnet101"]}, r"`backbone` must .*Did you mean resnet50"),
        ({"backbones": "small"}, r"`backbones` must be a list.*Received: backbones='small'"),
        ({"learning_rate": "abc"}, "`learning_rate` must be a number above 0"),
        ({"size": 100}, "`size` must be a multiple of 32. Received: size=100"),
        ({"size": 64}, "`size` must be at least 96 for inceptionv3. Received: size=64"),
        ({"size": "big"}, "`size` must be a whole number of 1 or more. Received: size='big'"),
        ({"seed": -1}, "`seed` must be a whole number of 0 or more. Received: seed=-1"),
        ({"phantom_count": 0}, "`phantom_count` must be a whole number of 1 or more"),
        ({"split": "odd"}, "`scheme` must be one of .*scheme='odd'"),
        ({"fold": "3/2"}, "`fold` must be a number, a slash .* fold='3/2'"),
        ({"milestones": [30]}, "`milestones` must not lie beyond the last of the `epochs`"),
        (
            {"weights": "no.h5"},
            "`weights` must be auto, imagenet, None, or an existing file or folder",
        ),
        ({"initial": "nowhere"}, "A run folder must hold a finished training run"),
    ],
)
def test_a_report_refuses_a_wrong_setting_before_its_first_notebook(
    settings, message, tmp_path, monkeypatch
):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))  # the notebooks are the project's own
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_report(overrides=settings)
    assert not list(tmp_path.rglob("*.ipynb"))


def test_weights_lie_in_the_project_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    (tmp_path / "mine.npz").touch()
    found = absolute_paths({"data": "phantoms", "weights": "mine.npz"})
    assert found == {"data": "phantoms", "weights": str(tmp_path / "mine.npz")}
