"""From a folder of X-rays to a case table."""

import gzip
import logging
import re
import warnings
import zlib
from io import BytesIO
from pathlib import Path
import numpy as np
import pandas as pd
import pydicom
from tqdm.auto import tqdm
from pneumo_lib.data.images import read_image, read_mask

__all__ = ["read_cases", "read_image", "read_mask"]

logger = logging.getLogger(__name__)

_HEADER = {"PatientAge": "age", "PatientSex": "sex", "ViewPosition": "view"}
_HEADER_BYTES = 1 << 16  # what comes before the pixels has 2,000 in SIIM-ACR
_TABLE_COLUMNS = 100
_TABLE_BYTES = 1 << 25  # the largest table of SIIM-ACR has a quarter of that


def read_cases(folder):
    """Case table of a data set, one row per image.

    Two layouts are recognised, in `folder` or one folder below it:

    - the PNG release: `png_images/`, `png_masks/`, `stage_1_train_images.csv` and
      `stage_1_test_images.csv` with the columns `new_filename, ImageId, has_pneumo`;
    - the official release: DICOM files `<ImageId>.dcm` in any nesting and one run-length table
      `*.csv` or `*.csv.gz` (`ImageId, EncodedPixels`, with or without that header). Files
      without a row have no truth (the competition's own release has some): they are left out
      and counted in a log warning.

    Patients come from `patients.csv` (`ImageId, patient_id`) or `nih_id.csv`
    (`Kaggle_ID, NIH_ID`) in `folder` or its parent.

    Args:
        folder: `str` or `Path`.

    Returns:
        DataFrame sorted as the tables are: `image_id`, `image_path` (absolute), `mask_path` (PNG
        release) or `rles` (official; list of `str`), `has_pneumothorax` (bool), `official_part`
        ("train" or "test"; official release: from the names of the folders), `patient_id` and,
        from DICOM headers, `age` (years), `sex`, `view`, `pixel_spacing` (mm). Missing is NaN.
        Names, numbers and dates in DICOM headers are never read.

    Raises:
        FileNotFoundError: one error that lists the expected files that are missing, the rows
            without an image and the images without a row.
        ValueError: if a table has other columns or values than the above.
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"The data folder must exist. Received: {folder}")
    for root in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        if (root / "png_images").is_dir() or any(root.glob("stage_1_*_images.csv")):
            cases = _read_png_release(root)
            break
    else:
        root, cases = folder, _read_official_release(folder)
    patients = _read_patients(root)
    cases["patient_id"] = cases["image_id"].map(patients).astype("str")
    return cases


def _read_png_release(root):
    names = ("stage_1_train_images.csv", "stage_1_test_images.csv")
    expected = [root / name for name in ("png_images", "png_masks", *names)]
    problems = [f"{path.name} is missing" for path in expected if not path.exists()]
    tables = []
    for part, name in zip(("train", "test"), names, strict=True):
        if (root / name).is_file():
            table = _read_table(root / name, ["new_filename", "ImageId", "has_pneumo"])
            if not table["has_pneumo"].isin(["0", "1"]).all():
                raise ValueError(
                    f"`has_pneumo` in {name} must be 0 or 1 in every row. "
                    f"Received: {sorted(set(table['has_pneumo']))[:5]}"
                )
            tables.append(table.assign(official_part=part))
    table = pd.concat(tables, ignore_index=True) if tables else None
    if table is not None:
        for column in ("ImageId", "new_filename"):
            problems += _problem(
                f"{column} in several rows", table[column][table[column].duplicated()]
            )
        for kind in ("png_images", "png_masks"):
            files = {path.name for path in (root / kind).glob("[!.]*.*") if path.is_file()}
            rows = set(table["new_filename"])
            problems += _problem(f"rows without a file in {kind}", rows - files)
            problems += _problem(f"files in {kind} without a row", files - rows)
    _refuse(root, problems)
    return pd.DataFrame(
        {
            "image_id": table["ImageId"],
            "image_path": [str(root / "png_images" / name) for name in table["new_filename"]],
            "mask_path": [str(root / "png_masks" / name) for name in table["new_filename"]],
            "has_pneumothorax": table["has_pneumo"] == "1",
            "official_part": table["official_part"],
        }
    )


def _read_official_release(root):
    files = sorted(
        path
        for path in root.rglob("*")
        if path.suffix.lower() == ".dcm" and path.name[0] != "." and path.is_file()
    )
    if not files:
        raise FileNotFoundError(
            "A data folder holds either png_images/, png_masks/, stage_1_train_images.csv and "
            "stage_1_test_images.csv, or *.dcm files with their run-length table (csv). "
            f"Received: {root}, which holds neither"
        )
    rles = _read_rle_table(root)
    paths = {path.stem: path for path in files}
    problems = _problem("rows without a DICOM file", set(rles.index) - set(paths))
    problems += [] if len(rles) else ["the run-length table has no row"]
    unlabelled = _problem(
        "DICOM files without a row in the run-length table", set(paths) - set(rles.index)
    )
    if len(paths) < len(files):
        stems = pd.Series([path.stem for path in files])
        problems += _problem("DICOM files of the same name", stems[stems.duplicated()])
    _refuse(root, problems + unlabelled if problems else [])
    if unlabelled:
        logger.warning("%s; they have no truth and are left out", unlabelled[0])
    cases = pd.DataFrame({"image_id": rles.index, "rles": rles.array})
    chosen = [paths[image_id] for image_id in cases["image_id"]]
    cases.insert(1, "image_path", [str(path) for path in chosen])
    cases["has_pneumothorax"] = [any(rle != "-1" for rle in group) for group in cases["rles"]]
    parts = pd.Series([_official_part(path.relative_to(root)) for path in chosen], dtype="str")
    headers = [_read_header(path) for path in tqdm(chosen, "DICOM headers", delay=2)]
    return cases.assign(official_part=parts, **pd.DataFrame(headers))


def _read_rle_table(root):
    """Series of lists of run-length texts by image, in the order of the table."""
    tables, unreadable = {}, []
    for path in sorted([*root.rglob("*.csv"), *root.rglob("*.csv.gz")]):
        if "submission" in path.name:
            continue
        try:
            table = _read_csv(path)
        except ValueError as error:  # perhaps somebody's notes; named if no table is found
            unreadable.append(str(error))
            continue
        first = table.iloc[0].tolist()
        headless = len(first) == 2 and re.fullmatch(r"-1|\d[\d ]*", first[1])
        if first == ["ImageId", "EncodedPixels"] or headless:
            tables[path.name] = table if headless else table[1:]
    if len(tables) != 1:
        found = [*tables, *unreadable] or "none"
        raise FileNotFoundError(
            "DICOM files need exactly one run-length table (csv: ImageId, EncodedPixels) in the "
            f"same folder. Received: {found} in {root}"
        )
    [(name, table)] = tables.items()
    _check_names(table[0], f"ImageId in {name}")
    return table[1].groupby(table[0], sort=False).agg(list)


def _official_part(path):
    """ "train" or "test" from the innermost folder that names one of the two, else NaN."""
    for name in reversed([part.lower() for part in path.parts[:-1]]):
        if ("train" in name) != ("test" in name):
            return "train" if "train" in name else "test"
    return np.nan


def _read_header(path):
    """Age, sex, view and pixel spacing; the header's other fields are not even parsed."""
    values = dict.fromkeys([*_HEADER.values(), "pixel_spacing"], np.nan)
    tags = [*_HEADER, "PixelSpacing"]
    try:
        with open(path, "rb") as file:
            head = BytesIO(file.read(_HEADER_BYTES))  # whatever lengths the file claims
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the header
            header = pydicom.dcmread(head, stop_before_pixels=True, specific_tags=tags)
            found = {column: str(header.get(keyword) or "") for keyword, column in _HEADER.items()}
            spacing = header.get("PixelSpacing")
            values["pixel_spacing"] = float(spacing[0]) if spacing else np.nan
    except Exception:  # pydicom raises whatever comes; prepare() reads the whole file, and names it
        return values
    for column in ("sex", "view"):
        if re.fullmatch(r"[A-Z0-9_ ]{1,16}", found[column].strip()):  # a DICOM code, no free text
            values[column] = found[column].strip()
    years = re.fullmatch(r"(\d{1,3})Y?", found["age"].strip())
    values["age"] = float(years[1]) if years else np.nan
    return values


