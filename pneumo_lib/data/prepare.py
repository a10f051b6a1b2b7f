"""From a name or a case table to prepared arrays with their table and description."""

import hashlib
import json
import logging
import numbers
import os
from pathlib import Path
from typing import NamedTuple
import numpy as np
import pandas as pd
from pneumo_lib.data import arrays
from pneumo_lib.data.siim import read_cases
from pneumo_lib._files import file_lock, holds_files, made_from, project_path, put_in_place, write_json
from pneumo_lib.data.splits import check_scheme, leaked_patients, split_cases

logger = logging.getLogger(__name__)
_RECORD = "meta.json"


class Prepared(NamedTuple):
    """What `prepare()` leaves in its folder, opened."""

    images: np.ndarray  # (n, size, size) uint8, memory-mapped, read-only
    masks: np.ndarray  # (n, size, size) uint8 of 0 and 1, memory-mapped, read-only
    cases: pd.DataFrame  # n rows in the same order
    meta: dict  # source, size, counts, checksum, split_scheme, leaked_patients, synthetic, ...
    folder: Path


def prepare(
    cases,
    folder,
    *,
    size=128,
    workers=None,
    skip_broken=False,
    source=None,
    request=None,
    prepared_by=None,
):
    """Every image and mask of a case table as uint8 arrays of one size.

    The arrays grow in `<folder>.partial`, which becomes `folder` when it is complete, so a folder
    is whole or not there. A second call with the same cases returns at once; after a kill it
    goes on where it was; changed files are read again and replace the former folder at the end.

    Args:
        cases: table of `read_cases()`, best after `split_cases()`.
        folder: where to write `images.npy`, `masks.npy`, `cases.csv` and `meta.json`.
        size: height and width in pixels of the arrays.
        workers: threads; `None` is one per processor, at most 16.
        skip_broken: leave images that cannot be read, or whose mask contradicts the label, out
            of the arrays and the table instead of refusing the data set.
        source: name of the data in tables and figures; `None` takes the data folder's name.
        request: text that stands for all that decides the arrays and the table; a folder made
            from the same one is opened as it is. `None` is a checksum of table and files.
        prepared_by: dict, the arguments of `prepare_data()` if that is what calls.

    Returns:
        `Prepared`, with the arrays memory-mapped: memory does not grow with the images.

    Raises:
        ValueError: for a size below 1, a table without rows or with repeated ids, or a `folder`
            that holds something else; and, when all others are done, for broken images, by name.
        FileNotFoundError, MemoryError: as `arrays.fill()`; both also with `skip_broken`.
        OSError: with what to do, if the disk is full or cannot be written.
    """
    folder = Path(folder).expanduser().resolve()
    cases = cases.reset_index(drop=True)
    _check(cases, folder, size=size)
    prints = arrays.fingerprints(cases, size=size)
    request = request or arrays.digest(cases, prints)
    if _is_made(folder, request, skip_broken):  # and may lie where nothing can be written
        return load_prepared(folder)
    with file_lock(folder):
        if _is_made(folder, request, skip_broken):  # by the process that was waited for
            return load_prepared(folder)
        aside = folder.with_name(folder.name + ".partial")
        broken = arrays.fill(cases, aside, prints, size=size, workers=workers)
        if broken and (not skip_broken or len(broken) == len(cases)):
            raise ValueError(_tell(broken, cases))
        keep = ~cases.index.isin(broken)
        if broken:
            logger.warning("%s\nThey are left out.", _tell(broken, cases))
            arrays.drop_rows(aside, keep)
        meta = _describe(cases[keep], size=size, source=source)
        meta |= {"left_out": cases["image_id"][~keep].tolist(), "request": request}
        meta |= {"prepared_by": prepared_by}
        _write_cases(cases[keep], aside / "cases.csv")
        write_json(aside / _RECORD, meta | {"checksum": arrays.checksum(aside)})
        put_in_place(aside, folder)
        (folder / arrays.PRINTS).unlink()
    return load_prepared(folder)


