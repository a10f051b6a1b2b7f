"""The SIIM-ACR submission: a table of run lengths in the format of the competition."""

import csv
from pathlib import Path

import cv2
from tqdm.auto import tqdm

from pneumo_lib._checks import check_name
from pneumo_lib._files import atomic_write
from pneumo_lib.data.files import find_files, find_xrays, image_id
from pneumo_lib.data.rle import rle_encode
from pneumo_lib.data.siim import read_cases
from pneumo_lib.data.tables import read_table
from pneumo_lib.inference.predict import predict

HEADER = ("ImageId", "EncodedPixels")
SHAPE = (1024, 1024)  # of the competition's images; copies may be smaller
PARTS = ("test", "train", "all")
ROWS = ("image", "region")


def write_submission(images, run, to, *, part="test", rows="image", operating_point=None):
    """Predicts the images of a competition folder and writes their masks as run lengths.

    Args:
        images: a data set, see `siim.read_cases()`, the competition's whole download, or any
            folder of X-rays whose file names without the suffix are the image ids.
        run: `Run`, or what `load_run()` takes.
        to: the CSV file.
        part: official part of a data set: "test", "train" or "all". A folder without tables has
            no parts and is predicted whole.
        rows: as for `encode_mask()`; the competition asked for regions. The score is the same.
        operating_point: `OperatingPoint`; `None` is the run's own.

    Returns:
        `(written, failed)`: number of images, and `(path, reason)` of those that could not be
        read; the table has `-1` for them, because the server requires every image.

    Raises:
        FileNotFoundError: if there is no image, or no finished run.
        ValueError: if `part` or `rows` is unknown, two files have one image id, or `to` is
            another file than a submission.
    """
    check_name("part", part, PARTS)
    check_name("rows", rows, ROWS)
    to, ids, failed = Path(to), _image_ids(Path(images), part), []
    if to.exists():
        with to.open(encoding="utf-8", errors="replace") as file:
            if file.readline().strip() != ",".join(HEADER):
                raise ValueError(
                    "A submission replaces none but an earlier one: give another --to. "
                    f"Received: {to}, which is something else"
                )
    to.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(to) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(HEADER)
        results = predict(list(ids), run, operating_point=operating_point, shape=SHAPE)
        for result in tqdm(results, "predicting", total=len(ids), unit="image"):
            if result.error is not None:
                failed.append((result.path, result.error))
            texts = ["-1"] if result.error else encode_mask(result.mask, rows=rows)
            table.writerows((ids[result.path], text) for text in texts)
    return len(ids), failed


def encode_mask(mask, *, rows="image"):
    """List of run-length texts of a mask, `(height, width)` uint8; `["-1"]` if it is empty.

    `rows` is "image", one text, or "region", one per region of pixels that touch, at corners too.
    """
    if rows == "image" or not mask.any():
        return [rle_encode(mask)]
    count, regions = cv2.connectedComponents(mask, connectivity=8)
    return [rle_encode(regions == number) for number in range(1, count)]


def _image_ids(images, part):
    """Dict of image id by path."""
    files = find_files(images) if images.is_dir() else [images]
    found = _listed_images(images, files, part)
    if found is None:
        found = {path: image_id(path.name) for path in find_xrays(images, files)}
    if not found:
        raise FileNotFoundError(f"The data set must have images of the part {part!r}: {images}")
    names = list(found.values())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"Each image may have one file only. Received: several for {twice}")
    if formula := next((name for name in names if name[:1] in tuple("=+-@")), None):
        raise ValueError(
            f"An image id must not start with = + - @, which spreadsheets run. Received: {formula}"
        )
    return found


def _listed_images(images, files, part):
    """Dict of image id by path from the tables of a data set; `None` without tables.

    The competition's test images are only in its sample submission, which has no truth.
    """
    tables = [path for path in files if path.name.lower().endswith((".csv", ".csv.gz"))]
    samples = [path for path in tables if "sample_submission" in path.name]
    if all("submission" in path.name for path in tables):
        return None
    cases = read_cases(images)
    known = cases["official_part"]
    if part == "test" and samples and not (known == "test").any():
        listed = set(map(image_id, read_table(samples[0], ["ImageId"])["ImageId"]))
        named = {path: image_id(path.name) for path in find_xrays(images, files)}
        return {path: name for path, name in named.items() if name in listed}
    if part != "all" and known.notna().any():
        cases = cases[known == part]
    return dict(zip(map(Path, cases["image_path"]), cases["image_id"], strict=True))
