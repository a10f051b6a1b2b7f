"""From case table to memory-mapped arrays, in parallel, through kills and broken files."""

import hashlib
import json
import logging
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.lib.format import open_memmap
from tqdm.auto import tqdm

from .dataset import read_cases
from .paths import project_path
from .pixels import read_pair
from .splits import leaked_patients, split_cases

logger = logging.getLogger(__name__)

CHUNK = 256  # images between two moments when everything done is safely on the disk


class Prepared(NamedTuple):
    """What `prepare()` leaves in its folder, opened."""

    images: np.ndarray  # (n, size, size) uint8, memory-mapped, read-only
    masks: np.ndarray  # (n, size, size) uint8 of 0 and 1, memory-mapped, read-only
    cases: pd.DataFrame  # n rows in the same order
    meta: dict  # source, size, counts, checksum, split_scheme, leaked_patients, synthetic, ...
    folder: Path


def prepare(cases, folder, *, size=128, workers=None, skip_broken=False, source=None):
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

    Returns:
        `Prepared`, with the arrays memory-mapped: memory does not grow with the images.

    Raises:
        ValueError: for a size below 1, a table without rows or with repeated ids, or a `folder`
            that holds something else; and, when all others are done, for broken images, by name.
    """
    folder = Path(folder).expanduser().resolve()
    cases = cases.reset_index(drop=True)
    _check(cases, folder, size=size)
    made_from = _fingerprints(cases, size=size)
    inputs = _digest(cases, made_from)
    meta = _read_meta(folder)
    if meta.get("inputs") == inputs and (skip_broken or not meta["left_out"]):
        return load_prepared(folder)
    aside = folder.with_name(folder.name + ".partial")
    broken = _fill(cases, aside, made_from, size=size, workers=workers)
    if broken and (not skip_broken or len(broken) == len(cases)):
        raise ValueError(_tell(broken, cases))
    keep = ~cases.index.isin(broken)
    if broken:
        logger.warning("%s\nThey are left out.", _tell(broken, cases))
        _drop_rows(aside, keep)
    meta = _describe(cases[keep], size=size, source=source)
    meta |= {"left_out": cases["image_id"][~keep].tolist(), "inputs": inputs}
    _write_cases(cases[keep], aside / "cases.csv")
    _write_meta(aside, meta | {"checksum": _checksum(aside)})
    _swap(aside, folder)
    return load_prepared(folder)


def _check(cases, folder, *, size):
    if size < 1 or size != int(size):
        raise ValueError(f"`size` must be a whole number of pixels. Received: size={size}")
    if cases.empty or cases["image_id"].duplicated().any():
        twice = cases["image_id"][cases["image_id"].duplicated()].tolist()
        raise ValueError(
            "`cases` must hold at least one image, and each only once. "
            f"Received: {len(cases)} rows, repeated: {twice[:3]}"
        )
    if folder.exists() and not (folder / "meta.json").is_file() and any(folder.iterdir()):
        raise ValueError(
            "`folder` must be new, empty or prepared before: its content is replaced. "
            f"Received: {folder}"
        )


def _fingerprints(cases, *, size):
    """`(n,)` uint64: what the arrays' row of each case is made from, never 0."""
    columns = [c for c in ("image_path", "mask_path", "rles", "has_pneumothorax") if c in cases]
    prints = np.zeros(len(cases), np.uint64)
    for row, values in enumerate(cases[columns].itertuples(index=False, name=None)):
        text = [size, *values]
        for path in values[: 2 if "mask_path" in columns else 1]:
            if os.path.isfile(str(path)):
                found = os.stat(path)
                text += [found.st_size, found.st_mtime_ns]
        digest = hashlib.blake2b(repr(text).encode(), digest_size=8).digest()
        prints[row] = int.from_bytes(digest) | 1
    return prints


def _digest(cases, made_from, *settings):
    """One text for a whole call: the files behind the table, the table, the settings."""
    parts = (made_from.tobytes(), cases.to_csv().encode(), repr(settings).encode())
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _fill(cases, aside, made_from, *, size, workers):
    """Makes the rows that are not done yet; the broken ones as `{row: what was wrong}`."""
    shape = (len(cases), size, size)
    done = _open_arrays(aside, shape)[2]
    todo = np.flatnonzero(done != made_from)
    records = cases.to_dict("records")
    broken = {}
    with (
        ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 16)) as threads,
        tqdm(total=len(todo), desc="preparing", unit="image", delay=1) as bar,
    ):
        for start in range(0, len(todo), CHUNK):
            rows = todo[start : start + CHUNK]
            # opened anew for each chunk: pages once written would stay in this process's memory
            images, masks, done = _open_arrays(aside, shape)

            def make(row, images=images, masks=masks):
                images[row], masks[row] = read_pair(records[row], size)

            for row, future in [(row, threads.submit(make, row)) for row in rows]:
                if error := future.exception():
                    broken[int(row)] = str(error).split("\n")[0] or repr(error)
                bar.update()
            images.flush()
            masks.flush()
            good = [row for row in rows if row not in broken]
            done[good] = made_from[good]  # marked only after the pixels are on the disk
            done.flush()
    return broken


