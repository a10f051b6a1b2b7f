"""The scores of a sweep: one tidy table, its summary over seeds and folds, and a figure."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from pneumo_lib import runs
from pneumo_lib.evaluation.score_table import HEADINGS, score_table
from pneumo_lib.paths import write_csv
from pneumo_lib.style import (
    BACKBONES,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    export,
    legend_below,
    new_figure,
    use_style,
)

REPEATS = ("seed", "fold")  # axes that repeat a setting rather than change it
SCORES = ("siim_dice", "dice_positive", "iou")


def sweep_table(found, *, axes):
    """A row for each run, part and score.

    Args:
        found: list of `(Run, dict of its parameters)`.
        axes: names of the parameters that tell the runs apart.

    Returns:
        DataFrame with the columns `run`, those of `axes`, `part` ("validation", "test"),
        `images`, `positives`, `score` (of `SCORES`), `value` after the last epoch with its
        bootstrap interval over images, `lower` and `upper` (see `score_table()`), and
        `all_background`, what a prediction of nothing scores on the same images.
    """
    rows = []
    for run, parameters in found:
        last = run.scores[run.scores["epoch"] == run.scores["epoch"].max()]
        scores = score_table(last[last["split"] != "train"]).set_index(["model", "split"])
        place = {"run": run.folder.name} | {axis: _plain(parameters[axis]) for axis in axes}
        for part in ("validation", "test"):
            if ("network", part) not in scores.index:
                continue
            network, nothing = (scores.loc[(m, part)] for m in ("network", "all background"))
            sizes = {"part": part} | network[["images", "positives"]].astype(int).to_dict()
            for score in SCORES:
                interval = [network[name] for name in (score, f"{score}_lower", f"{score}_upper")]
                values = dict(zip(("value", "lower", "upper"), interval, strict=True))
                reference = {"all_background": nothing[score]}
                rows.append(place | sizes | {"score": score} | values | reference)
    return pd.DataFrame(rows)


def summarise(table, *, axes):
    """The table over seeds and folds: how far a setting's score moves when training is repeated.

    Args:
        table: of `sweep_table()`.
        axes: as there.

    Returns:
        DataFrame with the other axes, `part`, `score`, `runs`, and of their values `mean`, `sd`
        (NaN for one run), `lowest`, `highest`; `all_background` is a mean, too: another seed or
        fold may have other images.
    """
    if table.empty:
        return table
    by = [*(axis for axis in axes if axis not in REPEATS), "part", "score"]
    values = {"runs": "size", "mean": "mean", "sd": "std", "lowest": "min", "highest": "max"}
    values = {name: ("value", how) for name, how in values.items()}
    groups = table.groupby(by, sort=False)
    return groups.agg(**values, all_background=("all_background", "mean")).reset_index()


def keep_results(table, summary, found, folder):
    """Writes table.csv, summary.csv and the figure, `scores` as PNG, SVG and PDF.

    Args:
        table, summary: of the functions above.
        found: list of `Run`.
        folder: `Path`.
    """
    write_csv(folder / "table.csv", table)
    write_csv(folder / "summary.csv", summary)
    one_each = {run.config["backbone"]: run for run in found}
    note = runs.caveats(list(one_each.values()))
    note = re.sub(r"fold \d+/(\d+)", r"\1 folds", note)
    with plt.rc_context():
        use_style()
        figure = sweep_chart(table, note=note)
        export(figure, "scores", folder=folder)
        plt.close(figure)


def sweep_chart(
    table, *, part="test", scores=("dice_positive", "siim_dice"), title=None, note=None
):
    """`Figure` with a panel for each score and a row for each setting.

    A dot is one seed or fold with its bootstrap interval over images, the black mark the mean of
    them, the dashed line what a prediction of nothing scores.

    Args:
        table: of `sweep_table()`.
        part: "validation", to choose by, or "test", to report; the title, unless one is given.
        scores: names of `score_table.HEADINGS` that are in the table.
    """
    axes = list(table.columns[1 : table.columns.get_loc("part")])
    varied = [axis for axis in axes if axis not in REPEATS and table[axis].nunique() > 1]
    table = table[table["part"] == part]
    settings = list(dict.fromkeys(map(tuple, table[varied].to_numpy())))
    places = np.arange(len(settings))[::-1]
    firsts = [setting[:1] for setting in settings]
    title = title or part.upper()
    figure, panels = new_figure(1, len(scores), title=title, note=note, sharey=True)
    for ax, score in zip(panels[0], scores, strict=True):
        shown = table[table["score"] == score]
        for place, setting in zip(places, settings, strict=True):
            same = shown[(shown[varied] == list(setting)).all(axis=1)]
            _draw_setting(ax, place, same, _colour(setting, varied, firsts))
        nothing = shown["all_background"].mean()
        ax.axvline(nothing, color="gray", linestyle="--", zorder=0, label="all background")
        for place, first, above in zip(places[1:], firsts[1:], firsts[:-1], strict=True):
            if first != above and len(varied) > 1:
                ax.axhline(place + 0.5, color="0.85", linewidth=1, zorder=0)
        ax.set(title=HEADINGS[score], xlim=(-0.03, 1.03), ylim=(-0.6, len(settings) - 0.4))
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    names = [" · ".join(map(_label, varied, setting)) for setting in settings]
    panels[0, 0].set_yticks(places, [name or "all runs" for name in names])
    legend_below(figure, panels[0, 0])
    return figure


def _draw_setting(ax, place, rows, colour):
    """The repeats of one setting, one below the other, and their mean."""
    offsets = 0.5 * (0.5 - (np.arange(len(rows)) + 0.5) / len(rows))
    label = "one run, 95 % interval over images" if place == 0 else None
    bounds = rows["value"] - rows["lower"], rows["upper"] - rows["value"]
    style = {"color": colour, "marker": "o", "linestyle": "none", "label": label}
    ax.errorbar(rows["value"], place + offsets, xerr=np.array(bounds), **style)
    mean, label = rows["value"].mean(), "mean of the runs" if place == 0 else None
    ax.plot([mean, mean], [place - 0.35, place + 0.35], color="black", linewidth=4, label=label)


def _colour(setting, varied, firsts):
    """A colour for each value of the first axis, that of the backbone where it is one."""
    if varied[:1] == ["backbone"]:
        return BACKBONES[setting[0]][1]
    colours = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY)
    return colours[list(dict.fromkeys(firsts)).index(setting[:1]) % len(colours)]


def _label(axis, value):
    if axis == "backbone":
        return BACKBONES[value][0].partition(" (")[0]
    return value.replace("_", " + ") if isinstance(value, str) else f"{axis} {value}"


def _plain(value):
    """A value that a table can be grouped by."""
    return value if isinstance(value, (str, bool, int, float)) else str(value)
