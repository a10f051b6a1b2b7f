"""Predicted folders: complete, resumable, never mixed up, without personal data."""

import csv
import os
import shutil

import cv2
import numpy as np
import pydicom
import pytest
from conftest import SIZE
from test_dicom import RAMP, dicom_bytes

from pneumo_lib import runs
from pneumo_lib.evaluation.operating_point import OperatingPoint
from pneumo_lib.inference import predict_files as predict_files_module
from pneumo_lib.inference.overlay import draw_overlay
from pneumo_lib.inference.predict_files import KINDS, predict_files, read_table
from pneumo_lib.inference.prediction_rows import FILE_COLUMNS, NOTE, side_of


@pytest.fixture
def out(bright, xrays, tmp_path):
    """A folder with the predictions of three X-rays."""
    predict_files(xrays, bright, tmp_path / "out")
    return tmp_path / "out"


def read(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_each_file_gets_probabilities_a_mask_an_overlay_and_a_row(bright, xrays, tmp_path):
    out = tmp_path / "out"
    outcome = predict_files(xrays, bright, out)
    assert (outcome.predicted, outcome.failed) == (3, [])
    with (out / "predictions.csv").open(newline="") as file:
        dark, half, white = csv.DictReader(file)
    assert tuple(dark) == FILE_COLUMNS
    assert [row["file"] for row in (dark, half, white)] == list(map(str, sorted(xrays.iterdir())))
    assert [row["area_px"] for row in (dark, half, white)] == ["0", "1200", "1500"]
    assert [row["area_cm2"] for row in (dark, half, white)] == ["", "", "1.5"]  # 0.1 mm2 each
    assert [row["side"] for row in (dark, half, white)] == ["", "right", "both"]
    assert [float(row["probability"]) for row in (dark, half, white)] == [0, 1, 1]
    assert {row["note"] for row in (dark, half, white)} == {NOTE}
    assert {row["run"] for row in (dark, half, white)} == {runs.run_id(bright)}
    point = [half[name] for name in ("top_threshold", "min_area", "bottom_threshold")]
    assert point == ["0.5", "0.0", "0.5"]
    mask = read(out / "masks" / f"{half['output']}.png")
    assert mask.shape == (40, 60)
    np.testing.assert_array_equal(np.unique(mask), [0, 255])
    probability = read(out / "probabilities" / f"{half['output']}.png")
    assert (probability.shape, probability.dtype) == ((SIZE, SIZE), np.uint16)
    assert probability[0, 0] == 65535
    assert read(out / "overlays" / f"{half['output']}.png").ndim == 3
    assert NOTE in (out / "README.txt").read_text()


def test_second_call_predicts_nothing_and_keeps_the_table(bright, xrays, out):
    before = {path: path.stat().st_mtime_ns for kind in KINDS for path in (out / kind).iterdir()}
    table = (out / "predictions.csv").read_text()
    assert predict_files(xrays, bright, out).predicted == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert (out / "predictions.csv").read_text() == table


def test_new_and_changed_files_and_lost_pictures_are_predicted(bright, xrays, out):
    rows = read_table(out)
    cv2.imwrite(str(xrays / "dark.png"), np.full((40, 60), 255, np.uint8))
    shutil.copy(xrays / "half.png", xrays / "more.png")
    (out / "masks" / f"{rows[2]['output']}.png").unlink()
    assert predict_files(xrays, bright, out).predicted == 3
    assert [row["area_px"] for row in read_table(out)] == ["2400", "1200", "1200", "1500"]


def test_row_that_a_kill_cut_short_is_predicted_again(bright, xrays, out):
    table = out / "predictions.csv"
    table.write_bytes(table.read_bytes()[:-20])
    assert predict_files(xrays, bright, out).predicted == 1
    assert len(read_table(out)) == 3


def test_table_of_an_older_release_is_predicted_again(bright, xrays, out):
    """Its X-rays were read by other rules, and its columns were others."""
    table = out / "predictions.csv"
    table.write_text(table.read_text().replace(",area_source", ",area_note", 1))
    assert predict_files(xrays, bright, out).predicted == 3
    assert [row["area_source"] for row in read_table(out)] == ["", "", "PixelSpacing"]


def test_area_names_the_fields_of_its_spacing_and_says_where_it_lies(bright, tmp_path):
    white = np.full((50, 30), 255, np.uint8)
    fields = {"ImagerPixelSpacing": [1, 0.5]}
    magnified = fields | {"EstimatedRadiographicMagnificationFactor": 2}
    for name, header in (("a", fields), ("b", magnified)):
        (tmp_path / f"{name}.dcm").write_bytes(dicom_bytes(white, **header))
    detector, patient = predict_files(tmp_path, bright, tmp_path / "out").rows
    assert (detector["area_cm2"], patient["area_cm2"]) == (7.5, 1.88)  # 1,500 pixels, a quarter
    assert detector["area_source"] == "ImagerPixelSpacing, on the detector"
    assert "Magnification" in patient["area_source"]
    assert "7.50 cm2 on the detector, patient" in predict_files_module._caption(detector)[0]
    assert "1.88 cm2, patient" in predict_files_module._caption(patient)[0]


def test_files_of_one_name_do_not_overwrite_each_other(bright, xrays, tmp_path):
    for number, folder in enumerate("ab"):
        (xrays / folder).mkdir()
        image = np.full((20, 20), 255 * number, np.uint8)
        cv2.imwrite(str(xrays / folder / "same.png"), image)
        cv2.imwrite(str(xrays / folder / "same.jpg"), image)
    rows = predict_files([xrays / "a", xrays / "b"], bright, tmp_path / "out").rows
    assert len({row["output"] for row in rows}) == 4
    assert [row["area_px"] for row in rows] == [0, 0, 400, 400]
    masks = [read(tmp_path / "out" / "masks" / f"{row['output']}.png").any() for row in rows]
    assert masks == [False, False, True, True]


def test_file_given_twice_is_predicted_once(bright, xrays, tmp_path):
    given = [xrays / "half.png", xrays, xrays / "half.png"]
    assert predict_files(given, bright, tmp_path / "out").predicted == 3


def test_pictures_in_the_folder_itself_are_no_input(bright, xrays):
    out = xrays / "out"
    assert [predict_files(xrays, bright, out).predicted for _ in range(2)] == [3, 0]


def test_failed_files_are_listed_and_tried_again_and_the_others_go_on(bright, xrays, tmp_path):
    (xrays / "broken.png").write_bytes(b"text")
    (xrays / "frames.dcm").write_bytes(dicom_bytes(RAMP.astype("u2"), NumberOfFrames=3))
    out = tmp_path / "out"
    for predicted in (3, 0):
        outcome = predict_files(xrays, bright, out)
        assert outcome.predicted == predicted
        reasons = {row["file"]: row["error"] for row in outcome.failed}
        assert "complete PNG" in reasons[str(xrays / "broken.png")]
        assert "3 frames" in reasons[str(xrays / "frames.dcm")]
    assert len(read_table(out)) == 5


def test_folder_with_something_else_is_refused_untouched(bright, xrays, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"folder of its own.*which holds other files"):
        predict_files(xrays, bright, tmp_path)
    assert not (tmp_path / "masks").exists()


def test_folder_of_another_operating_point_is_refused(bright, xrays, out):
    with pytest.raises(ValueError, match=r"other settings \(operating_point: .*now \[0\.9"):
        predict_files(xrays, bright, out, operating_point=OperatingPoint(0.9, 0, 0.9))


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@x"])
def test_names_are_no_formulas_in_the_table(bright, xrays, tmp_path, name):
    folder = shutil.copytree(bright.folder, tmp_path / name)
    predict_files(xrays / "half.png", bright._replace(folder=folder), tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert row["run"].startswith(f"'{name}@")


def test_relative_path_is_another_file_in_another_folder(bright, xrays, tmp_path, monkeypatch):
    (xrays / "below").mkdir()
    shutil.copy(xrays / "dark.png", xrays / "below" / "half.png")
    for folder in (xrays, xrays / "below", xrays):
        monkeypatch.chdir(folder)
        predict_files("half.png", bright, tmp_path / "out")
    assert {row["file"]: row["area_px"] for row in read_table(tmp_path / "out")} == {
        str(xrays / "half.png"): "1200",
        str(xrays / "below" / "half.png"): "0",
    }


def test_names_that_are_no_text_or_hold_lines_are_survived(bright, xrays, tmp_path):
    for name in (b"caf\xe9.png", b"two\nlines.png", b'a,"b".png', b"<script>.png"):
        shutil.copy(xrays / "half.png", bytes(xrays) + b"/" + name)
    (xrays / "x.png").write_bytes(b"torn")
    os.rename(xrays / "x.png", bytes(xrays) + b"/torn\xe9.png")
    out = tmp_path / "out"
    assert [predict_files(xrays, bright, out).predicted for _ in range(2)] == [7, 0]
    assert {path.name.isascii() for path in (out / "masks").iterdir()} == {True}
    assert len(read_table(out)) == 8


# -- the patient's side


LEFT_EDGE = np.array([[1, 0, 0, 0, 0]], np.uint8)


@pytest.mark.parametrize(
    ("mask", "patients_left", "side"),
    [
        (LEFT_EDGE, "right", "right"),  # the convention: as if the patient faced the reader
        (LEFT_EDGE, "left", "left"),
        (LEFT_EDGE.T, "top", "left"),
        (LEFT_EDGE.T, "bottom", "right"),
        (np.array([[1, 1, 0, 0, 1]]), "right", "both"),  # a third lies on the other side
        (np.array([[1, 1, 1, 1, 0, 0, 0, 1]]), "right", "right"),  # a fifth
        (np.array([[0, 0, 1, 0, 0]]), "right", "right"),  # the middle column is on neither
        (LEFT_EDGE, "everywhere", "left"),
        (LEFT_EDGE, "nowhere", "right"),
        (LEFT_EDGE, None, "unknown"),
        (0 * LEFT_EDGE, "right", ""),
    ],
)  # fmt: skip
def test_side_is_that_of_the_patient(mask, patients_left, side):
    assert side_of(mask, patients_left) == side


# -- overlays


def test_overlay_tints_the_mask_and_leaves_the_rest_grey():
    image = np.full((600, 800), 100, np.uint8)
    mask = np.zeros_like(image)
    mask[100:200, 300:500] = 1
    picture = draw_overlay(image, mask, ["text"])
    assert picture.shape == (630, 800, 3)
    blue, green, red = picture[150, 400]
    assert red > green > blue
    np.testing.assert_array_equal(picture[400, 400], [100] * 3)
    assert picture[600:].max() == 255


@pytest.mark.parametrize(
    ("shape", "drawn"),
    [((3000, 1500), (1024, 512)), ((32, 64), (256, 512)), ((1, 5000), (1, 1024))],
)
def test_overlay_has_a_size_to_look_at(shape, drawn):
    picture = draw_overlay(np.zeros(shape, np.uint8), np.ones(shape, np.uint8), [])
    assert picture.shape == (*drawn, 3)


# -- privacy


def test_names_numbers_and_dates_of_the_patient_are_nowhere_in_the_output(
    bright, xrays, tmp_path, caplog, capsys
):
    planted = {
        "PatientName": "SECRET^NAME", "PatientID": "SECRETID", "PatientBirthDate": "19991231",
        "ImageComments": "SECRET comment", "InstitutionName": "SECRET clinic",
        "AccessionNumber": "SECRETNO", "PatientAddress": "SECRET street",
    }  # fmt: skip
    (xrays / "good.dcm").write_bytes(dicom_bytes(np.zeros((40, 40), np.uint8), **planted))
    (xrays / "bad.dcm").write_bytes(dicom_bytes(RAMP.astype("u2"), NumberOfFrames=3, **planted))
    out = tmp_path / "out"
    predict_files(xrays, bright, out)
    said = "".join(capsys.readouterr()) + caplog.text
    written = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert len(written) > 10
    for secret in ("SECRET", "19991231"):
        assert secret not in said
        assert not any(secret.encode() in content for content in written)
    assert "SECRET" in str(pydicom.dcmread(xrays / "good.dcm"))  # it was there to be found


def test_output_of_a_uid_without_suffix_keeps_its_last_number(bright, xrays, tmp_path):
    (xrays / "white.dcm").rename(xrays / "1.2.276.0.7230010.878027")
    [row] = predict_files(xrays / "1.2.276.0.7230010.878027", bright, tmp_path / "out").rows
    assert row["output"].startswith("1.2.276.0.7230010.878027-")
