"""Bad and hostile input: an error that names the file, or the right pixels; all others go on."""

import gzip
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import hostile_corpus as corpus
import numpy as np
import pandas as pd
import pytest
from hostile_corpus import EITHER, REFUSED
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_lib.data import arrays, images, siim, tables
from pneumo_lib.data.images import read_image, read_mask
from pneumo_lib.data.prepare import load_prepared, prepare
from pneumo_lib.data.rle import rle_decode
from pneumo_lib.data.siim import read_cases

ROOT = Path(__file__).parents[1]
IMAGES = [*corpus.images(), *corpus.dicoms()]
# pydicom's own words on files that break off or lie; what we make of them is tested
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom", "ignore::UserWarning")


def outcome(function, *arguments, **options):
    """What a function gives, or the text of its `ValueError`."""
    try:
        return function(*arguments, **options)
    except ValueError as error:
        return str(error)


def mask_case(tmp_path, content, *, name="mask.png"):
    """A positive case with the content as its mask file."""
    path = tmp_path / name
    path.write_bytes(content)
    return {"image_id": "case.1", "mask_path": str(path), "has_pneumothorax": True}


# Images


def check_pixels(found, one):
    assert found.dtype == np.uint8
    assert found.ndim == 2
    if one.expected is not EITHER:
        assert found.shape == one.expected.shape
        # two grey levels: colour becomes grey by rounded weights, JPEG decoders round too
        np.testing.assert_allclose(found, one.expected.astype(int), atol=2, rtol=0)


@pytest.mark.parametrize("one", IMAGES, ids=attrgetter("name"))
def test_a_bad_file_is_named_as_image_and_as_mask_or_has_the_right_pixels(one, tmp_path):
    case = mask_case(tmp_path, one.content, name=one.name)
    found = outcome(read_image, case["mask_path"])
    reduced = [outcome(images.read_image, tmp_path / one.name, at_least=n) for n in (1, 3)]
    texts = [text for text in (found, *reduced) if isinstance(text, str)]
    if one.expected is not EITHER:
        assert len(texts) == (3 if one.expected is REFUSED else 0)
    if not isinstance(found, str):
        check_pixels(found, one)
    elif one.name.endswith((".png", ".jpg")):
        texts.append(outcome(read_mask, case, (corpus.SIDE, corpus.SIDE)))
    assert all(one.name in text and len(text) < 400 for text in texts)


