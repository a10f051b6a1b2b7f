"""Drawings that explain: a transposed convolution by hand, its phases, a network's boxes."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch, Rectangle

from pneumo_lib.plots.style import GREEN, ORANGE, PURPLE, SKY, new_figure, without_ticks

FROZEN, TRAINED = SKY, ORANGE
_GAP = 1.8  # between two boxes: room for the numbers above them
_LETTERS = 18  # points of those numbers, of 16 inches: 15 points on a slide
PHASES = (SKY, ORANGE, GREEN, PURPLE)


def transposed_convolution(image, kernel, *, stride):
    """`Figure`: every input pixel stamps the kernel into the output, and the stamps add up.

    Args:
        image: `(height, width)` of numbers, small enough to read: each makes a panel.
        kernel: `(k, k)` of numbers.
        stride: step in the output from one stamp to the next.

    Returns:
        `Figure` with the panels kernel, input, one for each input pixel, output.
    """
    image, kernel = np.asarray(image), np.asarray(kernel)
    shape = [stride * (n - 1) + k for n, k in zip(image.shape, kernel.shape, strict=True)]
    stamps, titles = [], []
    for (row, column), value in np.ndenumerate(image):
        stamp = np.full(shape, np.nan)
        top, left = stride * row, stride * column
        stamp[top : top + kernel.shape[0], left : left + kernel.shape[1]] = value * kernel
        stamps.append(stamp)
        titles.append(f"{value:g} × kernel")
    output = np.nansum(stamps, axis=0)
    panels = [image, *stamps, output]
    figure, axes = plt.subplots(1, len(panels), layout="constrained", figsize=(16, 3.2))
    titles = ["input", *titles, "output: their sum"]
    for ax, panel, title in zip(axes, panels, titles, strict=True):
        _numbers(ax, panel, highest=np.max(output))
        ax.set_title(title, fontsize=17)
    for ax, sign in zip(axes[1:], ["→", *"+" * (len(stamps) - 1), "="], strict=True):
        ax.text(-0.06, 0.5, sign, transform=ax.transAxes, ha="right", va="center", fontsize=24)
    return figure


def phases(kernel_size, stride, *, size=4):
    """`Figure`: which taps of the kernel meet which pixels of the output.

    Taps and output pixels of one colour form a phase: an ordinary convolution of the small
    input with a kernel `stride` times smaller.

    Args:
        kernel_size: of a square kernel, a multiple of `stride`.
        stride: 2, as there are four colours.
        size: height and width of the input.
    """
    taps = kernel_size // stride
    figure, axes = new_figure(1, 4, title=None, note=None, figsize=(16, 4.4))
    panels = [
        (f"kernel, {kernel_size} × {kernel_size}", kernel_size, lambda place: place % stride),
        (f"4 phases of {taps} × {taps} taps", kernel_size, lambda place: place // taps),
        (f"input, {size} × {size}", size, None),
        (f"output, {stride * size} × {stride * size}", stride * size, lambda place: place % stride),
    ]
    for ax, (name, squares, phase_of) in zip(axes[0], panels, strict=True):
        _squares(ax, squares, phase_of, stride=stride)
        ax.set_title(name, fontsize=18)
    for ax, sign in zip(axes[0, 1:], "→∗=", strict=True):
        ax.text(-0.05, 0.5, sign, transform=ax.transAxes, ha="right", va="center", fontsize=28)
    for line in (axes[0, 1].axhline, axes[0, 1].axvline):  # the phases apart
        line(taps - 0.5, color="white", linewidth=10)
    figure.get_layout_engine().set(wspace=0.08)
    return figure


def architecture(tables, *, title=None):
    """`Figure` with a row for each network: what is frozen, what is trained, on which grids.

    Args:
        tables: dict from a network's name to its `fcn.layer_table()`.
        title: text above the figure.
    """
    height = 2.87 * len(tables) + 0.4
    figure, axes = plt.subplots(
        len(tables), 1, figsize=(16, height), squeeze=False, layout="constrained"
    )
    figure.suptitle(title)
    for ax, (name, table) in zip(axes[:, 0], tables.items(), strict=True):
        x = 0.0
        for box in _boxes(table):
            x = _draw_box(ax, x, box)
        ax.set_ylim(-8.6, 8.2)
        ax.set_axis_off()
        ax.set_title(name, loc="left", fontweight="bold")
    widest = max(ax.dataLim.x1 for ax in axes[:, 0])
    for ax in axes[:, 0]:
        ax.set_xlim(-0.8, widest + 0.8)
    handles = [
        Patch(color="lightgray", label="image, probability"),
        Patch(color=FROZEN, label="backbone: frozen (widest layer on each grid)"),
        Patch(color=TRAINED, label="deconvolution: trained (its parameters)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def windows(image, networks, *, title=None, note=None):
    """`Figure` with a panel for each network: the cells of its grids, and what one cell sees.

    A square is the window of the cell nearest to the middle of the image, in the colour of its
    grid; the lines are the borders of the cells of the finest grid.

    Args:
        image: `(size, size)` uint8.
        networks: dict from a panel's title to a dict from a grid's name to the `ReceptiveField`
            of its cells, at most four, the finest last.
    """
    size = len(image)
    alone = len(networks) == 1
    height = 8 if alone else 18 / len(networks) + 1.2
    figure, axes = new_figure(1, len(networks), title=title, note=note, figsize=(16, height))
    reach = max(0, *(f.size - size for grids in networks.values() for f in grids.values())) / 2
    for ax, (name, grids) in zip(axes[0], networks.items(), strict=True):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        _cells(ax, list(grids.values())[-1], size)
        for (grid, field), colour in zip(grids.items(), PHASES, strict=False):
            cell = round((size / 2 - field.centre) / field.stride)
            start = field.start + cell * field.stride - 0.5
            outline = {"facecolor": "none", "edgecolor": colour, "linewidth": 4}
            label = f"{grid}: {field.size}²"
            ax.add_patch(Rectangle((start, start), field.size, field.size, label=label, **outline))
        ax.set(xlim=(-reach - 8, size + reach + 8), ylim=(size + reach + 8, -reach - 8))
        ax.set_title(name)
        place = ("center left", (1.02, 0.5)) if alone else ("upper center", (0.5, -0.01))
        ax.legend(loc=place[0], bbox_to_anchor=place[1])
        ax.set_facecolor("whitesmoke")  # beyond the image: padding
    without_ticks(axes)
    return figure


def _cells(ax, field, size):
    """Borders of a grid's cells: half-way between the middles of what neighbours see."""
    first = (field.centre - field.stride / 2) % field.stride - 0.5
    borders = np.arange(first, size, field.stride)
    for draw in (ax.hlines, ax.vlines):
        draw(borders, -0.5, size - 0.5, color="white", linewidth=0.8, alpha=0.6)


