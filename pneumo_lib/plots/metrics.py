"""Figures of the metrics: saturation, detection, calibration, groups, pairs and outlines.

They take the arguments `title`, `note` and `ax` of `plots.style`.
"""

import numpy as np
from matplotlib.patches import Patch
from scipy.spatial.distance import directed_hausdorff
from sklearn.metrics import precision_recall_curve, roc_curve

from pneumo_lib.evaluation.logged_metrics import logged_mean_iou_at, saturated_share_at
from pneumo_lib.evaluation.score_table import HEADINGS
from pneumo_lib.evaluation.surface_distance import boundary_scores, outline
from pneumo_lib.plots import style
from pneumo_lib.plots.results import REPORT_MEAN_IOU

_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILION)
_UNIT = (-0.02, 1.02)
_UNIT_SQUARE = {"xlim": _UNIT, "ylim": _UNIT, "aspect": "equal"}
_DIAGONAL = {"color": "gray", "linestyle": "--", "zorder": 1}


def saturation_chart(points, *, ax=None, title=None, note=None):
    """`Axes`: logged mean IoU and true foreground IoU against the share of saturated pixels.

    The line is `logged_metrics.logged_mean_iou_at()`; crosses on it are the report's test values.

    Args:
        points: DataFrame with a row for each network and epoch: `share` of saturated pixels,
            `logged` mean IoU, true foreground `iou`, and `name` for the legend.
    """
    ax = style.new_axes(ax, note)
    share = np.linspace(0, 1, 101)
    label = "(f + 1 / (2 − f)) / 2"
    ax.plot(100 * share, logged_mean_iou_at(share), color="gray", label=label, zorder=1)
    for number, (name, rows) in enumerate(points.groupby("name", sort=False)):
        look = {"color": _COLOURS[number % 3], "marker": "osD^v"[number % 5], "linestyle": "none"}
        ax.plot(100 * rows["share"], rows["logged"], **look, label=f"{name}: as logged")
        hollow = {"markerfacecolor": "white", "markeredgewidth": 2, "clip_on": False}
        ax.plot(100 * rows["share"], rows["iou"], **look, **hollow, label=f"{name}: true IoU")
    values = [of_split["test"] for of_split in REPORT_MEAN_IOU.values()]
    shares = 100 * saturated_share_at(values)
    cross = {"color": style.VERMILION, "marker": "X", "markersize": 14, "zorder": 5}
    ax.plot(shares, values, linestyle="none", **cross, label="the report's test values")
    for name, *point in zip(REPORT_MEAN_IOU, shares, values, strict=True):
        highest = point[1] == max(values)
        place = {"ha": "right", "va": "bottom"} if highest else {"ha": "left", "va": "top"}
        text = f"{style.BACKBONES[name][0]} {point[1]:.4f}"
        offset = (-8, 8) if highest else (10, -8)
        ax.annotate(text, point, offset, textcoords="offset points", fontsize=14, **place)
    ax.set(xlabel="Share f of the pixels with a softmax of exactly 1.0, %", xlim=(-1, 101))
    ax.set(ylabel="Score", ylim=_UNIT, title=title, xticks=range(0, 101, 20))
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2)
    return ax


def roc_chart(scores, *, title=None, note=None):
    """`Figure` with two panels of image-level detection: ROC curve, precision against recall.

    Args:
        scores: dict from a name for the legend to `(y_true, y_score)` of the same images, as for
            `image_level.image_level_scores()`; up to four.
    """
    figure, axes = style.new_figure(1, 2, title=title, note=note)
    roc, precision = axes[0]
    roc.plot([0, 1], [0, 1], **_DIAGONAL, label="guessing")
    for number, (name, (y_true, y_score)) in enumerate(scores.items()):
        look = {"color": _COLOURS[number], "label": name}
        false_positives, sensitivity, _ = roc_curve(y_true, y_score)
        roc.plot(false_positives, sensitivity, **look)
        precisions, recall, _ = precision_recall_curve(y_true, y_score)
        precision.plot(recall, precisions, **look, drawstyle="steps-post")
        precision.axhline(np.mean(y_true), color="gray", linestyle="--")
    roc.set(title="ROC", xlabel="False positive rate", ylabel="Sensitivity", **_UNIT_SQUARE)
    precision.set(title="Precision and recall", xlabel="Recall", ylabel="Precision", **_UNIT_SQUARE)
    style.legend_below(figure, roc)
    return figure


