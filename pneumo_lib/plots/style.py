"""Style of all figures: colours, fonts, layout and file formats."""

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import Collection
from matplotlib.colors import to_rgb, to_rgba_array
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.table import Cell
from matplotlib.text import Text

from pneumo_lib.models import names

# Okabe and Ito (2008): distinct with every common colour blindness.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
VERMILION, SKY, YELLOW, BLACK = "#D55E00", "#56B4E9", "#F0E442", "#000000"
_LOOKS = ((BLUE, "o"), (SKY, "s"), (ORANGE, "^"), (GREEN, "D"), (PURPLE, "v"))
_BY_NAME = zip(names.BACKBONES.items(), _LOOKS, strict=True)
BACKBONES = {name: (shown, *look) for (name, shown), look in _BY_NAME}  # text, colour, marker
ERRORS = {"found": SKY, "missed": VERMILION, "false positive": YELLOW}
GREY = "#B5C0C8"
CLASSES = {"healthy": GREY, "pneumothorax": ORANGE}

_COLOURED = {
    Text: ["color"],
    Line2D: ["color", "markerfacecolor", "markeredgecolor"],
    Patch: ["facecolor", "edgecolor"],
    Collection: ["facecolor", "edgecolor"],
}
_FORMATS = {  # options of `savefig()`: no dates, so that equal figures give equal files
    "png": {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}},  # twice as fast
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
PAGE_PIXELS = 1600  # width of a figure on a page, and on a slide in HTML
_SMALL_PRINT = {"fontsize": 13, "fontstyle": "italic", "color": "dimgray"}


def use_style():
    """Set matplotlib's defaults: 16:9, fonts that can be read from the back of a room."""
    import seaborn as sns  # half of the time that importing this module would take

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
    """Write a figure as PNG for a page, 1600 pixels wide; equal figures give equal files.

    With dots per inch in the environment variable `PNEUMO_FIGURES`, as by `make figures`, as PNG,
    SVG and PDF, on white and in the subfolder `dark` on black: ten times as long with 300.

    Args:
        figure: `Figure` or `Axes`.
        name: file name without ending, such as "02_data_exploration_areas".
        folder: created if it does not exist.

    Returns:
        List of one `Path`, or six.
    """
    figure = figure.figure if isinstance(figure, Axes) else figure
    folder, layout = Path(folder), figure.get_layout_engine()
    if layout is not None:
        layout.set(rect=(0.015, 0.02, 0.97, 0.96))  # a margin at the edge of the slide
    if dpi := int(os.environ.get("PNEUMO_FIGURES") or 0):
        paths = _save(figure, name, folder, dpi=dpi)
        with on_black(figure):
            paths += _save(figure, name, folder / "dark", dpi=dpi)
    else:
        paths = _save(
            figure, name, folder, suffixes=("png",), dpi=PAGE_PIXELS / figure.get_figwidth()
        )
    if layout is not None:
        layout.set(rect=(0, 0, 1, 1))
    return paths


def _save(figure, name, folder, *, dpi, suffixes=tuple(_FORMATS)):
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{suffix}" for suffix in suffixes]
    with plt.rc_context({"svg.hashsalt": name}):  # else ids in the SVG are random
        for path, suffix in zip(paths, suffixes, strict=True):
            figure.savefig(path, dpi=dpi, **_FORMATS[suffix])
    return paths


@contextmanager
def on_black(figure):
    """Context in which the greys of a figure are inverted: white text on black.

    Hues, images and text on images stay. Of other text and of lines only dark ones are inverted.
    """
    artists = figure.findobj()
    artists += [cell.get_text() for cell in artists if isinstance(cell, Cell)]
    on_images = {
        text
        for ax in figure.axes
        for text in (ax.texts if ax.images else ())
        if ax.bbox.contains(*text.get_window_extent().get_points().mean(axis=0))
    }
    with ExitStack() as former:
        for artist in artists:
            kinds = [] if artist in on_images else [k for k in _COLOURED if isinstance(artist, k)]
            for name in (name for kind in kinds for name in _COLOURED[kind]):
                colour = getattr(artist, f"get_{name}")()
                former.callback(artist.set, **{name: colour})
                artist.set(**{name: _inverted(colour, only_dark="face" not in name)})
        yield


def _inverted(colours, *, only_dark):
    """RGBA of one or many colours with greys inverted; hues and "none" are kept."""
    inverted = to_rgba_array(colours)
    grey = np.ptp(inverted[:, :3], axis=1) < 0.05
    grey &= (inverted[:, 0] < 0.5) | (not only_dark)
    inverted[grey, :3] = 0.95 - 0.88 * inverted[grey, :3]
    if len(inverted) == 1:
        return tuple(inverted[0])
    return inverted if len(inverted) else "none"


def new_figure(rows, columns, *, title, note, **sharing):
    """Returns a `Figure` and its `(rows, columns)` array of `Axes`, with a title and a note."""
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="compressed", **sharing)
    figure.suptitle(title)
    _annotate(figure, note)
    return figure, axes


def new_axes(ax, note):
    """Returns `ax`, or the `Axes` of a new figure if it is None, with a note below it."""
    ax = plt.subplots(layout="compressed")[1] if ax is None else ax
    _annotate(ax.figure, note)
    return ax


def legend_below(figure, ax):
    """Add one legend for all panels, with the labels of `ax`; the note becomes its title."""
    handles, labels = ax.get_legend_handles_labels()
    columns = len(labels) if len(labels) < 5 else (len(labels) + 1) // 2
    note = figure.get_supxlabel()
    figure.supxlabel("")  # the layout would print one over the other
    place = {"loc": "outside lower center", "ncols": columns}
    legend = figure.legend(handles, labels, title=note or None, **place)
    legend.get_title().set(**_SMALL_PRINT)


def tint(area, colour, alpha=0.55):
    """RGBA overlay `(height, width, 4)`: `colour` where `area` is positive, else transparent."""
    shape = (*np.shape(area), 3)
    return np.dstack([np.broadcast_to(to_rgb(colour), shape), alpha * (np.asarray(area) > 0)])


def without_ticks(axes):
    """Remove ticks and frames from an array of `Axes` with images; labels stay."""
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)


def _annotate(figure, note):
    if note:  # as the figure's x label: the layout keeps room for it
        figure.supxlabel(note, **_SMALL_PRINT)
