"""Images and masks of a data set as arrays of one size, with their case table and metadata."""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from pneumo_lib import _files
from pneumo_lib._checks import number, text
from pneumo_lib.data import arrays
from pneumo_lib.data.siim import read_cases
from pneumo_lib.data.splits import check_scheme, leaked_patients, split_cases

logger = logging.getLogger(__name__)
_META = "meta.json"


class Prepared(NamedTuple):
    """Prepared data set, see `prepare()`."""

    images: np.ndarray  # (n, size, size) uint8, memory-mapped, read-only
    masks: np.ndarray  # (n, size, size) uint8 of 0 and 1, memory-mapped, read-only
    cases: pd.DataFrame  # n rows in the same order
    meta: dict  # source, size, counts, checksum, split_scheme, leaked_patients, synthetic, ...
    folder: Path


def prepare(cases, folder, *, size=128, workers=None, skip_broken=False, request=None, meta=None):
    """`Prepared`: all images and masks of a case table as uint8 arrays of one size.

    The arrays are written to `<folder>.partial`, which is renamed to `folder` when they are
    complete. A second call with the same cases returns at once; after a kill it continues; changed
    files are read again and replace the former folder at the end.

    Args:
        cases: table of `read_cases()`, best after `split_cases()`.
        folder: where to write `images.npy`, `masks.npy`, `cases.csv` and `meta.json`.
        size: height and width in pixels of the arrays.
        workers: threads; `None` is one per processor, at most 16.
        skip_broken: leave images that cannot be read, or whose mask contradicts the label, out
            of the arrays and the table instead of refusing the data set.
        request: text that identifies all that decides the arrays and the table; a folder made
            from the same one is opened as it is. `None` is a checksum of table and files.
        meta: dict of further entries of `meta.json`, or of another `source` (the name of the data
            in tables and figures, by default that of the data folder).

    Raises:
        ValueError: for a size below 1, a table without rows or with repeated ids, or a `folder`
            that holds something else; and, when all others are done, for broken images, by name.
        FileNotFoundError, MemoryError: as `arrays.fill()`; both also with `skip_broken`.
        OSError: with what to do, if the disk is full or cannot be written.
    """
    folder = Path(folder).expanduser().resolve()
    cases = cases.reset_index(drop=True)
    size = check_data_settings(size=size)["size"]
    _check(cases, folder)
    prints = arrays.fingerprints(cases, size=size)
    request = request or arrays.digest(cases, prints)
    if _is_made(folder, request, skip_broken):  # before the lock: `folder` may be read-only
        return load_prepared(folder)
    with _files.file_lock(folder):
        if _is_made(folder, request, skip_broken):  # by the process that held the lock
            return load_prepared(folder)
        partial = folder.with_name(folder.name + ".partial")
        broken = arrays.fill(cases, partial, prints, size=size, workers=workers)
        keep = ~cases.index.isin(broken)
        if broken:
            listed = _listed(broken, cases)
            if not skip_broken or not keep.any():
                raise ValueError(listed)
            logger.warning("%s\nThey are left out.", listed)
            arrays.drop_rows(partial, keep)
        left_out = cases["image_id"][~keep].tolist()
        _write_cases(cases[keep], partial / "cases.csv")
        described = _describe(cases[keep]) | {"size": size, "left_out": left_out} | (meta or {})
        made = {"request": request, "checksum": arrays.checksum(partial)}
        _files.write_json(partial / _META, described | made)
        _files.put_in_place(partial, folder)
        (folder / arrays.PRINTS).unlink()
    return load_prepared(folder)


def _is_made(folder, request, skip_broken=False):
    meta = _files.made_from(folder, record=_META) or {}
    return meta.get("request") == request and (skip_broken or not meta["left_out"])


def _check(cases, folder):
    twice = cases["image_id"][cases["image_id"].duplicated()].tolist()
    if cases.empty or twice:
        raise ValueError(
            "`cases` must hold at least one image, and each only once. "
            f"Received: {len(cases)} rows, repeated: {twice[:3]}"
        )
    if _files.made_from(folder, record=_META) is None and _files.holds_files(folder):
        raise ValueError(
            "`folder` must be new, empty or prepared before: its content is replaced. "
            f"Received: {folder}"
        )


def _listed(broken, cases):
    lines = [f"\n  {cases['image_id'][row]}: {why}" for row, why in broken.items()]
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return (
        f"Each image and mask must be readable, and agree with its label. Received: {len(lines)} "
        f"of {len(cases)} that do not; all others are done. Mend them and call again, or leave "
        f"them out with skip_broken=True: {''.join(lines[:20])}{more}"
    )


def _describe(cases):
    paths = [*cases["image_path"], *cases.get("mask_path", ())]
    root = Path(os.path.commonpath([Path(path).parent for path in paths]))
    root = root.parent if root.name == "png_images" else root
    split = "split" in cases
    groups = {"all": cases, **(dict(list(cases.groupby("split"))) if split else {})}
    patients = split and cases["patient_id"].notna().any()
    return {
        "source": root.name,
        "synthetic": (root / "phantoms.json").is_file(),
        "columns": {
            column: "list" if isinstance(cases[column].iloc[0], list) else str(cases[column].dtype)
            for column in cases
        },
        "split_scheme": cases["split_scheme"].iloc[0] if split else None,
        "leaked_patients": leaked_patients(cases) if patients else None,
        "counts": {
            name: {"images": len(group), "positive": int(group["has_pneumothorax"].sum())}
            for name, group in groups.items()
        },
    }