def _read_patients(root):
    """Series of patient by image; empty where no table says."""
    for folder in (root, root.parent):
        if (folder / "patients.csv").is_file():
            table = _read_table(folder / "patients.csv", ["ImageId", "patient_id"])
        elif (folder / "nih_id.csv").is_file():
            table = _read_table(folder / "nih_id.csv", ["Kaggle_ID", "NIH_ID"])
            # 00028864_007.png is image 7 of patient 28864
            table["NIH_ID"] = table["NIH_ID"].str.split("_").str[0]
        else:
            continue
        images, patients = table.iloc[:, 0], table.iloc[:, 1]
        return patients.where(patients != "").set_axis(images).groupby(level=0).first()
    return pd.Series(dtype="str")


def _read_table(path, columns):
    """The wanted columns of a table with a header, without blanks around the cells."""
    table = _read_csv(path)
    names = table.iloc[0].tolist()
    if any(names.count(column) != 1 for column in columns):
        shown = ", ".join(names[:9])[:200]
        raise ValueError(f"{path.name} must have the columns {columns}. Received: {shown}")
    table = table[1:].set_axis(names, axis=1)[columns].reset_index(drop=True)
    for column in {*columns} - {"has_pneumo"}:
        may_be_empty = column in ("patient_id", "NIH_ID")
        _check_names(table[column], f"{column} in {path.name}", empty=may_be_empty)
    return table


