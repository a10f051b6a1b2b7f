"""Plots of cases, data, training and results, in one style for screen, slides and paper.

Each plot returns its `Figure` or `Axes`; none shows or saves anything. In a notebook keep what
comes back (`figure = gallery(...)`): Jupyter draws it once at the end of the cell, and
`export(figure, ...)` can write it. All share three arguments: `title` (above), `note` (small
print in the corner: "synthetic", "random features") and, where one panel is drawn, `ax` (None
makes a new figure).
"""

import numpy as np
import seaborn as sns
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pneumo_lib.evaluation.score_table import HEADINGS
from pneumo_lib.style import (
    BACKBONES,
    ORANGE,
    SKY,
    VERMILION,
    YELLOW,
    export,
    legend_below,
    new_axes,
    new_figure,
    tint,
    use_style,
    without_ticks,
)

__all__ = ["export", "use_style"]
ERRORS = {"found": SKY, "missed": VERMILION, "false positive": YELLOW}
REPORT_MEAN_IOU = {  # as the report logged it after 300 epochs
    "vgg19": {"train": 0.3012, "validation": 0.3054, "test": 0.3190},
    "resnet50": {"train": 0.4102, "validation": 0.4109, "test": 0.4302},
    "inceptionv3": {"train": 0.4409, "validation": 0.4501, "test": 0.4514},
}


# --- Cases -------------------------------------------------------------------------------------


