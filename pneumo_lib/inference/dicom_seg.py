"""Predicted masks as DICOM SEG objects, which viewers overlay on the X-rays they refer to."""

import hashlib
import warnings
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import cv2
import pydicom
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from pneumo_lib._files import atomic_write
from pneumo_lib.data.images import is_dicom
from pneumo_lib.inference.prediction_rows import NOTE

DESCRIPTION = NOTE.capitalize()
PNEUMOTHORAX = Code("36118008", "SCT", "Pneumothorax")
_SERIES_NUMBER = 9901  # beyond those of the X-rays
# Required by the standard in every object of a patient's study. Nothing else is read of the
# patient, so nothing else can be copied.
_PATIENT_AND_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_IMAGE = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns"),
    *("FrameOfReferenceUID", "PixelSpacing", "ImagerPixelSpacing", "PatientOrientation"),
)


def segment_studies(out, rows, run):
    """Writes a DICOM SEG object for each X-ray with a predicted mask, one series per study.

    Not one object per study: its X-rays share no frame of reference, and without one highdicom
    takes a single frame. Equal masks get the same object in every call.

    `out` is the folder of `predict_files()` with the masks, `rows` are those of its `Outcome`,
    whose files other than DICOM are skipped, and `run` is the `run_id()` of the network.

    Returns:
        `(paths, failed)`: `<out>/segmentations/<output>.dcm`, and the rows of X-rays for which
        none could be made, with the reason as their error. A ValueError without highdicom.
    """
    if find_spec("highdicom") is None:
        raise ValueError(
            "DICOM SEG needs the package highdicom: pip install 'pneumo[dicom]'. Received: none"
        )
    (out / "segmentations").mkdir(exist_ok=True)
    numbers, paths, failed = Counter(), [], []
    # pydicom's messages on values that break the standard quote them.
    with pydicom.config.disable_value_validation(), warnings.catch_warnings(action="ignore"):
        for row in rows:
            path = Path(row["file"])
            if row["error"] or not _is_dicom(path):
                continue
            try:
                header = _header(path)
                numbers[header.StudyInstanceUID] += 1
                number = numbers[header.StudyInstanceUID]
                paths.append(_write(out, header, row, run, number=number))
            except Exception as error:  # a header that lacks what a reference needs
                reason = f"no DICOM SEG could be made: {type(error).__name__}"
                failed.append(row | {"error": reason})
    return paths, failed


def _is_dicom(path):
    with path.open("rb") as file:
        return path.suffix.lower() == ".dcm" or is_dicom(file.read(132))


def _header(path):
    tags = [*_PATIENT_AND_STUDY, *_IMAGE, "StudyInstanceUID"]
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
    header.decode()  # to UTF-8: highdicom takes one character set, and names may need several
    for name in _PATIENT_AND_STUDY:  # an anonymiser may have dropped what must be there, if empty
        if name not in header:
            setattr(header, name, None)
    return header


def _write(out, header, row, run, *, number):
    mask = cv2.imread(str(out / "masks" / f"{row['output']}.png"), cv2.IMREAD_GRAYSCALE) // 255
    digest = hashlib.sha256(mask.tobytes()).hexdigest()
    uids = {
        "series_instance_uid": generate_uid(entropy_srcs=[run, header.StudyInstanceUID]),
        "sop_instance_uid": generate_uid(entropy_srcs=[run, header.SOPInstanceUID, digest]),
    }
    path = out / "segmentations" / f"{row['output']}.dcm"
    with atomic_write(path) as aside:
        made = _segmentation(header, mask, run, instance_number=number, **uids)
        made.save_as(aside, enforce_file_format=True)
    return path


def _segmentation(header, mask, run, **identity):
    from highdicom import AlgorithmIdentificationSequence, seg

    algorithm = AlgorithmIdentificationSequence(
        name=f"pneumo {run}", version=version("pneumo"), family=codes.DCM.ArtificialIntelligence
    )
    description = seg.SegmentDescription(
        segment_number=1,
        segment_label="Pneumothorax",
        segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
        segmented_property_type=PNEUMOTHORAX,
        algorithm_type=seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )
    made = seg.Segmentation(
        source_images=[header],
        pixel_array=mask,
        segmentation_type=seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        series_number=_SERIES_NUMBER,
        manufacturer="pneumo",
        manufacturer_model_name="pneumo",
        software_versions=version("pneumo"),
        device_serial_number=run.rpartition("@")[2],
        content_label="PNEUMOTHORAX",
        content_description=DESCRIPTION,
        series_description=f"Pneumothorax. {DESCRIPTION}",
        omit_empty_frames=False,  # an empty mask is a result
        specific_character_set="ISO_IR 192",
        **identity,
    )
    if "PatientOrientation" not in made:
        made.PatientOrientation = None  # required of projections, empty where unknown
    return made
