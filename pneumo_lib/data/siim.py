"""Case table of a SIIM-ACR data folder, in its PNG or its official DICOM layout."""

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

logger = logging.getLogger(__name__)

_HEADER = {"PatientAge": "age", "PatientSex": "sex", "ViewPosition": "view"}
_HEADER_BYTES = 1 << 16  # SIIM-ACR has 2,000 before the pixels
_TABLE_BYTES = 1 << 25  # four times the largest table of SIIM-ACR


def read_cases(folder):
    """Case table of a data set, one row per image.

    Args:
        folder: one of two layouts, itself or one folder below it:

            - the PNG release: `png_images/`, `png_masks/`, `stage_1_train_images.csv` and
              `stage_1_test_images.csv` with the columns `new_filename, ImageId, has_pneumo`;
            - the official release: DICOM files `<ImageId>.dcm` in any nesting and one run-length
              table `*.csv` or `*.csv.gz` (`ImageId, EncodedPixels`, with or without that header).
              Files without a row are left out, with a log warning.

            Patients come from `patients.csv` (`ImageId, patient_id`) or `nih_id.csv`
            (`Kaggle_ID, NIH_ID`) in the same folder or its parent.

    Returns:
        DataFrame in the order of the tables: `image_id`, `image_path` (absolute), `mask_path` (PNG
        release) or `rles` (official; list of `str`), `has_pneumothorax` (bool), `official_part`
        ("train" or "test"; official release: the innermost folder with one of these words in its
        name), `patient_id` and, from DICOM headers, `age` (years), `sex`, `view`, `pixel_spacing`
        (mm). Missing is NaN. Names, numbers and dates in DICOM headers are never read.

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
    return cases.assign(patient_id=cases["image_id"].map(_read_patients(root)).astype("str"))


def _read_png_release(root):
    names = ("stage_1_train_images.csv", "stage_1_test_images.csv")
    expected = [root / name for name in ("png_images", "png_masks", *names)]
    problems = [f"{path.name} is missing" for path in expected if not path.exists()]
    tables = []
    for subset, name in zip(("train", "test"), names, strict=True):
        if (root / name).is_file():
            table = _read_table(root / name, ["new_filename", "ImageId", "has_pneumo"])
            if not table["has_pneumo"].isin(["0", "1"]).all():
                raise ValueError(
                    f"`has_pneumo` in {name} must be 0 or 1 in every row. "
                    f"Received: {sorted(set(table['has_pneumo']))[:5]}"
                )
            tables.append(table.assign(official_part=subset))
    if tables:
        table = pd.concat(tables, ignore_index=True)
        rows = table["new_filename"]
        for column in ("ImageId", "new_filename"):
            twice = table[column][table[column].duplicated()]
            problems += _problem(f"{column} in several rows", twice)
        for kind in ("png_images", "png_masks"):
            files = {path.name for path in (root / kind).glob("[!.]*.*") if path.is_file()}
            problems += _problem(f"rows without a file in {kind}", {*rows} - files)
            problems += _problem(f"files in {kind} without a row", files - {*rows})
    _refuse(root, problems)
    return pd.DataFrame(
        {
            "image_id": table["ImageId"],
            "image_path": [str(root / "png_images" / name) for name in rows],
            "mask_path": [str(root / "png_masks" / name) for name in rows],
            "has_pneumothorax": table["has_pneumo"] == "1",
            "official_part": table["official_part"],
        }
    )


def _read_official_release(root):
    files = sorted(p for p in root.rglob("[!.]*") if p.suffix.lower() == ".dcm" and p.is_file())
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
    stems = pd.Series([path.stem for path in files])
    problems += _problem("DICOM files of the same name", stems[stems.duplicated()])
    what = "DICOM files without a row in the run-length table"
    unlabelled = _problem(what, set(paths) - set(rles.index))
    _refuse(root, problems + unlabelled if problems else [])
    if unlabelled:  # as in the competition's own release
        logger.warning("%s; they have no label and are left out", unlabelled[0])
    chosen = [paths[image_id] for image_id in rles.index]
    headers = [_read_header(path) for path in tqdm(chosen, "DICOM headers", delay=2)]
    subsets = [_official_part(path.relative_to(root)) for path in chosen]
    return pd.DataFrame(
        {
            "image_id": rles.index,
            "image_path": [str(path) for path in chosen],
            "rles": rles.array,
            "has_pneumothorax": [any(rle != "-1" for rle in group) for group in rles],
            "official_part": pd.Series(subsets, dtype="str"),
            **pd.DataFrame(headers),
        }
    )


def _read_rle_table(root):
    """Series of lists of run-length texts, indexed by image in the order of the table."""
    tables, unreadable = {}, []
    for path in sorted([*root.rglob("*.csv"), *root.rglob("*.csv.gz")]):
        if "submission" in path.name:
            continue
        try:
            table = _read_csv(path)
        except ValueError as error:  # perhaps somebody's notes; listed if no table is found
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
    _check_names(table[0].rename("ImageId"), name)
    return table[1].groupby(table[0], sort=False).agg(list)


def _official_part(path):
    """ "train" or "test" from the innermost folder that names one of the two, else NaN."""
    for name in reversed(path.parts[:-1]):
        words = set(re.findall(r"(?<![a-z])(train|test)(?:ing)?(?![a-z])", name.lower()))
        if len(words) == 1:
            return words.pop()
    return np.nan


def _read_header(path):
    """Age, sex, view and pixel spacing; the header's other fields are not parsed."""
    values = dict.fromkeys([*_HEADER.values(), "pixel_spacing"], np.nan)
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they quote the header
            head = BytesIO(file.read(_HEADER_BYTES))  # not more, whatever lengths the file claims
            tags = [*_HEADER, "PixelSpacing"]
            header = pydicom.dcmread(head, stop_before_pixels=True, specific_tags=tags)
            found = {name: str(header.get(tag) or "").strip() for tag, name in _HEADER.items()}
            spacing = header.get("PixelSpacing")
            values["pixel_spacing"] = float(spacing[0]) if spacing else np.nan
    except Exception:  # pydicom raises anything; prepare() reads the whole file and reports it
        return values
    for column in ("sex", "view"):
        if re.fullmatch(r"[A-Z0-9_ ]{1,16}", found[column]):  # a DICOM code, no free text
            values[column] = found[column]
    years = re.fullmatch(r"(\d{1,3})Y?", found["age"])
    values["age"] = float(years[1]) if years else np.nan
    return values