def _is_made(folder, request, skip_broken=False):
    meta = made_from(folder, record=_RECORD) or {}
    return meta.get("request") == request and (skip_broken or not meta["left_out"])


def _check(cases, folder, *, size):
    if size < 1 or size != int(size):
        raise ValueError(f"`size` must be a whole number of pixels. Received: size={size}")
    if cases.empty or cases["image_id"].duplicated().any():
        twice = cases["image_id"][cases["image_id"].duplicated()].tolist()
        raise ValueError(
            "`cases` must hold at least one image, and each only once. "
            f"Received: {len(cases)} rows, repeated: {twice[:3]}"
        )
    if made_from(folder, record=_RECORD) is None and holds_files(folder):
        raise ValueError(
            "`folder` must be new, empty or prepared before: its content is replaced. "
            f"Received: {folder}"
        )


def _tell(broken, cases):
    lines = [f"\n  {cases['image_id'][row]}: {why}" for row, why in broken.items()]
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return (
        f"Each image and mask must be readable, and agree with its label. Received: {len(lines)} "
        f"of {len(cases)} that do not; all others are done. Mend them and call again, or leave "
        f"them out with skip_broken=True: {''.join(lines[:20])}{more}"
    )


def _describe(cases, *, size, source):
    root = Path(os.path.commonpath([Path(path).parent for path in cases["image_path"]]))
    root = root.parent if root.name == "png_images" else root
    split = "split" in cases
    groups = {"all": cases, **(dict(list(cases.groupby("split"))) if split else {})}
    known = split and cases["patient_id"].notna().any()
    return {
        "source": source or root.name,
        "synthetic": (root / "phantoms.json").is_file(),
        "size": size,
        "columns": {
            column: "list" if isinstance(cases[column].iloc[0], list) else str(cases[column].dtype)
            for column in cases
        },
        "split_scheme": cases["split_scheme"].iloc[0] if split else None,
        "leaked_patients": leaked_patients(cases) if known else None,
        "counts": {
            name: {"images": len(group), "positive": int(group["has_pneumothorax"].sum())}
            for name, group in groups.items()
        },
    }


def _write_cases(cases, path):
    """The table as CSV, and beside it nothing: lists as JSON, missing as NaN, the rest as is."""
    lists = [column for column in cases if isinstance(cases[column].iloc[0], list)]
    text = cases.assign(**{column: cases[column].map(json.dumps) for column in lists})
    text.to_csv(path, index=False, na_rep="NaN")


def _read_cases(path, columns):
    """The table as it was: `columns` holds the type of each."""
    # everything as text first: a patient "007" is no number, and "" is not missing
    cases = pd.read_csv(path, dtype="str", keep_default_na=False, na_values=["NaN"])
    for column, kind in columns.items():
        if kind == "list":
            cases[column] = cases[column].map(json.loads).astype(object)
        elif kind == "bool":
            cases[column] = cases[column] == "True"
        else:
            cases[column] = cases[column].astype(kind)
    return cases


def load_prepared(folder):
    """What `prepare()` wrote, opened again without reading the arrays.

    Args:
        folder: the one given to `prepare()`.

    Returns:
        `Prepared`.

    Raises:
        FileNotFoundError: if `folder` holds no finished preparation.
    """
    folder = Path(folder).expanduser().resolve()
    if not (meta := made_from(folder, record=_RECORD)):
        raise FileNotFoundError(
            "A prepared folder holds meta.json; call prepare() or prepare_data() first. "
            f"Received: {folder}"
        )
    images, masks = (np.load(folder / f"{kind}.npy", mmap_mode="r") for kind in ("images", "masks"))
    return Prepared(images, masks, _read_cases(folder / "cases.csv", meta["columns"]), meta, folder)


