import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock, Timeout

from pneumo_lib import runs
from pneumo_lib.data import arrays, images
from pneumo_lib.data import prepare as preparation
from pneumo_lib.data.prepare import find_cases, load_prepared, prepare, prepare_data
from pneumo_lib.data.rle import rle_encode
from pneumo_lib.data.siim import read_cases
from pneumo_lib.data.splits import split_cases

FILES = ["cases.csv", "images.npy", "masks.npy", "meta.json"]


@pytest.fixture
def read(monkeypatch):
    """Identifiers of the images that are read from now on."""
    names, quick = [], images.read_pair
    monkeypatch.setattr(
        arrays, "read_pair", lambda c, s: names.append(c["image_id"]) or quick(c, s)
    )
    return names


@pytest.fixture
def cases(png_release):
    return split_cases(read_cases(png_release), near_duplicates=False, validation=0.3)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project, so that nothing is written into this one."""
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path / "project"))
    return tmp_path / "project"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The arrays


def test_prepare_averages_images_and_cuts_masks_at_half(cases, tmp_path):
    prepared = prepare(cases, tmp_path / "out", size=32)
    assert prepared.images.shape == prepared.masks.shape == (12, 32, 32)
    assert prepared.images.dtype == prepared.masks.dtype == np.uint8
    assert isinstance(prepared.images, np.memmap)
    assert not prepared.images.flags.writeable
    assert sorted(contents(prepared.folder)) == FILES
    assert not list(tmp_path.glob("out.*"))
    for image, mask, case in zip(
        prepared.images, prepared.masks, cases.to_dict("records"), strict=True
    ):
        blocks = [
            cv2.imread(case[path], 0).reshape(32, 2, 32, 2).mean(axis=(1, 3))
            for path in ("image_path", "mask_path")
        ]
        np.testing.assert_allclose(image, blocks[0], atol=0.5)
        np.testing.assert_array_equal(mask, blocks[1] >= 127.5)


def test_prepare_grows_images_smaller_than_the_arrays(cases, tmp_path):
    prepared = prepare(cases, tmp_path / "out", size=128)
    positive = cases["has_pneumothorax"].to_numpy()
    assert set(prepared.masks[positive].sum(axis=(1, 2))) <= set(range(88, 97))  # 4 x 24 pixels
    assert not prepared.masks[~positive].any()


def test_metadata_describe_the_arrays(cases, tmp_path):
    meta = prepare(cases, tmp_path / "out", size=32).meta
    assert (meta["source"], meta["size"], meta["synthetic"]) == ("release", 32, False)
    assert (meta["split_scheme"], meta["leaked_patients"], meta["left_out"]) == ("official", 0, [])
    assert meta["counts"]["all"] == {"images": 12, "positive": 5}
    assert meta["counts"]["test"] == {"images": 4, "positive": 2}


def test_metadata_mark_phantoms_and_leave_open_what_is_unknown(cases, png_release, tmp_path):
    (png_release / "phantoms.json").write_text("{}")
    meta = prepare(cases.assign(patient_id=np.nan), tmp_path / "out", size=32).meta
    assert (meta["synthetic"], meta["leaked_patients"]) == (True, None)
    bare = cases.drop(columns=["split", "split_scheme"])
    assert prepare(bare, tmp_path / "bare", size=32).meta["split_scheme"] is None


def test_checksum_changes_with_one_pixel(cases, tmp_path):
    first = prepare(cases, tmp_path / "first", size=64)
    mask = np.zeros((64, 64), np.uint8)
    mask[0, 0] = 1
    cv2.imwrite(cases["mask_path"][0], mask)
    other = prepare(cases, tmp_path / "other", size=64)
    assert first.meta["checksum"] != other.meta["checksum"]


def test_table_comes_back_with_its_types(cases, tmp_path):
    cases = cases.assign(
        patient_id=["007", "NA", "", *cases["patient_id"][3:]],
        age=[45.1, np.nan, *range(10)],
        note=["a,b", 'say "x"', "line\nbreak", *[np.nan] * 9],
        number=range(12),
    )
    cases["note"] = cases["note"].astype("str")
    prepare(cases, tmp_path / "out", size=32)
    pd.testing.assert_frame_equal(load_prepared(tmp_path / "out").cases, cases)


def test_table_with_run_lengths_comes_back_with_lists(siim_dicom, tmp_path):
    cases = read_cases(siim_dicom)
    prepared = prepare(cases, tmp_path / "out", size=128)
    pd.testing.assert_frame_equal(prepared.cases, cases)
    np.testing.assert_array_equal(
        prepared.masks.any(axis=(1, 2)), cases["has_pneumothorax"].to_numpy()
    )


# Again, after a change, after a kill


def test_prepare_again_returns_at_once(cases, tmp_path, read):
    first = prepare(cases, tmp_path / "out", size=32)
    again = prepare(cases, tmp_path / "out", size=32)
    assert first.meta == again.meta
    assert len(read) == 12


def test_what_a_kill_left_of_the_last_file_is_no_part_of_the_result(cases, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(preparation.arrays, "checksum", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(cases, tmp_path / "out", size=32)
    (tmp_path / "out.partial" / ".0123456789ab-meta.json").touch()
    folder = prepare(cases, tmp_path / "out", size=32).folder
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("change", ["file", "time", "size", "split"])
def test_prepare_never_serves_stale_arrays(cases, tmp_path, change):
    former = prepare(cases, tmp_path / "out", size=32)
    (tmp_path / ".0123456789ab-out").mkdir()
    (tmp_path / ".0123456789ab-out" / "left by a kill").touch()
    size = 32
    if change == "time":  # a file may be written anew at the same size
        os.utime(cases["image_path"][0], (1, 1))
    elif change == "file":
        cv2.imwrite(cases["image_path"][0], np.full((64, 64), 9, np.uint8))
    elif change == "size":
        size = 16
    else:
        cases["split"] = cases["split"].iloc[::-1].to_numpy()
    prepared = prepare(cases, tmp_path / "out", size=size)
    fresh = prepare(cases, tmp_path / "fresh", size=size)
    assert prepared.meta == fresh.meta
    assert prepared.meta["request"] != former.meta["request"]
    np.testing.assert_array_equal(prepared.images, fresh.images)
    pd.testing.assert_frame_equal(prepared.cases, cases)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "out", "release"]


SLOW_PREPARE = """
import sys, time
from pneumo_lib.data import arrays
from pneumo_lib.data import prepare as preparation
from pneumo_lib.data.rle import rle_encode
from pneumo_lib.data.siim import read_cases

