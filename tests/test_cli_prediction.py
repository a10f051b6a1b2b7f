"""The commands around a trained network: files, output and exit codes."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pytest
from test_dicom import RAMP, dicom_bytes
from typer.main import get_command

from pneumo_lib.apps.cli import app, main
from pneumo_lib.apps.doctor import Finding
from pneumo_lib.inference.prediction_rows import NOTE
from pneumo_lib.inference.rescore import Verification


@pytest.fixture(scope="module")
def run(bright):
    """The folder of a finished run, as a command line names it."""
    return str(bright.folder)


def test_predict_names_the_table_and_counts_the_files(run, xrays, tmp_path, capsys):
    arguments = ["predict", str(xrays), "--run", run, "--out", str(tmp_path / "out")]
    assert main([*arguments, "--dicom-seg"]) == 1  # the DICOM file has no study
    said = capsys.readouterr()
    assert "Predicted   3 files\n" in said.out
    assert "predictions.csv" in said.out
    assert "1 files failed:" in said.err
    assert "white.dcm: no DICOM SEG could be made" in said.err
    assert main(arguments) == 0
    assert "0 files; 3 were there" in capsys.readouterr().out


def test_predict_lists_the_files_that_failed(run, xrays, tmp_path, capsys):
    (xrays / "torn.png").write_bytes(b"text")
    assert main(["predict", str(xrays), "--run", run, "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "Predicted   3 files" in said.out
    assert said.err.count("torn.png") == 2  # its name, and in the reason the path
    assert "1 files failed:" in said.err


def test_predict_takes_a_threshold_in_place_of_the_operating_point(run, xrays, tmp_path):
    options = ["--run", run, "--out", str(tmp_path / "out"), "--threshold", "0.25"]
    assert main(["predict", str(xrays / "half.png"), *options]) == 0
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert (row["top_threshold"], row["bottom_threshold"]) == ("0.25", "0.25")


@pytest.mark.parametrize("threshold", ["0", "1.5", "nan"])
def test_predict_refuses_a_threshold_that_is_no_probability(run, xrays, threshold, capsys):
    options = ["--run", run, "--out", "out", "--threshold", threshold]
    assert main(["predict", str(xrays), *options]) == 2
    assert "Invalid value for '--threshold'" in capsys.readouterr().err


def test_submit_writes_the_table_and_lists_what_failed(run, xrays, tmp_path, capsys):
    (xrays / "torn.png").write_bytes(b"text")
    to = tmp_path / "submission.csv"
    assert main(["submit", "--run", run, "--images", str(xrays), "--to", str(to)]) == 1
    said = capsys.readouterr()
    assert "4 images. For research and teaching, not a medical device." in said.out
    assert "torn.png" in said.err
    assert to.read_text().startswith("ImageId,EncodedPixels\ndark,-1\nhalf,0 ")


def test_export_names_the_file_and_the_agreement(run, tmp_path, capsys):
    to = str(tmp_path / "network")
    assert main(["export", "--run", run, "--format", "savedmodel", "--to", to]) == 0
    said = capsys.readouterr().out
    assert "how to use it in network.txt" in said
    assert "probabilities differ from Keras' by" in said


@pytest.mark.parametrize(("matches", "code"), [(True, 0), (False, 1)])
def test_verify_reports_whether_the_scores_match(run, monkeypatch, capsys, matches, code):
    found = Verification(matches, 10, 1, 1e-4, (0.5, 0.25), ["case.7"])
    monkeypatch.setattr("pneumo_lib.inference.rescore.verify_run", lambda run: found)
    assert main(["verify", run]) == code
    said = capsys.readouterr()
    assert "Dice 0.250000, recorded 0.500000" in said.out
    assert ("case.7" in said.err) != matches


@pytest.mark.parametrize(("state", "code"), [("ok", 0), ("missing", 0), ("wrong", 1)])
def test_doctor_prints_what_it_finds_and_what_to_do(monkeypatch, capsys, state, code):
    found = [Finding(state, "disk", "1 GB free", "free some")]
    monkeypatch.setattr("pneumo_lib.apps.doctor.examine", lambda: found)
    assert main(["doctor"]) == code
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        [state, "disk", "1", "GB", "free"],
        ["->", "free", "some"],
    ]


def test_json_of_predict_holds_the_rows_with_numbers_in_the_first_call_and_the_next(
    run, xrays, tmp_path, capsys
):
    (xrays / "torn.png").write_bytes(b"text")
    arguments = ["predict", str(xrays), "--run", run, "--out", str(tmp_path / "out"), "--json"]
    assert main(arguments) == 1
    first = json.loads(capsys.readouterr().out)
    dark, half, _, white = first["files"]
    assert (dark["area_px"], half["area_px"], half["probability"]) == (0, 30 * 40, 1.0)
    assert white["area_cm2"] == 50 * 0.5 * 30 * 0.2 / 100
    assert (dark["side"], half["error"], first["predicted"]) == (None, None, 3)
    assert list(first["failed"]) == [str(xrays / "torn.png")]
    assert main(arguments) == 1
    again = json.loads(capsys.readouterr().out)
    assert again == first | {"predicted": 0}


def test_json_of_an_archive_holds_the_counts(run, xrays, tmp_path, capsys):
    options = ["--run", run, "--out", str(tmp_path / "out"), "--scheduler", "local", "--json"]
    assert main(["predict", str(xrays), *options, "--workers", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {name: found[name] for name in ("listed", "rows", "failed")} == {
        **{"listed": 3, "rows": 3},
        "failed": 0,
    }


@pytest.mark.parametrize(("matches", "code"), [(True, 0), (False, 1)])
def test_json_of_verify_and_doctor_has_the_exit_code_of_the_text(
    run, monkeypatch, capsys, matches, code
):
    found = Verification(matches, 10, 1, 1e-4, (0.5, 0.25), ["case.7"])
    monkeypatch.setattr("pneumo_lib.inference.rescore.verify_run", lambda run: found)
    assert main(["verify", run, "--json"]) == code
    assert json.loads(capsys.readouterr().out) == found._asdict() | {"siim_dice": [0.5, 0.25]}
    findings = [Finding("ok" if matches else "wrong", "disk", "1 GB free", "free some")]
    monkeypatch.setattr("pneumo_lib.apps.doctor.examine", lambda: findings)
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out) == [findings[0]._asdict()]


def test_unknown_run_is_one_line_with_the_remedy(xrays, capsys):
    assert main(["predict", str(xrays), "--run", "nowhere", "--out", "out"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "must hold a finished training run" in said
    assert "Train it with" in said


@pytest.mark.parametrize("name", get_command(app).commands)
def test_help_of_every_command_explains_its_options_with_an_example_that_it_understands(name):
    command = get_command(app).commands[name]
    example = command.epilog.removeprefix("Example: ")
    assert example.startswith(f"pneumo {name}")
    assert command.make_context(name, example.split()[2:]).params.keys() == {
        option.name for option in command.params if option.help
    }


def test_installed_command_predicts_and_gives_no_patient_away(run, siim_dicom, tmp_path):
    """A fresh process, so that what pydicom and TensorFlow print at their start is seen too."""
    script = Path(sys.executable).with_name("pneumo")
    if not script.is_file():
        pytest.skip("the command is not installed beside this Python")
    folder = tmp_path / "xrays"
    folder.mkdir()
    shutil.copy(min(siim_dicom.rglob("*.dcm")), folder / "real.dcm")
    planted = dict.fromkeys(("PatientName", "ImageComments", "PatientBirthDate"), "SECRET")
    planted |= dict.fromkeys(("PatientID", "Modality", "StudyDate"), "SECRET" * 20)  # too long
    planted |= {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4"}
    with pydicom.config.disable_value_validation():
        (folder / "a.dcm").write_bytes(dicom_bytes(RAMP.astype("u2"), **planted))
        (folder / "b.dcm").write_bytes(dicom_bytes(RAMP.astype("u2"), Rows=99, **planted))
        (folder / "c.dcm").write_bytes(dicom_bytes(RAMP.astype("u2"), Rows=None, **planted))
    out = tmp_path / "out"
    arguments = ["--debug", "predict", folder, "--run", run, "--out", out, "--dicom-seg"]
    done = subprocess.run([script, *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Predicted   2 files" in done.stdout
    assert "3 files failed" in done.stderr  # two X-rays, and the SEG of a broken header
    real = str(pydicom.dcmread(folder / "real.dcm", stop_before_pixels=True).PatientID)
    said = done.stdout + done.stderr
    assert "SECRET" not in said
    assert real not in said
    for path in out.rglob("*"):
        if path.is_file() and path.parent.name != "segmentations":
            assert b"SECRET" not in path.read_bytes()
            assert real.encode() not in path.read_bytes()
    assert NOTE in (out / "predictions.csv").read_text()
