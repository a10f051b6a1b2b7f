import gzip
import shutil
import unicodedata

import cv2
import numpy as np
import pytest
from dicom_files import dicom_bytes

from pneumo_lib.data.images import decode_xray, read_mask
from pneumo_lib.data.rle import rle_encode
from pneumo_lib.data.siim import read_cases
from pneumo_lib.data.splits import split_cases


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


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("new_filename,ImageId,has_pneumo\na.png,a,1\nb.png,a,1\n", r"1 ImageId in several rows"),
        ("new_filename,ImageId,has_pneumo\na.png,a,yes\n", r"`has_pneumo` in stage_1_tr.*1.*yes"),
        ("name,label\na.png,1\n", r"stage_1_train_images\.csv must have the columns"),
    ],
)
def test_read_cases_refuses_rows_labels_and_columns_that_do_not_fit(png_release, table, message):
    (png_release / "stage_1_train_images.csv").write_text(table)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
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


def test_read_cases_refuses_a_folder_of_something_else_and_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="must exist"):
        read_cases(tmp_path / "nowhere")
    (tmp_path / "x.png").touch()
    with pytest.raises(FileNotFoundError, match=r"png_images/.*ImageId, EncodedPixels.*masks/x"):
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


def test_the_spacing_in_the_table_is_that_of_a_prediction(tmp_path):
    magnified = {"EstimatedRadiographicMagnificationFactor": "1.25"}
    write_dicom(tmp_path / "a.dcm", ImagerPixelSpacing=[0.2, 0.2], **magnified)
    (tmp_path / "rle.csv").write_text("a,-1\n")
    [spacing] = read_cases(tmp_path)["pixel_spacing"]
    assert spacing == pytest.approx(0.16)
    assert decode_xray((tmp_path / "a.dcm").read_bytes(), "a.dcm").spacing[0] == spacing


def test_read_cases_leaves_out_dicom_files_without_truth_and_says_so(official_release, caplog):
    write_dicom(official_release / "siim" / "dicom-images-test" / "1.4.dcm")
    assert len(read_cases(official_release)) == 3
    assert "1 DICOM files without a row in the run-length table (1.4)" in caplog.text


def test_read_cases_refuses_rows_without_a_dicom_file_and_two_of_one_name(official_release):
    table = official_release / "siim" / "train-rle.csv"
    table.write_text(table.read_text() + "1.9,-1\n")
    write_dicom(official_release / "1.4.dcm")
    with pytest.raises(FileNotFoundError, match=r"1 rows without a DICOM file \(1\.9\); 1 DICOM"):
        read_cases(official_release)
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


# Copies of the data set, and data sets of one's own


