"""Plots of experiments and sweeps: the effect of each change, and of the operating point."""

from itertools import cycle

import numpy as np

from pneumo_lib.evaluation import operating_point as points
from pneumo_lib.evaluation.metrics import confusion_counts, dice
from pneumo_lib.evaluation.score_table import HEADINGS
from pneumo_lib.plots import style

_GREY = "0.55"
_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.VERMILION, style.SKY)
REPEATS = ("seed", "fold")  # axes that repeat a setting rather than change it
SCORES = ("siim_dice", "dice_positive", "iou")


def forest(differences, *, xlabel, title=None, note=None, ax=None):
    """`Axes` with a row for each change: its difference to the base run and its interval.

    Blue: the interval lies above 0; vermilion: below; grey: it holds 0.

    Args:
        differences: table with the columns factor, level, difference, lower, upper.
        xlabel: name of the score.
    """
    ax = style.new_axes(ax, note)
    ax.axvline(0, color="black", linewidth=1)
    places = _rows(ax, list(differences["factor"]))
    for place, row in zip(places, differences.itertuples(), strict=True):
        colour = style.BLUE if row.lower > 0 else style.VERMILION if row.upper < 0 else _GREY
        ax.plot([row.lower, row.upper], [place, place], color=colour, solid_capstyle="butt")
        ax.plot(row.difference, place, "o", color=colour)
        text = f"{row.difference:+.2f} [{row.lower:+.2f}, {row.upper:+.2f}]"
        ax.text(1.02, place, text, va="center", transform=ax.get_yaxis_transform(), fontsize=14)
    ax.set_yticks(places, [f"{row.factor}: {row.level}" for row in differences.itertuples()])
    ax.set(xlabel=xlabel, title=title)
    return ax


def _rows(ax, groups):
    """Heights of the rows of a chart, from the top, with a line between two `groups` of rows."""
    places = np.arange(len(groups))[::-1]
    for place, group, above in zip(places[1:], groups[1:], groups[:-1], strict=True):
        if group != above:
            ax.axhline(place + 0.5, color="0.85", linewidth=1, zorder=0)
    ax.set_ylim(-0.6, len(groups) - 0.4)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    return places


def operating_point_chart(y_true, y_pred, point, *, title=None, note=None):
    """`Figure` of an operating point on the images it was chosen on: gate and thresholds.

    Left: for each image, the share of pixels that reach `top_threshold`, and the Dice of its mask
    if drawn; left of the line masks are empty. Right: SIIM-ACR Dice with one threshold for all,
    and behind the gate with only `bottom_threshold` varied.

    Args:
        y_true, y_pred: as for `choose_operating_point()`.
        point: `OperatingPoint`.
    """
    figure, axes = style.new_figure(1, 2, title=title, note=note)
    _draw_gate(axes[0, 0], y_true, y_pred, point)
    _draw_thresholds(axes[0, 1], points.grid_scores(y_true, y_pred), point)
    return figure


def _draw_gate(ax, y_true, y_pred, point):
    whole = points.OperatingPoint(point.top_threshold, 0.0, point.top_threshold)
    sure = 100 * points.apply_operating_point(y_pred, whole).mean(axis=(1, 2))
    ungated = points.OperatingPoint(bottom_threshold=point.bottom_threshold)
    drawn = points.apply_operating_point(y_pred, ungated)
    scores = dice(confusion_counts(y_true, drawn))
    lesion = np.any(np.asarray(y_true) != 0, axis=(1, 2))
    one_pixel = 100 / np.prod(np.shape(y_true)[1:])
    for kind, name, marker in ((~lesion, "healthy", "o"), (lesion, "pneumothorax", "^")):
        look = {"color": style.CLASSES[name], "alpha": 0.6, "label": f"{name} ({kind.sum()})"}
        ax.plot(sure[kind], scores[kind], marker, **look)
    ax.axvline(100 * point.min_area, color="black", linewidth=2)
    ax.axvspan(0, 100 * point.min_area, color="0.93", zorder=0)
    ax.set_xscale("symlog", linthresh=one_pixel)
    ax.set(xlim=(-0.3 * one_pixel, 100), ylim=(-0.05, 1.05), title="The gate")
    ax.set_xlabel(f"% of the pixels at {point.top_threshold:.2f} or above")
    ax.set_ylabel("Dice of the mask, if it is drawn")
    ax.legend(loc="center left")  # left of the gate few masks with a high Dice lie


