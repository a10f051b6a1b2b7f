"""`pneumo predict`: a folder of probabilities, masks, overlays and one table from X-ray files."""

import csv
import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from pneumo_lib._files import atomic_write, begin_folder, file_lock
from pneumo_lib.data.files import image_id
from pneumo_lib.inference import prediction_rows
from pneumo_lib.inference.dicom_seg import segment_studies
from pneumo_lib.inference.overlay import draw_overlay, write_png
from pneumo_lib.inference.predict import ahead, find_images, predict
from pneumo_lib.inference.prediction_rows import FILE_COLUMNS, IDENTITY, NOTE, describe, text_of
from pneumo_lib.runs import load_operating_point, load_run, run_id

KINDS = ("probabilities", "masks", "overlays")
_BATCH = 8  # small: three batches of X-rays wait at full size
_FOLDERS = """probabilities/     65535 times the probability of each pixel, at the network's size
masks/             255 is pneumothorax, at the size of the X-ray
overlays/          X-ray and mask in one picture
"""


class Outcome(NamedTuple):
    """Result of `predict_files()`."""

    rows: list  # of dicts with the keys `FILE_COLUMNS`, one per file of this call, in its order
    failed: list  # rows with an error, of the prediction or of its DICOM SEG object
    predicted: int  # files; the others were there before, or failed
    segmentations: list  # paths of DICOM SEG objects


def predict_files(files, run, out, *, operating_point=None, dicom_seg=False):
    """Predicts files into a folder; a second call predicts only new and changed files.

    Args:
        files: as for `predict.predict()`.
        run: `Run`, or what `load_run()` takes.
        out: folder: new, empty, or of an earlier call with the same network and operating point.
        operating_point: `OperatingPoint`; `None` is the run's own.
        dicom_seg: whether to write DICOM SEG objects too, see `segment_studies()`.

    Returns:
        `Outcome`. In the folder: `predictions.csv`, `README.txt` and the folders of `KINDS`.

    Raises:
        FileNotFoundError, ValueError: as `predict()`; or if `out` holds something else.
    """
    run = load_run(run)
    point = load_operating_point(run) if operating_point is None else operating_point
    out = Path(out).resolve()
    # absolute, or a relative path would be another file in a call from another folder
    found = (Path(os.path.abspath(path)) for path in find_images(files))
    paths = list(dict.fromkeys(path for path in found if out not in path.resolve().parents))
    settings = {"made_by": "pneumo predict", "run": run_id(run), "operating_point": list(point)}
    with file_lock(out):
        begin_folder(out, settings, record=IDENTITY, what="A prediction")
        title = "predictions.csv has one row per file"
        text = prediction_rows.readme(title, FILE_COLUMNS, _FOLDERS)
        (out / "README.txt").write_text(text, encoding="utf-8")
        for kind in KINDS:
            (out / kind).mkdir(exist_ok=True)
        rows = {row["file"]: row for row in read_table(out) if _is_whole(out, row)}
        _write_table(out, rows)
        todo = _new_or_changed(paths, rows)
        options = {"operating_point": point, "keep": True, "batch_size": _BATCH}
        made = _write_all(predict(todo, run, **options) if todo else (), len(todo), out, settings)
        rows |= made
        _write_table(out, rows)
        given = [rows[text_of(path)] for path in paths]
        failed = [row for row in given if row["error"]]
        segmentations = []
        if dicom_seg:
            segmentations, without = segment_studies(out, given, settings["run"])
            failed += without
    predicted = sum(not row["error"] for row in made.values())
    return Outcome(given, failed, predicted, segmentations)


def read_table(out):
    """Rows of `predictions.csv` as dicts of text, except one that a kill cut short.

    None of a table without today's columns: an older release read its X-rays.
    """
    path = out / "predictions.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.DictReader(file)
        known = table.fieldnames == list(FILE_COLUMNS)
        return [row for row in table if known and row["note"] == NOTE]


def _is_whole(out, row):
    """Whether all pictures of a row are there; each was written atomically."""
    return not row["error"] and all((out / k / f"{row['output']}.png").is_file() for k in KINDS)


def _new_or_changed(paths, rows):
    """Paths without a row, or with one of another checksum."""

    def is_new(path):
        try:
            return rows[text_of(path)]["sha256"] != hashlib.sha256(path.read_bytes()).hexdigest()
        except (KeyError, OSError):  # a missing file gets a row with the error
            return True

    with ThreadPoolExecutor() as threads:
        return list(compress(paths, threads.map(is_new, paths)))


def _write_all(predictions, total, out, settings):
    """Dict of rows by file; each is appended to the table after its pictures."""
    rows = {}
    with (
        ThreadPoolExecutor(2) as threads,
        (out / "predictions.csv").open("a", newline="", encoding="utf-8") as file,
    ):
        write = partial(_write_pictures, out=out, settings=settings)
        written = ahead(threads, write, predictions, count=4)
        for row in tqdm(written, "predicting", total, unit="file"):
            rows[row["file"]] = row
            csv.writer(file).writerow(_cells(row))
            file.flush()
    return rows


def _write_pictures(prediction, *, out, settings):
    """Writes the pictures of one prediction and returns its row."""
    row = describe(prediction, settings)
    if prediction.error is None:
        row["output"] = _output_name(row, prediction.path)
        pictures = (
            np.rint(prediction.probability * 65535).astype(np.uint16),
            prediction.mask * np.uint8(255),
            draw_overlay(prediction.xray.image, prediction.mask, _caption(row)),
        )
        for kind, picture in zip(KINDS, pictures, strict=True):
            write_png(out / kind / row["output"], picture)
    return row


def _output_name(row, path):
    """File name without suffix: unique per path and content, the same in the next call."""
    digest = hashlib.sha256(f"{row['file']}\0{row['sha256']}".encode()).hexdigest()[:8]
    # no formula, option or hidden file
    stem = re.sub(r"^\W|[^A-Za-z0-9._-]", "_", image_id(path.name))
    return f"{stem[:100]}-{digest}"


def _caption(row):
    found = "no pneumothorax outlined"
    if row["area_px"]:
        known = row["area_cm2"] is not None
        area = f"{row['area_cm2']:.2f} cm2" if known else f"{row['area_px']} px"
        area += " on the detector" if "detector" in (row["area_source"] or "") else ""
        found = f"{area}, patient's side: {row['side']} (by {row['side_source']})"
    return [f"image-level score {row['probability']:.2f}: {found}", f"pneumo: {NOTE}"]


def _write_table(out, rows):
    with (
        atomic_write(out / "predictions.csv") as aside,
        aside.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(FILE_COLUMNS)
        table.writerows(map(_cells, sorted(rows.values(), key=itemgetter("file"))))


def _cells(row):
    """Cells of a row; an apostrophe keeps spreadsheets from running text as a formula."""
    return [
        f"'{cell}" if isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r") else cell
        for cell in (row[name] for name in FILE_COLUMNS)
    ]
