"""Archives: every file in one row, the same rows for every call and on every worker."""

import hashlib
import math
import os
import shutil
import subprocess
import sys
import time
from io import BytesIO

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from distributed import Client, as_completed
from test_dicom import RAMP, dicom_bytes

import pneumo_lib as pl
from pneumo_lib import runs
from pneumo_lib.apps.cli import main
from pneumo_lib.cluster import archive, archive_tasks, dask_client
from pneumo_lib.cluster.archive_files import Partition, list_files, partitions
from pneumo_lib.cluster.dask_client import LostCluster, as_finished, connected
from pneumo_lib.evaluation.operating_point import OperatingPoint
from pneumo_lib.inference.predict import find_images
from pneumo_lib.inference.predict_files import predict_files, read_table
from pneumo_lib.inference.prediction_rows import FILE_COLUMNS


@pytest.fixture(scope="module")
def run(bright):
    return bright


@pytest.fixture(scope="module")
def client():
    """A cluster of one worker, a thread of this process: processes are in test_archive_faults."""
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as it:
        yield it


@pytest.fixture
def predict(run, client):
    """`predict_archive()` on that cluster, partitions of one to four files."""

    def call(source, out, **options):
        options = {"scheduler": client, "partition_files": 2} | options
        return archive.predict_archive(source, run, out, **options)

    return call


def rows_of(out):
    table = pd.concat([pq.read_table(path).to_pandas() for path in parts_of(out)])
    return table.set_index("file").sort_index()


def parts_of(out):
    return sorted((out / "parts").iterdir())


def contents(out):
    return {path.name: path.read_bytes() for path in parts_of(out)}


def more(xrays, count):
    """Files in two folders below, some of them broken."""
    for number in range(count):
        path = xrays / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        image = np.zeros((20 + number, 30), np.uint8)
        image[: 3 * number] = 255
        cv2.imwrite(str(path), image)
    (xrays / "a" / "torn.png").write_bytes(path.read_bytes()[:30])
    (xrays / "b" / "frames.dcm").write_bytes(dicom_bytes(RAMP.astype("u2"), NumberOfFrames=3))


# -- rows


def test_rows_and_masks_are_those_of_predict_files(run, predict, xrays, tmp_path):
    more(xrays, 9)
    outcome = predict(xrays, tmp_path / "archive")
    assert (outcome.listed, outcome.rows, outcome.predicted, outcome.failed) == (14, 14, 14, 2)
    predict_files(xrays, run, tmp_path / "files")
    expected = {row["file"]: row for row in read_table(tmp_path / "files")}
    rows = rows_of(tmp_path / "archive")
    assert set(rows.index) == set(expected)
    assert rows.loc[str(xrays / "dark.png"), "EncodedPixels"] == "-1"
    for name, row in rows.iterrows():
        for column in set(FILE_COLUMNS) - {"file", "output"}:
            found = "" if pd.isna(row[column]) else row[column]
            wanted = expected[name][column]
            assert found == (float(wanted) if wanted and not isinstance(found, str) else wanted)
        if not row["error"]:
            path = tmp_path / "files" / "masks" / f"{expected[name]['output']}.png"
            mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 255
            assert mask.shape == (row["height"], row["width"])
            np.testing.assert_array_equal(pl.rle_decode(row["EncodedPixels"], mask.shape), mask)


def test_real_dicom_files_get_masks_of_their_own_size(predict, siim_dicom, tmp_path):
    outcome = predict(siim_dicom, tmp_path / "out")
    assert (outcome.rows, outcome.failed) == (10, 0)
    assert set(rows_of(tmp_path / "out")["width"]) == {1024}


def test_names_numbers_and_dates_of_the_patient_are_nowhere_in_the_output(
    predict, xrays, tmp_path, caplog, capsys
):
    planted = {"PatientName": "SECRET^NAME", "PatientID": "SECRETID", "ImageComments": "SECRET"}
    (xrays / "good.dcm").write_bytes(dicom_bytes(np.zeros((40, 40), np.uint8), **planted))
    (xrays / "bad.dcm").write_bytes(dicom_bytes(RAMP.astype("u2"), NumberOfFrames=3, **planted))
    predict(xrays, tmp_path / "out")
    assert "SECRET" not in "".join(capsys.readouterr()) + caplog.text
    for path in (tmp_path / "out").rglob("*"):
        assert path.is_dir() or b"SECRET" not in path.read_bytes()
    assert "SECRET" not in rows_of(tmp_path / "out").to_csv()