def find_cases(data="phantoms", *, phantom_count=800, seed=0):
    """Case table of a data set by its name or folder; draws the phantoms where they are missing.

    Args:
        data: `"phantoms"` for synthetic radiographs in the project's `data/` folder, else a
            folder for `read_cases()`. A relative one is looked for in the current folder first,
            then in the project.
        phantom_count: how many phantoms.
        seed: which phantoms.

    Returns:
        Case table of `read_cases()`.

    Raises:
        FileNotFoundError, ValueError: as `read_cases()` and `make_phantoms()`.
    """
    folder = _data_folder(str(data), phantom_count=phantom_count, seed=seed)
    if data == "phantoms":
        from pneumo_lib.data.phantom.draw import make_phantoms  # its own imports are only needed to draw

        make_phantoms(folder, count=phantom_count, seed=seed)
    return read_cases(folder)


def prepare_data(
    data="phantoms",
    *,
    size=128,
    split="auto",
    fold=None,
    seed=0,
    phantom_count=800,
    workers=None,
):
    """A data set found, split and prepared; a second call only opens it.

    Args:
        data: as for `find_cases()`.
        size: height and width in pixels of the arrays.
        split: the scheme of `split_cases()`.
        fold: of a cross-validation, such as "2/5", see `split_cases()`.
        seed: of the split, and of the phantoms.
        phantom_count: how many phantoms.
        workers: threads, as for `prepare()`.

    Returns:
        `Prepared`, in the project's `data/prepared/`, in a folder of its own for each data set
        and each combination of settings.

    Raises:
        FileNotFoundError, ValueError: as `find_cases()`, `split_cases()` and `prepare()`.
    """
    data = check_data_settings(
        data=data, size=size, split=split, fold=fold, seed=seed, phantom_count=phantom_count
    )["data"]
    cases = find_cases(data, phantom_count=phantom_count, seed=seed)
    folder = _data_folder(data, phantom_count=phantom_count, seed=seed)
    # two data folders may share a name; phantoms are told apart by theirs
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:6]
    name = folder.name if data == "phantoms" else f"{folder.name}-{place}"
    suffix = "" if fold is None else f"-fold{fold}".replace("/", "of")
    prepared = project_path(f"data/prepared/{name}_{size}_{split}-split{seed}{suffix}")
    # of the table before the split: comparing all images to split them takes minutes
    request = arrays.digest(cases, arrays.fingerprints(cases, size=size), split, fold, seed)
    if _is_made(prepared, request):
        return load_prepared(prepared)
    cases = split_cases(cases, scheme=split, fold=fold, seed=seed)
    source = "phantoms" if data == "phantoms" else folder.name
    call = {"data": data if data == "phantoms" else str(folder), "size": size, "split": split}
    call |= {"fold": fold, "seed": seed}
    call |= {"phantom_count": phantom_count} if data == "phantoms" else {}
    options = {"size": size, "workers": workers, "source": source}
    return prepare(cases, prepared, **options, request=request, prepared_by=call)


def check_data_settings(**settings):
    """Settings of `prepare_data()`, checked before anything is drawn or read.

    Args:
        **settings: any of `data`, `size`, `split`, `fold`, `seed` and `phantom_count`.

    Returns:
        The same dict; `data` is text, as a folder named 2024 comes as a number.

    Raises:
        ValueError: for a number out of range, an unknown scheme of the split, or no fold.
    """
    for name, least in (("size", 1), ("seed", 0), ("phantom_count", 1)):
        value = settings.get(name, least)
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(
                f"`{name}` must be a whole number of {least} or more. Received: {name}={value!r}"
            )
    check_scheme(settings.get("split", "auto"), settings.get("fold"))
    return settings | ({"data": str(settings["data"])} if "data" in settings else {})


def _data_folder(data, *, phantom_count, seed):
    if data == "phantoms":
        return project_path(f"data/phantoms-{phantom_count}-seed{seed}")
    path = Path(data).expanduser()
    return path.resolve() if path.exists() else project_path(path)