def reliability_chart(tables, *, title=None, note=None):
    """`Figure` with two panels: the reliability diagram, and the count of each bin.

    Args:
        tables: dict from a name for the legend to a `reliability_table()`; up to four.
    """
    figure, axes = style.new_figure(1, 2, title=title, note=note)
    reliability, counts = axes[0]
    reliability.plot([0, 1], [0, 1], **_DIAGONAL, label="perfect calibration")
    for number, (name, table) in enumerate(tables.items()):
        look = {"color": _COLOURS[number], "marker": "osD^"[number]}
        reliability.plot(table["predicted"], table["observed"], **look, label=name)
        middle = (table["lower"] + table["upper"]) / 2
        counts.plot(middle, table["count"].where(table["count"] > 0), **look)
    reliability.set(ylabel="Observed frequency", title="Reliability", **_UNIT_SQUARE)
    counts.set(ylabel="Predictions in the bin", title="Counts", yscale="log", xlim=_UNIT)
    for ax in axes[0]:
        ax.set_xlabel("Predicted probability")
    style.legend_below(figure, reliability)
    return figure


def group_chart(table, *, by, score="dice_positive", ax=None, title=None, note=None):
    """`Axes` with a score and its interval for each group of images.

    Args:
        table: rows of one split of `score_table(with_groups(...), by=by)`; the all-background
            row and groups without the score are left out.
        by: "lesion", "view" or "sex".
        score: a name of `score_table.HEADINGS`.
    """
    ax = style.new_axes(ax, note)
    rows = table[(table[by] != "all background") & table[score].notna()]
    bounds = np.array([rows[score] - rows[f"{score}_lower"], rows[f"{score}_upper"] - rows[score]])
    place = np.arange(len(rows))
    ax.errorbar(place, rows[score], yerr=bounds, marker="o", linestyle="none", color=style.BLUE)
    named = zip(rows[by], rows["images"], strict=True)
    ax.set_xticks(place, [f"{name}\n{count} images" for name, count in named])
    ax.set(ylabel=HEADINGS[score], title=title, xlim=(-0.5, len(rows) - 0.5))
    ax.set_ylim(bottom=-0.02, top=None if score in ("hd95", "asd") else 1.02)
    return ax


def paired_chart(first, second, *, names, ax=None, title=None, note=None):
    """`Axes` with a point for each image: its score by one network against that by another.

    Args:
        first, second: `(n,)` scores of the same images in the same order, in [0, 1].
        names: names of the two networks.
    """
    ax = style.new_axes(ax, note)
    ax.plot([0, 1], [0, 1], **_DIAGONAL)
    ax.scatter(first, second, s=90, color=style.BLUE, alpha=0.6, clip_on=False)
    ax.text(1.04, 0.75, f"above the line:\n{names[1]} is better", color="dimgray")
    ax.text(1.04, 0.25, f"below the line:\n{names[0]} is better", va="top", color="dimgray")
    ax.set(xlabel=names[0], ylabel=names[1], title=title, **_UNIT_SQUARE)
    return ax


def outline_figure(images, masks, predictions, *, title=None, note=None):
    """`Figure` with a panel for each case: both outlines, and where they lie farthest apart.

    Args:
        images: `(n, height, width)` uint8; up to 3 are large on a slide.
        masks, predictions: same shape, of 0 and 1, each with a foreground pixel.
    """
    size = 12.8, min(7.2, 9.6 / len(images) + 2)
    figure, axes = style.new_figure(1, len(images), title=title, note=note, figsize=size)
    scores = boundary_scores(masks, predictions)
    for ax, image, *pair, row in zip(
        axes[0], images, masks, predictions, scores.itertuples(), strict=True
    ):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        for mask, colour in zip(pair, (style.ORANGE, style.SKY), strict=True):
            ax.contour(np.asarray(mask), levels=[0.5], colors=[colour], linewidths=2.5)
        (y, x), (far_y, far_x) = _farthest(*(outline(np.asarray(mask) > 0) for mask in pair))
        ax.plot([x, far_x], [y, far_y], color=style.VERMILION, marker="o", markersize=6)
        place = np.argwhere(np.any(pair, axis=0))
        reach = min(10 + np.ptp(place, axis=0).max() / 2, min(image.shape) / 2)
        middle = (place.max(axis=0) + place.min(axis=0)) / 2
        y, x = np.clip(middle, reach - 0.5, np.array(image.shape) - reach - 0.5)  # no white border
        ax.set(xlim=(x - reach, x + reach), ylim=(y + reach, y - reach))
        ax.set_xlabel(f"Hausdorff 95: {row.hd95:.1f} pixels\nmean: {row.asd:.1f} pixels")
    style.without_ticks(axes)
    colours = {
        "true outline": style.ORANGE,
        "predicted outline": style.SKY,
        "farthest point": style.VERMILION,
    }
    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    axes[0, -1].legend(handles=patches, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _farthest(one, other):
    """The pixel of either outline farthest from the other outline, and its nearest pixel there."""
    one, other = np.argwhere(one), np.argwhere(other)
    there, back = directed_hausdorff(one, other), directed_hausdorff(other, one)
    return (one[there[1]], other[there[2]]) if there > back else (other[back[1]], one[back[2]])
