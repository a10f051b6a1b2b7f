"""How every figure looks: colours, letters, layout, and the files it is written to."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

# Okabe and Ito (2008): told apart with every common colour blindness.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
VERMILION, SKY, YELLOW, BLACK = "#D55E00", "#56B4E9", "#F0E442", "#000000"
BACKBONES = {
    "vgg16": ("VGG16", BLUE, "o"),
    "vgg19": ("VGG19", SKY, "s"),
    "resnet50": ("ResNet50", ORANGE, "^"),
    "inceptionv3": ("InceptionV3", GREEN, "D"),
    "small": ("small FCN (from scratch)", PURPLE, "v"),
}


_SMALL_PRINT = {"fontsize": 13, "fontstyle": "italic", "color": "dimgray"}


def use_style():
    """Set matplotlib to the project's one style: 16:9, letters for the back of a room."""
    sns.set_theme(
        style="ticks",
        palette=[BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, YELLOW, BLACK],
        rc={
            "figure.figsize": (12.8, 7.2),
            "figure.dpi": 80,
            "font.size": 18,
            "axes.titlesize": 20,
            "axes.labelsize": 18,
            "xtick.labelsize": 16,
            "ytick.labelsize": 16,
            "legend.fontsize": 16,
            "legend.frameon": False,
            "figure.titlesize": 24,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "lines.linewidth": 3,
            "lines.markersize": 11,
            "pdf.fonttype": 42,  # fonts that journals take, not the Type 3 of the default
        },
    )


def export(figure, name, *, folder):
    """Write a figure as PNG (300 dpi), SVG and PDF; equal figures give equal files.

    Args:
        figure: `Figure` or `Axes`.
        name: file name without ending, such as "02_data_exploration_areas".
        folder: made if it does not exist.

    Returns:
        List of the three `Path`s.
    """
    figure = figure.figure if isinstance(figure, Axes) else figure
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("png", "svg", "pdf")]
    metadata = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with plt.rc_context({"svg.hashsalt": name}):  # else its ids are random
        for path in paths:
            figure.savefig(path, dpi=300, metadata=metadata[path.suffix])
    return paths


def new_figure(rows, columns, *, title, note, **sharing):
    """`Figure` and its `(rows, columns)` array of `Axes`, with a title and small print."""
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="compressed", **sharing)
    figure.suptitle(title)
    _annotate(figure, note)
    return figure, axes


def new_axes(ax, note):
    """`ax`, or the `Axes` of a new figure if it is None."""
    if ax is None:
        _, ax = plt.subplots(layout="compressed")
    _annotate(ax.figure, note)
    return ax


def legend_below(figure, ax):
    """One legend for all panels, from the names in `ax`; the small print becomes its title."""
    handles, names = ax.get_legend_handles_labels()
    columns = len(names) if len(names) < 5 else (len(names) + 1) // 2
    note = figure.get_supxlabel()
    figure.supxlabel("")  # the layout would print one over the other
    legend = figure.legend(
        handles, names, loc="outside lower center", ncols=columns, title=note or None
    )
    legend.get_title().set(**_SMALL_PRINT)


def tint(area, colour, alpha=0.55):
    """`(height, width, 4)` to lay over an image: `colour` where `area` is, else transparent."""
    shape = (*np.shape(area), 3)
    return np.dstack([np.broadcast_to(to_rgb(colour), shape), alpha * (np.asarray(area) > 0)])


def without_ticks(axes):
    """Leave only the labels of `Axes` that hold images."""
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def _annotate(figure, note):
    if note:  # as the label below the figure: the layout keeps room for it
        figure.supxlabel(note, x=0.995, ha="right", **_SMALL_PRINT)
