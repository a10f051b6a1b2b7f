"""Training, validation and test split without shared patients or near-identical images."""

import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm.auto import tqdm

from pneumo_lib._checks import check_name, refuse
from pneumo_lib.data.images import read_image

logger = logging.getLogger(__name__)

SCHEMES = ("auto", "patient", "official", "random")


def split_cases(
    cases, *, scheme="auto", validation=0.15, test=0.15, fold=None, seed=0, near_duplicates=True
):
    """Case table with the columns `split` and `split_scheme`.

    Splits are stratified by label. Under every scheme, near-identical images
    (`near_duplicate_pairs()`) stay together; an official train image that is near-identical to a
    test image moves to the test split, with a log warning.

    Args:
        cases: case table of `read_cases()`.
        scheme:

            - `"patient"`: all images of a patient are in one split;
            - `"official"`: test is the official test set, validation is taken from the official
              train set, by patient where known. The sets of SIIM-ACR share patients;
            - `"random"`: by image. Patients are ignored and leak;
            - `"auto"`: `"official"` where the official sets share no patient, else `"patient"`
              where patients are known, else `"official"`, or `"random"` without official sets.
        validation, test: shares of the images, each in [0, 1), together below 1; sizes come as
            near as whole groups allow. `"official"` ignores `test` and takes `validation` as a
            share of the train set.
        fold: of a cross-validation: with "2/5", the second of five folds is the validation split
            and the others are the train split; with "0/5" none is held out. `test` is as without
            folds, `validation` ignored.
        seed: which of the equally good splits.
        near_duplicates: `False` skips reading the images.

    Returns:
        Copy of `cases` with `split` ("train", "validation", "test") and `split_scheme`: the
        scheme used, "fold 2/5" with a fold, and "(patients unknown)" where they are.

    Raises:
        ValueError: for an unknown scheme, shares or a fold out of range, `"patient"` without
            patients, `"official"` without both sets, or too few images to give each split, or
            fold, a positive.
    """
    check_scheme(scheme, fold)
    if min(validation, test) < 0 or validation + test >= 1:
        raise ValueError(
            "`validation` and `test` must be shares that leave some to train. "
            f"Received: validation={validation}, test={test}"
        )
    pairs = near_duplicate_pairs(cases) if near_duplicates else np.empty((0, 2), int)
    duplicates = _unite(np.arange(len(cases)), pairs)
    codes, patients = pd.factorize(cases["patient_id"])  # -1 where unknown: a group of its own
    codes = np.where(codes < 0, len(patients) + np.arange(len(codes)), codes)
    patients = _unite(codes, pairs)
    positive = cases["has_pneumothorax"].to_numpy(bool)
    in_test = (cases["official_part"] == "test").to_numpy()
    known = cases["patient_id"].notna().to_numpy()
    scheme = _choose_scheme(scheme, patients, in_test=in_test, known=known)
    groups = duplicates if scheme == "random" else patients
    split = np.full(len(cases), "train", object)
    shares = {"train": 1 - validation - test, "validation": validation, "test": test}
    if scheme == "official":
        copies = ~in_test & np.isin(duplicates, duplicates[in_test])
        if copies.any():
            logger.warning(
                "%d official train images are near-identical to official test images and go to "
                "the test split: %s",
                *(copies.sum(), ", ".join(cases["image_id"][copies][:3])),
            )
        split[in_test | copies] = "test"
        shares = {"train": 1 - validation, "validation": validation}
    rest = split != "test"
    split[rest] = _deal(groups[rest], positive[rest], shares=shares, seed=seed)
    if fold:
        rest, count = split != "test", int(fold.partition("/")[2])
        shares = {f"fold {number}/{count}": 1 / count for number in range(1, count + 1)}
        dealt = _deal(groups[rest], positive[rest], shares=shares, seed=seed)
        split[rest] = np.where(dealt == f"fold {fold}", "validation", "train")
        scheme = f"{scheme}, fold {fold}"
    if not known.all():
        unknown = f"patients of {(~known).sum()} images" if known.any() else "patients"
        scheme = f"{scheme} ({unknown} unknown)"
    split = pd.Series(split, index=cases.index, dtype="str")
    return cases.assign(split=split, split_scheme=scheme)


def leaked_patients(cases):
    """Number of known patients with images in more than one split of a `split_cases()` table."""
    return int((cases.groupby("patient_id")["split"].nunique() > 1).sum())


def check_scheme(scheme, fold):
    """Raises `ValueError` for an unknown `scheme` or a `fold` that is not one such as "2/5"."""
    check_name("scheme", scheme, SCHEMES)
    found = re.fullmatch(r"(0|[1-9]\d*)/([1-9]\d*)", str(fold))
    if fold is not None and not (found and int(found[1]) <= int(found[2]) != 1):
        refuse("fold", fold, "a number, a slash and the number of folds, such as '2/5'")