def _write_cases(cases, path):
    """Writes the table as CSV: lists as JSON, missing values as NaN, everything else as it is."""
    lists = [column for column in cases if isinstance(cases[column].iloc[0], list)]
    text = cases.assign(**{column: cases[column].map(json.dumps) for column in lists})
    text.to_csv(path, index=False, na_rep="NaN")


def _read_cases(path, columns):
    """Table of `_write_cases()` with its types, given as `{column: type}`."""
    kinds = {column: "str" if kind == "list" else kind for column, kind in columns.items()}
    # the C parser of pandas before 3.1 loses the last bit of a float
    options = {"keep_default_na": False, "na_values": ["NaN"], "engine": "python"}
    cases = pd.read_csv(path, dtype=kinds, **options)
    for column in (column for column, kind in columns.items() if kind == "list"):
        cases[column] = cases[column].map(json.loads).astype(object)
    return cases


def load_prepared(folder):
    """`Prepared` from the `folder` given to `prepare()`, without reading the arrays.

    Raises FileNotFoundError if `folder` holds no finished preparation.
    """
    folder = Path(folder).expanduser().resolve()
    if not (meta := _files.made_from(folder, record=_META)):
        raise FileNotFoundError(
            "A prepared folder holds meta.json; call prepare() or prepare_data() first. "
            f"Received: {folder}"
        )
    images, masks = (np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in ("images", "masks"))
    return Prepared(images, masks, _read_cases(folder / "cases.csv", meta["columns"]), meta, folder)


def find_cases(data="phantoms", *, phantom_count=800, seed=0):
    """Case table of `read_cases()`, with its errors, for a data set given by name or folder.

    Args:
        data: `"phantoms"` for synthetic radiographs in the project's `data/` folder, drawn if
            missing, else a folder: a relative path is looked for in the current folder first,
            then in the project.
        phantom_count, seed: how many phantoms, and which; errors as for `make_phantoms()`.
    """
    folder = _data_folder(str(data), phantom_count=phantom_count, seed=seed)
    if data == "phantoms":
        from pneumo_lib.data.phantom.draw import make_phantoms  # slow to import

        make_phantoms(folder, count=phantom_count, seed=seed)
    return read_cases(folder)


def prepare_data(
    data="phantoms", *, size=128, split="auto", fold=None, seed=0, phantom_count=800, workers=None
):
    """Data set found, split and prepared; a second call only opens it.

    Args:
        data, phantom_count: as for `find_cases()`.
        size, workers: as for `prepare()`.
        split, fold: `scheme` and `fold` of `split_cases()`.
        seed: of the split, and of the phantoms.

    Returns:
        `Prepared`, in the project's `data/prepared/`, a folder for each combination of settings.

    Raises:
        FileNotFoundError, ValueError: as `find_cases()`, `split_cases()` and `prepare()`.
    """
    call = check_data_settings(
        data=data, size=size, split=split, fold=fold, seed=seed, phantom_count=phantom_count
    )
    data, size, seed = call["data"], call["size"], call["seed"]
    phantoms = {"phantom_count": call["phantom_count"], "seed": seed}
    cases, folder = find_cases(data, **phantoms), _data_folder(data, **phantoms)
    if data == "phantoms":
        name, source = folder.name, "phantoms"
    else:  # two data folders may have the same name
        name = f"{folder.name}-{hashlib.sha256(str(folder).encode()).hexdigest()[:6]}"
        source, call["data"] = folder.name, str(folder)
        del call["phantom_count"]
    suffix = "" if fold is None else f"-fold{fold}".replace("/", "of")
    prepared = _files.project_path(f"data/prepared/{name}_{size}_{split}-split{seed}{suffix}")
    # of the table before the split, which takes minutes as it compares all images
    request = arrays.digest(cases, arrays.fingerprints(cases, size=size), split, fold, seed)
    if _is_made(prepared, request):
        return load_prepared(prepared)
    cases = split_cases(cases, scheme=split, fold=fold, seed=seed)
    options = {"size": size, "workers": workers, "request": request}
    return prepare(cases, prepared, **options, meta={"source": source, "prepared_by": call})


def check_data_settings(**settings):
    """The given settings of `prepare_data()`, checked, with `data` as text (such as "2024")."""
    least = {"size": 1, "seed": 0, "phantom_count": 1}
    checks = {name: number(whole=True, low=low) for name, low in least.items()} | {"data": text}
    check_scheme(settings.get("split", "auto"), settings.get("fold"))
    return settings | {n: check(n, settings[n]) for n, check in checks.items() if n in settings}


def _data_folder(data, *, phantom_count, seed):
    if data == "phantoms":
        return _files.project_path(f"data/phantoms-{phantom_count}-seed{seed}")
    path = Path(data).expanduser()
    return path.resolve() if path.exists() else _files.project_path(path)
