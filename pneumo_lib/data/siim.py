"""Case table of a data folder: the SIIM-ACR layouts and those of copies, or pairs of folders."""

import logging
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from tqdm.auto import tqdm

from pneumo_lib.data.dicom import SPACING_FIELDS, pixel_spacing
from pneumo_lib.data.dicom_fields import text
from pneumo_lib.data.files import find_files, find_xrays, image_id, pair_files, place_of
from pneumo_lib.data.images import read_mask_file
from pneumo_lib.data.masks import SIIM_SIDE, rle_height
from pneumo_lib.data.tables import read_patients, read_run_lengths, read_table

logger = logging.getLogger(__name__)

_LAYOUTS = (
    "png_images/, png_masks/, stage_1_train_images.csv and stage_1_test_images.csv; or X-rays "
    "(*.dcm, *.png, *.jpg) with their run-length table (csv: ImageId, EncodedPixels); or X-rays "
    "and masks of equal names, such as images/x.png and masks/x.png, or train/, masks/ and test/"
)
_RELEASE = {"train": "stage_1_train_images.csv", "test": "stage_1_test_images.csv"}
_SIIM_UID = "1.2.276.0.7230010.3.1.4.8323329."
_HEADER = {"PatientAge": "age", "PatientSex": "sex", "ViewPosition": "view"}
_HEADER_BYTES = 1 << 16  # SIIM-ACR has 2,000 before the pixels