# -- equal files for every call


def test_second_call_predicts_nothing_and_writes_no_part(predict, xrays, tmp_path):
    more(xrays, 9)
    predict(xrays, tmp_path / "out")
    parts = parts_of(tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in parts}
    assert len(before) > 3
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  parts/{path.name}" for path in parts]
    assert (tmp_path / "out" / "SHA256SUMS").read_text().splitlines() == sums
    outcome = predict(xrays, tmp_path / "out")
    assert (outcome.rows, outcome.predicted, outcome.failed) == (14, 0, 2)
    assert {path: path.stat().st_mtime_ns for path in parts_of(tmp_path / "out")} == before
    predict(xrays, tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def changed_numbers(data):
    table = pq.read_table(BytesIO(data))
    place, sink = table.schema.get_field_index("area_px"), BytesIO()
    changed = table.set_column(place, "area_px", [[7] * table.num_rows])
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), sink)
    return sink.getvalue()


def without_a_column(data):
    sink = BytesIO()
    pq.write_table(pq.read_table(BytesIO(data)).drop_columns("area_px"), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
        lambda data: b"",
        changed_numbers,
        without_a_column,
    ],
    ids=["torn", "one bit", "empty", "numbers", "column"],
)
def test_damaged_part_is_made_again_and_the_others_are_not(predict, xrays, tmp_path, damage):
    more(xrays, 9)
    predict(xrays, tmp_path / "out")
    before = contents(tmp_path / "out")
    damaged = parts_of(tmp_path / "out")[1]
    damaged.write_bytes(damage(damaged.read_bytes()))
    outcome = predict(xrays, tmp_path / "out")
    assert outcome.predicted == pq.read_metadata(damaged).num_rows < outcome.rows
    assert contents(tmp_path / "out") == before


def test_no_flipped_bit_of_a_part_changes_its_rows_unnoticed(predict, xrays, tmp_path):
    predict(xrays, tmp_path / "out")
    data = parts_of(tmp_path / "out")[0].read_bytes()
    rows = pq.read_table(BytesIO(data)).to_pydict()
    detected = 0
    for place in range(0, len(data), 5):
        flipped = data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]
        table = archive_tasks.read_whole(flipped, rows["file"])
        detected += table is None
        assert table is None or table.to_pydict() == rows
    assert detected > len(data) / 10


def test_rows_follow_files_that_come_change_and_go(predict, xrays, tmp_path):
    more(xrays, 9)
    predict(xrays, tmp_path / "out")
    (xrays / "a" / "0.png").unlink()
    shutil.copy(xrays / "half.png", xrays / "b" / "new.png")
    cv2.imwrite(str(xrays / "dark.png"), np.full((4, 4), 255, np.uint8))
    outcome = predict(xrays, tmp_path / "out")
    assert outcome.predicted < outcome.rows == 14
    rows = rows_of(tmp_path / "out")
    assert sorted(rows.index) == sorted(map(str, find_images(xrays)))
    assert rows.loc[str(xrays / "dark.png"), "area_px"] == 16


def test_files_that_could_not_be_read_are_tried_again(predict, xrays, tmp_path):
    names = [xrays / "half.png", xrays / "late.png"]
    (tmp_path / "list.txt").write_text("\n".join(map(str, names)))
    outcome = predict(f"@{tmp_path}/list.txt", tmp_path / "out")
    assert "No such file" in dict(outcome.failures)[str(xrays / "late.png")]
    shutil.copy(*names)
    outcome = predict(f"@{tmp_path}/list.txt", tmp_path / "out")
    assert (outcome.rows, outcome.failed) == (2, 0)


# -- files listed