LESION = np.zeros((48, 48), np.uint8)
LESION[10:20, 6:30] = 255
RUNS = rle_encode(LESION // 255)


def write_pngs(folder, names, pixels=None):
    """Grey images, or the given pixels."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((48, 48), 90, np.uint8) if pixels is None else pixels
        path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["images/a.png", "images/b.png"], ["masks/a.png", "masks/b.png"]),
        (["Images/a.jpg", "Images/b.png"], ["Masks/a.png", "Masks/b.png"]),
        (["img/a.png", "img/b.png"], ["mask/a_mask.png", "mask/b_mask.png"]),
        (["a.png", "b.png"], ["a_mask.png", "b_mask.png"]),
        (["train/a.png", "train/b.png"], ["masks/a.png", "masks/b.png"]),
        (["png_images/a.png", "png_images/b.png"], ["png_masks/a.png", "png_masks/b.png"]),
        (["train/images/a.png", "test/images/b.png"], ["train/masks/a.png", "test/masks/b.png"]),
        (["images/train/a.png", "images/test/b.png"], ["masks/train/a.png", "masks/test/b.png"]),
        (["train_images/a.png", "test_images/b.png"], ["train_masks/a.png", "test_masks/b.png"]),
        (["siim/input/images/a.dcm.png", "siim/input/images/b.dcm.png"],
         ["siim/input/masks/a.png", "siim/input/masks/b.png"]),
    ],
    ids=lambda names: names[0],
)  # fmt: skip
def test_read_cases_pairs_images_and_masks_of_equal_names(tmp_path, images, masks):
    write_pngs(tmp_path, images)
    write_pngs(tmp_path, masks[:1], LESION)
    write_pngs(tmp_path, masks[1:], 0 * LESION)
    cases = read_cases(tmp_path).sort_values("image_id", ignore_index=True)
    assert cases["image_id"].tolist() == ["a", "b"]
    assert cases["has_pneumothorax"].tolist() == [True, False]
    assert cases["image_path"].tolist() == [str(tmp_path / name) for name in images]
    assert cases["mask_path"].tolist() == [str(tmp_path / name) for name in masks]
    words = [[w for w in ("train", "test") if w in name] for name in images]
    assert cases["official_part"].fillna("").tolist() == ["".join(w) for w in words]
    np.testing.assert_array_equal(read_mask(cases.iloc[0], (48, 48)), LESION // 255)


def test_read_cases_keeps_images_of_one_name_in_two_subsets_apart(tmp_path):
    write_pngs(tmp_path, ["train/images/1.png", "test/images/1.png"])
    write_pngs(tmp_path, ["train/masks/1.png"], LESION)
    write_pngs(tmp_path, ["test/masks/1.png"], 0 * LESION)
    cases = read_cases(tmp_path).set_index("image_id")["has_pneumothorax"]
    assert cases.to_dict() == {"train/1": True, "test/1": False}


def test_read_cases_leaves_out_images_without_a_mask_in_one_line(tmp_path, caplog):
    write_pngs(tmp_path, ["train/a.png", *(f"test/{n}.png" for n in "wxyz")])
    write_pngs(tmp_path, ["masks/a.png"], LESION)
    (tmp_path / "train" / "notes.txt").touch()
    assert read_cases(tmp_path)["image_id"].tolist() == ["a"]
    assert "4 X-rays without a mask (w, x, y, ...); they have no label and are" in caplog.text
    assert "1 files that are no X-rays are left out (1 .txt)" in caplog.text
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (["masks/a.png", "masks/b.png"], r"1 masks without an image of their name \(masks/b"),
        (["masks/a.png", "lung_masks/a.png"], r"1 masks without an image of their name \(lung_"),
        (["masks/a_0.png", "masks/a_1.png"], r"2 masks without an image of their name \(masks/a"),
    ],
    ids=["another image", "of lungs", "one per lesion"],
)
def test_read_cases_refuses_masks_without_their_image(tmp_path, masks, message):
    write_pngs(tmp_path, ["images/a.png"])
    write_pngs(tmp_path, masks, LESION)
    with pytest.raises(FileNotFoundError, match=message):
        read_cases(tmp_path)


def test_read_cases_unites_tables_of_different_images(official_release):
    table = official_release / "siim" / "train-rle.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:4]))
    (official_release / "stage_2_train.csv").write_text("ImageId,EncodedPixels\n" + lines[4])
    assert sorted(read_cases(official_release)["image_id"]) == ["1.1", "1.2", "1.3"]


def test_read_cases_leaves_a_mask_that_cannot_be_read_to_prepare(tmp_path):
    write_pngs(tmp_path, ["images/a.png"])
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_bytes(b"broken")
    [case] = read_cases(tmp_path).to_dict("records")
    with pytest.raises(ValueError, match=r"complete PNG.*a\.png"):
        read_mask(case, (48, 48))


@pytest.mark.parametrize("below", ["", "siim/input"])
@pytest.mark.parametrize("suffix", ["", ".dcm", ".png"])
def test_read_cases_reads_png_copies_with_a_run_length_table(tmp_path, below, suffix):
    write_pngs(tmp_path / below, ["train/1.2.5.png", "train/1.2.6.png"])
    table = f"ImageId,EncodedPixels\n1.2.5{suffix},{RUNS}\n1.2.6{suffix},-1\n"
    (tmp_path / below / "train-rle.csv").write_text(table)
    cases = read_cases(tmp_path)
    assert cases["image_id"].tolist() == ["1.2.5", "1.2.6"]
    assert cases["has_pneumothorax"].tolist() == [True, False]
    np.testing.assert_array_equal(read_mask(cases.iloc[0], (48, 48)), LESION // 255)


@pytest.mark.parametrize(
    "empty", ["-1", " -1", "-1.0", "-1.", "", "nan", "NaN", "None", "null", "N/A", "<NA>", "[]"]
)
def test_read_cases_knows_every_public_spelling_of_no_mask(official_release, empty):
    table = f"ImageId, EncodedPixels\n1.1,{empty}\n1.2,0 2\n1.2,1 1 2 1\n1.3,{empty}\n"
    (official_release / "siim" / "train-rle.csv").write_text(table)
    cases = read_cases(official_release)
    assert cases["has_pneumothorax"].tolist() == [False, True, False]
    assert cases["rles"][0] == ["-1"]


@pytest.mark.parametrize("text", ["yes", "1 2 x", "-1 -1", "1.5 2", "-2"])
def test_read_cases_refuses_text_that_is_neither_runs_nor_no_mask(official_release, text):
    table = f"ImageId, EncodedPixels\n1.1,-1\n1.2,0 2\n1.3,{text}\n"
    (official_release / "siim" / "train-rle.csv").write_text(table)
    with pytest.raises(ValueError, match=f"must be run lengths.*Received: '{text}' in 1 rows"):
        read_cases(official_release)


@pytest.mark.parametrize(
    "table",
    [
        "ImageId,EncodedPixels\n1.1, -1\n1.2,0 2\n1.3,3 3\n",
        "image_id,encoded_pixels\n1.1, -1\n1.2,0 2\n1.3,3 3\n",
        "Image ID, Encoded Pixels\n1.1, -1\n1.2,0 2\n1.3,3 3\n",
        ",ImageId,EncodedPixels\n0,1.1,-1\n1,1.2,0 2\n2,1.3,3 3\n",  # pandas' row numbers
    ],
)
def test_read_cases_knows_a_run_length_table_by_its_words(official_release, table):
    (official_release / "siim" / "train-rle.csv").write_text(table)
    assert read_cases(official_release)["rles"].tolist() == [["-1"], ["0 2"], ["3 3"]]


@pytest.mark.parametrize(
    ("table", "header"),
    [
        ("ImageId;EncodedPixels\n1.1;-1\n", "ImageId;EncodedPixels"),  # as Excel saves in Germany
        ("ImageId\tEncodedPixels\n1.1\t-1\n", r"ImageId.{1,3}tEncodedPixels"),
        ("ImageId,EncodedPixels,ImageId\n1.1,-1,1.1\n", "ImageId,EncodedPixels,ImageId"),
        ("ImageId,EncodedPixels,fold\n1.1,-1,0\n", "ImageId,EncodedPixels,fold"),
    ],
)
def test_a_run_length_table_with_other_cells_is_named_with_its_header(tmp_path, table, header):
    """steinbock#28, RadBase#1: such a table was left out, and the folder called unknown."""
    write_pngs(tmp_path, ["1.1.png"])
    (tmp_path / "train-rle.csv").write_text(table)
    with pytest.raises(FileNotFoundError, match=f"commas between its cells.*rle.csv.*{header}"):
        read_cases(tmp_path)


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_accents_of_names_are_composed_or_apart(tmp_path, forms):
    """CTK#404: macOS writes the accents of file names apart, a table has them composed."""
    file, other = (unicodedata.normalize(form, "tête.1") for form in forms)
    assert file != other
    write_pngs(tmp_path, [f"rles/{file}.png", f"pairs/images/{file}.png"])
    write_pngs(tmp_path, [f"pairs/masks/{other}.png"], LESION)
    (tmp_path / "rles/train-rle.csv").write_text(f"ImageId,EncodedPixels\n{other},0 2\n")
    (tmp_path / "rles/patients.csv").write_text(f"ImageId,patient_id\n{other},7\n")
    assert read_cases(tmp_path / "rles")[["rles", "patient_id"]].values.tolist() == [[["0 2"], "7"]]
    assert read_cases(tmp_path / "pairs")["has_pneumothorax"].tolist() == [True]


@pytest.mark.parametrize("known_by", ["runs", "ids"])
def test_run_lengths_of_the_competition_fit_images_of_any_size(tmp_path, known_by):
    large = np.zeros((1024, 1024), np.uint8)
    large[256:512, 128:384] = 1
    name = "1.2.276.0.7230010.3.1.4.8323329.6.7" if known_by == "ids" else "a"
    runs = "3840 2" if known_by == "ids" else rle_encode(large)
    write_pngs(tmp_path, [f"{name}.png"])
    (tmp_path / "rle.csv").write_text(f"ImageId,EncodedPixels\n{name},{runs}\n")
    [case] = read_cases(tmp_path).to_dict("records")
    assert case["rle_side"] == 1024
    if known_by == "runs":  # a quarter of the height, from a quarter; and from an eighth
        mask = read_mask(case, (64, 64))
        assert mask[16:32, 8:24].all()
        assert mask.sum() == 16 * 16


def test_read_cases_follows_folders_that_are_links(official_release, caplog):
    disk = official_release.parent / "disk"
    (official_release / "siim" / "dicom-images-train").rename(disk)
    (official_release / "siim" / "dicom-images-train").symlink_to(disk)
    cases = read_cases(official_release)
    assert cases["official_part"].tolist() == ["train", "train", "test"]
    assert "1 links are followed (siim/dicom-images-train -> " in caplog.text


def test_table_names_no_file_outside_of_its_folder_through_links_neither(png_release):
    outside = png_release.parent / "outside"
    (png_release / "png_images" / "0_train_1_.png").rename(png_release.parent / "x.png")
    outside.mkdir()
    (png_release.parent / "x.png").rename(outside / "x.png")
    (png_release / "png_images" / "link").symlink_to(outside)
    table = png_release / "stage_1_train_images.csv"
    for name in ("link/x.png", "../../outside/x.png", str(outside / "x.png")):
        lines = table.read_text().splitlines()
        lines[1] = f"{name},train.0,1"
        table.write_text("\n".join(lines))
        with pytest.raises(FileNotFoundError, match="1 rows without a file in png_images"):
            read_cases(png_release)


def test_patients_that_fit_no_image_or_not_all_are_told(png_release, caplog):
    path = png_release / "patients.csv"
    text = path.read_text()
    path.write_text(text.replace("train.0,", "train.00,"))
    assert read_cases(png_release)["patient_id"].isna().sum() == 1
    assert "patients.csv: 1 of 12 images have no patient" in caplog.text
    path.write_text(text.replace(",", ".png,").replace("ImageId.png", "ImageId"))
    cases = read_cases(png_release)
    assert "patients.csv fits no image: none of its 12 ids, such as test.0.png," in caplog.text
    with pytest.raises(ValueError, match="whose ids match the images"):
        split_cases(cases, scheme="patient", near_duplicates=False)


def test_headers_of_older_files_are_read_too(official_release):
    path = next(official_release.rglob("1.3.dcm"))
    with_meta = path.read_bytes()
    path.write_bytes(with_meta[144 + int.from_bytes(with_meta[140:144], "little") :])
    assert read_cases(official_release)["age"].tolist() == [45, 45, 45]
