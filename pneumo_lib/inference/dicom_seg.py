"""Predicted masks as DICOM SEG objects, which viewers lay over the X-rays they refer to."""

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

DESCRIPTION = "Research and teaching, not a medical device"
PNEUMOTHORAX = Code("36118008", "SCT", "Pneumothorax")
_SERIES_NUMBER = 9901  # beyond those of the X-rays
# What the standard requires of every object that belongs to a patient's study; nothing else is
# read, so nothing else can be copied.
_PATIENT_AND_STUDY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_IMAGE = (
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns"),
    *("FrameOfReferenceUID", "PixelSpacing", "ImagerPixelSpacing", "PatientOrientation"),
)


def segment_studies(out, rows, run):
    """Write a DICOM SEG object for each X-ray with a predicted mask, one series for each study.

    Not one object for a study: its X-rays share no frame of reference, and without one highdicom
    takes a single frame. Called again, it gives equal masks the same object.

    Args:
        out: folder of `predict_files()`, which holds the masks.
        rows: those of its `Outcome`; files that are not DICOM are passed over.
        run: name of the network and its checksum, see `runs.run_id()`.

    Returns:
        `(paths, failed)`: `<out>/segmentations/<output>.dcm`, and the rows of files that could
        get none, with the reason as their error.

    Raises:
        ValueError: without highdicom.
    """
    if find_spec("highdicom") is None:
        raise ValueError(
            "DICOM SEG needs the package highdicom: pip install 'pneumo[dicom]'. Received: none"
        )
    (out / "segmentations").mkdir(exist_ok=True)
    numbers, paths, failed = Counter(), [], []
    # What pydicom says of a value that breaks the standard quotes it.
    with pydicom.config.disable_value_validation(), warnings.catch_warnings(action="ignore"):
        for row in rows:
            header = None if row["error"] else _header(Path(row["file"]))
            if header is None:
                continue
            try:
                study = str(header.StudyInstanceUID)
                numbers[study] += 1
                paths.append(_write(out, header, row, run, number=numbers[study]))
            except Exception as error:  # a header that lacks what a reference needs
                reason = f"no DICOM SEG could be made: {type(error).__name__}"
                failed.append(row | {"error": reason})
    return paths, failed


def _header(path):
    with path.open("rb") as file:
        if not is_dicom(file.read(132)) and path.suffix.lower() != ".dcm":
            return None
    tags = [*_PATIENT_AND_STUDY, *_IMAGE, "StudyInstanceUID"]
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
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
        omit_empty_frames=False,  # that nothing was found on an image is a result
        **identity,
    )
    if "PatientOrientation" not in made:
        made.PatientOrientation = None  # required of projections, empty where unknown
    return made
