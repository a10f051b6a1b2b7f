import gzip
import shutil

import cv2
import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from pneumo_lib.data.images import (
    read_image,
    read_mask,
    read_pair,
    resize_image,
    resize_mask,
)
from pneumo_lib.data.siim import read_cases


def write_dicom(path, pixels=None, **fields):
    """An uncompressed DICOM file with what a test wants to differ."""
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) if pixels is None else pixels
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    bits = pixels.dtype.itemsize * 8
    settings = {
        "SOPClassUID": meta.MediaStorageSOPClassUID,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "SamplesPerPixel": 1 if pixels.ndim == 2 else 3,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes() + b"\0" * (pixels.nbytes % 2),
    }
    for name, value in {**settings, **fields}.items():
        setattr(file, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save_as(path)
    return path


@pytest.fixture
def official_release(tmp_path):
    """Three labelled files in nested folders, as the competition laid them out."""
    root = tmp_path / "siim-train-test"
    for image_id, part in (("1.1", "train"), ("1.2", "train"), ("1.3", "test")):
        folder = root / "siim" / f"dicom-images-{part}" / "study" / "series"
        write_dicom(folder / f"{image_id}.dcm", PatientAge="045Y", PatientSex="F", PatientID="x")
    table = "ImageId, EncodedPixels\n1.1, -1\n1.2,0 2\n1.2,1 1 2 1\n1.3,3 3\n"
    (root / "siim" / "train-rle.csv").write_text(table)
    return root


# The PNG release


def test_read_cases_gives_one_typed_row_per_image(png_release):
    cases = read_cases(png_release)
    assert len(cases) == 12
    assert cases["has_pneumothorax"].dtype == bool
    assert cases["has_pneumothorax"].sum() == 5
    assert cases["official_part"].value_counts().to_dict() == {"train": 8, "test": 4}
    assert cases["patient_id"].tolist()[:3] == ["0001", "0001", "0002"]
    for column in ("image_path", "mask_path"):
        assert cases[column].map(lambda path: cv2.imread(path) is not None).all()


def test_read_cases_finds_a_release_one_folder_deeper(png_release):
    assert len(read_cases(png_release.parent)) == 12


def test_read_cases_ignores_hidden_files(png_release):
    (png_release / "png_images" / "._0_train_1_.png").touch()
    assert len(read_cases(png_release)) == 12


def test_read_cases_lists_all_that_does_not_fit_in_one_error(png_release):
    (png_release / "stage_1_test_images.csv").unlink()
    (png_release / "png_images" / "1_train_0_.png").unlink()
    (png_release / "png_masks" / "2_train_0_.png").unlink()
    with pytest.raises(FileNotFoundError) as raised:
        read_cases(png_release)
    for part in (
        "stage_1_test_images.csv is missing",
        "1 rows without a file in png_images (1_train_0_.png)",
        "4 files in png_images without a row (0_test_1_.png, 1_test_0_.png, 2_test_0_.png, ...)",
        "1 rows without a file in png_masks (2_train_0_.png)",
    ):
        assert part in str(raised.value)


def test_read_cases_says_what_is_missing_without_any_table(png_release):
    for part in ("train", "test"):
        (png_release / f"stage_1_{part}_images.csv").unlink()
    shutil.rmtree(png_release / "png_masks")
    with pytest.raises(FileNotFoundError, match=r"png_masks is.*train_images\.csv is.*test_im"):
        read_cases(png_release)


def test_read_cases_refuses_an_image_with_two_rows(png_release):
    table = pd.read_csv(png_release / "stage_1_train_images.csv")
    pd.concat([table, table[:1]]).to_csv(png_release / "stage_1_train_images.csv", index=False)
    with pytest.raises(FileNotFoundError, match=r"1 ImageId in several rows \(train\.0\)"):
        read_cases(png_release)


def test_read_cases_refuses_other_labels_than_0_and_1(png_release):
    path = png_release / "stage_1_train_images.csv"
    path.write_text("new_filename,ImageId,has_pneumo\na.png,a,yes\n")
    with pytest.raises(ValueError, match=r"`has_pneumo` in stage_1_train.* must be 0 or 1.*yes"):
        read_cases(png_release)


def test_read_cases_refuses_other_columns(png_release):
    (png_release / "stage_1_train_images.csv").write_text("name,label\na.png,1\n")
    with pytest.raises(ValueError, match=r"stage_1_train_images\.csv must have the columns"):
        read_cases(png_release)


def test_read_cases_takes_patients_from_nih_names_in_the_parent(png_release):
    (png_release / "patients.csv").unlink()
    table = "Kaggle_ID,NIH_ID\ntrain.0,00000042_003.png\ntest.1,00000042_004.png\n"
    (png_release.parent / "nih_id.csv").write_text(table)
    patients = read_cases(png_release).set_index("image_id")["patient_id"].dropna()
    assert patients.to_dict() == {"train.0": "00000042", "test.1": "00000042"}


def test_read_cases_knows_no_patients_without_a_table(png_release):
    (png_release / "patients.csv").unlink()
    assert read_cases(png_release)["patient_id"].isna().all()


def test_read_cases_refuses_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="must exist"):
        read_cases(tmp_path / "nowhere")


