"""Order, scores and pictures of the cases of a run, without widgets: `explorer.panel` has those."""

from html import escape

import cv2
import numpy as np

from pneumo_lib._checks import check_name
from pneumo_lib.data.images import read_image, resize_image
from pneumo_lib.evaluation import metrics
from pneumo_lib.plots.style import ERRORS, ORANGE, SKY

_SORTED = {  # order: condition, columns, whether they ascend
    "best": ("has_pneumothorax", ["dice", "lesion"], [False, False]),
    "worst": ("has_pneumothorax", ["dice", "lesion"], [True, False]),
    "missed": ("has_pneumothorax and tp == 0", "lesion", False),
    "false positive": ("not has_pneumothorax and fp > 0", "fp", False),
}
ORDERS = (*_SORTED, "image-level score", "random", "by id")
LAYERS = ("truth", "prediction", "errors", "probability")
_SIDE = 1024  # pixels of the longer side of a picture; larger ones repaint with a visible delay


def order_cases(opened, order, *, split="all", seed=0):
    """Row numbers of the cases of an `OpenRun`, the most instructive first; a list of int.

    Args:
        order: "best" and "worst": positive cases by Dice, of equal ones the largest lesion first;
            "missed": positive cases without a true positive pixel, the largest first; "false
            positive": healthy cases with predicted pixels, most pixels first; "image-level
            score": all cases, the highest first; "random"; "by id". Threshold 0.5. A ValueError
            refuses others.
        split: "train", "validation", "test" or "all".
        seed: of the random order.
    """
    check_name("order", order, ORDERS)
    cases = opened.cases if split == "all" else opened.cases[opened.cases["split"] == split]
    if order in _SORTED:
        condition, columns, ascending = _SORTED[order]
        chosen = cases.assign(lesion=cases["tp"] + cases["fn"]).query(condition)
        rows = chosen.sort_values(columns, ascending=ascending).index
    elif order == "image-level score":
        rows = cases.sort_values("image_score", ascending=False, kind="stable").index
    elif order == "by id":
        rows = cases.sort_values("image_id").index
    else:
        rows = np.random.default_rng(seed).permutation(cases.index)
    return [int(row) for row in rows]


def read_case(opened, row):
    """`(image, mask, probability)` of one row of the cases of an `OpenRun`.

    Uint8 at the size of the X-ray file, or as prepared if the file cannot be read; `(size, size)`
    of 0 and 1; `(size, size)` float32 in [0, 1].
    """
    try:
        image = read_image(opened.cases["image_path"][row])
    except (OSError, ValueError):
        image = np.asarray(opened.data.images[row])
    return image, np.asarray(opened.data.masks[row]), opened.probabilities[row] / np.float32(255)


def case_scores(prediction, score, mask=None):
    """Scores of one prediction as text, by name; "–" where a score is undefined.

    `prediction` and `mask` are `(height, width)` of 0 and 1, `score` is that of the whole image, in
    [0, 1]. Without the truth, `mask` is None.
    """
    scores = {}
    if mask is not None:
        counts = metrics.confusion_counts(mask[None], prediction[None])
        for name in ("Dice", "IoU", "Sensitivity", "Precision"):
            (value,) = getattr(metrics, name.lower())(counts)
            scores[name] = "–" if np.isnan(value) else f"{value:.2f}"
        scores["True area"] = f"{100 * mask.mean():.2f} %"
    return scores | {
        "Predicted area": f"{100 * prediction.mean():.2f} %",
        "Image-level score": f"{score:.2f}",
    }


def canvas(image, *, smooth=True):
    """A grey image, uint8, resized to 1024 pixels on its longer side.

    Without `smooth` the pixels of a small image stay visible.
    """
    scale = _SIDE / max(image.shape)
    shape = tuple(max(1, round(side * scale)) for side in image.shape)
    return resize_image(image, shape) if smooth or scale < 1 else _blocks(image, shape)


def paint(background, layers, *, probability, prediction, mask=None, opacity=0.5):
    """Picture of the background under the chosen layers, `(height, width, 3)` uint8, RGB.

    Args:
        background: `(height, width)` uint8, see `canvas()`.
        layers: names of `LAYERS`. "errors" are coloured areas, "probability" is a map as opaque
            as it is probable, "truth" and "prediction" are outlines.
        probability: `(size, size)` float32 in [0, 1].
        prediction: `(size, size)` uint8 of 0 and 1.
        mask: the same, or None: then neither truth nor errors are drawn.
        opacity: of the coloured areas, in [0, 1].
    """
    shape = background.shape
    picture = cv2.cvtColor(background, cv2.COLOR_GRAY2RGB)
    if "probability" in layers:
        smooth = resize_image(probability, shape)
        colours = cv2.applyColorMap(cv2.convertScaleAbs(smooth, alpha=255), cv2.COLORMAP_MAGMA)
        colours = cv2.cvtColor(colours, cv2.COLOR_BGR2RGB)
        picture = cv2.blendLinear(colours, picture, opacity * smooth, 1 - opacity * smooth)
    if "errors" in layers and mask is not None:
        outcome = prediction + np.uint8(2) * mask  # a false positive is 1, missed 2, found 3
        colours = [ERRORS[name] for name in ("false positive", "missed", "found")]
        palette = np.array([(0, 0, 0), *map(_rgb, colours)], np.uint8)
        coloured = _blocks(palette[outcome], shape)
        coloured = cv2.addWeighted(coloured, opacity, picture, 1 - opacity, 0)
        cv2.copyTo(coloured, _blocks(outcome, shape), picture)
    for name, area, colour in (("truth", mask, ORANGE), ("prediction", prediction, SKY)):
        if name in layers and area is not None:
            area = _blocks(area, shape)
            outlines, _ = cv2.findContours(area, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, outlines, -1, _rgb(colour), thickness=3)
    return picture


def encode(picture):
    """Bytes of a picture as JPEG, a tenth of a PNG, with colours at full resolution (4:4:4)."""
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, 92, *sampling))[1].tobytes()


def legend(layers):
    """Legend of the layers as HTML."""
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
    """Pixels as visible blocks: a prediction is drawn as coarse as it is."""
    return cv2.resize(pixels, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def _rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))
