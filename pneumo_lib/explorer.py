"""Look at any case of a run: which cases, which pixels, which scores.

The widgets that call this are in `explorer_panel`.
"""

import re
from html import escape
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from pneumo_lib import metrics
from pneumo_lib.figures import ERRORS
from pneumo_lib.paths import project_path
from pneumo_lib.pixels import read_image, resize_image
from pneumo_lib.preparation import Prepared, load_prepared
from pneumo_lib.runs import Run, data_checksum, load_run
from pneumo_lib.style import ORANGE, SKY

ORDERS = ("best", "worst", "missed", "false alarm", "image evidence", "random", "by id")
LAYERS = ("truth", "prediction", "errors", "probability")
_SIDE = 1024  # pixels of the longer side of a picture: a repaint must not be felt
_BLOCK = 256  # images whose evidence is computed at a time: flat memory


class OpenRun(NamedTuple):
    """A finished run with all that is needed to show its cases, see `open_run()`."""

    run: Run
    data: Prepared
    probabilities: np.ndarray  # (n, size, size) uint8, 255 times the probability, memory-mapped
    cases: pd.DataFrame  # n rows: image_id, split, has_pneumothorax, image_path, tp ... tn, dice


def explore(run, beside=None):
    """A panel to look at the cases of a finished run, for JupyterLab and for a Voila page.

    Choose a split, an order of the cases or an id; slide threshold and opacity; switch layers;
    zoom; step with the keyboard; compare with another run; drop in an X-ray of your own. Colours
    are those of the figures, and are told apart with every common colour blindness. Truth,
    prediction and errors are drawn on the pixels that the network sees and is scored on, above
    the X-ray at the resolution of its file. For research and teaching, not a medical device.

    Args:
        run: `Run`, or what `load_run()` takes. All runs beside its folder can be chosen, too.
        beside: another run on the same data to show beside it, or None.

    Returns:
        A widget. As the last line of a cell, it is the panel.

    Raises:
        FileNotFoundError: if there is no finished run, or its prepared data are gone.
        ValueError: if the prepared data changed after the training.
    """
    from pneumo_lib.explorer_panel import Panel  # needs Jupyter, which the library does not

    return Panel(open_run(run), None if beside is None else open_run(beside)).widget


def open_run(run):
    """A finished run with its prepared data and its probabilities, arrays memory-mapped.

    Args:
        run: `Run`, or what `load_run()` takes.

    Returns:
        `OpenRun`. Counts and Dice are those of the last epoch at threshold 0.5.

    Raises:
        FileNotFoundError: if there is no finished run, or its prepared data are gone.
        ValueError: if the prepared data changed after the training.
    """
    run = run if isinstance(run, Run) else load_run(run)
    folder = project_path(run.config["data"])
    try:
        data = load_prepared(folder)
    except FileNotFoundError:
        raise FileNotFoundError(
            "A run is shown with the images and masks it was trained on. "
            f"Received: {run.folder.name}, without {folder}. Make them again: {_remedy(run)}"
        ) from None
    if data_checksum(data) != run.config["data_checksum"]:
        raise ValueError(
            "A run is shown with the images and masks it was trained on. "
            f"Received: {folder}, which changed after {run.folder.name} was trained. "
            "Train the run again"
        )
    scores = run.scores[run.scores["epoch"] == run.scores["epoch"].max()].set_index("image_id")
    cases = data.cases.join(scores[list(metrics.COUNTS)], on="image_id").reset_index(drop=True)
    # A lesion that vanished at this size counts as missed, as in the tables.
    empty = np.where(cases["has_pneumothorax"], 0.0, 1.0)
    twice = 2 * cases["tp"]
    cases["dice"] = metrics.ratio(twice, twice + cases["fp"] + cases["fn"], empty_score=np.nan)
    cases["dice"] = cases["dice"].fillna(pd.Series(empty))
    probabilities = np.load(run.folder / "probabilities.npy", mmap_mode="r")
    return OpenRun(run, data, probabilities, cases)


