"""How every figure looks: colours, letters, layout, and the files it is written to."""

import os
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.table import Cell
from matplotlib.text import Text

from pneumo_lib.models import names

# Okabe and Ito (2008): told apart with every common colour blindness.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
VERMILION, SKY, YELLOW, BLACK = "#D55E00", "#56B4E9", "#F0E442", "#000000"
_LOOKS = ((BLUE, "o"), (SKY, "s"), (ORANGE, "^"), (GREEN, "D"), (PURPLE, "v"))
BACKBONES = {  # name: display name, colour, marker
    name: (shown, *look)
    for (name, shown), look in zip(names.BACKBONES.items(), _LOOKS, strict=True)
}

_COLOURED = {
    Text: ["color"],
    Line2D: ["color", "markerfacecolor", "markeredgecolor"],
    Patch: ["facecolor", "edgecolor"],
    Collection: ["facecolor", "edgecolor"],
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
    """Write a figure at 16:9 as PNG (300 dpi), SVG and PDF; equal figures give equal files.

    With the environment variable `PNEUMO_DARK` set, as `make figures` does, also on black: that
    doubles the time, which a report need not wait for.

    Args:
        figure: `Figure` or `Axes`.
        name: file name without ending, such as "02_data_exploration_areas".
        folder: made if it does not exist; the versions on black go to its subfolder `dark`.

    Returns:
        List of three `Path`s, or six.
    """
    figure = figure.figure if isinstance(figure, Axes) else figure
    folder, size = Path(folder), figure.get_size_inches()
    width = max(size[0], size[1] * 16 / 9)
    figure.set_size_inches(width, width * 9 / 16)
    layout = figure.get_layout_engine()
    if layout is not None:
        layout.set(rect=(0.015, 0.02, 0.97, 0.96))  # letters do not touch the edge of the slide
    paths = _save(figure, name, folder)
    if os.environ.get("PNEUMO_DARK"):
        with on_black(figure):
            paths += _save(figure, name, folder / "dark")
    if layout is not None:
        layout.set(rect=(0, 0, 1, 1))
    figure.set_size_inches(size)
    return paths


def _save(figure, name, folder):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{ending}" for ending in ("png", "svg", "pdf")]
    options = {
        # half the time for a file a tenth larger
        ".png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}},
        ".svg": {"metadata": {"Date": None}},
        ".pdf": {"metadata": {"CreationDate": None}},
    }
    with plt.rc_context({"svg.hashsalt": name}):  # else its ids are random
        for path in paths:
            figure.savefig(path, dpi=300, **options[path.suffix])
    return paths


@contextmanager
def on_black(figure):
    """The figure with its greys turned round inside the block: white letters on black.

    Colours and images stay, and letters on an image. Of other letters and of lines only dark ones
    turn.
    """
    artists = figure.findobj()
    artists += [cell.get_text() for cell in artists if isinstance(cell, Cell)]
    on_images = {
        text
        for ax in figure.axes
        for text in (ax.texts if ax.images else ())
        if ax.bbox.contains(*text.get_window_extent().get_points().mean(axis=0))
    }
    before = []
    for artist in artists:
        if artist in on_images:
            continue
        for kind, properties in _COLOURED.items():
            for name in properties if isinstance(artist, kind) else ():
                colour = getattr(artist, f"get_{name}")()
                before.append((getattr(artist, f"set_{name}"), colour))
                before[-1][0](_turned(colour, only_dark="face" not in name))
    try:
        yield
    finally:
        for set_colour, colour in reversed(before):
            set_colour(colour)


def _turned(colours, *, only_dark):
    """RGBA of one or many colours, greys turned round; what has a hue, and "none", is kept."""
    turned = to_rgba_array(colours)
    grey = np.ptp(turned[:, :3], axis=1) < 0.05
    grey &= (turned[:, 0] < 0.5) | (not only_dark)
    turned[grey, :3] = 0.95 - 0.88 * turned[grey, :3]
    if len(turned) == 1:
        return tuple(turned[0])
    return turned if len(turned) else "none"


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