def _draw_thresholds(ax, scores, point):
    plain = np.diagonal(scores[:, 0])
    top = np.searchsorted(points.THRESHOLDS, point.top_threshold)
    gated = scores[top, np.searchsorted(points.MIN_AREAS, point.min_area)]
    gated = np.where(np.isfinite(gated), gated, np.nan)
    ax.plot(points.THRESHOLDS, plain, color=_GREY, label="one threshold")
    ax.plot(points.THRESHOLDS, gated, color=style.BLUE, label="behind the gate")
    ax.plot(0.5, plain[np.searchsorted(points.THRESHOLDS, 0.5)], "o", color=_GREY)
    chosen = np.searchsorted(points.THRESHOLDS, point.bottom_threshold)
    ax.plot(point.bottom_threshold, gated[chosen], "*", color=style.BLUE, markersize=22)
    ax.set(xlim=(0, 1), xlabel="Threshold of the mask", ylabel="SIIM-ACR Dice", title="The outline")
    ax.legend(loc="lower right")


def sweep_chart(
    table, *, split="test", scores=("dice_positive", "siim_dice"), title=None, note=None
):
    """`Figure` with a panel for each score and a row for each setting.

    A dot is one seed or fold with its bootstrap interval over images, the black mark the mean of
    them, the dashed line the score of an empty prediction.

    Args:
        table: of `sweep_table()`.
        split: "validation", to choose by, or "test", to report; the title, unless one is given.
        scores: names of `score_table.HEADINGS` that are in the table.
    """
    axes = list(table.columns[1 : table.columns.get_loc("split")])
    varied = [axis for axis in axes if axis not in REPEATS and table[axis].nunique() > 1]
    table = table[table["split"] == split]
    settings = list(dict.fromkeys(map(tuple, table[varied].to_numpy())))
    firsts = [setting[:1] for setting in settings]
    colours = dict(zip(dict.fromkeys(firsts), cycle(_COLOURS), strict=False))
    if varied[:1] == ["backbone"]:
        colours = {first: style.BACKBONES[first[0]][1] for first in firsts}
    title = title or split.upper()
    figure, panels = style.new_figure(1, len(scores), title=title, note=note, sharey=True)
    for ax, score in zip(panels[0], scores, strict=True):
        shown = table[table["score"] == score]
        places = _rows(ax, firsts if len(varied) > 1 else [()] * len(settings))
        for place, setting in zip(places, settings, strict=True):
            same = shown[(shown[varied] == list(setting)).all(axis=1)]
            _draw_setting(ax, place, same, colours[setting[:1]])
        nothing = shown["all_background"].mean()
        ax.axvline(nothing, color="gray", linestyle="--", zorder=0, label="all background")
        ax.set(title=HEADINGS[score], xlim=(-0.03, 1.03))
    names = [" · ".join(map(_label, varied, setting)) for setting in settings]
    panels[0, 0].set_yticks(places, [name or "all runs" for name in names])
    style.legend_below(figure, panels[0, 0])
    return figure


def _draw_setting(ax, place, rows, colour):
    """The repeats of one setting, one below the other, and their mean."""
    offsets = 0.5 * (0.5 - (np.arange(len(rows)) + 0.5) / len(rows))
    label = "one run, 95 % interval over images" if place == 0 else None
    bounds = rows["value"] - rows["lower"], rows["upper"] - rows["value"]
    look = {"color": colour, "marker": "o", "linestyle": "none", "label": label}
    ax.errorbar(rows["value"], place + offsets, xerr=np.array(bounds), **look)
    mean, label = rows["value"].mean(), "mean of the runs" if place == 0 else None
    ax.plot([mean, mean], [place - 0.35, place + 0.35], color="black", linewidth=4, label=label)


def _label(axis, value):
    if axis == "backbone":
        return style.BACKBONES[value][0].partition(" (")[0]
    return value.replace("_", " + ") if isinstance(value, str) else f"{axis} {value}"
