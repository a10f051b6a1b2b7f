"""Rows of predictions, the same for single files and for archives."""

import textwrap

import numpy as np

from pneumo_lib.evaluation.operating_point import OperatingPoint

NOTE = "research and teaching, not a medical device"
IDENTITY = "prediction.json"
_COLUMNS = (  # name, type in Parquet, what it holds
    ("file", "string", "absolute path of the X-ray, or its URL"),
    ("sha256", "string", "of the file"),
    ("probability", "double", "image-level score: pneumothorax anywhere in the X-ray, 0 to 1, not "
     "calibrated; of the run's image-level head if it has one"),
    ("area_px", "int64", "of the mask"),
    ("area_cm2", "double", "of the mask, where the file gives the pixel spacing"),
    ("area_source", "string", "fields of the header that give the pixel spacing; \"on the "
     "detector\": the X-ray is larger there than the patient, and so is the area"),
    ("side", "string", "of the PATIENT: left, right, both (a quarter or more on each), unknown"),
    ("side_source", "string", "field of the header that gives the side; \"convention\": there is "
     "none, so the patient's left is taken to be at the right edge"),
    ("height", "int32", "of the X-ray in pixels"),
    ("width", "int32", "of the X-ray in pixels"),
    ("EncodedPixels", "string", "the mask as SIIM run lengths, -1 if it is empty"),
    ("top_threshold", "double", "operating point: a mask is drawn where at least the share "
     "min_area of the pixels reaches top_threshold"),
    ("min_area", "double", "see top_threshold"),
    ("bottom_threshold", "double", "the mask, if drawn, holds all pixels that reach it"),
    ("min_score", "double", "a mask is drawn only where `probability` reaches it"),
    ("run", "string", "the network, and the first digits of its checksum"),
    ("output", "string", "name of the pictures in the folders below"),
    ("error", "string", "why a file has no prediction"),
    ("note", "string", NOTE),
)  # fmt: skip
_ONLY_IN_ARCHIVES = ("height", "width", "EncodedPixels")  # in place of the pictures
FILE_COLUMNS = tuple(name for name, *_ in _COLUMNS if name not in _ONLY_IN_ARCHIVES)
ARCHIVE_COLUMNS = {name: arrow for name, arrow, _ in _COLUMNS if name != "output"}


def describe(prediction, settings):
    """Row of a `predict.Prediction`: dict of numbers and text by column, `None` where empty.

    `settings` are those of the call: `run`, see `run_id()`, and `operating_point`, its numbers.
    """
    row = dict.fromkeys(name for name, *_ in _COLUMNS) | {"run": settings["run"], "note": NOTE}
    row |= {"file": text_of(prediction.path), "sha256": prediction.sha256}
    if prediction.error is not None:
        return row | {"error": text_of(prediction.error)}
    mask, xray = prediction.mask, prediction.xray
    area = np.count_nonzero(mask)
    row |= OperatingPoint(*settings["operating_point"])._asdict()
    return row | {
        "probability": round(prediction.score, 4),
        "area_px": area,
        "area_cm2": round(area * float(np.prod(xray.spacing)) / 100, 2) if xray.spacing else None,
        "area_source": xray.spacing_source,
        "side": side_of(mask, xray.patients_left) or None,
        "side_source": xray.side_source,
        "height": mask.shape[0],
        "width": mask.shape[1],
    }


def typed(row):
    """Row of a table of single files with numbers as numbers, and `None` where a cell is empty."""
    kinds = {"int64": int, "double": float, "string": str}
    named = [(name, kinds[kind]) for name, kind, _ in _COLUMNS if name in FILE_COLUMNS]
    return {name: None if row[name] in ("", None) else kind(row[name]) for name, kind in named}


def side_of(mask, patients_left):
    """Side of the patient that a mask is on: "left", "right", "both", "unknown" or "" without.

    `mask` is `(height, width)` of 0 and 1, `patients_left` that of `XRay`.
    """
    if not mask.any():
        return ""
    if patients_left not in ("left", "right", "top", "bottom"):
        return {"everywhere": "left", "nowhere": "right"}.get(patients_left, "unknown")
    along = mask.sum(axis=0 if patients_left in ("left", "right") else 1, dtype=np.int64)
    along = along if patients_left in ("left", "top") else along[::-1]
    half = len(along) // 2
    left, right = along[:half].sum(), along[len(along) - half :].sum()
    share = left / max(left + right, 1)
    return "both" if 0.25 <= share <= 0.75 else "left" if share > 0.5 else "right"


def text_of(path):
    """A path as valid UTF-8: bytes that are none are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def readme(table, columns, folders):
    """Text of a `README.txt`: `table` is the heading of the `columns`, `folders` the last lines."""
    lines = [
        textwrap.fill(text, 96, initial_indent=f"  {name:18}", subsequent_indent=20 * " ")
        for name, _, text in _COLUMNS
        if name in columns
    ]
    return "\n".join([f"Predictions of pneumo: {NOTE}.", "", f"{table}:", *lines, "", folders])