def _read_patients(root):
    """Series of patients, indexed by image; empty without a table of patients."""
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
    """The given columns of a table with a header, without blanks around the cells."""
    table = _read_csv(path)
    names = table.iloc[0].tolist()
    if any(names.count(column) != 1 for column in columns):
        shown = ", ".join(names[:9])[:200]
        raise ValueError(f"{path.name} must have the columns {columns}. Received: {shown}")
    table = table[1:].set_axis(names, axis=1)[columns].reset_index(drop=True)
    for column in {*columns} - {"has_pneumo"}:
        _check_names(table[column], path.name, empty=column in ("patient_id", "NIH_ID"))
    return table


def _read_csv(path):
    """All cells of a table as text, with its header as the first row."""
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
        if table.shape[1] > 100:
            raise ValueError(f"{table.shape[1]} columns")
    except (ValueError, OSError, EOFError, zlib.error) as error:
        why = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            "A table must be text in UTF-8 with commas between its cells, as many in each row. "
            f"Save it as CSV again. Received: {path} ({why})"
        ) from None
    return table.fillna("").apply(lambda column: column.str.strip())


def _check_names(column, table, *, empty=False):
    """Refuses names that a spreadsheet, which opens our tables too, would run as a formula."""
    bad = column[column.str.contains(r"^[=+\-@]|[\x00-\x1f\x7f]") | (column.eq("") & (not empty))]
    if len(bad):
        raise ValueError(
            f"{column.name} in {table} must be a name that does not begin with =, +, - or @, "
            f"without line breaks. Received: {bad.iloc[0][:40]!r}"
        )


def _problem(what, names):
    """List of at most one phrase: the number of `names` and the first few."""
    names = sorted(set(names))
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{len(names)} {what} ({shown})"] if names else []


def _refuse(root, problems):
    if problems:
        raise FileNotFoundError(
            "Each image needs one row and one mask, and each row its image. "
            f"Received: {root} in which {'; '.join(problems)}"
        )