def test_what_counts_in_a_folder_is_what_counts_for_predict_files(predict, xrays, tmp_path):
    more(xrays, 3)
    shutil.copy(xrays / "white.dcm", xrays / "1.2.840.1")
    shutil.copy(xrays / "white.dcm", xrays / "DICOMDIR")
    shutil.copy(xrays / "half.png", xrays / ".hidden.png")
    (xrays / "notes.txt").write_text("notes")
    (xrays / "circle").symlink_to(xrays, target_is_directory=True)
    (xrays / "above").symlink_to(xrays.parent, target_is_directory=True)
    (xrays.parent / "disk").mkdir()
    shutil.copy(xrays / "half.png", xrays.parent / "disk" / "far.png")
    (xrays / "linked").symlink_to(xrays.parent / "disk", target_is_directory=True)
    (xrays / "one.png").symlink_to(xrays.parent / "disk" / "far.png")
    (xrays / "gone.png").symlink_to(xrays.parent / "nothing.png")
    found = [name for name, _ in list_files(str(xrays))]
    assert len(found) == len(set(found)) == 11
    assert set(found) == set(map(str, find_images(xrays)))


def test_results_in_the_archive_itself_are_no_input(predict, xrays):
    assert [predict(xrays, xrays / "out").listed for _ in range(2)] == [3, 3]


def test_file_names_that_are_no_text_are_predicted(predict, xrays, tmp_path):
    for name in (b"caf\xe9.png", b'a,"b".png'):
        shutil.copy(xrays / "half.png", bytes(xrays) + b"/" + name)
    assert [predict(xrays, tmp_path / "out").predicted for _ in range(2)] == [5, 0]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("@{}/twice.txt", r"each file once.*3 lines and 2 names"),
        ("@{}/empty.txt", "there is none"),
        ("{}", "there is none"),
        ("{}/twice.txt", r"@ and a list of files.*twice\.txt, which is no folder"),
    ],
)
def test_what_is_no_archive_is_refused(tmp_path, source, message):
    (tmp_path / "twice.txt").write_text("a.png\nb.png\n\na.png\n")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        list(list_files(source.format(tmp_path)))


def test_partitions_hold_each_file_once_and_change_with_few_files():
    files = [(f"{number:04}.png", "1") for number in range(1000)]
    found = list(partitions(iter(files), size=20, identity="x"))
    assert [name for part in found for name in part.files] == [name for name, _ in files]
    assert all(10 <= len(part.files) <= 40 for part in found[:-1])
    assert len({part.name for part in found}) == len(found)
    more = [*files[:300], ("0299b.png", "1"), *files[300:]]
    assert 1 <= len(set(found) - set(partitions(more, size=20, identity="x"))) <= 5
    for stamp, identity in (("1", "y"), ("2", "x")):  # another network, or replaced files
        files = [(name, stamp) for name, _ in files]
        others = partitions(files, size=20, identity=identity)
        assert not {part.name for part in found} & {part.name for part in others}


# -- folders of results


def test_folder_with_something_else_is_refused_untouched(predict, xrays, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"folder of its own.*which holds other files"):
        predict(xrays, tmp_path)
    assert not (tmp_path / "parts").exists()


KILLED_AT_EACH_WRITE = """
import os, signal, sys
import pneumo_lib as pl

def kill_at(number, out):
    def hook(event, arguments):
        nonlocal number
        writes = event in ("os.mkdir", "os.rename")
        writes = writes or event == "open" and arguments[2] & os.O_WRONLY
        if writes and out in str(arguments[0]):
            number -= 1
            if number == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

xrays, run, place = sys.argv[1:]
run, options = pl.load_run(run), {"scheduler": "tcp://127.0.0.1:9", "partition_files": 2}
for predict, options in ((pl.predict_files, {}), (pl.cluster.predict_archive, options)):
    for number in range(1, 9):
        out = f"{place}/{predict.__name__}-{number}"
        if (child := os.fork()) == 0:
            kill_at(number, out)
            predict(xrays, run, out, **options)
        if os.waitpid(child, 0)[1] != signal.SIGKILL:
            sys.exit(f"{out} was not killed")
"""


