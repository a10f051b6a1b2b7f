"""One task of an archive prediction, on a worker: a partition's files into one Parquet file."""

import hashlib
import json
import logging
import os
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import pyarrow as pa
import pyarrow.parquet as pq

from pneumo_lib._logs import log_levels
from pneumo_lib.cluster.archive_files import load, locate, save
from pneumo_lib.data.rle import rle_encode
from pneumo_lib.evaluation.operating_point import OperatingPoint
from pneumo_lib.inference.predict import load_scored, predictions, read_file
from pneumo_lib.inference.prediction_rows import ARCHIVE_COLUMNS, describe, text_of
from pneumo_lib.runs import IMAGE_HEAD, Run

SCHEMA = pa.schema(list(ARCHIVE_COLUMNS.items()))
_BATCH = 32
_READERS = 16  # threads that read and decode ahead; most wait for the store
_CHECKSUM = b"pneumo.sha256"


def predict_partition(partition, *, out, settings):
    """Write the file of a `Partition` unless it is there, whole; equal inputs give equal files.

    `out` is the folder of the archive's results, path or URL, with the network in it, `settings`
    its `prediction.json`. Raises OSError or ValueError if the folder cannot be read or written, or
    holds another network.

    Returns:
        `(size, sha256, rows, failed, is_new)`: bytes and checksum of the file, number of its rows,
        `(file, error)` of those with an error, and whether this call made it.
    """
    store, folder = locate(out)
    path = f"{folder}/parts/{partition.name}"
    data = store.cat_file(path) if store.exists(path) else b""
    table = read_whole(data, partition.files)
    if is_new := table is None:
        table = _predict(partition.files, out, settings)
        data = _as_parquet(table)
        save(data, store, path)
    failed = [(row["file"], row["error"]) for row in table.to_pylist() if row["error"]]
    return len(data), hashlib.sha256(data).hexdigest(), table.num_rows, failed, is_new


def read_whole(data, files):
    """Table of a Parquet file's bytes; `None` if damaged, or not all rows of `files` are there."""
    try:
        table = pq.read_table(BytesIO(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError):
        return None
    if table.schema != SCHEMA or table["file"].to_pylist() != list(map(text_of, files)):
        return None
    # what the pages' own checksums do not see: a part that was written again with other numbers
    if (table.schema.metadata or {}).get(_CHECKSUM) != _checksum(table):
        return None
    # a file without checksum could not be read: the store may answer this time
    return None if table["sha256"].null_count else table


def _checksum(table):
    return hashlib.sha256(json.dumps(table.to_pydict()).encode()).hexdigest().encode()


def _as_parquet(table):
    whole = table.replace_schema_metadata({_CHECKSUM: _checksum(table)})
    sink = BytesIO()
    pq.write_table(whole, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def _predict(files, out, settings):
    size, foreground = _network(out, settings["run"])
    point = OperatingPoint(*settings["operating_point"])
    # decoded as exactly as by `predict_files()`, whose rows these are too
    read = partial(read_file, size=size, exact=True, load=load)
    found = predictions(files, read, foreground, point, _BATCH, _READERS)
    # failures are in the rows, and pydicom's texts may quote a header
    with log_levels(pneumo_lib__inference=logging.ERROR, pydicom=logging.CRITICAL):
        rows = [
            describe(prediction, settings)
            | {"EncodedPixels": None if prediction.error else rle_encode(prediction.mask)}
            for prediction in found
        ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@lru_cache(maxsize=1)
def _network(out, run):
    """`(size, function)` of the network that lies with the results, once for each process."""
    store, folder = locate(out)
    try:
        config = json.loads(store.cat_file(f"{folder}/network/config.json"))
        data = store.cat_file(f"{folder}/network/model.keras")
        head = f"{folder}/network/{IMAGE_HEAD}"
        head = store.cat_file(head) if store.exists(head) else None
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
        if head:
            (Path(place) / IMAGE_HEAD).write_bytes(head)
        network = Run(Path(place), config, None, None)
        return config["size"], load_scored(network, batch_size=_BATCH, xla=True)