def read_cases(folder):
    """Case table of a data set, one row per image.

    Args:
        folder: one of three layouts, at any depth, see `find_files()` and `pair_files()`.

            - the PNG release: `png_images/`, `png_masks/`, `stage_1_train_images.csv` and
              `stage_1_test_images.csv` with the columns `new_filename, ImageId, has_pneumo`;
            - X-rays and masks of equal names: `images/x.png` and `masks/x.png`, `train/`, `masks/`
              and `test/`, or `x.png` and `x_mask.png`. The masks decide who has a pneumothorax;
            - the official release and copies of it: X-rays `<ImageId>.dcm`, `.png` or `.jpg` and
              a run-length table `*.csv` or `*.csv.gz` (`ImageId, EncodedPixels`, with or without
              that header; an id may end with the suffix of the file).

            X-rays without a mask or row are left out, with a log warning. Patients come from
            `patients.csv` (`ImageId, patient_id`) or `nih_id.csv` (`Kaggle_ID, NIH_ID`) in the
            same folder or its parent.

    Returns:
        DataFrame in the order of the tables: `image_id`, `image_path` (absolute), `mask_path` or
        `rles` (list of `str`), `has_pneumothorax` (bool), `official_part` ("train" or "test";
        without the tables of the PNG release: the innermost folder with one of these words in its
        name), `patient_id` and, from DICOM headers, `age` (years), `sex`, `view`, `pixel_spacing`
        (mm). Missing is NaN. `rle_side` is 1024 where the run lengths are of 1024 x 1024 pixels,
        whatever the size of the image. Names, numbers and dates in DICOM headers are never read.

    Raises:
        FileNotFoundError: one error that lists the expected files that are missing, the rows
            without an image and the images without a row.
        ValueError: if a table has other columns or values than the above.
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"The data folder must exist. Received: {folder}")
    files = find_files(folder)
    tables = [path for path in files if path.name.lower().endswith((".csv", ".csv.gz"))]
    roots = [path.parent for path in tables if re.fullmatch("stage_1_.*_images.csv", path.name)]
    if not roots:
        cases = _read_other_layout(folder, files, tables)
        folders = {path.parent for path in files} if cases is None else ()
        roots = [path.parent for path in folders if path.name == "png_images"]
    if roots:
        folder = min(roots, key=lambda root: len(root.parts))
        cases = _read_png_release(folder)
    if cases is None:
        raise FileNotFoundError(
            f"A data folder holds {_LAYOUTS}. Received: {folder}, which holds neither"
        )
    return _with_patients(cases, folder)


def _read_png_release(root):
    expected = ("png_images", "png_masks", *_RELEASE.values())
    problems = [f"{name} is missing" for name in expected if not (root / name).exists()]
    tables = []
    for subset, name in _RELEASE.items():
        if (root / name).is_file():
            table = read_table(root / name, ["new_filename", "ImageId", "has_pneumo"])
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
    columns = {"image_id": table["ImageId"]}
    for column, kind in (("image_path", "png_images"), ("mask_path", "png_masks")):
        columns[column] = [str(root / kind / name) for name in rows]
    columns["has_pneumothorax"] = table["has_pneumo"] == "1"
    return pd.DataFrame(columns | {"official_part": table["official_part"]})


def _read_other_layout(root, files, tables):
    """Cases by masks of equal names or by run lengths; `None` without either."""
    xrays, pairs, single = pair_files(root, find_xrays(root, files))
    if pairs:
        _refuse(root, _problem("masks without an image of their name", single))
        return _cases_of_pairs(root, xrays, pairs)
    rles, names = read_run_lengths(tables)
    if rles is not None and xrays:
        return _cases_of_run_lengths(root, xrays, rles)
    _refuse(root, _problem("masks without an image of their name", single))
    if xrays and (names or any(path.suffix.lower() == ".dcm" for path in xrays)):
        raise FileNotFoundError(
            "X-rays without masks need exactly one run-length table (csv: ImageId, EncodedPixels) "
            f"with each of them, in the same folder. Received: {names or 'none'} in {root}"
        )
    return None


def _cases_of_pairs(root, xrays, pairs):
    chosen = [path for path in xrays if path in pairs]
    _leave_out("X-rays without a mask", (image_id(x.name) for x in xrays if x not in pairs))
    names = [image_id(path.name) for path in chosen]
    if len(set(names)) < len(names):  # train/1.png and test/1.png
        names = ["/".join(place_of(root, path)) for path in chosen]
    with ThreadPoolExecutor() as threads:
        holds = threads.map(_holds_pixels, map(pairs.get, chosen))
        positive = list(tqdm(holds, "masks", len(chosen), delay=2))
    columns = {"mask_path": [str(pairs[path]) for path in chosen], "has_pneumothorax": positive}
    return _table(root, names, chosen, columns)


def _holds_pixels(mask):
    try:
        return bool(read_mask_file(mask).any())
    except (ValueError, OSError):
        return True  # prepare() names the file


def _cases_of_run_lengths(root, xrays, rles):
    paths = {image_id(path.name): path for path in xrays}
    kind = "DICOM file" if all(path.suffix.lower() == ".dcm" for path in xrays) else "X-ray"
    problems = _problem(f"rows without a {kind}", {*rles.index} - {*paths})
    problems += [] if len(rles) else ["the run-length table has no row"]
    names = pd.Series(image_id(path.name) for path in xrays)
    problems += _problem(f"{kind}s of the same name", names[names.duplicated()])
    what, unlabelled = f"{kind}s without a row in the run-length table", {*paths} - {*rles.index}
    _refuse(root, problems + _problem(what, unlabelled) if problems else [])
    _leave_out(what, unlabelled)  # as in the competition's own release
    positive = [any(rle != "-1" for rle in group) for group in rles]
    columns = {"rles": rles.array, "has_pneumothorax": positive}
    height = rle_height(text for group in rles for text in group) or 0
    if abs(height - SIIM_SIDE) < SIIM_SIDE / 32 or rles.index.str.startswith(_SIIM_UID).all():
        columns["rle_side"] = SIIM_SIDE
    return _table(root, rles.index, [paths[name] for name in rles.index], columns)


def _table(root, names, paths, columns):
    """Case table with what the folders and the DICOM headers tell."""
    subsets = pd.Series([_official_part(path.relative_to(root)) for path in paths], dtype="str")
    table = {"image_id": names, "image_path": [*map(str, paths)], **columns}
    table["official_part"] = subsets
    if any(path.suffix.lower() not in (".png", ".jpg", ".jpeg") for path in paths):
        table |= dict(pd.DataFrame(map(_read_header, tqdm(paths, "DICOM headers", delay=2))))
    return pd.DataFrame(table)


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
            tags = [*_HEADER, *SPACING_FIELDS]
            header = pydicom.dcmread(head, stop_before_pixels=True, specific_tags=tags, force=True)
            found = {name: text(header, tag) for tag, name in _HEADER.items()}
            spacing, _ = pixel_spacing(header)
            values["pixel_spacing"] = spacing[0] if spacing else np.nan
    except Exception:  # pydicom raises anything; prepare() reports it
        return values
    for column in ("sex", "view"):
        if re.fullmatch(r"[A-Z0-9_ ]{1,16}", found[column]):  # a DICOM code, no free text
            values[column] = found[column]
    years = re.fullmatch(r"(\d{1,3})Y?", found["age"])
    values["age"] = float(years[1]) if years else np.nan
    return values


def _with_patients(cases, root):
    patients, name = read_patients((root, root.parent))
    found = cases["image_id"].map(patients).astype("str")
    if name and found.isna().all():
        logger.warning(
            "%s fits no image: none of its %d ids, such as %s, is one of the images', such as %s",
            *(name, len(patients), *patients.index[:1], cases["image_id"].iloc[0]),
        )
    elif name and (unknown := found.isna().sum()):
        logger.warning("%s: %d of %d images have no patient", name, unknown, len(cases))
    return cases.assign(patient_id=found)


def _problem(what, names):
    """List of at most one phrase: the number of `names` and the first few."""
    names = sorted(set(names))
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return [f"{len(names)} {what} ({shown})"] if names else []


def _leave_out(what, names):
    for phrase in _problem(what, names):
        logger.warning("%s; they have no label and are left out", phrase)


def _refuse(root, problems):
    if problems:
        raise FileNotFoundError(
            "Each image needs one row and one mask, and each row its image. "
            f"Received: {root} in which {'; '.join(problems)}"
        )
