"""Tables of a data set as text: read whole and checked, since their names and labels count."""

import gzip
import re
import zlib
from io import BytesIO

import pandas as pd

from pneumo_lib.data.files import image_id

_TABLE_BYTES = 1 << 25  # four times the largest table of SIIM-ACR
_NO_MASK = re.compile(r"-1(\.0*)?|nan|none|null|n/?a|<na>|\[\s*\]|", re.IGNORECASE)
_RUNS = re.compile(r"\d[\d ]*", re.ASCII)
_PATIENTS = {"patients.csv": ["ImageId", "patient_id"], "nih_id.csv": ["Kaggle_ID", "NIH_ID"]}


def read_csv(path):
    """All cells of a table as text without blanks around it, with its header as the first row.

    A ValueError refuses what is no text in UTF-8 with commas, or larger than any table of X-rays.
    """
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


def read_table(path, columns):
    """The given columns of a table; a ValueError if one is not there once or holds no names."""
    table = read_csv(path)
    names = table.iloc[0].tolist()
    if any(names.count(column) != 1 for column in columns):
        shown = ", ".join(names[:9])[:200]
        raise ValueError(f"{path.name} must have the columns {columns}. Received: {shown}")
    table = table[1:].set_axis(names, axis=1)[columns].reset_index(drop=True)
    for column in {*columns} - {"has_pneumo"}:
        _check_names(table[column], path.name, empty=column in ("patient_id", "NIH_ID"))
    return table


def read_run_lengths(paths):
    """Run-length texts of a data set, from one table or several of different images.

    Args:
        paths: of all tables of the data set; sample submissions are no truth and are skipped.

    Returns:
        Series of lists of run-length texts, "-1" for an empty mask however it is written, indexed
        by image without suffix, and a list of the names of tables. `None` without a table, or with
        an image in two of them; the list then also holds the reasons why tables cannot be read.

    Raises:
        ValueError: if a text is neither run lengths nor an empty mask.
    """
    tables, unreadable = {}, []
    for path in paths:
        if "submission" in path.name:
            continue
        try:
            table = _ids_and_runs(read_csv(path), path)
        except ValueError as error:  # perhaps somebody's notes; listed if no table is found
            unreadable.append(str(error))
            continue
        if table is not None:
            tables[path.name] = table
    ids = [set(map(image_id, table["ImageId"])) for table in tables.values()]
    if not tables or len(set().union(*ids)) < sum(map(len, ids)):
        return None, [*tables, *unreadable]
    name, table = " and ".join(tables), pd.concat(tables.values(), ignore_index=True)
    _check_names(table["ImageId"], name)
    empty = table["runs"].str.fullmatch(_NO_MASK)
    bad = ~empty & ~table["runs"].str.fullmatch(_RUNS)
    if bad.any():
        raise ValueError(
            f"EncodedPixels in {name} must be run lengths, pairs `offset length`, or -1 where "
            f"there is no mask. Received: {table['runs'][bad].iloc[0][:40]!r} in {bad.sum()} rows"
        )
    runs = table["runs"].mask(empty, "-1")
    return runs.groupby(table["ImageId"].map(image_id), sort=False).agg(list), [name]


def _ids_and_runs(table, path):
    """Columns `ImageId` and `runs` of a table with or without header; `None` of another table."""
    names = [re.sub(r"[\W_]", "", name).lower() for name in table.iloc[0]]
    wanted = ["imageid", "encodedpixels"]
    if sorted(name for name in names if name not in ("", "unnamed0")) == sorted(wanted):
        table, columns = table[1:], [names.index(name) for name in wanted]
    elif table.shape[1] == 2 and re.fullmatch(r"-1(\.0*)?|\d[\d ]*", table.iloc[0, 1]):
        columns = [0, 1]
    elif all(name in "".join(names) for name in wanted):  # "ImageId;EncodedPixels" is one cell
        shown = ",".join(table.iloc[0])[:60]
        raise ValueError(
            "A run-length table must have the columns ImageId and EncodedPixels, no others, with "
            f"commas between its cells. Received: {path} ({shown!r})"
        )
    else:
        return None
    return table[columns].set_axis(["ImageId", "runs"], axis=1)


def read_patients(folders):
    """Patients indexed by image, from the first table of them in `folders`, and its name.

    The table is `patients.csv` or `nih_id.csv`; an empty Series and `None` without one.
    """
    for path in (folder / name for folder in folders for name in _PATIENTS):
        if path.is_file():
            table = read_table(path, _PATIENTS[path.name])
            images, patients = table.iloc[:, 0], table.iloc[:, 1]
            if path.name == "nih_id.csv":  # 00028864_007.png is image 7 of patient 28864
                patients = patients.str.split("_").str[0]
            patients = patients.where(patients != "").set_axis(images.str.normalize("NFC"))
            return patients.groupby(level=0).first(), path.name
    return pd.Series(dtype="str"), None


def _check_names(column, table, *, empty=False):
    """Refuses names that a spreadsheet, which opens our tables too, would run as a formula."""
    bad = column[column.str.contains(r"^[=+\-@]|[\x00-\x1f\x7f]") | (column.eq("") & (not empty))]
    if len(bad):
        raise ValueError(
            f"{column.name} in {table} must be a name that does not begin with =, +, - or @, "
            f"without line breaks. Received: {bad.iloc[0][:40]!r}"
        )
