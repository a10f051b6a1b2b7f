import gzip
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from dicom_files import dicom_bytes

from pneumo_lib.data.images import read_mask
from pneumo_lib.data.siim import read_cases


def write_dicom(path, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(np.zeros((3, 4), np.uint8), **fields))


@pytest.fixture
def official_release(tmp_path):
    """Three labelled files in nested folders, as the competition laid them out."""
    root = tmp_path / "siim-train-test"
    for image_id, subset in (("1.1", "train"), ("1.2", "train"), ("1.3", "test")):
        folder = root / "siim" / f"dicom-images-{subset}" / "study" / "series"
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
    for problem in (
        "stage_1_test_images.csv is missing",
        "1 rows without a file in png_images (1_train_0_.png)",
        "4 files in png_images without a row (0_test_1_.png, 1_test_0_.png, 2_test_0_.png, ...)",
        "1 rows without a file in png_masks (2_train_0_.png)",
    ):
        assert problem in str(raised.value)


def test_read_cases_says_what_is_missing_without_any_table(png_release):
    for subset in ("train", "test"):
        (png_release / f"stage_1_{subset}_images.csv").unlink()
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


@pytest.mark.parametrize(
    ("folder", "part"),
    [
        ("latest-batch", ""),  # the words must be whole
        ("constrained", ""),
        ("Testing_2", "test"),
        ("TRAIN", "train"),
    ],
)
def test_read_cases_takes_only_whole_words_for_an_official_part(tmp_path, folder, part):
    write_dicom(tmp_path / folder / "a.dcm")
    (tmp_path / "rle.csv").write_text("a,-1\n")
    assert read_cases(tmp_path)["official_part"].fillna("").tolist() == [part]


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