def test_kill_at_any_of_the_first_writes_leaves_a_folder_that_goes_on(
    run, predict, xrays, tmp_path
):
    command = [sys.executable, "-c", KILLED_AT_EACH_WRITE, xrays, run.folder, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number in range(1, 9):
        assert predict_files(xrays, run, tmp_path / f"predict_files-{number}").predicted == 3
        assert predict(xrays, tmp_path / f"predict_archive-{number}").predicted == 3


@pytest.mark.parametrize("name", [".0123456789ab-prediction.json", ".out.lock"])
def test_what_a_killed_writer_left_does_not_make_a_folder_another_ones(
    run, predict, xrays, tmp_path, name
):
    for out in (tmp_path / "files", tmp_path / "archive"):
        out.mkdir()
        (out / name).touch()
    assert predict_files(xrays, run, tmp_path / "files").predicted == 3
    assert predict(xrays, tmp_path / "archive").predicted == 3


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"operating_point": OperatingPoint(0.9, 0, 0.9)}, "operating_point"),
        ({"source": "a"}, "source"),
        ({"partition_files": 3}, "partition_files"),
    ],
)
def test_folder_of_other_settings_is_refused(predict, xrays, tmp_path, change, name):
    more(xrays, 2)
    predict(xrays, tmp_path / "out")
    source = xrays / change.pop("source", "")
    with pytest.raises(ValueError, match=rf"with other settings \({name}: "):
        predict(source, tmp_path / "out", **change)


def test_folders_of_files_and_of_archives_are_not_mixed(run, predict, xrays, tmp_path):
    predict(xrays, tmp_path / "archive")
    with pytest.raises(ValueError, match="folder of its own"):
        predict_files(xrays, run, tmp_path / "archive")
    predict_files(xrays, run, tmp_path / "files")
    with pytest.raises(ValueError, match=r"other settings \(made_by"):
        predict(xrays, tmp_path / "files")


def test_worker_refuses_a_folder_without_the_network_or_with_another(run, predict, xrays, tmp_path):
    part = Partition("part-1.parquet", (str(xrays / "half.png"),))
    options = {"settings": {"run": runs.run_id(run), "operating_point": [0.5, 0, 0.5]}}
    with pytest.raises(FileNotFoundError, match="Every worker must see the folder"):
        archive_tasks.predict_partition(part, out=str(tmp_path), **options)
    predict(xrays, tmp_path / "out")
    archive_tasks._network.cache_clear()
    (tmp_path / "out" / "network" / "model.keras").write_bytes(b"another")
    with pytest.raises(ValueError, match=r"must be that of bright@.*Received: another"):
        archive_tasks.predict_partition(part, out=str(tmp_path / "out"), **options)


def test_part_that_vanished_is_an_error(predict, xrays, tmp_path, monkeypatch):
    def losing(*arguments, **options):
        yield from as_finished(*arguments, **options)
        parts_of(tmp_path / "out")[0].unlink()

    monkeypatch.setattr(archive, "as_finished", losing)
    with pytest.raises(RuntimeError, match="1 parts that are gone or changed"):
        predict(xrays, tmp_path / "out")


# -- Dask


def test_no_more_tasks_are_known_than_the_window_holds(client):
    drawn = []

    def items():
        for number in range(20):
            drawn.append(number)
            yield number / 1e6

    ended = 0
    for _ in as_finished(client, time.sleep, items(), window=3):
        ended += 1
        assert len(drawn) <= ended + 3
    assert ended == 20


def test_task_that_fails_each_time_ends_the_work_with_its_error(client):
    with pytest.raises(ValueError, match="math domain error"):
        list(as_finished(client, math.sqrt, [4, -1]))


