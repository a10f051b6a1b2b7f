"""One task of an archive prediction, on a worker: files in, one whole Parquet file out."""

import hashlib
import json
import logging
import os
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from pneumo_lib.archive_files import FileName, load, locate, save
from pneumo_lib.inference import load_foreground, predictions, read_file
from pneumo_lib.logs import log_levels
from pneumo_lib.operating_point import OperatingPoint
from pneumo_lib.prediction_files import describe, text_of
from pneumo_lib.rle import rle_encode
from pneumo_lib.runs import Run

# Those of predictions.csv but for the pictures' name, with the masks instead of the pictures.
SCHEMA = pa.schema(
    {
        "file": pa.string(),
        "sha256": pa.string(),
        "probability": pa.float64(),
        "area_px": pa.int64(),
        "area_cm2": pa.float64(),
        "side": pa.string(),
        "side_source": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "EncodedPixels": pa.string(),
        "top_threshold": pa.float64(),
        "min_area": pa.float64(),
        "bottom_threshold": pa.float64(),
        "run": pa.string(),
        "error": pa.string(),
        "note": pa.string(),
    }
)
_BATCH = 32
_READERS = 16  # threads that read and decode ahead; most of them wait for the store
_CHECKSUM = b"pneumo.sha256"


class Summary(NamedTuple):
    """What is known of a partition once its file is whole."""

    size: int  # bytes of the file
    sha256: str
    rows: int
    failed: list  # (file, error)
    is_new: bool


def predict_partition(partition, *, out, settings):
    """Make the file of a partition unless it is there, whole; the same one whenever it is made.

    Args:
        partition: `Partition`.
        out: folder of the archive's results, path or URL, with the network in it.
        settings: dict with `run` and `operating_point`, as `prediction.json` holds it.

    Returns:
        `Summary`.

    Raises:
        OSError: if the folder cannot be read or written.
        ValueError: if the network in it is not the one of `settings`.
    """
    store, folder = locate(out)
    path = f"{folder}/parts/{partition.name}"
    data = store.cat_file(path) if store.exists(path) else b""
    table = read_whole(data, partition.files)
    is_new = table is None
    if is_new:
        table = _predict(partition.files, out, settings)
        data = _as_parquet(table)
        save(data, store, path)
    failed = [(row["file"], row["error"]) for row in table.to_pylist() if row["error"]]
    return Summary(len(data), hashlib.sha256(data).hexdigest(), table.num_rows, failed, is_new)


def read_whole(data, files):
    """Table of a partition's file; `None` if it is torn, changed, or has files that were not read.

    Args:
        data: bytes of the Parquet file.
        files: names that it must hold, in their order.
    """
    try:
        table = pq.read_table(BytesIO(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError):
        return None
    said = (table.schema.metadata or {}).get(_CHECKSUM, b"").decode()
    if said != _checksum(table) or table["file"].to_pylist() != list(map(text_of, files)):
        return None
    # a file without checksum could not be read: the store may answer this time
    return None if table["sha256"].null_count else table


def _checksum(table):
    return hashlib.sha256(json.dumps(table.to_pydict()).encode()).hexdigest()


def _as_parquet(table):
    whole = table.replace_schema_metadata({_CHECKSUM: _checksum(table)})
    sink = BytesIO()
    pq.write_table(whole, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _predict(files, out, settings):
    size, foreground = _network(out, settings["run"])
    point = OperatingPoint(*settings["operating_point"])
    read = partial(_read, size=size)
    found = predictions(map(FileName, files), read, foreground, point, _BATCH, _READERS)
    # failures are in the rows, and what pydicom says may quote a header
    with log_levels(pneumo_lib__inference=logging.ERROR, pydicom=logging.CRITICAL):
        rows = [_row(prediction, settings) for prediction in found]
    columns = [
        pa.array([None if row[field.name] == "" else row[field.name] for row in rows]).cast(
            field.type
        )
        for field in SCHEMA
    ]
    return pa.table(columns, schema=SCHEMA)


def _read(name, *, size):
    """As `read_file()` with `keep`, but for the X-ray at its full size, which nothing needs."""
    file, image = read_file(name, size=size, keep=True, load=load)
    return file._replace(xray=file.xray and file.xray._replace(image=None)), image


def _row(prediction, settings):
    row = describe(prediction, settings) | dict.fromkeys(("height", "width", "EncodedPixels"), "")
    if prediction.error is None:
        height, width = prediction.mask.shape
        text = rle_encode(prediction.mask) if row["area_px"] else "-1"
        row |= {"height": height, "width": width, "EncodedPixels": text}
    return row


@lru_cache(maxsize=1)
def _network(out, run):
    """`(size, function)` of the network that lies with the results, once for each process."""
    store, folder = locate(out)
    try:
        config = json.loads(store.cat_file(f"{folder}/network/config.json"))
        data = store.cat_file(f"{folder}/network/model.keras")
    except FileNotFoundError:
        raise FileNotFoundError(
            "Every worker must see the folder of the results: give a shared file system or an "
            f"object store. Received: {out}, which holds no network as seen from a worker"
        ) from None
    if hashlib.sha256(data).hexdigest()[:12] != run.rpartition("@")[2]:
        raise ValueError(
            f"The network in {out} must be that of {run}. Received: another; remove the folder "
            "`network`, and the next call writes it again"
        )
    if threads := os.environ.get("OPENCV_FOR_THREADS_NUM"):
        cv2.setNumThreads(int(threads))
    with TemporaryDirectory() as place:
        (Path(place) / "model.keras").write_bytes(data)
        network = Run(Path(place), config, None, None)
        return config["size"], load_foreground(network, batch_size=_BATCH, xla=True)
