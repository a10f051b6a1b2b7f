"""Look at any case of a run: which cases, which pixels, which scores.

The widgets that call this are in `explorer_panel`.
"""

from html import escape

import cv2
import numpy as np

from pneumo_lib.data.images import read_image, resize_image
from pneumo_lib.evaluation import image_level, metrics
from pneumo_lib.plots.cases import ERRORS
from pneumo_lib.plots.style import ORANGE, SKY

ORDERS = ("best", "worst", "missed", "false positive", "image-level score", "random", "by id")
LAYERS = ("truth", "prediction", "errors", "probability")
_SIDE = 1024  # pixels of the longer side of a picture: a repaint must not be felt


# --- Which cases ---------------------------------------------------------------------------------


def order_cases(opened, order, *, split="all", seed=0):
    """Row numbers of cases in an order that shows something.

    Args:
        opened: `OpenRun`.
        order: "best" and "worst": positive cases by Dice (where Dice is equal, the largest
            lesion first); "missed": positive cases without one right pixel, the largest first;
            "false positive": healthy cases with a predicted pixel, the most pixels first;
            "image-level score": all cases, the highest `image_level.image_level_score()` first;
            "random"; "by id". Predictions are those at threshold 0.5.
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
    elif order == "false positive":
        rows = healthy[healthy["fp"] > 0].sort_values("fp", ascending=False).index
    elif order == "image-level score":
        each = (opened.probabilities[[row]] / np.float32(255) for row in cases.index)
        scores = np.array([image_level.image_level_score(y_pred)[0] for y_pred in each])
        rows = cases.index[np.argsort(-scores, kind="stable")]
    elif order == "random":
        rows = np.random.default_rng(seed).permutation(cases.index)
    elif order == "by id":
        rows = cases["image_id"].sort_values().index
    else:
        raise ValueError(f"`order` must be one of {', '.join(ORDERS)}. Received: {order!r}")
    return [int(row) for row in rows]


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
    """Scores of one prediction as text, a line of the panel: name -> text.

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
    return scores | {
        "Predicted area": f"{100 * prediction.mean():.2f} %",
        "Image-level score": f"{image_level.image_level_score(probability[None])[0]:.2f}",
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
        layers: names of `LAYERS`. "errors" colours what was found, missed or a false positive, and
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
        outcome = prediction + np.uint8(2) * mask  # a false positive is 1, missed 2, found 3
        colours = [ERRORS[name] for name in ("false positive", "missed", "found")]
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
