"""`pneumo predict`: X-ray files in, a folder of maps, masks, overlays and one table out."""

import csv
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from pneumo_lib.dicom_seg import segment_studies
from pneumo_lib.inference import ahead, find_images, predict
from pneumo_lib.operating_point import load_operating_point
from pneumo_lib.overlay import draw_overlay, write_png
from pneumo_lib.paths import alone, written_aside
from pneumo_lib.prediction_rows import IDENTITY, create_results_folder
from pneumo_lib.runs import load_run

NOTE = "research and teaching, not a medical device"
KINDS = ("probabilities", "masks", "overlays")
COLUMNS = (
    *("file", "sha256", "probability", "area_px", "area_cm2", "side", "side_source"),
    *("top_threshold", "min_area", "bottom_threshold", "run", "output", "error", "note"),
)
_BATCH = 8  # X-rays wait at full size, three batches of them
_README = f"""Predictions of pneumo: {NOTE}.

predictions.csv   one row a file:
  probability       evidence of pneumothorax in the whole image, 0 to 1, not calibrated
  area_px, area_cm2 of the mask; cm2 where the file gives the pixel spacing
  side              of the PATIENT: left, right, both (a quarter or more on each), unknown
  side_source       "convention": the file does not say, so the patient's left is taken to be
                    at the right edge; else the field of the header that says
  top_threshold, min_area, bottom_threshold   operating point: a mask is drawn where at least
                    the share min_area of the pixels reaches top_threshold; it then holds
                    all pixels that reach bottom_threshold
  run               the network, and the first digits of its checksum
  output            name of the pictures in the folders below
  error             why a file has no prediction

probabilities/    65535 times the probability of each pixel, at the network's size
masks/            255 is pneumothorax, at the size of the X-ray
overlays/         X-ray and mask in one picture
"""


class Outcome(NamedTuple):
    """What `predict_files()` did."""

    rows: list  # of dicts with the keys `COLUMNS`, one a file of this call, in its order
    failed: list  # those of them with an error
    predicted: int  # files; the others were there before, or failed
    segmentations: list  # paths of DICOM SEG objects


def predict_files(files, run, out, *, operating_point=None, dicom_seg=False, workers=None):
    """Predict files into a folder; a second call predicts only what is new or has changed.

    Args:
        files: as for `inference.predict()`.
        run: `Run`, or what `load_run()` takes.
        out: folder, new, empty, or of an earlier call with the same network and operating point.
        operating_point: `OperatingPoint`; `None` is the run's own.
        dicom_seg: whether to write DICOM SEG objects too, see `segment_studies()`.
        workers: decoding threads, as for `predict()`.

    Returns:
        `Outcome`. In the folder: `predictions.csv`, `README.txt` and the folders of `KINDS`.

    Raises:
        FileNotFoundError: if there is no file, or no finished run.
        ValueError: if `out` holds something else.
    """
    run = run if hasattr(run, "folder") else load_run(run)
    point = load_operating_point(run) if operating_point is None else operating_point
    out = Path(out).resolve()
    paths = list(dict.fromkeys(p for p in find_images(files) if out not in p.resolve().parents))
    settings = {"made_by": "pneumo predict", "run": run_id(run), "operating_point": list(point)}
    with alone(out):
        _create(out, settings)
        kept = {row["file"]: row for row in read_table(out) if _is_whole(out, row)}
        _write_table(out, kept.values())
        done = {(p, kept[text_of(p)]["sha256"]) for p in paths if text_of(p) in kept}
        predictions = predict(
            paths,
            run,
            operating_point=point,
            keep=True,
            skip=done,
            batch_size=_BATCH,
            workers=workers,
        )
        write = partial(_write_outputs, out=out, settings=settings, kept=kept)
        rows, predicted = _collect(out, write, predictions, len(paths))
        given = {row["file"] for row in rows}
        _write_table(out, [*rows, *(row for name, row in kept.items() if name not in given)])
        failed = [row for row in rows if row["error"]]
        segmentations, without = (
            segment_studies(out, rows, settings["run"]) if dicom_seg else ([], [])
        )
    return Outcome(rows, failed + without, predicted, segmentations)


def run_id(run):
    """Name of a run and the first digits of its network's checksum."""
    digest = hashlib.sha256((run.folder / "model.keras").read_bytes()).hexdigest()
    return f"{run.folder.name}@{digest[:12]}"


def read_table(out):
    """Rows of `predictions.csv` as dicts of text, without one that a kill cut short."""
    path = out / "predictions.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["note"] == NOTE]
    return [row | {"file": row["file"].removeprefix("'")} for row in rows]