def _remedy(run):
    """The call that prepares a run's data, read off the name of the prepared folder."""
    config, name = run.config, Path(run.config["data"]).name
    pattern = r"(?P<data>.+)_(?P<size>\d+)_(?P<split>\w+?)-split(?P<seed>\d+)"
    found = re.fullmatch(pattern + r"(-fold(?P<fold>\d+)of(?P<folds>\d+))?", name)
    split, seed = (found["split"], found["seed"]) if found else ("auto", config["seed"])
    count = re.match(r"phantoms-(\d+)-seed", name)
    data = "phantoms" if count else f"<the folder {config['data_name']}>"
    phantoms = f", phantom_count={count[1]}" if count else ""
    fold = f", fold='{found['fold']}/{found['folds']}'" if found and found["fold"] else ""
    options = f"size={config['size']}, split={split!r}, seed={seed}{fold}{phantoms}"
    return f'pl.prepare_data("{data}", {options})'


# --- Which cases ---------------------------------------------------------------------------------


def order_cases(opened, order, *, split="all", seed=0):
    """Row numbers of cases in an order that shows something.

    Args:
        opened: `OpenRun`.
        order: "best" and "worst": positive cases by Dice (where Dice is equal, the largest
            lesion first); "missed": positive cases without one right pixel, the largest first;
            "false alarm": healthy cases with a predicted pixel, the most pixels first; "image
            evidence": all cases, the highest `metrics.image_evidence()` first; "random"; "by id".
            Predictions are those at threshold 0.5.
        split: "train", "validation", "test" or "all".
        seed: of the random order.

    Returns:
        List of int, empty if no case is like that.

    Raises:
        ValueError: for another order.
    """
    cases = opened.cases if split == "all" else opened.cases[opened.cases["split"] == split]
    positive, healthy = (cases[cases["has_pneumothorax"] == there] for there in (True, False))
    lesion = positive["tp"] + positive["fn"]
    if order in ("best", "worst"):
        keys = positive.assign(lesion=lesion)
        rows = keys.sort_values(["dice", "lesion"], ascending=[order == "worst", False]).index
    elif order == "missed":
        rows = lesion[positive["tp"] == 0].sort_values(ascending=False).index
    elif order == "false alarm":
        rows = healthy[healthy["fp"] > 0].sort_values("fp", ascending=False).index
    elif order == "image evidence":
        rows = cases.index[np.argsort(-_evidence(opened, cases.index), kind="stable")]
    elif order == "random":
        rows = np.random.default_rng(seed).permutation(cases.index)
    elif order == "by id":
        rows = cases["image_id"].sort_values().index
    else:
        raise ValueError(f"`order` must be one of {', '.join(ORDERS)}. Received: {order!r}")
    return [int(row) for row in rows]


def _evidence(opened, rows):
    blocks = (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))
    evidence = [metrics.image_evidence(opened.probabilities[b] / np.float32(255)) for b in blocks]
    return np.concatenate(evidence) if evidence else np.empty(0)


def read_case(opened, row):
    """Image, mask and probability of one case.

    Args:
        opened: `OpenRun`.
        row: of `opened.cases`.

    Returns:
        `(image, mask, probability)`: uint8, from the X-ray file at its own size, or as prepared
        where that cannot be read any more; `(size, size)` of 0 and 1; `(size, size)` float32 in
        [0, 1].
    """
    try:
        image = read_image(opened.cases["image_path"][row])
    except (OSError, ValueError):
        image = np.asarray(opened.data.images[row])
    return image, np.asarray(opened.data.masks[row]), opened.probabilities[row] / np.float32(255)


