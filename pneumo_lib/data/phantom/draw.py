"""Synthetic chest radiographs by X-ray physics, written in the data set's own file layout.

They make every notebook and test run without a download. They are drawn, not measured: good to
learn and to check a pipeline with, never evidence about patients.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm.auto import tqdm

from pneumo_lib._files import atomic_write, begin_folder, file_lock, made_from
from pneumo_lib.data.phantom import anatomy, collapse, geometry, radiography

RECORD = "phantoms.json"  # the settings of a set of phantoms; marks images as synthetic
_PARTS = ("png_images", "png_masks")
_LAST = "patients.csv"  # of the files: with it a set of phantoms is whole
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
        index: 0 or more. Indices 2k and 2k + 1 may show the same patient.
        size: height and width in pixels, 64 or more.
        seed: whole number, 0 or more.
        prevalence: share of images with a pneumothorax, in [0, 1].

    Returns:
        image: `(size, size)` uint8, dense parts bright.
        mask: `(size, size)` uint8 of 0 and 1, 1 where air lies between chest wall and lung.
        info: dict with image_id, patient_id, official_part, has_pneumothorax, side ("left" or
            "right" of the patient, "" if healthy), site, area (mask pixels), sex, mimics.

    Raises:
        ValueError: if an argument is out of range.
    """
    if index < 0:
        raise ValueError(f"`index` must be 0 or more. Received: index={index}")
    _check(size=size, seed=seed, prevalence=prevalence)
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
    area, lung, mask = info.pop("share") * field**2, None, np.zeros((size, size), np.uint8)
    if side := info["side"]:
        # A stream of its own: without the pneumothorax the rest of the image stays as it is.
        own = np.random.default_rng([seed, index, 5])
        whole = anatomy.lungs(patient, breath=breath)[side]
        shrink = collapse.collapse(whole, area, site=info["site"], rng=own)
        mask = collapse.rim_mask(view, whole, shrink(whole), size=size)
        lung = side, whole, shrink
    thickness = _chest(view, patient, breath=breath, arms=arms, collapsed=lung, rng=rng)
    added, info["mimics"] = radiography.mimics(view, rng=rng)
    for material, depth in added.items():
        thickness[material] = thickness.get(material, 0) + depth
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


def _check(*, size, seed, prevalence):
    if size < 64:
        raise ValueError(f"`size` must be 64 or more, or ribs vanish. Received: size={size}")
    if seed < 0:
        raise ValueError(f"`seed` must be 0 or more. Received: seed={seed}")
    if not 0 <= prevalence <= 1:
        raise ValueError(f"`prevalence` must be in [0, 1]. Received: prevalence={prevalence}")


def describe(index, *, seed, prevalence):
    """What image `index` will show, without drawing it: a dict as `draw_phantom()` returns.

    Beside it: `share`, the wanted area of the pneumothorax as a share of the image; `patient`,
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
    the part, official part, label), `stage_1_train_images.csv`, `stage_1_test_images.csv`,
    `phantoms.json` with the settings, written first, and `patients.csv`, written last. A
    finished folder returns at once; after an interruption only what is missing is drawn. One pair
    of images in nine is the official test part; unlike in SIIM-ACR no patient is in both parts.

    Args:
        folder: where to write; made when absent.
        count: number of images, 1 or more. A larger count gives the same first images.
        size: height and width in pixels, 64 or more.
        prevalence: share of images with a pneumothorax, in [0, 1].
        seed: whole number, 0 or more.
        workers: processes; None means one per CPU, 1 draws in this process.

    Returns:
        `Path` of the folder.

    Raises:
        ValueError: if a setting is out of range, or the folder was made with other settings or
            holds images from elsewhere.
        RuntimeError: if a process was killed (the system does so when memory is short).
        OSError: with what to do, if the disk is full or cannot be written.
    """
    if count < 1:
        raise ValueError(f"`count` must be 1 or more. Received: count={count}")
    settings = {"seed": seed, "size": size, "prevalence": prevalence}
    _check(**settings)
    folder, settings = Path(folder).resolve(), {"version": VERSION, "count": count, **settings}
    plan = _plan(count, seed=seed, prevalence=prevalence)
    whole = (folder / _LAST).is_file() and not _missing(folder, plan)
    if whole and made_from(folder, record=RECORD) == settings:
        return folder  # which may lie where nothing can be written
    with file_lock(folder):
        begin_folder(folder, settings, record=RECORD, what="A set of phantoms")
        for part in _PARTS:
            (folder / part).mkdir(exist_ok=True)
        draw = partial(_draw_one, folder=folder, size=size, seed=seed, prevalence=prevalence)
        if missing := _missing(folder, plan):
            _draw_all(draw, missing, workers=workers)
        _write_tables(folder, plan)
    return folder


def _missing(folder, plan):
    """Indices and names of the images still to be drawn."""
    there = [{path.name for path in (folder / part).glob("*")} for part in _PARTS]
    whole = set.intersection(*there)
    return [(index, name) for index, (name, _) in enumerate(plan) if name not in whole]


def _plan(count, *, seed, prevalence):
    plan = []
    for index in range(count):
        info = describe(index, seed=seed, prevalence=prevalence)
        label = int(info["has_pneumothorax"])
        plan.append((f"{info['number']}_{info['official_part']}_{label}_.png", info))
    return plan


def _draw_all(draw, missing, *, workers):
    workers = min(workers or os.cpu_count() or 1, len(missing) // 25)  # starting one takes a second
    bar = partial(tqdm, total=len(missing), desc="phantoms", unit="image")
    if workers < 2:
        for _ in bar(map(draw, missing)):
            pass
        return
    context = multiprocessing.get_context("spawn")  # forking a process with TensorFlow may hang
    try:
        with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
            for _ in bar(pool.map(draw, missing, chunksize=8)):
                pass
    except BrokenProcessPool:
        raise RuntimeError(
            "The processes that draw must live until all is drawn. Call again, with workers=1 if "
            "memory is short: what was drawn is kept. Received: one was killed"
        ) from None


def _draw_one(job, *, folder, size, seed, prevalence):
    index, name = job
    image, mask, _ = draw_phantom(index, size=size, seed=seed, prevalence=prevalence)
    for part, pixels in zip(_PARTS, (image, 255 * mask), strict=True):
        with atomic_write(folder / part / name) as unfinished:
            unfinished.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def _write_tables(folder, plan):
    head = "new_filename,ImageId,has_pneumo"
    tables = {"train": [head], "test": [head], "patients": ["ImageId,patient_id"]}
    for name, info in plan:
        label = int(info["has_pneumothorax"])
        tables[info["official_part"]].append(f"{name},{info['image_id']},{label}")
        tables["patients"].append(f"{info['image_id']},{info['patient_id']}")
    names = {"train": "stage_1_train_images.csv", "test": "stage_1_test_images.csv"}
    for table, lines in tables.items():
        with atomic_write(folder / names.get(table, _LAST)) as unfinished:
            unfinished.write_bytes(("\n".join(lines) + "\n").encode())
