"""Files below a folder, with those behind links, and one line on each kind that is left out."""

import logging
import os
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path, PurePath

from pneumo_lib.data.dicom_open import is_dicom

logger = logging.getLogger(__name__)
_KINDS = re.compile(r"[\W_]*(images?|imgs?|x-?rays?|cxrs?|masks?|png|dicom)[\W_]*", re.IGNORECASE)
_MASK = re.compile(r"[-_ ]mask$", re.IGNORECASE)
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")  # of X-ray files


def find_files(folder):
    """Files below a folder, sorted, without those whose names begin with a dot.

    Folders that are links are followed, since many keep X-rays on another disk, but each folder
    is read once: not those that lead back or to what is in `folder` anyway. One line of the log
    names the links that are followed, and counts the others and what cannot be read.
    """
    top = Path(folder)
    files, links, followed, skipped = [], [top], [], Counter()
    seen = set(top.resolve().parents)

    def count_unlisted(_):
        skipped["folders that cannot be listed"] += 1

    for link in links:  # more come; each after all folders, which keep their own paths
        for place, folders, names in os.walk(link, onerror=count_unlisted):
            real = Path(place).resolve()
            if real in seen:
                skipped["links to folders that are read anyway"] += 1
                folders.clear()  # which ends the walk there
                continue
            seen.add(real)
            if link != top and Path(place) == link:
                followed.append(f"{link.relative_to(top)} -> {real}")
            folders.sort()
            links += [path for name in folders if (path := Path(place, name)).is_symlink()]
            paths = {Path(place, name) for name in names}
            found = set(filter(os.path.isfile, paths))
            files += [path for path in found if path.name[0] != "."]
            skipped["links to nothing"] += sum(path.is_symlink() for path in paths - found)
    told = [f"{count} {what} are left out" for what, count in skipped.items() if count]
    if followed:
        told.insert(0, f"{len(followed)} links are followed ({', '.join(sorted(followed)[:3])})")
    if told:
        logger.warning("%s: %s", top, "; ".join(told))
    return sorted(files)


def find_xrays(folder, files):
    """Those of the files of a folder that are X-rays: by suffix, or DICOM by their content.

    Args:
        folder: for the log, one line of which counts the files of other kinds but tables.
        files: list of `find_files()`.
    """
    found = [path for path in files if _is_xray(path)]
    others = Counter(path.suffix.lower() or path.name for path in set(files) - set(found))
    others = {kind: count for kind, count in others.items() if kind not in (".csv", ".gz")}
    if others:
        kinds = ", ".join(f"{others[kind]} {kind}" for kind in sorted(others)[:5])
        count = sum(others.values())
        logger.warning("%s: %d files that are no X-rays are left out (%s)", folder, count, kinds)
    return found


def _is_xray(path):
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return path.name != "DICOMDIR" and is_dicom(file.read(132))
    except OSError:
        return False


def image_id(name):
    """Name of an image without the suffix of a file; the last number of a UID is no suffix.

    Composed (NFC), as tables have it: macOS writes the accents of file names apart.
    """
    name = unicodedata.normalize("NFC", name)
    while PurePath(name).suffix.lower() in SUFFIXES:  # 1.2.3.dcm.png
        name = PurePath(name).stem
    return name


def pair_files(root, paths):
    """X-rays and their masks, told apart by "mask" in a folder's name or at the end of their own.

    A mask belongs to the X-ray at the same place in another folder of images, or else to the only
    one of its name. `paths` are below the data folder `root`. Returns `(xrays, pairs, single)`:
    list of paths, dict of mask by X-ray, and the masks without an X-ray as paths in `root`.
    """
    xrays, masks, single, pairs = [], [], [], {}
    by_place, by_name = defaultdict(list), defaultdict(list)
    for path in paths:
        *folders, name = path.relative_to(root).parts
        of_mask = any("mask" in folder.lower() for folder in folders)
        if of_mask or _MASK.search(image_id(name)):
            masks.append(path)
        else:
            xrays.append(path)
            by_place[place_of(root, path)].append(path)
            by_name[image_id(name)].append(path)
    for mask in sorted(masks, key=lambda mask: place_of(root, mask) not in by_place):
        place = place_of(root, mask)
        found = by_place.get(place) or by_name[place[-1]]
        if len(found) == 1 and found[0] not in pairs:
            pairs[found[0]] = mask
        else:
            single.append(str(mask.relative_to(root)))
    return xrays, pairs, single


def place_of(root, path):
    """Parts of a path in `root` without suffixes and the words that tell images from masks."""
    *folders, name = path.relative_to(root).parts
    folders = (_KINDS.sub("", folder) for folder in folders)
    return (*filter(None, folders), _MASK.sub("", image_id(name)))