def side_of(mask, patients_left):
    """Side of the patient that a mask lies on: "left", "right", "both", "unknown" or ""."""
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


def _create(out, settings):
    """Folder with its subfolders, see `create_results_folder()`."""

    def write(name, data):
        with written_aside(out / name) as aside:
            aside.write_bytes(data)

    out.mkdir(parents=True, exist_ok=True)
    names = [path.name for path in out.iterdir()]
    identity = (out / IDENTITY).read_bytes() if IDENTITY in names else None
    create_results_folder(out, settings, _README, names=names, identity=identity, write=write)
    for kind in KINDS:
        (out / kind).mkdir(exist_ok=True)


def _is_whole(out, row):
    """Whether the pictures of a row are there; each was renamed into place when it was whole."""
    return not row["error"] and all((out / k / f"{row['output']}.png").is_file() for k in KINDS)


def _collect(out, write, predictions, total):
    """Write each result as it comes, its row last; `(rows, how many were predicted)`."""
    rows, predicted = [], 0
    with (
        closing(predictions),
        ThreadPoolExecutor(2) as threads,
        (out / "predictions.csv").open("a", newline="", encoding="utf-8") as file,
        tqdm(total=total, desc="predicting", unit="file") as bar,
    ):
        table = csv.writer(file)
        for row, is_new in ahead(threads, write, predictions, count=4):
            rows.append(row)
            predicted += is_new and not row["error"]
            if is_new:
                table.writerow(_cells(row))
                file.flush()
            bar.update()
    return rows, predicted


def _write_outputs(prediction, *, out, settings, kept):
    """`(row, whether it is new)` of one result, its pictures written."""
    path, xray, mask = prediction.path, prediction.xray, prediction.mask
    name = text_of(path)
    if mask is None and prediction.error is None:
        return kept[name], False
    row = describe(prediction, settings)
    if prediction.error is not None:
        return row, True
    row["output"] = _output_name(name, path, prediction.sha256)
    write_png(
        out / "probabilities" / row["output"],
        np.rint(prediction.probability * 65535).astype(np.uint16),
    )
    write_png(out / "masks" / row["output"], mask * np.uint8(255))
    write_png(out / "overlays" / row["output"], draw_overlay(xray.image, mask, _caption(row)))
    return row, True


def describe(prediction, settings):
    """Dict with the keys `COLUMNS` of one result, "" where nothing can be said.

    Args:
        prediction: `Prediction` with its `xray` and `sha256`.
        settings: dict with `run`, see `run_id()`, and `operating_point`, three numbers.
    """
    row = dict.fromkeys(COLUMNS, "")
    row |= {"file": text_of(prediction.path), "sha256": prediction.sha256 or ""}
    row |= {"run": settings["run"], "error": prediction.error or "", "note": NOTE}
    if prediction.error is not None:
        return row
    mask, xray = prediction.mask, prediction.xray
    area = int(np.count_nonzero(mask))
    top, min_area, bottom = settings["operating_point"]
    return row | {
        "probability": f"{prediction.evidence:.4f}",
        "area_px": area,
        "area_cm2": f"{area * np.prod(xray.spacing) / 100:.2f}" if xray.spacing else "",
        "side": side_of(mask, xray.patients_left),
        "side_source": xray.side_source,
        "top_threshold": top,
        "min_area": min_area,
        "bottom_threshold": bottom,
    }


def text_of(path):
    """A path as text that any reader of UTF-8 takes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _output_name(name, path, sha256):
    """Different for files of one name in two folders, and the same in the next call."""
    digest = hashlib.sha256(f"{name}\0{sha256}".encode()).hexdigest()[:8]
    stem = re.sub(r"^\W|[^A-Za-z0-9._-]", "_", path.stem)  # no formula, option or hidden file
    return f"{stem[:100]}-{digest}"


def _caption(row):
    found = "no pneumothorax outlined"
    if row["area_px"]:
        area = f"{row['area_cm2']} cm2" if row["area_cm2"] else f"{row['area_px']} px"
        found = f"{area}, patient's side: {row['side']} (by {row['side_source']})"
    return [f"evidence {float(row['probability']):.2f}: {found}", f"pneumo: {NOTE}"]


def _write_table(out, rows):
    with (
        written_aside(out / "predictions.csv") as aside,
        aside.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.writer(file)
        table.writerow(COLUMNS)
        table.writerows(map(_cells, rows))


def _cells(row):
    """A row's cells; text that a spreadsheet would run as a formula gets an apostrophe."""
    return [
        f"'{cell}" if isinstance(cell, str) and cell[:1] in tuple("=+-@\t\r") else cell
        for cell in (row[name] for name in COLUMNS)
    ]