def _read_csv(path):
    """Every cell of a table as text, its header as the first row."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(_TABLE_BYTES + 1)  # a few packed bytes may unpack to a full memory
        if len(data) > _TABLE_BYTES:
            raise ValueError(f"more than {_TABLE_BYTES >> 20} MB")
        if b"\0" in data:  # pandas would end the cell there
            raise ValueError("a byte of zero")
        # no header for pandas: it renames a column that is there twice, and takes the first
        # column for row names where all rows have one cell too many
        table = pd.read_csv(
            BytesIO(data), header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig"
        )
        if table.shape[1] > _TABLE_COLUMNS:
            raise ValueError(f"{table.shape[1]} columns")
    except (ValueError, OSError, EOFError, zlib.error) as error:
        why = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            "A table must be text in UTF-8 with commas between its cells, as many in each row. "
            f"Save it as CSV again. Received: {path} ({why})"
        ) from None
    return table.fillna("").apply(lambda column: column.str.strip())


def _check_names(names, what, *, empty=False):
    """They go into tables that people open: a spreadsheet runs what begins like a formula."""
    bad = names[names.str.contains(r"^[=+\-@]|[\x00-\x1f\x7f]") | (names.eq("") & (not empty))]
    if len(bad):
        raise ValueError(
            f"{what} must be a name that does not begin with =, +, - or @, without line breaks. "
            f"Received: {bad.iloc[0][:40]!r}"
        )


def _problem(what, names):
    """At most one sentence: how many there are, and the first few."""
    names = sorted(set(names))
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{len(names)} {what} ({shown})"] if names else []


def _refuse(root, problems):
    if problems:
        raise FileNotFoundError(
            "Each image needs one row and one mask, and each row its image. "
            f"Received: {root} in which {'; '.join(problems)}"
        )