def _choose_scheme(scheme, patients, *, in_test, known):
    """The scheme that "auto" stands for, or `scheme` itself if `cases` allow it."""
    two_sets = in_test.any() and not in_test.all()
    if scheme == "auto":
        shared = np.intersect1d(patients[in_test], patients[~in_test]).size
        if two_sets and (not known.any() or (known.all() and not shared)):
            return "official"
        return "patient" if known.any() else "random"
    if scheme == "patient" and not known.any():
        raise ValueError(
            'scheme="patient" needs patients: put patients.csv (ImageId, patient_id) or nih_id.csv '
            "(Kaggle_ID, NIH_ID), whose ids match the images', beside the data. "
            "Received: no `patient_id`"
        )
    if scheme == "official" and not two_sets:
        raise ValueError(
            'scheme="official" needs images of both official sets, train and test; '
            'use scheme="auto". Received: one set or none in `official_part`'
        )
    return scheme


def _unite(groups, pairs):
    """Group numbers after merging the groups of each pair of images."""
    left, right = groups[pairs[:, 0]], groups[pairs[:, 1]]
    links = coo_array((np.ones(len(pairs)), (left, right)), shape=(groups.max() + 1,) * 2)
    return connected_components(links, directed=False)[1][groups]


def _deal(groups, positive, *, shares, seed):
    """Array of split names, one per image; all images of a group get the same one.

    Greedy: the largest group first, each to the split that lacks most of what the group holds,
    relative to the split's own target and separately for positives and negatives. (scikit-learn's
    `StratifiedGroupKFold` cannot make 70/15/15, does not aim at sizes, and takes minutes for six
    thousand patients.)
    """
    shares = {name: share for name, share in shares.items() if share > 0}
    names = np.array(list(shares), object)
    numbers, of_image = np.unique(groups, return_inverse=True)
    held = np.stack([np.bincount(of_image, weights=w) for w in (positive, ~positive)], axis=1)
    total = np.maximum(held.sum(axis=0), 1)
    # a small data set must not round a split's share of the positives down to none
    targets = np.maximum(np.array(list(shares.values()))[:, None], 1 / total)
    held, filled = held / total, np.zeros((len(names), 2))
    chosen = np.zeros(len(numbers), int)
    order = np.random.default_rng(seed).permutation(len(numbers))
    for group in order[np.argsort(-(held * total).sum(axis=1)[order], kind="stable")]:
        lack = (targets - filled - held[group] / 2) / targets
        chosen[group] = np.argmax(lack @ held[group])
        filled[chosen[group]] += held[group]
    split = names[chosen[of_image]]
    if lacking := [name for name in names if not positive[split == name].any()]:
        raise ValueError(
            f"Each split needs at least one positive image; {' and '.join(lacking)} got none. "
            f"Received: {positive.sum()} positive of {len(positive)} images in {len(numbers)} "
            "groups. Use more cases, or smaller shares"
        )
    return split


def near_duplicate_pairs(cases):
    """Pairs of near-identical images, by a perceptual hash.

    The hash holds, for each pixel of a 48 x 48 thumbnail, whether it is brighter (1) or darker
    (-1) than its surroundings by more than a grey level, else 0. A pair has hashes of a cosine of
    at least 0.85: of 387 real cases, copies of another size, gamma, contrast, noise or of JPEG
    quality 50 reach 0.89, and no two images 0.50, of one patient or not. (The usual 64-bit
    difference hash finds six of those pairs within one bit.)

    Returns:
        `(pairs, 2)` int, row positions in `cases`, a table with `image_path`. Images that cannot
        be read are in no pair.
    """
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        hashing = threads.map(_detail_signs, cases["image_path"])
        signs = np.stack(list(tqdm(hashing, "comparing images", len(cases), delay=2)))
    pairs = [np.empty((0, 2), int)]
    for start in range(0, len(signs), 1000):  # a thousand rows at a time keep memory flat
        left, right = np.nonzero(signs[start : start + 1000] @ signs.T >= 0.85)
        left += start
        pairs.append(np.stack([left, right], axis=1)[left < right])
    return np.concatenate(pairs)


def _detail_signs(path):
    """`(2304,)` float32 of length 1; zeros, similar to nothing, if flat or unreadable."""
    try:
        image = read_image(path, at_least=128)
    except (ValueError, OSError):
        return np.zeros(48 * 48, np.float32)  # prepare() will name the file
    thumbnail = cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA).astype(np.float32)
    detail = thumbnail - cv2.GaussianBlur(thumbnail, (0, 0), 1.5)
    signs = (np.sign(detail) * (np.abs(detail) > 1)).ravel()
    return signs / max(np.linalg.norm(signs), 1)
