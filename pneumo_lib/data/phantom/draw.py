"""Synthetic chest radiographs by X-ray physics, written in the data set's own file layout.

With them every notebook and test runs without a download. They are good to learn and to check a
pipeline with, never evidence about patients.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from pneumo_lib._checks import refuse
from pneumo_lib._files import atomic_write, begin_folder, file_lock, made_from, write_csv
from pneumo_lib.data.phantom import anatomy, collapse, geometry, radiography

RECORD = "phantoms.json"  # the settings of a set of phantoms; marks images as synthetic
_FOLDERS = ("png_images", "png_masks")
_LAST = "patients.csv"  # written last: with this file a set of phantoms is complete
VERSION = 2  # of the drawing: raise it whenever the same seed and index give another image

SITES = ("apical", "lateral", "basal")
# Area of the pneumothorax as a share of 1024 x 1024 pixels, at these quantiles of the positive
# images of SIIM-ACR (counted from its run-length table).
AREA_QUANTILES = np.array([0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1])
AREAS = np.array([55, 567, 1364, 4059, 8630, 18388, 34584, 48260, 86980, 161421]) / 1024**2


def draw_phantom(index, *, size=256, seed=0, prevalence=0.22):
    """One synthetic frontal chest radiograph with its pneumothorax mask.

    Thickness maps of tissues become an image by Beer-Lambert attenuation, scatter, quantum noise
    and a logarithmic display curve. The image depends on `seed` and `index` only.

    Args:
        index, seed: 0 or more. Indices 2k and 2k + 1 may show the same patient.
        size: height and width in pixels, 64 or more.
        prevalence: share of images with a pneumothorax, in [0, 1].

    Returns:
        image: `(size, size)` uint8, dense parts bright.
        mask: `(size, size)` uint8 of 0 and 1, 1 where air lies between chest wall and lung.
        info: dict with image_id, patient_id, official_part, has_pneumothorax, side ("left" or
            "right" of the patient, "" if healthy), site, area (mask pixels), sex, mimics.

    A ValueError refuses an argument that is out of range.
    """
    _check(index=index, size=size, seed=seed, prevalence=prevalence)
    info = describe(index, seed=seed, prevalence=prevalence)
    del info["number"]
    patient = anatomy.draw_patient(np.random.default_rng([seed, info.pop("patient"), 1]))
    rng = np.random.default_rng([seed, index])
    field = rng.uniform(32, 39) * patient["stature"]
    view = geometry.view(
        3 * size // 2,  # drawn finer, then averaged: smooth edges
        field=field,
        turn=np.radians(rng.normal(0, 1.8)),
        yaw=np.radians(rng.normal(0, 2.5)),
        shift=rng.normal(0, 0.6, 2),
    )
    breath, arms = rng.normal(0, 1.2), rng.choice([0.12, 0.5]) + rng.normal(0, 0.08)
    area, collapsed, mask = info.pop("share") * field**2, None, np.zeros((size, size), np.uint8)
    if side := info["side"]:
        # A stream of its own: without the pneumothorax the rest of the image stays as it is.
        own = np.random.default_rng([seed, index, 5])
        whole = anatomy.lungs(patient, breath=breath)[side]
        shrink = collapse.collapse(whole, area, site=info["site"], rng=own)
        mask = collapse.rim_mask(view, whole, shrink(whole), size=size)
        collapsed = side, whole, shrink
    thickness = _chest(view, patient, breath=breath, arms=arms, collapsed=collapsed, rng=rng)
    fold, thickness["metal"], info["mimics"] = radiography.mimics(view, rng=rng)
    thickness["soft"] += fold
    own = np.random.default_rng([seed, index, 6])  # as many numbers as pixels: the rest must not
    density = radiography.expose(thickness, size=size, field=field, rng=own)  # depend on `size`
    image = radiography.collimate(radiography.display(density, field=field, rng=rng), rng=rng)
    return image, mask, {**info, "sex": patient["sex"], "area": int(mask.sum())}


def _chest(view, patient, *, breath, arms, collapsed, rng):
    """Thickness maps in cm; `collapsed` is (side, outline, function that shrinks it) or None."""
    lung = anatomy.air_space(view, patient, breath=breath)
    bone = anatomy.skeleton(view, patient, arms=arms)
    soft = anatomy.solid_body(view, patient, arms=arms)
    soft -= lung + bone + anatomy.gas(view, patient, breath=breath)
    moved = {}
    if collapsed:
        side, whole, moved[collapsed[0]] = collapsed
        filled, pleura = collapse.air_rim(view, whole, moved[side](whole))
        lung *= filled
        soft += pleura
    soft += anatomy.vasculature(view, patient, lung, moved=moved)
    soft += lung * anatomy.haze(view, rng=rng)
    return {"soft": np.maximum(soft, 0), "lung": lung, "bone": bone}


def _check(*, seed, prevalence, size=64, index=0, count=1):
    least = {"index": (index, 0), "size": (size, 64), "seed": (seed, 0), "count": (count, 1)}
    for name, (value, lowest) in least.items():
        if value < lowest:
            refuse(name, value, f"{lowest} or more")
    if not 0 <= prevalence <= 1:
        refuse("prevalence", prevalence, "in [0, 1]")


def describe(index, *, seed, prevalence):
    """Contents of image `index` without drawing it: a dict as `draw_phantom()` returns.

    In addition: `share`, the wanted area of the pneumothorax as a share of the image; `patient`,
    the index of the first image of that patient; `number`, counted within the official part.
    """
    pair = index // 2
    twin = np.random.default_rng([seed, pair, 2]).random() < 0.3
    patient = 2 * pair if twin else index
    # Of 18 images, the third and fourth are official test images; `number` counts within a part.
    cycle, step = divmod(index, 18)
    test = step in (2, 3)
    number = 2 * cycle + step - 2 if test else 16 * cycle + step - 2 * (step > 3)
    # Any nine images of a part in a row hold their share of positives, small ones and large ones.
    block, place = divmod(number, 9)
    rng = np.random.default_rng([seed, block, 3, test])
    quantile = (rng.permutation(9)[place] + rng.random()) / 9
    positive = bool(quantile < prevalence)
    rng = np.random.default_rng([seed, index, 4])
    area = np.exp(np.interp(quantile / max(prevalence, 1e-9), AREA_QUANTILES, np.log(AREAS)))
    return {
        "image_id": f"phantom.{seed}.{index}",
        "patient_id": f"phantom.{seed}.patient.{patient}",
        "patient": patient,
        "number": number,
        "official_part": "test" if test else "train",
        "has_pneumothorax": positive,
        "side": str(rng.choice(["right", "left"])) if positive else "",
        "site": str(rng.choice(SITES, p=[0.6, 0.2, 0.2])) if positive else "",
        "share": float(area) if positive else 0.0,
    }


def make_phantoms(folder, *, count, size=256, prevalence=0.22, seed=0, workers=None):
    """Write `count` phantoms as PNG files and tables laid out like the Kaggle PNG release.

    `png_images/` and `png_masks/` (0 and 255) with names such as `2_train_1_.png` (number within
    the part, official part, label), the tables of the release, `phantoms.json` with the settings,
    written first, and `patients.csv`, written last. A finished folder returns at once; after an
    interruption only what is missing is drawn. One pair of images in nine is the official test
    part; unlike in SIIM-ACR no patient is in both parts.

    Args:
        folder: where to write, returned as `Path`; made when absent.
        count: number of images, 1 or more. A larger count gives the same first images.
        size, prevalence, seed: as for `draw_phantom()`.
        workers: processes; None means one per CPU, 1 draws in this process.

    Raises:
        ValueError: if a setting is out of range, or the folder was made with other settings or
            holds images from elsewhere.
        RuntimeError: if a process was killed (the system does so when memory is short).
        OSError: with what to do, if the disk is full or cannot be written.
    """
    settings = {"count": count, "seed": seed, "size": size, "prevalence": prevalence}
    _check(**settings)
    folder, settings = Path(folder).resolve(), {"version": VERSION, **settings}
    plan = _plan(count, seed=seed, prevalence=prevalence)
    complete = (folder / _LAST).is_file() and not _missing(folder, plan)
    if complete and made_from(folder, record=RECORD) == settings:
        return folder  # without a lock, which a read-only folder cannot hold
    with file_lock(folder):
        begin_folder(folder, settings, record=RECORD, what="A set of phantoms")
        for name in _FOLDERS:
            (folder / name).mkdir(exist_ok=True)
        draw = partial(_draw_one, folder=folder, size=size, seed=seed, prevalence=prevalence)
        if missing := _missing(folder, plan):
            _draw_all(draw, missing, workers=workers)
        for part in ("train", "test"):
            rows, columns = plan["official_part"] == part, ["new_filename", "ImageId", "has_pneumo"]
            write_csv(folder / f"stage_1_{part}_images.csv", plan.loc[rows, columns])
        write_csv(folder / _LAST, plan[["ImageId", "patient_id"]])
    return folder


def _missing(folder, plan):
    """Indices and names of the images still to be drawn."""
    there = [{path.name for path in (folder / name).glob("*")} for name in _FOLDERS]
    names = plan["new_filename"]
    return list(names[~names.isin(set.intersection(*there))].items())


def _plan(count, *, seed, prevalence):
    """Table of all images: `patient_id`, `official_part` and the columns of the Kaggle release."""
    plan = pd.DataFrame([describe(i, seed=seed, prevalence=prevalence) for i in range(count)])
    label, number = plan["has_pneumothorax"].astype(int), plan["number"].astype(str)
    names = number + "_" + plan["official_part"] + label.map("_{}_.png".format)
    return plan.assign(new_filename=names, ImageId=plan["image_id"], has_pneumo=label)


def _draw_all(draw, missing, *, workers):
    workers = min(workers or os.cpu_count() or 1, len(missing) // 25)  # starting one takes a second
    bar = partial(tqdm, total=len(missing), desc="phantoms", unit="image")
    if workers < 2:
        list(bar(map(draw, missing)))
        return
    context = multiprocessing.get_context("spawn")  # forking a process with TensorFlow may hang
    try:
        with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
            list(bar(pool.map(draw, missing, chunksize=8)))
    except BrokenProcessPool:
        raise RuntimeError(
            "The processes that draw must live until all is drawn. Call again, with workers=1 if "
            "memory is short: what was drawn is kept. Received: one was killed"
        ) from None


def _draw_one(job, *, folder, size, seed, prevalence):
    index, name = job
    image, mask, _ = draw_phantom(index, size=size, seed=seed, prevalence=prevalence)
    for part, pixels in zip(_FOLDERS, (image, 255 * mask), strict=True):
        with atomic_write(folder / part / name) as unfinished:
            unfinished.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