def case_scores(prediction, probability, mask=None):
    """What a line of the panel says of one prediction, name -> text.

    Args:
        prediction: `(height, width)` of 0 and 1.
        probability: the same shape, float in [0, 1].
        mask: the same shape, of 0 and 1, or None where the truth is not known.

    Returns:
        Dict; "–" where a score is not defined.
    """
    scores = {}
    if mask is not None:
        counts = metrics.confusion_counts(mask[None], prediction[None])
        values = {
            "Dice": metrics.dice(counts),
            "IoU": metrics.iou(counts),
            "Sensitivity": metrics.sensitivity(counts),
            "Precision": metrics.precision(counts),
        }
        scores = {name: "–" if np.isnan(v[0]) else f"{v[0]:.2f}" for name, v in values.items()}
        scores["True area"] = f"{100 * mask.mean():.2f} %"
    evidence = metrics.image_evidence(probability[None])[0]
    return scores | {
        "Predicted area": f"{100 * prediction.mean():.2f} %",
        "Image evidence": f"{evidence:.2f}",
    }


# --- Pictures ------------------------------------------------------------------------------------


def canvas(image, *, smooth=True):
    """A grey image at the size of a picture, 1024 pixels on its longer side.

    Args:
        image: `(height, width)` uint8.
        smooth: False keeps the pixels of a small image visible.

    Returns:
        `(height, width)` uint8.
    """
    scale = _SIDE / max(image.shape)
    shape = tuple(max(1, round(side * scale)) for side in image.shape)
    return resize_image(image, shape) if smooth or scale < 1 else _blocks(image, shape)


def paint(background, layers, *, probability, prediction, mask=None, opacity=0.5):
    """One picture: the background with the chosen layers over it.

    Args:
        background: `(height, width)` uint8, see `canvas()`.
        layers: names of `LAYERS`. "errors" colours what was found, missed or a false alarm, and
            "probability" grows opaque with the probability; "truth" and "prediction" are outlines.
        probability: `(size, size)` float32 in [0, 1].
        prediction: `(size, size)` uint8 of 0 and 1.
        mask: the same, or None: then there is no truth and are no errors.
        opacity: of the coloured areas, in [0, 1].

    Returns:
        `(height, width, 3)` uint8, RGB.
    """
    shape = background.shape
    picture = cv2.cvtColor(background, cv2.COLOR_GRAY2RGB)
    if "probability" in layers:
        smooth = resize_image(probability, shape)
        colours = cv2.applyColorMap(cv2.convertScaleAbs(smooth, alpha=255), cv2.COLORMAP_MAGMA)
        colours = cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
        picture = cv2.blendLinear(colours, picture, opacity * smooth, 1 - opacity * smooth)
    if "errors" in layers and mask is not None:
        outcome = prediction + np.uint8(2) * mask  # a false alarm is 1, missed 2, found 3
        colours = [ERRORS[name] for name in ("false alarm", "missed", "found")]
        palette = np.array([(0, 0, 0), *map(_rgb, colours)], np.uint8)
        coloured = cv2.addWeighted(
            _blocks(palette[outcome], shape), opacity, picture, 1 - opacity, 0
        )
        cv2.copyTo(coloured, _blocks(outcome, shape), picture)
    for name, area, colour in (("truth", mask, ORANGE), ("prediction", prediction, SKY)):
        if name in layers and area is not None:
            outlines, _ = cv2.findContours(
                _blocks(area, shape), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(picture, outlines, -1, _rgb(colour), thickness=3)
    return picture


def encode(picture):
    """A picture as JPEG: a tenth of the bytes of a PNG, and no colour blurred over its edge."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92]
    sampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, quality + sampling)[1].tobytes()


def legend(layers):
    """The colours of the layers as HTML."""
    entries = {"truth": {"truth": ORANGE}, "prediction": {"prediction": SKY}, "errors": ERRORS}
    items = [
        f'<span><i class="{name}" style="--colour: {colour}"></i>{escape(text)}</span>'
        for name in layers
        for text, colour in entries.get(name, {}).items()
    ]
    if "probability" in layers:
        items.append("<span>probability 0 <i class='probability'></i> 1</span>")
    return " ".join(items)


def _blocks(pixels, shape):
    """Pixels enlarged to visible blocks: what the network draws is shown as coarse as it is."""
    return cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))