def test_result_that_is_lost_with_its_worker_is_computed_again(monkeypatch):
    async def forget(address, dask_scheduler):
        await dask_scheduler.remove_worker(address, stimulus_id="test")

    class Losing(as_completed):
        def __next__(self):
            future = super().__next__()
            if len(client.nthreads()) == 2:
                client.run_on_scheduler(forget, client.who_has([future])[future.key][0])
                for _ in range(500):  # until the client hears of it, before it is computed again
                    if future.status != "finished":
                        break
                    time.sleep(0.01)
            return future

    monkeypatch.setattr(dask_client, "as_completed", Losing)
    with Client(processes=False, n_workers=2, dashboard_address=":0") as client:
        found = list(as_finished(client, time.sleep, [0.3, 0.4]))
    assert sorted(found) == [(0.3, None, None), (0.4, None, None)]


def test_task_that_kills_its_process_is_given_up_with_an_error(monkeypatch):
    monkeypatch.setattr(dask_client, "_DEATHS", 0)
    with connected(workers=1) as client:
        [(item, result, error)] = as_finished(client, os._exit, [1])
    assert (item, result) == (1, None)
    assert "processes that worked on it died" in str(error)


def test_files_of_a_task_that_was_given_up_are_listed_without_a_row(
    predict, xrays, tmp_path, monkeypatch
):
    def giving_up(client, do, items, **options):
        found = as_finished(client, do, items, **options)
        item, *_ = next(found)
        yield item, None, "died"
        yield from found

    more(xrays, 9)
    monkeypatch.setattr(archive, "as_finished", giving_up)
    outcome = predict(xrays, tmp_path / "out")
    assert outcome.rows + len(outcome.without_row) == outcome.listed == 14
    rows = rows_of(tmp_path / "out")
    assert set(rows.index) | set(outcome.without_row) == set(map(str, find_images(xrays)))
    assert not set(rows.index) & set(outcome.without_row)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"scheduler": "tcp://127.0.0.1:9"}, LostCluster, r"0\.1:9 .*Start one: dask scheduler"),
        ({"workers": 0}, ValueError, r"those of local processes.*--memory-limit"),
        ({"workers": 2, "scheduler": "tcp://a:1"}, ValueError, "those of local processes"),
        ({"memory": "4GB", "scheduler": "tcp://a:1"}, ValueError, "those of local processes"),
    ],
)
def test_cluster_that_cannot_be_is_refused(monkeypatch, options, error, message):
    monkeypatch.setattr(dask_client, "_PATIENCE", 1)
    with pytest.raises(error, match=message):
        connected(**options).__enter__()


# -- the command


def test_command_wants_one_archive(xrays, capsys):
    arguments = ["--run", "r", "--out", "o", "--scheduler", "local"]
    assert main(["predict", str(xrays), "b", *arguments]) == 1
    assert "An archive is one folder, URL or @list" in capsys.readouterr().err


@pytest.mark.parametrize("files", [["s3://bucket"], ["@list.txt"], ["x", "--workers", "2"]])
def test_command_without_a_scheduler_says_what_needs_one(files, capsys):
    assert main(["predict", *files, "--run", "r", "--out", "o"]) == 1
    assert "add --scheduler local" in capsys.readouterr().err


def test_command_without_the_extra_says_how_to_get_it(xrays, monkeypatch, capsys):
    for name in ("archive", "archive_tasks"):
        monkeypatch.delitem(sys.modules, f"pneumo_lib.cluster.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    options = ["--run", "r", "--out", "o", "--scheduler", "local"]
    assert main(["predict", str(xrays), *options]) == 1
    assert "needs the package pyarrow: pip install" in capsys.readouterr().err


def test_command_lists_failures_and_counts_rows(run, client, xrays, tmp_path, monkeypatch, capsys):
    def listed(*arguments, **options):
        return archive.ArchiveOutcome(250, 248, 200, 150, [("a.png", "torn")], ["b.png", "c.png"])

    monkeypatch.setattr(archive, "predict_archive", listed)
    options = ["--run", str(run.folder), "--out", "o/", "--scheduler", "local"]
    assert main(["predict", str(xrays), *options]) == 1
    printed = capsys.readouterr()
    assert "Listed      250 files" in printed.out
    assert "248, one a file; 48 were there, 2 are missing" in printed.out
    assert "  a.png: torn" in printed.err
    assert "  b.png: no row" in printed.err
    assert "150 in all" in printed.err