def _open_arrays(folder, shape):
    """Images, masks and the fingerprints of their rows, writable; made where they are not."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {"images": (shape, "u1"), "masks": (shape, "u1"), "made_from": (shape[:1], "u8")}
    try:
        arrays = [open_memmap(folder / f"{name}.npy", mode="r+") for name in wanted]
        if [array.shape for array in arrays] == [shape for shape, _ in wanted.values()]:
            return arrays
    except (OSError, ValueError):
        pass  # not there, or killed while it was being made
    # fingerprints last: they must never tell of arrays that are made anew
    (folder / "made_from.npy").unlink(missing_ok=True)
    return [
        open_memmap(folder / f"{name}.npy", mode="w+", shape=shape, dtype=dtype)
        for name, (shape, dtype) in wanted.items()
    ]


def _tell(broken, cases):
    lines = [f"  {cases['image_id'][row]}: {why}" for row, why in broken.items()]
    return "\n".join(
        [
            "Each image and mask must be readable, and agree with its label. Received: "
            f"{len(broken)} of {len(cases)} that do not; all others are done. Mend them and call "
            "again, or leave them out with skip_broken=True:",
            *lines[:20],
            *([f"  and {len(lines) - 20} more"] if len(lines) > 20 else []),
        ]
    )


def _drop_rows(folder, keep):
    for path in (folder / "images.npy", folder / "masks.npy"):
        whole = np.load(path, mmap_mode="r")
        kept = open_memmap(
            path.with_suffix(".kept"), "w+", "u1", (int(keep.sum()), *whole.shape[1:])
        )
        for row, source_row in enumerate(np.flatnonzero(keep)):
            kept[row] = whole[source_row]
        kept.flush()
        os.replace(path.with_suffix(".kept"), path)


def _describe(cases, *, size, source):
    root = Path(os.path.commonpath([Path(path).parent for path in cases["image_path"]]))
    root = root.parent if root.name == "png_images" else root
    groups = (
        {"all": cases, **dict(list(cases.groupby("split")))} if "split" in cases else {"all": cases}
    )
    known = "split" in cases and cases["patient_id"].notna().any()
    return {
        "source": source or root.name,
        "synthetic": (root / "phantoms.json").is_file(),
        "size": size,
        "columns": {
            column: "list" if isinstance(cases[column].iloc[0], list) else str(cases[column].dtype)
            for column in cases
        },
        "split_scheme": cases["split_scheme"].iloc[0] if "split" in cases else None,
        "leaked_patients": leaked_patients(cases) if known else None,
        "counts": {
            name: {"images": len(group), "positive": int(group["has_pneumothorax"].sum())}
            for name, group in groups.items()
        },
    }


def _checksum(folder):
    """SHA-256 over the two array files, images first."""
    sha = hashlib.sha256()
    for name in ("images.npy", "masks.npy"):
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def _swap(aside, folder):
    former = folder.with_name(folder.name + ".former")
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        os.replace(folder, former)
    os.replace(aside, folder)
    (folder / "made_from.npy").unlink()
    shutil.rmtree(former, ignore_errors=True)


def _read_meta(folder):
    path = folder / "meta.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_meta(folder, meta):
    part = folder / "meta.json.part"
    part.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    os.replace(part, folder / "meta.json")


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
    if not (meta := _read_meta(folder)):
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
    folder = _data_folder(data, phantom_count=phantom_count, seed=seed)
    if data == "phantoms":
        from .phantom import make_phantoms  # its own imports are only needed to draw

        make_phantoms(folder, count=phantom_count, seed=seed)
    return read_cases(folder)


def prepare_data(
    data="phantoms", *, size=128, split="auto", seed=0, phantom_count=800, workers=None
):
    """A data set found, split and prepared; a second call only opens it.

    Args:
        data: as for `find_cases()`.
        size: height and width in pixels of the arrays.
        split: the scheme of `split_cases()`.
        seed: of the split, and of the phantoms.
        phantom_count: how many phantoms.
        workers: threads, as for `prepare()`.

    Returns:
        `Prepared`, in the project's `data/prepared/`, in a folder of its own for each data set
        and each combination of settings.

    Raises:
        FileNotFoundError, ValueError: as `find_cases()`, `split_cases()` and `prepare()`.
    """
    cases = find_cases(data, phantom_count=phantom_count, seed=seed)
    folder = _data_folder(data, phantom_count=phantom_count, seed=seed)
    # two data folders may share a name; phantoms are told apart by theirs
    place = hashlib.sha256(str(folder).encode()).hexdigest()[:6]
    name = folder.name if data == "phantoms" else f"{folder.name}-{place}"
    prepared = project_path(f"data/prepared/{name}_{size}_{split}-split{seed}")
    request = _digest(cases, _fingerprints(cases, size=size), split, seed)
    if _read_meta(prepared).get("request") != request:
        # without this record, each call would compare all images again to split them
        cases = split_cases(cases, scheme=split, seed=seed)
        source = "phantoms" if data == "phantoms" else folder.name
        meta = prepare(cases, prepared, size=size, workers=workers, source=source).meta
        _write_meta(prepared, meta | {"request": request})
    return load_prepared(prepared)


def _data_folder(data, *, phantom_count, seed):
    if data == "phantoms":
        return project_path(f"data/phantoms-{phantom_count}-seed{seed}")
    path = Path(data).expanduser()
    return path.resolve() if path.exists() else project_path(path)
