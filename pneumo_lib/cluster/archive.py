"""`pneumo predict --scheduler`: archives of any size, in partitions, on many processes.

Each partition of some hundred files is one task that writes one Parquet file. Files, network and
operating point decide its name and content, so a task may run twice and be killed at any moment:
only whole files in the folder count.
"""

import json
import logging
from typing import NamedTuple

from tqdm.auto import tqdm

from pneumo_lib._files import refuse_other_work
from pneumo_lib.cluster.archive_files import full_name, list_files, locate, partitions, save
from pneumo_lib.cluster.archive_tasks import predict_partition
from pneumo_lib.cluster.dask_client import as_finished, connected
from pneumo_lib.inference.prediction_rows import ARCHIVE_COLUMNS, IDENTITY, readme
from pneumo_lib.runs import IMAGE_HEAD, load_operating_point, load_run, run_id

logger = logging.getLogger(__name__)
_SHOWN = 100  # failures in the outcome; all are in the rows
_FOLDERS = """network/           the network itself, from which every worker reads it
SHA256SUMS         of the parts, once all are there: sha256sum --check SHA256SUMS
"""


class ArchiveOutcome(NamedTuple):
    """Counts of `predict_archive()`; every file listed is in one row, or in `without_row`."""

    listed: int  # files
    rows: int  # in the folder
    predicted: int  # rows of this call, those with an error included; the others were there
    failed: int  # rows with an error, of this call or an earlier one
    failures: list  # the first of these, (file, error)
    without_row: list  # files of tasks whose processes died each time


def predict_archive(
    source, run, out, *, operating_point=None, scheduler="local", workers=None, partition_files=256
):
    """Predict all X-rays of an archive; a second call goes on, and adds new and changed files.

    Args:
        source: a folder, or `@` and a list of files, see `list_files()`; both as path or as a URL
            that fsspec reads (`s3://`, `gs://`, ...).
        run: `Run`, or what `load_run()` takes.
        out: folder, path or URL, that all workers see: new, empty, or of an earlier call with
            the same `source`, network and operating point. Its rows are those of the files in
            `source` now.
        operating_point: `OperatingPoint`; `None` is the run's own.
        scheduler, workers: as for `dask_client.connected()`.
        partition_files: files in a partition, about.

    Returns:
        `ArchiveOutcome`. `README.txt` in the folder lists the results.

    Raises:
        FileNotFoundError: if there is no file, or no finished run.
        ValueError: if `out` holds something else, or `source` a file twice.
        RuntimeError: if the scheduler is lost (`LostCluster`), or rows and files listed differ.
    """
    run = load_run(run)
    point = load_operating_point(run) if operating_point is None else operating_point
    store, folder = locate(out)
    mark, source = ("@", source[1:]) if str(source).startswith("@") else ("", source)
    settings = {
        "made_by": "pneumo predict --scheduler",
        "source": mark + full_name(*locate(source)),
        "partition_files": partition_files,
        "run": run_id(run),
        "operating_point": list(point),
    }
    _create(store, folder, settings, run)
    files = list_files(settings["source"], without=(store, folder))
    identity = json.dumps([settings["run"], settings["operating_point"]])
    planned = partitions(files, size=partition_files, identity=identity)
    options = {"out": full_name(store, folder), "settings": settings}
    with (
        connected(scheduler, workers=workers) as client,
        tqdm(total=0, desc="predicting", unit="file", smoothing=0) as bar,
    ):
        finished = as_finished(client, predict_partition, _counted(planned, bar), **options)
        done, outcome = _collect(finished, bar)
    _reconcile(store, folder, done, outcome)
    return outcome


def _create(store, folder, settings, run):
    """Begins the folder, see `_files.begin_folder()`, with the network in it."""

    def write(name, data):
        save(data, store, f"{folder}/{name}")

    entries = store.ls(folder, detail=False) if store.exists(folder) else []
    names = [entry.rpartition("/")[2] for entry in entries if entry.rstrip("/") != folder]
    former = json.loads(store.cat_file(f"{folder}/{IDENTITY}")) if IDENTITY in names else None
    occupied = any(name[0] != "." for name in names)
    refuse_other_work(folder, settings, former, occupied, what="A prediction")
    if former is None:
        write(IDENTITY, f"{json.dumps(settings, indent=2)}\n".encode())
    text = readme("parts/*.parquet have one row per file", ARCHIVE_COLUMNS, _FOLDERS)
    write("README.txt", text.encode())
    write("network/config.json", json.dumps(run.config).encode())
    if not store.exists(f"{folder}/network/model.keras"):
        for name in (IMAGE_HEAD, "model.keras"):
            if (run.folder / name).is_file():
                write(f"network/{name}", (run.folder / name).read_bytes())


def _counted(planned, bar):
    """The partitions, added to the bar's total as they are listed."""
    for item in planned:
        bar.total += len(item.files)
        yield item


def _collect(finished, bar):
    """`({name: (size, checksum)}, ArchiveOutcome)` of all partitions."""
    done, failures, without_row = {}, [], []
    listed = rows = predicted = failed = 0
    for item, summary, error in finished:
        listed += len(item.files)
        bar.update(len(item.files))
        if error:
            logger.warning("%s to %s: %s", item.files[0], item.files[-1], error)
            without_row.extend(item.files)
            continue
        size, sha256, count, wrong, is_new = summary
        done[item.name] = (size, sha256)
        failures += wrong[: _SHOWN - len(failures)]
        failed += len(wrong)
        rows += count
        predicted += count * is_new
    return done, ArchiveOutcome(listed, rows, predicted, failed, failures, without_row)


def _reconcile(store, folder, done, outcome):
    """Compares the folder with the files listed; writes the checksums.

    A partition that is not planned any more (a file was added to it, or removed) is deleted: its
    files are in another one, or in none.
    """
    found = store.find(f"{folder}/parts", detail=True)
    planned = {f"{folder}/parts/{name}": size for name, (size, _) in done.items()}
    lost = [path for path, size in planned.items() if found.get(path, {}).get("size") != size]
    if lost or outcome.rows + len(outcome.without_row) != outcome.listed:
        raise RuntimeError(
            "Every file listed must be in one row. Received: "
            f"{outcome.listed} files, {outcome.rows} rows, {len(lost)} parts that are gone or "
            f"changed in {folder}. Give the same command again: it makes what is missing"
        )
    for path in found.keys() - planned.keys():
        store.rm_file(path)
    sums = "".join(f"{sha256}  parts/{name}\n" for name, (_, sha256) in sorted(done.items()))
    save(sums.encode(), store, f"{folder}/SHA256SUMS")