def test_read_cases_refuses_a_folder_of_something_else(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither"):
        read_cases(tmp_path)


def test_read_cases_counts_the_real_png_cases(siim_real):
    cases = read_cases(siim_real)
    assert (len(cases), cases["has_pneumothorax"].sum()) == (387, 82 + 37)
    assert cases["official_part"].value_counts().to_dict() == {"train": 273, "test": 114}
    assert cases["patient_id"].notna().all()
    parts = cases.groupby("patient_id")["official_part"].nunique()
    assert parts.max() == 1


# The official release


def test_read_cases_unites_the_rows_of_a_dicom_image(official_release):
    cases = read_cases(official_release)
    assert cases["image_id"].tolist() == ["1.1", "1.2", "1.3"]
    assert cases["rles"].tolist() == [["-1"], ["0 2", "1 1 2 1"], ["3 3"]]
    assert cases["has_pneumothorax"].tolist() == [False, True, True]
    mask = read_mask(cases.iloc[1], (3, 4))
    assert mask.T.ravel().tolist() == [1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_read_cases_takes_the_official_part_from_the_innermost_folder(official_release):
    next(official_release.rglob("1.1.dcm")).rename(official_release / "1.1.dcm")
    parts = read_cases(official_release.parent)["official_part"]
    assert parts.fillna("").tolist() == ["", "train", "test"]  # siim-train-test names both


def test_read_cases_keeps_age_sex_view_and_spacing_and_nothing_else(official_release):
    folder = official_release / "siim" / "dicom-images-test"
    write_dicom(folder / "1.3.dcm", PatientAge="007Y", ViewPosition="PA", PixelSpacing=[0.2, 0.1])
    shutil.rmtree(folder / "study")
    cases = read_cases(official_release)
    assert cases["age"].tolist() == [45, 45, 7]
    assert cases["sex"].fillna("").tolist() == ["F", "F", ""]
    assert cases["view"].fillna("").tolist() == ["", "", "PA"]
    assert cases["pixel_spacing"].fillna(0).tolist() == [0, 0, 0.2]
    assert cases["patient_id"].isna().all()


def test_read_cases_leaves_out_dicom_files_without_truth_and_says_so(official_release, caplog):
    write_dicom(official_release / "siim" / "dicom-images-test" / "1.4.dcm")
    assert len(read_cases(official_release)) == 3
    assert "1 DICOM files without a row in the run-length table (1.4)" in caplog.text


def test_read_cases_refuses_rows_without_a_dicom_file(official_release):
    table = official_release / "siim" / "train-rle.csv"
    table.write_text(table.read_text() + "1.9,-1\n")
    write_dicom(official_release / "1.4.dcm")
    with pytest.raises(FileNotFoundError, match=r"1 rows without a DICOM file \(1\.9\); 1 DICOM"):
        read_cases(official_release)


def test_read_cases_refuses_two_dicom_files_of_one_name(official_release):
    write_dicom(official_release / "1.1.dcm")
    with pytest.raises(FileNotFoundError, match=r"1 DICOM files of the same name \(1\.1\)"):
        read_cases(official_release)


@pytest.mark.parametrize("extra", [0, 2])
def test_read_cases_refuses_dicom_without_exactly_one_table(official_release, extra):
    table = official_release / "siim" / "train-rle.csv"
    for number in range(extra):
        shutil.copy(table, table.with_name(f"{number}.csv"))
    table.unlink()
    with pytest.raises(
        FileNotFoundError, match="exactly one run-length table.*" + "0.csv" * (extra > 0)
    ):
        read_cases(official_release)


def test_read_cases_skips_tables_that_hold_no_truth(official_release):
    shutil.copy(
        official_release / "siim" / "train-rle.csv", official_release / "sample_submission.csv"
    )
    table = "ImageId,patient_id\n1.1,007\n1.2,\n1.3,8\n"
    (official_release / "patients.csv").write_text(table, encoding="utf-8-sig")
    assert read_cases(official_release)["patient_id"].fillna("").tolist() == ["007", "", "8"]


def test_read_cases_reads_a_gzipped_table(official_release):
    table = official_release / "siim" / "train-rle.csv"
    (official_release / "train-rle.csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    table.unlink()
    assert len(read_cases(official_release)) == 3


def test_read_cases_leaves_a_broken_header_to_prepare(official_release):
    [path] = official_release.rglob("1.3.dcm")
    path.write_bytes(b"not DICOM")
    assert np.isnan(read_cases(official_release)["age"][2])


def test_read_cases_reads_the_official_sample(siim_dicom):
    cases = read_cases(siim_dicom)  # its table has a BOM, no header and CRLF
    assert (len(cases), cases["has_pneumothorax"].sum()) == (10, 5)
    assert set(cases["sex"]) == {"F", "M"}
    assert cases["age"].between(10, 69).all()
    assert cases["pixel_spacing"].between(0.13, 0.2).all()


# Pixels


def test_read_image_scales_16_bits_and_greys_colour(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.array([[0, 32896, 65535]], np.uint16))
    cv2.imwrite(str(tmp_path / "colour.png"), np.full((1, 1, 3), 90, np.uint8))
    assert read_image(tmp_path / "deep.png").tolist() == [[0, 128, 255]]
    assert read_image(tmp_path / "colour.png").tolist() == [[90]]


def test_read_image_inverts_monochrome1(tmp_path):
    path = write_dicom(tmp_path / "a.dcm", PhotometricInterpretation="MONOCHROME1")
    assert read_image(path).ravel().tolist() == [255 - value for value in range(12)]


def test_read_image_stretches_12_bit_values_after_rescale(tmp_path):
    pixels = np.array([[0, 2000, 4000]], np.int16)
    path = write_dicom(tmp_path / "a.dcm", pixels, RescaleSlope="2", RescaleIntercept="-1000")
    assert read_image(path).tolist() == [[0, 128, 255]]


def test_read_image_applies_the_window_of_the_file(tmp_path):
    pixels = np.array([[0, 1000, 1500, 2000, 4000]], np.uint16)
    path = write_dicom(tmp_path / "a.dcm", pixels, WindowCenter="1500.5", WindowWidth="1001")
    assert read_image(path).tolist() == [[0, 0, 128, 255, 255]]


@pytest.mark.parametrize("content", [b"", b"text"])
@pytest.mark.parametrize("name", ["a.png", "a.dcm"])
def test_read_image_refuses_what_is_no_image(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"must (be|hold).*{name}"):
        read_image(tmp_path / name)


def test_read_image_refuses_a_file_that_breaks_off(png_release):
    path = png_release / "png_images" / "0_train_1_.png"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="complete PNG"):
        read_image(path)


@pytest.mark.filterwarnings("ignore:End of file reached")  # pydicom's own word on such a file
def test_read_image_refuses_a_dicom_file_that_breaks_off(siim_dicom, tmp_path):
    path = next(siim_dicom.rglob("*.dcm"))
    (tmp_path / "a.dcm").write_bytes(path.read_bytes()[:50_000])
    for at_least in (None, 128):
        with pytest.raises(ValueError, match=r"a\.dcm"):
            read_image(tmp_path / "a.dcm", at_least=at_least)


def test_read_image_refuses_colour_dicom(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    path = write_dicom(
        tmp_path / "a.dcm", pixels, PhotometricInterpretation="RGB", PlanarConfiguration=0
    )
    with pytest.raises(ValueError, match=r"one grey image.*RGB"):
        read_image(path)


def test_read_image_of_a_missing_file_is_a_missing_file(tmp_path):
    for name in ("a.png", "a.dcm"):
        with pytest.raises(FileNotFoundError, match=name):
            read_image(tmp_path / name)


@pytest.mark.parametrize("size", [64, 128, 256])
def test_reduced_reading_is_area_averaging_to_two_grey_levels(siim_dicom, size):
    for path in siim_dicom.rglob("*.dcm"):
        full = pydicom.dcmread(path).pixel_array
        judge = full.reshape(size, 1024 // size, size, -1).mean(axis=(1, 3))
        reduced = read_image(path, at_least=size)
        assert reduced.shape[0] < 1024
        assert np.abs(resize_image(reduced, (size, size)) - judge).max() <= 2.5


def test_reduced_reading_is_full_size_where_pixels_would_not_average_whole(siim_dicom):
    path = next(siim_dicom.rglob("*.dcm"))
    for at_least in (None, 100, 512):
        assert read_image(path, at_least=at_least).shape == (1024, 1024)


def test_official_masks_of_the_sample_have_their_published_pixel_counts(siim_dicom):
    cases = read_cases(siim_dicom).to_dict("records")
    counted = {
        case["image_id"].split(".")[-3]: int(read_mask(case, (1024, 1024)).sum())
        for case in cases
        if case["has_pneumothorax"]
    }
    assert counted == {"4904": 9418, "1314": 29079, "4440": 2486, "4982": 5232, "12743": 2071}


@pytest.mark.parametrize("brightest", [1, 255])
def test_read_mask_cuts_a_file_at_half_of_its_brightest(tmp_path, brightest):
    grey = np.array([[0, brightest // 3, brightest]], np.uint8)
    cv2.imwrite(str(tmp_path / "mask.png"), grey)
    case = {"image_id": "a", "mask_path": tmp_path / "mask.png", "has_pneumothorax": True}
    mask = read_mask(case, (1, 3))
    assert mask.tolist() == [[0, 0, 1]]
    assert mask.dtype == np.uint8


def test_read_mask_brings_a_mask_file_to_the_size_of_its_image(tmp_path):
    cv2.imwrite(str(tmp_path / "mask.png"), np.kron([[255, 0], [0, 0]], np.ones((4, 4))))
    case = {"image_id": "a", "mask_path": tmp_path / "mask.png", "has_pneumothorax": True}
    assert read_mask(case, (2, 2)).tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize(("rle", "label"), [("-1", True), ("0 3", False)])
def test_read_mask_refuses_a_mask_that_contradicts_its_label(rle, label):
    case = {"image_id": "a", "rles": [rle], "has_pneumothorax": label}
    with pytest.raises(ValueError, match=f"pixels, has_pneumothorax={label} for a"):
        read_mask(case, (4, 4))


def test_read_pair_lays_run_lengths_on_the_full_size_of_a_reduced_image(siim_dicom):
    case = next(
        case for case in read_cases(siim_dicom).to_dict("records") if case["has_pneumothorax"]
    )
    image, mask = read_pair(case, 128)
    full = read_mask(case, (1024, 1024)).reshape(128, 8, 128, 8).mean(axis=(1, 3))
    np.testing.assert_array_equal(mask, full >= 0.5)
    assert image.shape == (128, 128)


# Resizing


def test_resize_image_averages_areas():
    image = np.array([[0, 10, 100, 100], [20, 30, 100, 100]], np.uint8)
    assert resize_image(image, (1, 2)).tolist() == [[15, 100]]


def test_resize_image_averages_the_side_that_shrinks_while_the_other_grows():
    image = np.array([[0, 0, 0, 100, 200, 200, 200, 200]], np.float32)
    rows = resize_image(image, (4, 2))
    np.testing.assert_allclose(rows, [[25, 200]] * 4)


def test_resize_image_of_the_same_size_changes_nothing():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(resize_image(image, (3, 4)), image)


def test_resize_mask_keeps_a_pixel_at_half_of_its_area():
    mask = np.zeros((4, 4), np.uint8)
    mask[:2, 0] = 1  # half of the first output pixel
    mask[0, 2] = 1  # a quarter of the second
    resized = resize_mask(mask, (2, 2))
    assert resized.tolist() == [[1, 0], [0, 0]]
    assert resized.dtype == np.uint8


def test_resize_mask_grows_a_square_to_a_square():
    mask = np.zeros((8, 8), np.uint8)
    mask[2:6, 2:6] = 1
    grown = resize_mask(mask, (16, 16))
    expected = np.kron(mask, np.ones((2, 2), np.uint8))
    assert set(np.unique(grown)) == {0, 1}
    assert (grown != expected).sum() <= 4  # linear growth may round the four corners


def test_resize_mask_keeps_the_area_of_real_masks(siim_real):
    cases = read_cases(siim_real)
    full = small = 0
    for case in cases[cases["has_pneumothorax"]].to_dict("records"):
        mask = read_image(case["mask_path"]) // 255
        full += mask.mean()
        small += resize_mask(mask, (128, 128)).mean()
    assert small == pytest.approx(full, rel=0.02)  # ties at one half count as mask