def _boxes(table):
    """`(grid, channels, colour, text)`: image, grids of the backbone, deconvolutions, softmax."""
    image, layers = table.iloc[0], table.iloc[1:]
    boxes = [(*image["output_shape"][1:], "lightgray", "image")]
    head = layers["layer"].str.startswith("deconvolution")
    backbone = layers[~head.cummax() & (layers["type"] != "ZeroPadding2D")]
    grids = backbone["output_shape"].str[0]
    octaves = grids.map(lambda grid: round(np.log2(grid)))
    for _, stage in backbone.groupby(octaves, sort=False):
        widest = stage["output_shape"].str[-1].idxmax()
        boxes.append((*stage.loc[widest, "output_shape"][1:], FROZEN, ""))
    for _, layer in layers[head].iterrows():
        boxes.append((*layer["output_shape"][1:], TRAINED, f"{layer['parameters']:,}"))
    boxes.append((*table.iloc[-1]["output_shape"][1:], "lightgray", "softmax"))
    return boxes


def _draw_box(ax, x, box):
    """Draw a box as high as its grid and as wide as its channels; return where the next starts."""
    grid, channels, colour, text = box
    height, width = np.sqrt(grid), 0.16 * np.log2(channels) + 0.1
    ax.add_patch(Rectangle((x, -height / 2), width, height, facecolor=colour, edgecolor="white"))
    if x > 0:
        ax.plot([x - _GAP + 0.1, x - 0.1], [0, 0], color="gray", linewidth=1.5)
    middle = x + width / 2
    style = {"ha": "center", "fontsize": _LETTERS}
    ax.text(middle, height / 2 + 0.3, text, va="bottom", **style)
    ax.text(middle, -height / 2 - 0.4, f"{grid}²\n× {channels}", va="top", **style)
    return x + width + _GAP


def _numbers(ax, values, *, highest):
    """A grid of numbers, darker where they are higher, white where there is none."""
    colours = LinearSegmentedColormap.from_list("stamp", ["white", SKY])
    colours = colours.with_extremes(bad="whitesmoke")
    ax.imshow(values, cmap=colours, vmin=0, vmax=1.4 * highest)
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            ax.text(column, row, f"{value:g}", ha="center", va="center", fontsize=16)
    _lines(ax, values.shape)


def _squares(ax, size, phase_of, *, stride):
    """A grid of squares in the colours of their phases; `phase_of` a row or column, None: grey."""
    for row, column in np.ndindex(size, size):
        phase = None if phase_of is None else stride * phase_of(row) + phase_of(column)
        colour = "lightgray" if phase is None else PHASES[phase]
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour))
    ax.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5), aspect="equal")
    _lines(ax, (size, size))


def _lines(ax, shape):
    ax.set_xticks(np.arange(shape[1] + 1) - 0.5, labels=[])
    ax.set_yticks(np.arange(shape[0] + 1) - 0.5, labels=[])
    ax.tick_params(length=0)
    ax.grid(color="white", linewidth=2)
    ax.set_axisbelow(False)
    ax.spines[:].set_visible(False)
