"""Files of an archive in folders, lists and object stores, by fsspec.

A file of this machine's file systems is named by its path, any other by a URL such as
`s3://bucket/name.dcm`.
"""

import hashlib
import os
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from fsspec.core import url_to_fs

from pneumo_lib._files import atomic_write
from pneumo_lib.data.dicom_open import is_dicom
from pneumo_lib.data.files import SUFFIXES

_STAMPS = ("ETag", "etag", "mtime", "LastModified")  # one of which changes when a file is replaced


class Partition(NamedTuple):
    """Files that are predicted together."""

    name: str  # of the Parquet file, a checksum of the files and of what predicts them
    files: tuple


def locate(url):
    """`(file system, path in it)` of a path or URL; listings are always fresh."""
    return url_to_fs(os.fspath(url), use_listings_cache=False)


def full_name(store, path):
    """Path or URL that every process understands, from whatever folder."""
    return path if _is_local(store) else store.unstrip_protocol(path)


def _is_local(store):
    return "file" in store.protocol


def load(name):
    """The bytes of a file."""
    store, path = locate(name)
    # fsspec asks a local file for its end first, which a pipe does not have
    return Path(path).read_bytes() if _is_local(store) else store.cat_file(path)


def save(data, store, path):
    """Writes a file, and its folder, atomically."""
    if _is_local(store):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as aside:
            aside.write_bytes(data)
    else:
        store.pipe_file(path, data)  # atomic in an object store


def list_files(source, *, without=()):
    """Yield `(name, stamp)` of every X-ray file of an archive, folder by folder.

    The stamp is text that changes when the file is replaced, "" for a list.

    Args:
        source: a folder as path or URL, where the same files count as for `find_images()`; or `@`
            and the path or URL of a list: UTF-8, one file a line.
        without: `(file system, path)` of a folder that is left out.

    Raises:
        FileNotFoundError: if the folder or list is not there, or names no file.
        ValueError: if a list names a file twice.
    """
    found = _from_list(source[1:]) if source.startswith("@") else _from_folder(source, without)
    if (first := next(found, None)) is None:
        raise FileNotFoundError(
            f"An archive must hold {', '.join(SUFFIXES)} files, or others that are DICOM. "
            f"Received: {source}, where there is none"
        )
    yield first
    yield from found


def _from_list(url):
    store, path = locate(url)

    def lines():
        with store.open(path, "r", encoding="utf-8", errors="surrogateescape") as file:
            yield from filter(None, map(str.strip, file))

    # 8 bytes a file instead of its name, for lists of millions
    digests = (hashlib.blake2b(_encoded(line), digest_size=8).digest() for line in lines())
    digests = np.frombuffer(b"".join(digests), np.uint64)
    if (count := len(np.unique(digests))) < len(digests):
        raise ValueError(
            f"A list must name each file once. Received: {url}, with {len(digests)} lines and "
            f"{count} names. `sort -u` removes the others"
        )
    for line in lines():
        yield line if "://" in line else os.path.abspath(line), ""


def _from_folder(url, without):
    store, root = locate(url)
    if not store.isdir(root):
        raise FileNotFoundError(
            "An archive must be a folder, or @ and a list of files, one a line. "
            f"Received: {url}, which is no folder"
        )
    top = os.path.realpath(root) if _is_local(store) else root
    folders, links, seen = [root.rstrip("/")], [], set()
    while folders or links:  # `walk()` of fsspec leaves out in silence what it cannot list
        folder = folders.pop() if folders else links.pop(0)
        real = os.path.realpath(folder) if _is_local(store) else folder
        if (store, folder) == without or real in seen or top.startswith(f"{real}/"):
            continue  # a link may lead in circles
        seen.add(real)
        entries = {entry["name"].rstrip("/"): entry for entry in store.ls(folder, detail=True)}
        names = sorted(entries.keys() - {folder})
        entries = [(name, _followed(store, entries[name])) for name in names]
        inner = {name: e.get("islink") for name, e in entries if e["type"] == "directory"}
        folders += [name for name in reversed(inner) if not inner[name]]
        links += [name for name in inner if inner[name]]
        for name, entry in _xrays(store, entries):
            changes = [entry[key] for key in _STAMPS if entry.get(key)][:1]
            yield full_name(store, name), f"{entry['size']} {changes}"


def _followed(store, entry):
    """The entry of what a link leads to; a link to nothing stays what it is, no file."""
    try:
        return store.info(entry["name"]) if entry.get("islink") else entry
    except OSError:
        return entry


def _xrays(store, entries):
    """Entries that are X-rays by their name, or DICOM by their first bytes."""
    files = {path: entry for path, entry in entries if entry["type"] == "file"}
    for path in list(files):
        if (name := PurePosixPath(path).name)[0] == "." or name == "DICOMDIR":
            del files[path]
    unknown = [path for path in files if not path.lower().endswith(SUFFIXES)]
    heads = store.cat_ranges(unknown, 0, [132] * len(unknown)) if unknown else []
    for path, head in zip(unknown, heads, strict=True):
        if not (isinstance(head, bytes) and is_dicom(head)):  # or an error of the store
            del files[path]
    return files.items()


def partitions(files, *, size, identity):
    """Yield `Partition`s of half of `size` to twice as many of the files, `(name, stamp)` each.

    The names near its end decide where a partition ends, not their number from the start: a file
    more or less changes its own partition and at most the next few. `identity`, text of what
    predicts the files, is part of the names.
    """
    half, held = max(1, size // 2), []
    for name, stamp in files:
        held.append((name, stamp))
        ends = zlib.crc32(_encoded(name)) % half == 0
        if len(held) == 2 * size or (len(held) >= half and ends):
            yield _partition(held, identity)
            held = []
    if held:
        yield _partition(held, identity)


def _partition(files, identity):
    digest = hashlib.sha256(identity.encode())
    for name, stamp in files:
        digest.update(b"\0" + _encoded(name) + b"\0" + stamp.encode())
    return Partition(f"part-{digest.hexdigest()[:20]}.parquet", tuple(name for name, _ in files))


def _encoded(name):
    return name.encode("utf-8", "surrogateescape")