MEASURE = """
import resource, sys, warnings
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import hostile_corpus as corpus
from pneumo_lib.data.images import read_image
warnings.simplefilter("ignore")
inputs = [*corpus.images(), *corpus.dicoms()]
folder = Path(sys.argv[2])
good = folder / "good.png"
good.write_bytes(corpus.encoded(corpus.picture()))
read_image(good)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 30),) * 2)  # a decoder may hide a refusal
out_of_memory = []
for one in inputs:
    path = folder / one.name
    path.write_bytes(one.content)
    for size in (None, 2):
        try:
            read_image(path, at_least=size)
        except ValueError as error:
            if "emory" in str(error):
                out_of_memory.append(one.name)
        except MemoryError:
            out_of_memory.append(one.name)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown >> 10, *out_of_memory)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_no_image_takes_more_memory_than_its_pixels_may(tmp_path):
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    megabytes, *out_of_memory = done.stdout.split()
    assert out_of_memory == []
    assert int(megabytes) < 150


def release(folder, inputs, *, good=3):
    """A PNG release whose images are the inputs, among good ones."""
    right = [
        corpus.Input(f"good{n}.png", corpus.encoded(corpus.picture()), None) for n in range(good)
    ]
    rows = []
    for one in [*right[:1], *inputs, *right[1:]]:
        for kind in ("png_images", "png_masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / "png_images" / one.name).write_bytes(one.content)
        empty = corpus.encoded(np.zeros((corpus.SIDE, corpus.SIDE), np.uint8))
        (folder / "png_masks" / one.name).write_bytes(empty)
        rows.append(f"{one.name},{one.name}.id,0")
    for part, lines in (("train", rows[:-1]), ("test", rows[-1:])):
        text = "\n".join([corpus.HEAD.strip(), *lines, ""])
        (folder / f"stage_1_{part}_images.csv").write_text(text)
    return folder


def test_prepare_names_every_bad_image_and_does_all_the_others(tmp_path):
    bad = [one for one in IMAGES if one.expected is REFUSED]
    cases = read_cases(release(tmp_path / "data", bad))
    prepared = prepare(cases, tmp_path / "out", size=corpus.SIDE, skip_broken=True)
    assert sorted(prepared.meta["left_out"]) == sorted(f"{one.name}.id" for one in bad)
    assert len(prepared.images) == 3
    assert (prepared.images == corpus.picture()).all()
    with pytest.raises(ValueError, match=rf"{len(bad)} of {len(cases)} that do not") as raised:
        prepare(cases, tmp_path / "out", size=corpus.SIDE)
    assert bad[0].name in str(raised.value)
    assert len(str(raised.value)) < 10_000


# Masks


HALF = np.kron([[0, 1], [1, 1]], np.ones((12, 12))).astype(np.uint8)
READABLE_MASKS = {
    "0 and 1": HALF,
    "0 and 255": 255 * HALF,
    "0 and 7": 7 * HALF,
    "soft edges": np.where(HALF, 255, 100).astype(np.uint8),
    "many values": np.where(HALF, corpus.picture() // 4 + 180, corpus.picture() // 4),
    "16 bits": (65535 * HALF.astype(np.uint16)),
    "bool": HALF.astype(bool),
    "larger": np.kron(255 * HALF, np.ones((3, 3))).astype(np.uint8),
    "smaller": 255 * HALF[::2, ::2],
}


@pytest.mark.parametrize("name", READABLE_MASKS)
def test_read_mask_reads_masks_of_other_values_depths_and_sizes(name, tmp_path):
    values = READABLE_MASKS[name]
    image = corpus.Image.fromarray(values)
    mask = read_mask(mask_case(tmp_path, corpus.encoded(image)), HALF.shape)
    assert mask.dtype == np.uint8
    allowed = 12 if name == "smaller" else 0  # linear growth rounds the corner
    assert (mask != HALF).sum() <= allowed


@pytest.mark.parametrize("path", [None, float("nan"), pd.NA, 7])
def test_read_mask_names_the_case_whose_table_has_no_mask(path):
    case = {"image_id": "case.1", "mask_path": path, "has_pneumothorax": False}
    for row in (case, pd.Series(case), pd.Series(case).drop("mask_path")):
        with pytest.raises(ValueError, match=r"mask_path.*`rles`.*for case\.1"):
            read_mask(row, HALF.shape)


@pytest.mark.parametrize("shape", [(24, 36), (36, 24), (8, 12), (24, 1), (48, 50)])
def test_read_mask_refuses_a_mask_that_would_be_squashed(shape, tmp_path):
    mask = corpus.encoded(np.full(shape, 255, np.uint8))
    with pytest.raises(ValueError, match=r"height to width.*an image of 24 x 24, for case\.1"):
        read_mask(mask_case(tmp_path, mask), (24, 24))


@pytest.mark.parametrize("shape", [(853, 1024), (426, 512), (427, 512), (107, 128), (2559, 3072)])
def test_read_mask_takes_a_mask_of_another_size_that_was_rounded(shape, tmp_path):
    half = np.zeros(shape, np.uint8)
    half[:, : shape[1] // 2] = 255
    mask = read_mask(mask_case(tmp_path, corpus.encoded(half)), (853, 1024))
    assert mask[:, :508].all()
    assert not mask[:, 516:].any()


# Run lengths


@pytest.mark.parametrize("text", corpus.RLES, ids=lambda text: repr(text[:20]))
def test_rle_decode_refuses_what_is_no_run_length_text(text):
    with pytest.raises(ValueError, match=r"Received: ") as raised:
        rle_decode(text, shape=(16, 16))
    assert len(str(raised.value)) < 300


tokens = st.one_of(
    st.integers(-3, 40).map(str),
    st.sampled_from(["-1", "0", "1", "9" * 19, "x", "", "\t", "1_0", "\u0661", "-", "--1", "+1"]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(tokens, max_size=12).map(" ".join) | st.text(max_size=30))
def test_rle_decode_gives_a_mask_or_a_value_error_for_any_text(text):
    mask = outcome(rle_decode, text, shape=(6, 7))
    if isinstance(mask, str):
        return
    numbers = [] if text.strip() == "-1" else [int(number) for number in text.split()]
    assert mask.sum() == sum(numbers[1::2])
    assert sum(numbers) <= 42


# Tables


def small_release(folder, table):
    """Two images with masks, and `table` as the table of one part."""
    for kind in ("png_images", "png_masks"):
        (folder / kind).mkdir(parents=True)
        for letter in "ab":
            (folder / kind / f"{letter}.png").write_bytes(corpus.encoded(corpus.picture()))
    for part in ("train", "test"):
        (folder / f"stage_1_{part}_images.csv").write_text(corpus.HEAD)
    (folder / "stage_1_train_images.csv").write_bytes(table)
    return folder


def dicom_release(folder, table, *, name="train-rle.csv"):
    """Two DICOM files, and `table` as their run-length table."""
    for letter in "ab":
        (folder / f"{letter}.dcm").write_bytes(corpus.dicom())
    (folder / name).write_bytes(table)


@pytest.mark.parametrize("name", corpus.TABLES)
def test_read_cases_refuses_a_bad_table_and_names_it(name, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=r"Received: ") as raised:
        read_cases(small_release(tmp_path / "data", corpus.TABLES[name]))
    assert str(tmp_path) in str(raised.value) or "_images.csv" in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("name", corpus.READABLE_TABLES)
def test_read_cases_reads_unusual_but_whole_tables(name, tmp_path):
    cases = read_cases(small_release(tmp_path / "data", corpus.READABLE_TABLES[name]))
    assert cases["image_id"].tolist() == ["a", "b"]
    assert cases["has_pneumothorax"].tolist() == [False, True]


@pytest.mark.parametrize("name", corpus.RLE_TABLES)
def test_read_cases_refuses_a_bad_run_length_table(name, tmp_path):
    dicom_release(tmp_path, corpus.RLE_TABLES[name])
    with pytest.raises((ValueError, FileNotFoundError), match=r"Received: ") as raised:
        read_cases(tmp_path)
    assert "train-rle.csv" in str(raised.value) or str(tmp_path) in str(raised.value)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("table", ["patients.csv", "nih_id.csv"])
@pytest.mark.parametrize(
    "content",
    ["", "x,y\n1,2\n", "\xff\xfe\x00", *(f"ImageId,patient_id\na,{c}1+1\n" for c in "=+@")],
)
def test_read_cases_refuses_a_bad_table_of_patients_and_names_it(table, content, tmp_path):
    folder = small_release(tmp_path / "data", corpus.READABLE_TABLES["plain"])
    (folder / table).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=table):
        read_cases(folder)


def test_notes_beside_the_run_length_table_do_no_harm(tmp_path):
    dicom_release(tmp_path, (corpus.RLE_HEAD + "a,-1\nb,0 4\n").encode())
    for name in ("random", "utf-16", "three columns", "empty"):
        (tmp_path / f"notes {name}.csv").write_bytes(corpus.RLE_TABLES[name])
    assert read_cases(tmp_path)["image_id"].tolist() == ["a", "b"]


@pytest.mark.parametrize(
    "packed", [b"", b"\x1f\x8b", b"not gzip", gzip.compress(b"a,b\n" * 9, mtime=0)[:-9]], ids=len
)
def test_read_cases_names_a_broken_packed_table(packed, tmp_path):
    dicom_release(tmp_path, packed, name="train-rle.csv.gz")
    with pytest.raises(FileNotFoundError, match=r"train-rle\.csv\.gz"):
        read_cases(tmp_path)


def test_packed_table_that_unpacks_to_gigabytes_is_refused_early(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_TABLE_BYTES", 1 << 20)
    dicom_release(tmp_path, gzip.compress(b"a,-1\n" * 300_000), name="train-rle.csv.gz")
    with pytest.raises(FileNotFoundError, match="more than 1 MB"):
        read_cases(tmp_path)


cells = st.text(st.sampled_from('ab.,"\n\r\t;01-=\ufeff\x00\u2028'), max_size=5)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(cells, max_size=4), max_size=4), st.booleans())
def test_reading_any_table_gives_text_cells_or_a_value_error(tmp_path_factory, rows, quoted):
    text = "\n".join(",".join(f'"{c}"' if quoted else c for c in row) for row in rows)
    path = tmp_path_factory.mktemp("any") / "table.csv"
    path.write_bytes(text.encode())
    table = outcome(tables.read_csv, path)
    if isinstance(table, str):
        assert "table.csv" in table
        return
    assert table.map(lambda cell: type(cell) is str).to_numpy().all()
    assert table.map(lambda cell: cell == cell.strip()).to_numpy().all()


# Files that leave the folder, or are none


def test_folders_and_pipes_called_like_images_are_not_opened(tmp_path):
    folder = small_release(tmp_path / "data", corpus.READABLE_TABLES["plain"])
    (folder / "png_images" / "a.png").unlink()
    if hasattr(arrays.os, "mkfifo"):
        arrays.os.mkfifo(folder / "png_images" / "a.png")  # reading it would wait for ever
    (folder / "png_images" / "c.png").mkdir()
    with pytest.raises(FileNotFoundError, match=r"1 rows without a file in png_images \(a\.png\)"):
        read_cases(folder)
    (tmp_path / "dicom" / "a.dcm").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="holds neither"):
        read_cases(tmp_path / "dicom")


def test_endless_header_of_a_dicom_file_is_read_to_a_bound_only(tmp_path, monkeypatch):
    one = next(i for i in corpus.dicoms() if i.name == "deflated-bomb.dcm")
    (tmp_path / "a.dcm").write_bytes(one.content)
    seen = []
    read = siim.pydicom.dcmread
    monkeypatch.setattr(
        siim.pydicom, "dcmread", lambda f, **k: seen.append(len(f.getvalue())) or read(f, **k)
    )
    values = siim._read_header(tmp_path / "a.dcm")
    assert seen == [siim._HEADER_BYTES]
    assert all(pd.isna(value) for value in values.values())


def test_arrays_of_a_prepared_folder_are_never_unpickled(png_release, tmp_path):
    prepared = prepare(read_cases(png_release), tmp_path / "out", size=16)
    np.save(tmp_path / "out" / "images.npy", np.array([print, len], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"allow_pickle|[Oo]bject"):
        load_prepared(prepared.folder)


# What must not get out, or run


PLANTED = {
    "PatientName": "PLANTED^JANE",
    "PatientID": "PLANTED-4711",
    "PatientBirthDate": "19540711",
    "StudyDate": "19991231",
    "AccessionNumber": "PLANTED-ACC",
    "InstitutionName": "PLANTED hospital",
    "PatientComments": "PLANTED comment",
    "ImageComments": "PLANTED note",
    "ReferringPhysicianName": "PLANTED^DOCTOR",
    "ViewPosition": "PLANTED, see Jane",  # no code: free text where a code belongs
}


def test_names_and_dates_of_dicom_headers_reach_neither_files_nor_logs_nor_errors(
    tmp_path, caplog, recwarn, capfd
):
    broken = {
        "good": {},
        "no-pixels": {"PixelData": None},
        "lying": {"Rows": 999},
        "nonsense": {"PhotometricInterpretation": "PLANTED"},
    }
    data = tmp_path / "data"
    data.mkdir()
    for name, fields in broken.items():
        (data / f"{name}.dcm").write_bytes(corpus.dicom(**PLANTED, **fields))
    cut = corpus.dicom(**PLANTED)
    (data / "cut.dcm").write_bytes(cut[: cut.index(b"PLANTED comment") + 4])
    rows = "".join(f"{name},-1\n" for name in [*broken, "cut"])
    (data / "train-rle.csv").write_text(corpus.RLE_HEAD + rows)
    caplog.set_level("DEBUG")
    cases = read_cases(data)
    with pytest.raises(ValueError, match="4 of 5") as raised:
        prepare(cases, tmp_path / "out", size=16)
    prepare(cases, tmp_path / "out", size=16, skip_broken=True)
    said = [str(raised.value), caplog.text, cases.to_csv(), *capfd.readouterr()]
    said += [str(warning.message) for warning in recwarn]
    written = [path.read_bytes().decode("latin-1") for path in (tmp_path / "out").iterdir()]
    for secret in ("PLANTED", "4711", "19540711", "19991231", "Jane", "JANE"):
        for text in [*said, *written]:
            assert secret not in text


def test_no_cell_of_the_written_tables_begins_like_a_formula(png_release, tmp_path):
    folder = prepare(read_cases(png_release), tmp_path / "out", size=16).folder
    cells = pd.read_csv(folder / "cases.csv", dtype=str, keep_default_na=False).to_numpy().ravel()
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))]


def test_markup_in_names_is_shown_in_the_report_and_never_run(tmp_path):
    pages = pytest.importorskip("pneumo_lib.study.html", reason="the extra `notebooks` is missing")
    from nbformat import v4, write

    evil = "<img src=x onerror=alert(1)>\"'&"
    heading = v4.new_markdown_cell("# What is `<b>`?")
    write(v4.new_notebook(cells=[heading]), tmp_path / "01_a.ipynb")
    record = {"name": "01_a", "parameters": {"data": evil}, "learnt": None}
    record |= {"seconds": 1, "peak_gb": 1}
    settings = {"data": f"/data/{evil}", "weights": f"a\n\n{evil}\n\n# H"}
    text = pages.write_report(tmp_path, [record], settings, runs=[]).read_text()
    assert "<img src=x" not in text
    assert "<td>a &lt;img src=x onerror=alert(1)&gt;" in text  # no empty line ends the table
