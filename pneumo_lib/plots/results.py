"""Plots of training and results: learning curves, scores at milestones, tables."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from pneumo_lib.evaluation.score_table import HEADINGS
from pneumo_lib.plots.style import BACKBONES, legend_below, new_figure

REPORT_MEAN_IOU = {  # as the report logged it after 300 epochs
    "vgg19": {"train": 0.3012, "validation": 0.3054, "test": 0.3190},
    "resnet50": {"train": 0.4102, "validation": 0.4109, "test": 0.4302},
    "inceptionv3": {"train": 0.4409, "validation": 0.4501, "test": 0.4514},
}


def learning_curves(runs, *, columns=("loss", "iou"), title=None, note=None):
    """`Figure` with a panel for each metric over the epochs: validation solid, train dotted.

    Args:
        runs: list of `Run`, of which `config["backbone"]` and `history` are used.
        columns: columns of history.csv.
    """
    figure, axes = new_figure(1, len(columns), title=title, note=note)
    widths = 3 + 2 * np.arange(len(runs))[::-1]  # equal curves stay visible
    for ax, column in zip(axes[0], columns, strict=True):
        for run, width in zip(runs, widths, strict=True):
            name, colour, _ = BACKBONES[run.config["backbone"]]
            epochs, validation = run.history["epoch"], run.history[f"val_{column}"]
            ax.plot(epochs, validation, color=colour, linewidth=width, label=name)
            ax.plot(epochs, run.history[column], color=colour, linestyle=":", linewidth=2)
        # the whole range of a score, or noise near zero would look like learning
        ylim = (0, None) if column == "loss" else (-0.02, 1.02)
        ax.set(xlabel="Epoch", title=HEADINGS.get(column, column.capitalize()), ylim=ylim)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].plot([], [], color="gray", label="validation")
    axes[0, 0].plot([], [], color="gray", linestyle=":", linewidth=2, label="train")
    legend_below(figure, axes[0, 0])
    return figure


def milestone_chart(table, *, score="mean_iou", report=True, title=None, note=None):
    """`Figure` with a panel for each split: a score of each backbone after each milestone.

    Args:
        table: `score_table(scores, by=["backbone", "epoch"])`, drawn with its intervals; the
            all-background row is a line.
        score: a name of `score_table.HEADINGS`.
        report: whether to add the mean IoU that the report logged after 300 epochs.
    """
    is_baseline = table["backbone"] == "all background"
    networks, baselines = table[~is_baseline], table[is_baseline].set_index("split")[score]
    epochs, splits = sorted(networks["epoch"].unique()), list(networks["split"].unique())
    backbones = list(networks["backbone"].unique())
    report = report and not REPORT_MEAN_IOU.keys().isdisjoint(backbones)
    offsets = 0.14 * (np.arange(len(backbones)) - (len(backbones) - 1) / 2)
    figure, axes = new_figure(1, len(splits), title=title, note=note, sharey=True)
    for ax, split in zip(axes[0], splits, strict=True):
        ax.axhline(baselines[split], color="gray", linestyle="--", label="all background")
        for backbone, offset in zip(backbones, offsets, strict=True):
            name, colour, marker = BACKBONES[backbone]
            style = {"color": colour, "marker": marker, "linestyle": "none"}
            rows = networks[(networks["backbone"] == backbone) & (networks["split"] == split)]
            x = [epochs.index(epoch) + offset for epoch in rows["epoch"]]
            bounds = rows[score] - rows[f"{score}_lower"], rows[f"{score}_upper"] - rows[score]
            ax.errorbar(x, rows[score], yerr=np.array(bounds), label=name, **style)
            if report and split in REPORT_MEAN_IOU.get(backbone, {}):
                value = REPORT_MEAN_IOU[backbone][split]
                ax.plot(len(epochs) + offset, value, **style, markerfacecolor="white")
        ticks = [*map(str, epochs), *(["report,\nas logged"] if report else [])]
        ax.set_xticks(range(len(ticks)), ticks)
        ax.set(title=split.upper(), xlabel="Epochs", xlim=(-0.5, len(ticks) - 0.5))
        ax.set_ylim(-0.02, 1.02)
    axes[0, 0].set_ylabel(HEADINGS[score])
    legend_below(figure, axes[0, 0])
    return figure