def show_case(image, mask=None, prediction=None, *, ax=None, title=None, legend=True, note=None):
    """`Axes` with one radiograph and, in colour, its mask, a prediction, or right and wrong.

    Args:
        image: `(height, width)` uint8.
        mask: `(height, width)` of 0 and 1, the truth, or None.
        prediction: `(height, width)` of 0 and 1, or None. Beside a mask its errors are shown.
        legend: whether to explain the colours.
    """
    ax = new_axes(ax, note)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255)
    areas, colours = {}, {**ERRORS, "pneumothorax": ORANGE, "prediction": SKY}
    if mask is not None and prediction is not None:
        true, predicted = np.asarray(mask) > 0, np.asarray(prediction) > 0
        parts = true & predicted, true & ~predicted, ~true & predicted
        areas = dict(zip(ERRORS, parts, strict=True))
    elif mask is not None:
        areas = {"pneumothorax": mask}
    elif prediction is not None:
        areas = {"prediction": prediction}
    for name, area in areas.items():
        ax.imshow(tint(area, colours[name]), interpolation="nearest")
    ax.set_axis_off()
    ax.set_title(title)
    if legend and areas:
        patches = [Patch(color=colours[name], label=name) for name in areas]
        ax.legend(handles=patches, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def gallery(images, masks, labels, *, title=None, note=None):
    """`Figure` with a column for each case: image, mask, label.

    Args:
        images: `(n, height, width)` uint8; up to 6 are large enough for a slide.
        masks: `(n, height, width)` of 0 and 1.
        labels: n of them, True where there is a pneumothorax.
    """
    figure, axes = new_figure(2, len(images), title=title, note=note)
    for column, image, mask, label in zip(axes.T, images, masks, labels, strict=True):
        column[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        column[1].imshow(mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        column[1].set_xlabel(f"Label: {int(label)}")
    axes[0, 0].set_ylabel("Image")
    axes[1, 0].set_ylabel("Mask")
    without_ticks(axes)
    return figure


def prediction_grid(images, masks, predictions, *, names, title=None, note=None):
    """`Figure` with a row for each case: image, true mask, prediction, errors in colour.

    Args:
        images: `(n, height, width)` uint8; 2 are large on a slide, 4 still fit.
        masks: `(n, height, width)` of 0 and 1, the truth.
        predictions: `(n, height, width)` of 0 and 1.
        names: n texts for the left of the rows, such as "test\\nDice 0.61".
    """
    size = 12.8, min(7.2, 0.8 + 2.4 * len(images))
    figure, axes = new_figure(len(images), 4, title=title, note=note, figsize=size)
    cases = zip(axes, images, masks, predictions, names, strict=True)
    for row, image, mask, prediction, name in cases:
        row[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        for ax, area in zip(row[1:3], (mask, prediction), strict=True):
            ax.imshow(area, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        show_case(image, mask, prediction, ax=row[3], legend=False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, heading in zip(axes[0], ("Image", "True mask", "Prediction", "Errors"), strict=True):
        ax.set_title(heading)
    without_ticks(axes[:, :3])
    patches = [Patch(color=colour, label=name) for name, colour in ERRORS.items()]
    figure.legend(handles=patches, loc="outside right center")
    return figure


# --- Data --------------------------------------------------------------------------------------


def class_balance(cases, *, by="split", title=None, note=None):
    """`Figure` with one panel for each part: how many images show a pneumothorax.

    Args:
        cases: case table with `has_pneumothorax` and the column `by`.
        by: "split" or "official_part".
    """
    parts = cases.groupby(by, sort=False)["has_pneumothorax"]
    figure, axes = new_figure(1, parts.ngroups, title=title, note=note)
    for ax, (part, positive) in zip(axes[0], parts, strict=True):
        counts = [int((~positive.astype(bool)).sum()), int(positive.sum())]
        bars = ax.bar(["healthy", "pneumo-\nthorax"], counts, color=[SKY, VERMILION])
        shares = [f"{count:,}\n{100 * count / len(positive):.0f} %" for count in counts]
        ax.bar_label(bars, shares, padding=4, fontsize="large")
        ax.set(title=str(part).upper(), ylim=(0, 1.2 * max(counts)), yticks=[])
        ax.spines["left"].set_visible(False)
    return figure


def mask_areas(masks, *, ax=None, note=None):
    """`Axes` with the distribution of the area of a pneumothorax, empty masks left out.

    Args:
        masks: `(n, height, width)` of 0 and 1.

    Raises:
        ValueError: if all masks are empty.
    """
    ax = new_axes(ax, note)
    areas = [100 * np.mean(masks[i]) for i in _positive(masks)]
    sns.histplot(areas, bins=20, log_scale=True, color=SKY, ax=ax)
    median = float(np.median(areas))
    ax.axvline(median, color=VERMILION, label=f"median {median:.2g} %")
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:g} %")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="Area of the pneumothorax, share of the image", ylabel="Images")
    ax.legend()
    return ax


def mask_heatmap(masks, images=None, *, ax=None, note=None):
    """`Axes` with the share of pneumothoraces that cover each place, empty masks left out.

    Args:
        masks: `(n, height, width)` of 0 and 1.
        images: `(n, height, width)` uint8, whose mean is drawn below as anatomy, or None.

    Raises:
        ValueError: if all masks are empty.
    """
    ax = new_axes(ax, note)
    positive = _positive(masks)
    share = 100 * np.mean([masks[i] for i in positive], axis=0)
    opacity = 1.0
    if images is not None:
        anatomy = np.mean([images[i] for i in positive], axis=0)
        ax.imshow(anatomy, cmap="gray", vmin=0, vmax=1.6 * anatomy.max())  # dark, below colours
        opacity = (share / share.max()) ** 0.7
    drawn = ax.imshow(share, cmap="magma", alpha=opacity)
    bar = ax.figure.colorbar(drawn, ax=ax, label=f"% of {len(positive)} positive images")
    bar.solids.set_alpha(1)
    for x, side in ((0.03, "R"), (0.97, "L")):  # the patient's: a radiograph is seen face to face
        ax.text(x, 0.97, side, transform=ax.transAxes, ha="center", va="top", color="white")
    ax.set_axis_off()
    return ax


def _positive(masks):
    positive = [i for i, mask in enumerate(masks) if mask.any()]
    if not positive:
        raise ValueError(
            f"`masks` must hold at least one pneumothorax. Received: {len(masks)} empty masks"
        )
    return positive


# --- Training and results ----------------------------------------------------------------------


def learning_curves(runs, *, columns=("loss", "iou"), title=None, note=None):
    """`Figure` with one panel for each column of the histories: validation solid, train dotted.

    Args:
        runs: list of `Run`: `config["backbone"]` and `history` are used.
        columns: columns of history.csv.
    """
    figure, axes = new_figure(1, len(columns), title=title, note=note)
    widths = 3 + 2 * np.arange(len(runs))[::-1]  # curves that coincide show one in the other
    for ax, column in zip(axes[0], columns, strict=True):
        for run, width in zip(runs, widths, strict=True):
            name, colour, _ = BACKBONES[run.config["backbone"]]
            epochs, validation = run.history["epoch"], run.history[f"val_{column}"]
            ax.plot(epochs, validation, color=colour, linewidth=width, label=name)
            ax.plot(epochs, run.history[column], color=colour, linestyle=":", linewidth=2)
        # a score shows its whole range, or noise near zero would look like learning
        ylim = (0, None) if column == "loss" else (-0.02, 1.02)
        ax.set(xlabel="Epoch", title=HEADINGS.get(column, column.capitalize()), ylim=ylim)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0, 0].plot([], [], color="gray", label="validation")
    axes[0, 0].plot([], [], color="gray", linestyle=":", linewidth=2, label="train")
    legend_below(figure, axes[0, 0])
    return figure


def milestone_chart(table, *, score="mean_iou", report=True, title=None, note=None):
    """`Figure` with one panel for each split: a score of each backbone after each milestone.

    Args:
        table: `score_table(scores, by=["backbone", "epoch"])`; the intervals are drawn, and the
            all-background row as a line.
        score: a name of `score_table.HEADINGS`.
        report: whether to add the report's mean IoU, as it logged it after 300 epochs.
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


def show_table(text, *, title=None, note=None):
    """`Figure` of a table of strings, such as `format_table(table)`: intervals go below.

    Args:
        text: DataFrame; about 8 rows and 8 columns stay readable on a slide.
    """
    figure, axes = new_figure(1, 1, title=title, note=note)
    axes[0, 0].set_axis_off()
    cells = text.astype(object).where(text.notna(), "").astype(str)
    cells = cells.replace({key: name for key, (name, *_) in BACKBONES.items()})
    cells = cells.apply(lambda column: column.str.replace(" [", "\n[", regex=False))
    headings = [str(name).replace("_", " ").replace(" ", "\n", 1) for name in text]
    columns = zip(headings, cells.T.to_numpy(), strict=True)
    letters = [
        2 + max(map(len, "\n".join([name, *column]).split("\n"))) for name, column in columns
    ]
    height = min(1, 0.15 * (len(cells) + 1))
    table = axes[0, 0].table(
        cells.to_numpy(),
        colLabels=headings,
        colWidths=[count / sum(letters) for count in letters],
        cellLoc="center",
        bbox=(0, 1 - height, 1, height),
    )
    table.auto_set_font_size(False)
    table.set_fontsize(min(18, 72 * figure.get_figwidth() / (0.54 * sum(letters))))
    for (row, _), cell in table.get_celld().items():
        cell.set(edgecolor="lightgray", linewidth=1)
        cell.visible_edges = "B"
        cell.set_text_props(weight="bold" if row == 0 else "normal")
    return figure