quick = arrays.read_pair

def slow(case, size):
    time.sleep(0.01)
    return quick(case, size)

arrays.read_pair = slow
arrays.CHUNK = 5
preparation.prepare(read_cases(sys.argv[1]), sys.argv[2], size=32, workers=2)
"""


def kill_midway(release, folder):
    """Starts a preparation in another process and kills it after the first images are done."""
    root = Path(preparation.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_PREPARE, str(release), str(folder)],
        cwd=root,
        stderr=subprocess.DEVNULL,
    )
    marks = folder.with_name(folder.name + ".partial") / "made_from.npy"
    while process.poll() is None:
        # the file has a header of 128 bytes, then one number for each image, 0 while it is not done
        if marks.is_file() and any(marks.read_bytes()[128:]):
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the process finished before it was killed"
    return np.load(marks)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_prepare_killed_midway_ends_as_if_undisturbed(png_release, tmp_path, read):
    for copy in range(40):
        for kind in ("png_images", "png_masks"):
            source = png_release / kind / "1_train_0_.png"
            (png_release / kind / f"copy{copy}.png").write_bytes(source.read_bytes())
    table = pd.read_csv(png_release / "stage_1_train_images.csv")
    copies = [(f"copy{copy}.png", f"copy{copy}", 0) for copy in range(40)]
    copies = pd.DataFrame(copies, columns=table.columns)
    pd.concat([table, copies]).to_csv(png_release / "stage_1_train_images.csv", index=False)

    made = kill_midway(png_release, tmp_path / "out")
    assert 0 < (made > 0).sum() < len(made)
    assert not (tmp_path / "out").exists()

    cases = read_cases(png_release)
    prepare(cases, tmp_path / "out", size=32)
    assert len(read) == (made == 0).sum()
    prepare(cases, tmp_path / "undisturbed", size=32)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.parametrize("torn", ["images.npy", "masks.npy", "made_from.npy"])
def test_prepare_starts_over_from_a_torn_partial_folder(cases, tmp_path, torn):
    expected = contents(prepare(cases, tmp_path / "undisturbed", size=32).folder)
    prints = arrays.fingerprints(cases, size=32)
    arrays.fill(cases, tmp_path / "out.partial", prints, size=32, workers=1)
    (tmp_path / "out.partial" / torn).write_bytes(b"\x93NUMPY")
    assert contents(prepare(cases, tmp_path / "out", size=32).folder) == expected


def test_prepare_ends_a_swap_that_was_killed(cases, tmp_path):
    expected = contents(prepare(cases, tmp_path / "out", size=32).folder)
    (tmp_path / "out").rename(tmp_path / ".0123456789ab-out")
    assert contents(prepare(cases, tmp_path / "out", size=32).folder) == expected
    assert not (tmp_path / ".0123456789ab-out").exists()


# Broken images


@pytest.fixture
def broken(cases):
    """A broken image, a missing mask and a mask against its label."""
    Path(cases["image_path"][1]).write_bytes(b"broken")
    Path(cases["mask_path"][2]).unlink()
    cv2.imwrite(cases["mask_path"][4], np.full((64, 64), 255, np.uint8))
    return cases


def test_prepare_names_each_broken_image_when_all_others_are_done(broken, tmp_path):
    with pytest.raises(ValueError, match="3 of 12") as raised:
        prepare(broken, tmp_path / "out", size=32)
    for reason in ("train.1: An image must", "train.2: [Errno 2]", "train.4: A mask holds pixels"):
        assert reason in str(raised.value)
    assert not (tmp_path / "out").exists()
    made = np.load(tmp_path / "out.partial" / "made_from.npy")
    assert np.flatnonzero(made == 0).tolist() == [1, 2, 4]


def test_prepare_after_mending_reads_only_what_was_broken(broken, tmp_path, read):
    with pytest.raises(ValueError, match="3 of 12"):
        prepare(broken, tmp_path / "out", size=32)
    cv2.imwrite(broken["image_path"][1], np.full((64, 64), 7, np.uint8))
    for row in (2, 4):
        cv2.imwrite(broken["mask_path"][row], np.zeros((64, 64), np.uint8))
    read.clear()
    prepared = prepare(broken, tmp_path / "out", size=32)
    assert sorted(read) == ["train.1", "train.2", "train.4"]
    assert (prepared.images[1] == 7).all()


def test_prepare_leaves_broken_images_out_when_told_to(broken, tmp_path, caplog):
    whole = prepare(broken.drop([1, 2, 4]), tmp_path / "whole", size=32)
    prepared = prepare(broken, tmp_path / "out", size=32, skip_broken=True)
    np.testing.assert_array_equal(prepared.images, whole.images)
    np.testing.assert_array_equal(prepared.masks, whole.masks)
    pd.testing.assert_frame_equal(prepared.cases, whole.cases)
    assert prepared.meta["left_out"] == ["train.1", "train.2", "train.4"]
    assert "left out" in caplog.text
    with pytest.raises(ValueError, match="3 of 12"):  # and without the word for it, refuses again
        prepare(broken, tmp_path / "out", size=32)


def test_prepare_shortens_a_long_list_and_refuses_when_nothing_is_left(cases, tmp_path):
    cases = pd.concat([cases.assign(image_id=cases["image_id"] + copy) for copy in "abc"])
    cases["image_path"] = "nowhere.png"
    with pytest.raises(ValueError, match=r"36 of 36 that do not(.|\n)*and 16 more"):
        prepare(cases, tmp_path / "out", size=32, skip_broken=True)


# Refusals


def test_prepare_refuses_a_folder_that_holds_something_else(cases, png_release):
    with pytest.raises(ValueError, match="its content is replaced"):
        prepare(cases, png_release, size=32)
    assert (png_release / "png_images").is_dir()


def test_prepare_refuses_a_fraction_of_a_pixel_an_empty_table_and_repeated_images(cases, tmp_path):
    for size in (0, 12.5):
        with pytest.raises(ValueError, match=f"`size` must be a whole number of 1.*{size}"):
            prepare(cases, tmp_path / "out", size=size)
    with pytest.raises(ValueError, match=r"at least one image.*0 rows"):
        prepare(cases[:0], tmp_path / "out")
    with pytest.raises(ValueError, match=r"only once.*train\.0"):
        prepare(pd.concat([cases, cases[:1]]), tmp_path / "out")


def test_load_prepared_refuses_a_folder_that_is_not_finished(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds meta\.json; call prepare"):
        load_prepared(tmp_path)


# From a name to arrays


def test_find_cases_prefers_the_current_folder_to_the_project(
    png_release, project, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert len(find_cases("release")) == 12
    (project / "elsewhere").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="project/elsewhere"):
        find_cases("elsewhere")


def test_prepare_data_opens_what_an_earlier_call_prepared(png_release, project, monkeypatch):
    first = prepare_data(png_release, size=32)
    assert first.folder.is_relative_to(project / "data" / "prepared")
    assert first.meta["source"] == "release"
    monkeypatch.setattr(preparation, "split_cases", None)  # comparing images takes minutes
    again = prepare_data(png_release, size=32)
    assert again.folder == first.folder
    assert json.dumps(again.meta) == json.dumps(load_prepared(first.folder).meta)


def test_prepare_data_notices_changed_files(png_release, project):
    first = prepare_data(png_release, size=32)
    cv2.imwrite(str(png_release / "png_images" / "1_train_0_.png"), np.full((64, 64), 9, np.uint8))
    assert prepare_data(png_release, size=32).meta["checksum"] != first.meta["checksum"]


def test_prepare_data_keeps_each_combination_in_a_folder_of_its_own(png_release, project):
    changes = [{}, {"size": 16}, {"split": "random"}, {"seed": 1}, {"fold": "1/2"}, {"fold": "2/2"}]
    folders = {prepare_data(png_release, **{"size": 32} | change).folder for change in changes}
    assert len(folders) == 6


def test_folds_of_prepared_data_differ_in_the_split_alone(png_release, project):
    plain, first, second = (
        prepare_data(png_release, size=32, fold=fold) for fold in (None, "1/2", "2/2")
    )
    assert plain.meta["checksum"] == first.meta["checksum"] == second.meta["checksum"]
    assert len({runs.data_checksum(data) for data in (plain, first, second)}) == 3


def test_prepare_data_tells_phantoms_by_count_and_marks_them(project):
    few, more = (prepare_data(phantom_count=count, size=32) for count in (24, 26))
    assert (len(few.images), len(more.images)) == (24, 26)
    assert few.folder != more.folder
    assert few.meta["source"] == "phantoms"
    assert few.meta["synthetic"] is True
    assert Path(few.cases["image_path"][0]).is_relative_to(project / "data")


def test_prepare_refuses_a_disk_that_is_too_small(cases, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(OSError, match=r"0 MB are needed, 0 MB are free.*free some space"):
        prepare(cases, tmp_path / "out", size=32)


def test_prepare_keeps_other_processes_out_while_it_works(cases, tmp_path, monkeypatch):
    quick, refused = images.read_pair, []

    def try_to_enter(case, size):
        with pytest.raises(Timeout):
            FileLock(tmp_path / ".out.lock").acquire(blocking=False)
        refused.append(case["image_id"])
        return quick(case, size)

    monkeypatch.setattr(arrays, "read_pair", try_to_enter)
    prepare(cases, tmp_path / "out", size=32)
    assert len(refused) == 12


def test_two_processes_at_once_prepare_the_data_once(png_release, tmp_path):
    command = [sys.executable, "-c", SLOW_PREPARE, str(png_release), str(tmp_path / "out")]
    root = Path(preparation.__file__).parents[2]
    both = [subprocess.Popen(command, cwd=root, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(contents(tmp_path / "out")) == FILES
    assert not list(tmp_path.glob("out.*"))


# -- copies of the data set


def circle(side):
    return cv2.circle(np.zeros((side, side), np.uint8), (side // 4, side // 3), side // 8, 1, -1)


def test_copies_of_a_data_set_in_three_layouts_give_the_same_arrays(tmp_path):
    """Pairs of folders, PNG with its own run lengths, PNG with the competition's run lengths."""
    image, mask = np.random.default_rng(0).integers(0, 256, (256, 256), np.uint8), circle(256)
    header, runs = "ImageId, EncodedPixels", [rle_encode(circle(side)) for side in (256, 1024)]
    tables = [None, *(f"{header}\na, {text}\nb, -1\n" for text in runs)]
    made = []
    for number, table in enumerate(tables):
        folder = tmp_path / f"copy{number}"
        for name, pixels in (("a", mask), ("b", 0 * mask)):
            (folder / "images").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / "images" / f"{name}.png"), image)
            if table is None:
                (folder / "masks").mkdir(exist_ok=True)
                cv2.imwrite(str(folder / "masks" / f"{name}.png"), 255 * pixels)
        if table is not None:
            (folder / "train-rle.csv").write_text(table)
        made.append(prepare(read_cases(folder), tmp_path / f"out{number}", size=64))
    assert made[0].meta["source"] == "copy0"
    means = mask.reshape(64, 4, 64, 4).mean(axis=(1, 3))
    np.testing.assert_array_equal(made[0].masks, [means >= 0.5, 0 * means])
    for other in made[1:]:
        np.testing.assert_array_equal(other.images, made[0].images)
    np.testing.assert_array_equal(made[1].masks, made[0].masks)
    assert (made[2].masks != made[0].masks).sum() < 12  # a finer circle
    with_side = made[2].cases["rle_side"]
    assert with_side.tolist() == [1024, 1024]


def test_arrays_are_made_anew_where_run_lengths_turn_out_to_be_of_another_size(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((256, 256), np.uint8))
    (tmp_path / "rle.csv").write_text("a,9 9\n")
    cases = read_cases(tmp_path)
    known = cases.assign(rle_side=1024)
    assert arrays.fingerprints(cases, size=64) != arrays.fingerprints(known, size=64)


def test_a_size_that_came_as_text_is_the_number(cases, tmp_path):
    assert prepare(cases, tmp_path / "out", size="32").images.shape[1:] == (32, 32)
