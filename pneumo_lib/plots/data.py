"""Plots of the data: class balance, areas and positions of masks, splits."""

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from pneumo_lib.plots.style import BLUE, CLASSES, GREEN, PURPLE, VERMILION, new_axes, new_figure

_SPLITS = {"train": BLUE, "validation": GREEN, "test": PURPLE}


def class_balance(cases, *, by="split", title=None, note=None):
    """`Figure` with the numbers of healthy and positive images, a panel for each split.

    Args:
        cases: case table with `has_pneumothorax` and the column `by`.
        by: "split" or "official_part".
    """
    splits = cases.groupby(by, sort=False)["has_pneumothorax"]
    figure, axes = new_figure(1, splits.ngroups, title=title, note=note)
    for ax, (split, positive) in zip(axes[0], splits, strict=True):
        counts = [int((~positive.astype(bool)).sum()), int(positive.sum())]
        bars = ax.bar(["healthy", "pneumo-\nthorax"], counts, color=CLASSES.values())
        shares = [f"{count:,}\n{100 * count / len(positive):.0f} %" for count in counts]
        ax.bar_label(bars, shares, padding=4, fontsize="large")
        ax.set(title=str(split).upper(), ylim=(0, 1.2 * max(counts)), yticks=[])
        ax.spines["left"].set_visible(False)
    return figure


def mask_areas(masks, *, ax=None, note=None):
    """`Axes` with a histogram of the areas of masks; empty masks are left out.

    Args:
        masks: `(n, height, width)` of 0 and 1.

    Raises:
        ValueError: if all masks are empty.
    """
    import seaborn as sns

    ax = new_axes(ax, note)
    areas = [100 * np.mean(masks[i]) for i in _positive(masks)]
    sns.histplot(areas, bins=20, log_scale=True, color=CLASSES["pneumothorax"], ax=ax)
    median = float(np.median(areas))
    ax.axvline(median, color="black")
    ax.annotate(
        f"median {median:.2g} %", (median, 0.97), (8, 0), ax.get_xaxis_transform(), "offset points"
    )
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(lambda share, _: f"{share:g} %")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="Area of the pneumothorax, share of the image", ylabel="Images")
    return ax


def mask_heatmap(masks, images=None, *, ax=None, note=None):
    """`Axes` with the share of positive images whose mask covers each pixel.

    Args:
        masks: `(n, height, width)` of 0 and 1.
        images: `(n, height, width)` uint8, whose mean is the background, or None.

    Raises:
        ValueError: if all masks are empty.
    """
    ax = new_axes(ax, note)
    positive = _positive(masks)
    share = 100 * np.mean([masks[i] for i in positive], axis=0)
    opacity = 1.0
    if images is not None:
        anatomy = np.mean([images[i] for i in positive], axis=0)
        ax.imshow(anatomy, cmap="gray", vmin=0, vmax=1.6 * anatomy.max())  # dark
        opacity = (share / share.max()) ** 0.7
    drawn = ax.imshow(share, cmap="magma", alpha=opacity)
    bar = ax.figure.colorbar(drawn, ax=ax, label=f"% of {len(positive)} positive images")
    bar.solids.set_alpha(1)
    for x, side in ((0.03, "R"), (0.97, "L")):  # of the patient, who faces the viewer
        ax.text(x, 0.97, side, transform=ax.transAxes, ha="center", va="top", color="white")
    ax.set_axis_off()
    return ax


def _positive(masks):
    """Indices of the masks that are not empty."""
    positive = [i for i, mask in enumerate(masks) if mask.any()]
    if not positive:
        raise ValueError(
            f"`masks` must hold at least one pneumothorax. Received: {len(masks)} empty masks"
        )
    return positive


def split_chart(splits, *, title=None, note=None):
    """`Figure` with a panel for each split: a row for each patient, a square for each image.

    Patients with images in several splits are marked: data leak from training to test.

    Args:
        splits: dict from a heading to a case table with `patient_id` and `split`.
    """
    most = max(cases["patient_id"].nunique() for cases in splits.values())
    size = 12.8, min(7.2, 1.7 + 0.35 * most)
    figure, axes = new_figure(1, len(splits), title=title, note=note, figsize=size)
    for ax, (heading, cases) in zip(axes[0], splits.items(), strict=True):
        patients = list(dict.fromkeys(cases["patient_id"]))
        leaks = cases.groupby("patient_id")["split"].nunique() > 1
        column = cases.groupby("patient_id").cumcount()
        rows = cases["patient_id"].map(patients.index)
        colours = cases["split"].map(_SPLITS)
        ax.scatter(column, rows, marker="s", s=420, color=colours, edgecolor="white")
        for row in np.flatnonzero(leaks[patients]):
            ax.text(column.max() + 0.6, row, "leaks", color=VERMILION, va="center", weight="bold")
        ax.set_yticks(range(len(patients)), patients)
        ax.set(title=heading, xticks=[], xlim=(-0.6, column.max() + 1.8))
        ax.set_ylim(len(patients) - 0.4, -0.6)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    patches = [Patch(color=colour, label=split) for split, colour in _SPLITS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=3)
    return figure
