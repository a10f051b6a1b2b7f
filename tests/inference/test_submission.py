"""The SIIM-ACR submission, read back by the decoder of the competition."""

import csv

import cv2
import numpy as np
import pytest
from test_dicom import dicom_bytes

from pneumo_lib.data.rle import rle_decode
from pneumo_lib.inference.submission import SHAPE, encode_mask, write_submission


def siim_decode(rle, width, height):
    """`rle2mask` as the competition published it (mask_functions.py), to 1 instead of 255."""
    mask = np.zeros(width * height)
    array = np.asarray([int(x) for x in rle.split()])
    starts, lengths = array[0::2], array[1::2]
    position = 0
    for index, start in enumerate(starts):
        position += start
        mask[position : position + lengths[index]] = 1
        position += lengths[index]
    return mask.reshape(width, height).T


def written(to):
    with to.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def images(tmp_path):
    """Bright where the mask is to be: two squares, nothing, the left half."""
    folder = tmp_path / "images"
    folder.mkdir()
    squares, half = np.zeros((2, 1024, 1024), np.uint8)
    squares[64:128, 64:128] = squares[512:640, 800:896] = 255
    half[:, :512] = 255
    for name, image in (("1.2", squares), ("1.3", 0 * squares), ("1.4", half)):
        cv2.imwrite(str(folder / f"{name}.png"), image)
    return folder


@pytest.mark.parametrize(("rows", "expected"), [("image", [1, 1, 1]), ("region", [2, 1, 1])])
def test_masks_come_back_through_both_decoders(images, bright, tmp_path, rows, expected):
    to = tmp_path / "submission.csv"
    assert write_submission(images, bright, to, rows=rows) == (3, [])
    header, *lines = written(to)
    assert header == ["ImageId", "EncodedPixels"]
    texts = {name: [text for n, text in lines if n == name] for name in ("1.2", "1.3", "1.4")}
    assert [len(found) for found in texts.values()] == expected
    assert texts["1.3"] == ["-1"]
    for name in ("1.2", "1.4"):
        mask = rle_decode(texts[name], SHAPE)
        judge = sum(siim_decode(text, 1024, 1024) for text in texts[name])
        np.testing.assert_array_equal(mask, judge)  # a sum: no pixel is in two regions
        truth = cv2.imread(str(images / f"{name}.png"), 0) > 0
        assert (mask != truth).mean() < 0.02  # 32 pixels a side decide its border


def test_masks_are_of_1024_pixels_whatever_the_size_of_the_file(images, bright, tmp_path):
    image = cv2.imread(str(images / "1.4.png"), 0)[::4, ::4]
    cv2.imwrite(str(images / "1.4.png"), image)
    write_submission(images, bright, tmp_path / "s.csv")
    mask = rle_decode(written(tmp_path / "s.csv")[3][1], SHAPE)
    assert abs(mask.mean() - 0.5) < 0.02


def test_regions_that_touch_at_a_corner_are_one():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], np.uint8)
    assert encode_mask(mask, rows="region") == ["0 1 2 1", "6 2"]
    assert encode_mask(mask) == ["0 1 2 1 2 2"]
    assert encode_mask(0 * mask, rows="region") == ["-1"]


def test_ids_and_part_of_a_data_set_come_from_its_tables(png_release, bright, tmp_path):
    for part, count in (("test", 4), ("train", 8), ("all", 12)):
        assert write_submission(png_release, bright, tmp_path / "s.csv", part=part)[0] == count
        names = [name for name, _ in written(tmp_path / "s.csv")[1:]]
        assert len(names) == count
        assert {name.split(".")[0] for name in names} <= {"train", "test"}


def test_images_that_cannot_be_read_are_listed_and_have_an_empty_row(images, bright, tmp_path):
    (images / "1.5.png").write_bytes(b"text")
    count, [(path, reason)] = write_submission(images, bright, tmp_path / "s.csv")
    assert (count, path.name) == (4, "1.5.png")
    assert "complete PNG" in reason
    assert written(tmp_path / "s.csv")[-1] == ["1.5", "-1"]


def test_file_that_is_no_submission_is_not_replaced(images, bright, tmp_path):
    to = tmp_path / "s.csv"
    for _ in range(2):
        write_submission(images, bright, to)
    to.write_text("mine\n")
    with pytest.raises(ValueError, match="replaces none but an earlier one"):
        write_submission(images, bright, to)
    assert to.read_text() == "mine\n"


def test_two_files_of_one_image_are_refused(images, bright, tmp_path):
    cv2.imwrite(str(images / "1.4.jpg"), np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"one file only. Received: several for 1\.4"):
        write_submission(images, bright, tmp_path / "s.csv")


def test_image_id_that_a_spreadsheet_would_run_is_refused(images, bright, tmp_path):
    (images / "1.4.png").rename(images / "=1.png")
    with pytest.raises(ValueError, match="must not start with"):
        write_submission(images, bright, tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"part": "tset"}, "`part` must be one of test, train, all.*'tset'. Did you mean test"),
        ({"rows": "pixel"}, "`rows` must be one of image, region.*'pixel'"),
    ],
)
def test_unknown_options_are_refused(images, bright, tmp_path, options, rule):
    with pytest.raises(ValueError, match=rule):
        write_submission(images, bright, tmp_path / "s.csv", **options)


def test_data_set_without_parts_is_predicted_whole(siim_dicom, bright, tmp_path):
    assert write_submission(siim_dicom, bright, tmp_path / "s.csv") == (10, [])


@pytest.mark.parametrize("suffix", ["", ".dcm"])
@pytest.mark.parametrize("below", ["", "dicom-images-test"])
def test_test_images_of_the_official_download_are_those_of_its_sample(
    bright, tmp_path, below, suffix
):
    for name in ("train/1.1", "train/1.2", "test/1.3", "test/1.4"):
        path = tmp_path / "siim" / f"dicom-images-{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(dicom_bytes(np.zeros((64, 64), np.uint8)))
    (tmp_path / "siim" / "train-rle.csv").write_text("ImageId, EncodedPixels\n1.1, -1\n1.2, 9 5\n")
    sample = tmp_path / "siim" / below / "sample_submission.csv"
    sample.write_text(f"ImageId,EncodedPixels\n1.3{suffix},-1\n1.4{suffix},-1\n")
    assert write_submission(tmp_path / "siim" / below, bright, tmp_path / "s.csv") == (2, [])
    assert [name for name, _ in written(tmp_path / "s.csv")[1:]] == ["1.3", "1.4"]


def test_uid_without_a_suffix_is_the_image_id(bright, tmp_path):
    (tmp_path / "1.2.276.0.878027").write_bytes(dicom_bytes(np.zeros((64, 64), np.uint8)))
    write_submission(tmp_path, bright, tmp_path / "s.csv")
    assert written(tmp_path / "s.csv")[1][0] == "1.2.276.0.878027"


def test_data_set_without_an_image_of_the_part_is_refused(png_release, bright, tmp_path):
    (png_release / "stage_1_test_images.csv").write_text("new_filename,ImageId,has_pneumo\n")
    for path in png_release.rglob("*_test_*.png"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="must have images of the part 'test'"):
        write_submission(png_release, bright, tmp_path / "s.csv")
