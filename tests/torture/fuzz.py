"""Coverage-guided fuzzing: `python fuzz.py rle|tables|dicom|image INPUTS [libFuzzer options]`.

Anything but the right kind of result or an error that names what is wrong ends the run and leaves
the input as `crash-*`; so do too much memory and too much time.
"""

import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["pneumo_lib", "pydicom"]):
    from pneumo_lib.data import images, rle, siim
sys.path.insert(0, str(Path(__file__).parents[1]))
import hostile_corpus

SCRATCH = Path(tempfile.mkdtemp(prefix="pneumo-fuzz-"))


def rle_decode(data):
    text = data.decode("utf-8", "replace")
    mask = named(rle.rle_decode, text, (37, 29))
    if mask is not None:
        assert set(mask.ravel().tolist()) <= {0, 1}
        again = rle.rle_decode(rle.rle_encode(mask), (37, 29))
        assert (again == mask).all()


def tables(data):
    """A byte chooses the layout; the rest is the table."""
    folder = SCRATCH / ("png" if data[:1] < b"\x80" else "dicom")
    if not folder.exists():
        folder.mkdir()
        for kind in ("png_images", "png_masks") if folder.name == "png" else ():
            (folder / kind).mkdir()
            (folder / kind / "a.png").touch()
        if folder.name == "png":
            (folder / "stage_1_test_images.csv").write_text(hostile_corpus.HEAD)
        else:
            (folder / "a.dcm").write_bytes(hostile_corpus.dicom())
    name = {"png": "stage_1_train_images.csv", "dicom": "train-rle.csv"}[folder.name]
    (folder / name).write_bytes(data[1:])
    cases = named(siim.read_cases, folder)
    if cases is not None:
        assert cases["image_id"].is_unique
        assert not cases["image_id"].str.startswith(("=", "+", "-", "@")).any()


def image(data, name="a.png"):
    path = SCRATCH / name
    path.write_bytes(data)
    found = named(images.read_image, path, mention=name)
    assert found is None or (found.ndim == 2 and found.dtype == "uint8" and found.size)


def dicom(data):
    image(data, "a.dcm")
    siim._read_header(SCRATCH / "a.dcm")


def named(function, *arguments, mention="Received: "):
    """The result, or `None` after an error that says what is wrong, briefly."""
    try:
        return function(*arguments)
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
    if mention not in text or len(text) > 2000:
        raise RuntimeError(f"unnamed, or too long: {text}")
    return None


TARGETS = {"rle": rle_decode, "tables": tables, "dicom": dicom, "image": image}


def seeds(target, folder):
    """The corpus of the tests, where fuzzing starts."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = {
        "rle": [text.encode() for text in hostile_corpus.RLES if len(text) < 4000],
        "tables": [b"\0" + table for table in hostile_corpus.TABLES.values()]
        + [b"\0" + table for table in hostile_corpus.READABLE_TABLES.values()]
        + [b"\xff" + table for table in hostile_corpus.RLE_TABLES.values()]
        + [b"\xff" + hostile_corpus.RLE_HEAD.encode() + b"a, 1 2 3 4\n", b"\xffa,-1\n"],
        "dicom": [one.content for one in hostile_corpus.dicoms()],
        "image": [one.content for one in hostile_corpus.images()],
    }[target]
    for number, content in enumerate(inputs):
        if len(content) < 30_000:
            (folder / f"seed-{number}").write_bytes(content)


if __name__ == "__main__":
    target, folder, *options = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if os.environ.get("SEEDS") != "0":
        seeds(target, Path(folder))
    limits = ["-rss_limit_mb=3000", "-timeout=25", "-max_len=30000", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *options, folder], TARGETS[target])
    atheris.Fuzz()
