"""DICOM SEG objects: right masks on the right X-rays, and no more of the patient than required."""

import shutil
import subprocess

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid
from test_dicom import dicom_bytes

from pneumo_lib.inference import dicom_seg
from pneumo_lib.inference.dicom_seg import DESCRIPTION
from pneumo_lib.inference.predict_files import predict_files

highdicom = pytest.importorskip("highdicom", reason="of the extra `dicom`")
STUDY = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "Modality": "DX"}
PATIENT = {
    "PatientName": "SECRET^NAME", "PatientID": "ID7", "PatientBirthDate": "19991231",
    "PatientSex": "O", "AccessionNumber": "A1", "StudyDate": "20200101", "StudyTime": "1200",
    "StudyID": "5", "ReferringPhysicianName": "DOC",
}  # fmt: skip
NOT_REQUIRED = {
    "PatientAddress": "Street 1", "PatientAge": "020Y", "PatientComments": "comment",
    "InstitutionName": "Clinic", "OperatorsName": "Operator", "StudyDescription": "because",
    "OtherPatientIDs": "ID8", "EthnicGroup": "group", "PatientWeight": 70,
}  # fmt: skip


def bright_where(rows):
    pixels = np.zeros((40, 32), np.uint8)
    pixels[rows] = 255
    return pixels


def write(folder, name, pixels, **fields):
    folder.mkdir(exist_ok=True)
    fields = {"SOPInstanceUID": f"1.2.3.4.{len(name)}"} | STUDY | PATIENT | fields
    (folder / f"{name}.dcm").write_bytes(dicom_bytes(pixels, **fields))


@pytest.fixture
def study(tmp_path):
    """Two X-rays of one study, the upper and the lower half of one and the other bright."""
    folder = tmp_path / "study"
    write(folder, "a", bright_where(slice(0, 20)))
    write(folder, "bb", bright_where(slice(20, 40)), **NOT_REQUIRED)
    return folder


def segmentations(folder, bright, out):
    return predict_files(folder, bright, out, dicom_seg=True).segmentations


def test_masks_lie_on_the_xrays_they_were_made_from(study, bright, tmp_path):
    paths = segmentations(study, bright, tmp_path / "out")
    upper, lower = (bright_where(rows) // 255 for rows in (slice(0, 20), slice(20, 40)))
    for path, mask, source in zip(paths, (upper, lower), ("1.2.3.4.1", "1.2.3.4.2"), strict=True):
        read = highdicom.seg.segread(path)
        pixels = read.get_pixels_by_source_instance([source])[0, ..., 0]
        np.testing.assert_array_equal(pixels, mask)
        np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, mask)


def test_object_names_its_content_and_its_maker(study, bright, tmp_path):
    path, _ = segmentations(study, bright, tmp_path / "out")
    file = pydicom.dcmread(path)
    assert file.SOPClassUID == uid.SegmentationStorage
    assert (file.StudyInstanceUID, file.PatientID) == ("1.2.3", "ID7")
    assert file.SeriesInstanceUID != "1.2.3.4"
    assert file.ContentDescription == DESCRIPTION
    [segment] = file.SegmentSequence
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("36118008", "SCT")
    [algorithm] = segment.SegmentationAlgorithmIdentificationSequence
    assert algorithm.AlgorithmName.startswith("pneumo bright@")
    assert algorithm.AlgorithmVersion == file.SoftwareVersions
    assert algorithm.AlgorithmFamilyCodeSequence[0].CodeMeaning == "Artificial Intelligence"


def test_nothing_of_the_patient_is_in_it_but_what_is_required(study, bright, tmp_path):
    _, path = paths = segmentations(study, bright, tmp_path / "out")
    file = pydicom.dcmread(path)
    assert not [name for name in NOT_REQUIRED if name in file]
    content = path.read_bytes()
    for value in NOT_REQUIRED.values():
        assert str(value).encode() not in content or value == 70
    others = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p not in paths]
    assert not any(b"SECRET" in p.read_bytes() for p in others)


def test_validator_finds_no_error(study, bright, siim_dicom, tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed: Debian package dicom3tools")
    paths = segmentations([study, next(siim_dicom.rglob("*.dcm"))], bright, tmp_path / "out")
    assert len(paths) == 3
    for path in paths:
        done = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        assert "Segmentation" in done.stderr
        assert "Error" not in done.stderr


def test_objects_of_a_study_are_one_series(study, bright, tmp_path):
    write(study, "ccc", np.zeros((30, 30), np.uint8), StudyInstanceUID="1.2.9")
    files = [pydicom.dcmread(path) for path in segmentations(study, bright, tmp_path / "out")]
    assert files[0].SeriesInstanceUID == files[1].SeriesInstanceUID != files[2].SeriesInstanceUID
    assert [file.InstanceNumber for file in files] == [1, 2, 1]
    assert len({file.SOPInstanceUID for file in files}) == 3
    assert not files[2].pixel_array.any()  # that nothing was found is a result


def test_second_call_gives_the_same_objects(study, bright, tmp_path):
    paths = segmentations(study, bright, tmp_path / "out")
    first = [pydicom.dcmread(path).SOPInstanceUID for path in paths]
    assert segmentations(study, bright, tmp_path / "out") == paths
    assert [pydicom.dcmread(path).SOPInstanceUID for path in paths] == first
    assert len(list((tmp_path / "out" / "segmentations").iterdir())) == 2


def test_dropped_fields_that_must_be_there_are_left_empty(bright, tmp_path):
    write(tmp_path / "study", "a", bright_where(0), **dict.fromkeys(PATIENT))
    [path] = segmentations(tmp_path / "study", bright, tmp_path / "out")
    file = pydicom.dcmread(path)
    assert [file[name].value or "" for name in PATIENT] == [""] * len(PATIENT)


@pytest.mark.parametrize(
    ("charsets", "name"),  # of DICOM PS3.5, annexes H.3.1 and I.2
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_names_in_several_character_sets_are_kept(bright, tmp_path, charsets, name):
    fields = {"SpecificCharacterSet": charsets, "PatientName": name}
    write(tmp_path / "study", "a", bright_where(0), **fields)
    [path] = segmentations(tmp_path / "study", bright, tmp_path / "out")
    assert pydicom.dcmread(path).PatientName == name


def test_missing_highdicom_is_named_with_the_remedy(study, bright, tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_seg, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package highdicom: pip install"):
        segmentations(study, bright, tmp_path / "out")


def test_file_without_what_a_reference_needs_fails_and_the_others_go_on(
    study,
    bright,
    tmp_path,
    recwarn,
    caplog,
):
    write(study, "ccc", bright_where(0), SeriesInstanceUID=None, StudyInstanceUID="1.2.9")
    write(study, "dddd", bright_where(0), StudyInstanceUID=None)
    with pydicom.config.disable_value_validation():
        write(study, "eeeee", bright_where(0), StudyDate="SECRET", StudyInstanceUID="1.2.8")
    outcome = predict_files(study, bright, tmp_path / "out", dicom_seg=True)
    assert len(outcome.segmentations) in (2, 3)
    failed = {row["file"].rpartition("/")[2]: row["error"] for row in outcome.failed}
    assert failed.keys() >= {"ccc.dcm", "dddd.dcm"}
    assert "no DICOM SEG could be made" in failed["ccc.dcm"]
    said = "".join(map(str, failed.values())) + caplog.text + str([str(w.message) for w in recwarn])
    assert "SECRET" not in said


def test_pictures_that_are_no_dicom_get_none(bright, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8), np.uint8))
    assert segmentations(tmp_path / "a.png", bright, tmp_path / "out") == []
