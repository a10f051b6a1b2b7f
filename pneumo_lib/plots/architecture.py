"""Diagrams: a transposed convolution by hand, its phases, layers of networks, their windows."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Patch, Rectangle

from pneumo_lib.plots.style import GREEN, ORANGE, PURPLE, SKY, new_figure, without_ticks

FROZEN, TRAINED = SKY, ORANGE
_GAP = 1.8  # between two boxes: room for the numbers above them
_LETTERS = 22  # points of those numbers, of 16 inches: 15 points on a slide, below its title
PHASES = (SKY, ORANGE, GREEN, PURPLE)


def transposed_convolution(image, kernel, *, stride):
    """`Figure` of a transposed convolution as a sum: input, kernel times each input pixel, output.

    Args:
        image: `(height, width)` of few numbers: each has a panel.
        kernel: `(k, k)` of numbers.
        stride: step in the output from one copy of the kernel to the next.
    """
    image, kernel = np.asarray(image), np.asarray(kernel)
    shape = [stride * (n - 1) + k for n, k in zip(image.shape, kernel.shape, strict=True)]
    panels = [("input", image)]
    for (row, column), value in np.ndenumerate(image):
        panel, top, left = np.full(shape, np.nan), stride * row, stride * column
        panel[top : top + kernel.shape[0], left : left + kernel.shape[1]] = value * kernel
        panels.append((f"{value:g} × kernel", panel))
    output = np.nansum([panel for _, panel in panels[1:]], axis=0)
    panels.append(("output: their sum", output))
    rows = 2 if len(panels) > 5 and len(panels) % 2 == 0 else 1  # a long row has small letters
    columns = len(panels) // rows
    size = 3.2 * columns, 2.7 * rows
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained", figsize=size)
    colours = LinearSegmentedColormap.from_list("", ["white", SKY]).with_extremes(bad="whitesmoke")
    for ax, (title, panel) in zip(axes.flat, panels, strict=True):
        ax.imshow(panel, cmap=colours, vmin=0, vmax=1.4 * output.max())
        for (row, column), value in np.ndenumerate(panel):
            if not np.isnan(value):
                ax.text(column, row, f"{value:g}", ha="center", va="center", fontsize=20)
        _draw_lines(ax, panel.shape)
        ax.set_title(title)
    _draw_signs(axes.flat[1:], ["→", *"+" * (image.size - 1), "="], x=-0.06, fontsize=24)
    return figure


def phases(kernel_size, stride, *, size=4):
    """`Figure` of the phases of a transposed convolution in colour.

    Kernel taps and output pixels of one colour form a phase: an ordinary convolution of the input
    with a kernel `stride` times smaller.

    Args:
        kernel_size: height and width of the kernel, a multiple of `stride`.
        stride: 2, as there are four colours.
        size: height and width of the input.
    """
    taps = kernel_size // stride
    figure, axes = new_figure(1, 4, title=None, note=None, figsize=(16, 4.4))
    kernel, output = np.arange(kernel_size), np.arange(stride * size)
    panels = {  # title: phase of each row and each column
        f"kernel, {kernel_size} × {kernel_size}": kernel % stride,
        f"4 phases of {taps} × {taps} taps": kernel // taps,
        f"input, {size} × {size}": np.full(size, -1),
        f"output, {stride * size} × {stride * size}": output % stride,
    }
    for ax, (title, phase) in zip(axes[0], panels.items(), strict=True):
        n = len(phase)
        for (row, column), number in np.ndenumerate(np.add.outer(stride * phase, phase)):
            colour = PHASES[number] if number >= 0 else "lightgray"
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour))
        ax.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect="equal")
        _draw_lines(ax, (n, n))
        ax.set_title(title, fontsize=18)
    _draw_signs(axes[0, 1:], "→∗=", x=-0.05, fontsize=28)
    for line in (axes[0, 1].axhline, axes[0, 1].axvline):  # between the phases
        line(taps - 0.5, color="white", linewidth=10)
    figure.get_layout_engine().set(wspace=0.08)
    return figure


def architecture(tables, *, title=None):
    """`Figure` with a row of boxes for each network: sizes of feature maps, frozen and trained.

    Args:
        tables: dict from a network's name to its `fcn.layer_table()`.
        title: text above the figure.
    """
    size = 16, 2.45 * len(tables) + 0.4
    figure, axes = plt.subplots(len(tables), figsize=size, squeeze=False, layout="constrained")
    figure.suptitle(title)
    for ax, (name, table) in zip(axes[:, 0], tables.items(), strict=True):
        x = 0.0
        for box in _boxes(table):
            x = _draw_box(ax, x, *box)
        ax.set_ylim(-9.8, 9.2)
        ax.set_axis_off()
        ax.set_title(name, loc="left", fontsize=_LETTERS, fontweight="bold")
    widest = max(ax.dataLim.x1 for ax in axes[:, 0])
    for ax in axes[:, 0]:
        ax.set_xlim(-0.8, widest + 0.8)
    handles = [
        Patch(color="lightgray", label="image, softmax"),
        Patch(color=FROZEN, label="backbone: frozen (widest layer of each level)"),
        Patch(color=TRAINED, label="deconvolution: trained (its parameters; k: thousand)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def windows(image, networks, *, title=None, note=None):
    """`Figure` with the receptive fields of each network's feature maps, a panel for each network.

    A square is the receptive field of the cell nearest to the centre of the image, in the colour
    of its feature map; lines are the borders between the cells of the finest feature map.

    Args:
        image: `(size, size)` uint8.
        networks: dict from a panel's title to a dict from a feature map's name to the
            `ReceptiveField` of its cells, at most four, the finest last.
    """
    size = len(image)
    alone = len(networks) == 1
    size_of_page = (12.8, 7.2) if alone else (16, 18 / len(networks) + 1.2)
    figure, axes = new_figure(1, len(networks), title=title, note=note, figsize=size_of_page)
    margin = max(0, *(f.size - size for maps in networks.values() for f in maps.values())) / 2 + 8
    for ax, (heading, maps) in zip(axes[0], networks.items(), strict=True):
        ax.imshow(image, cmap="gray", vmin=0, vmax=255)
        _draw_cells(ax, list(maps.values())[-1], size)
        for (name, field), colour in zip(maps.items(), PHASES, strict=False):
            cell = round((size / 2 - field.centre) / field.stride)
            start = field.start + cell * field.stride - 0.5
            outline = {"facecolor": "none", "edgecolor": colour, "linewidth": 4}
            label = f"{name}: {field.size}² pixels"
            ax.add_patch(Rectangle((start, start), field.size, field.size, label=label, **outline))
        ax.set(xlim=(-margin, size + margin), ylim=(size + margin, -margin), title=heading)
        place = ("center left", (1.02, 0.5)) if alone else ("upper center", (0.5, -0.01))
        ax.legend(loc=place[0], bbox_to_anchor=place[1])
        ax.set_facecolor("whitesmoke")  # beyond the image: padding
    without_ticks(axes)
    return figure


def _draw_cells(ax, field, size):
    """Borders of a feature map's cells, half-way between the centres of their receptive fields."""
    first = (field.centre - field.stride / 2) % field.stride - 0.5
    borders = np.arange(first, size, field.stride)
    for draw in (ax.hlines, ax.vlines):
        draw(borders, -0.5, size - 0.5, color="white", linewidth=0.8, alpha=0.6)


def _boxes(table):
    """`(size, channels, colour, text)` of image, backbone's levels, deconvolutions, softmax."""
    image, layers = table.iloc[0], table.iloc[1:]
    boxes = [(*image["output_shape"][1:], "lightgray", "")]
    head = layers["layer"].str.startswith("deconvolution")
    backbone = layers[~head.cummax() & (layers["type"] != "ZeroPadding2D")]
    levels = backbone["output_shape"].str[0].map(lambda size: round(np.log2(size)))
    for _, level in backbone.groupby(levels, sort=False):
        widest = level["output_shape"].str[-1].idxmax()
        boxes.append((*level.loc[widest, "output_shape"][1:], FROZEN, ""))
    for _, layer in layers[head].iterrows():
        text = f"{n:,}" if (n := layer["parameters"]) < 10_000 else f"{n / 1000:,.0f}k"
        boxes.append((*layer["output_shape"][1:], TRAINED, text))
    boxes.append((*table.iloc[-1]["output_shape"][1:], "lightgray", ""))
    return boxes


def _draw_box(ax, x, size, channels, colour, text):
    """Draw a feature map, its size as height and its channels as width; returns the next x."""
    height, width = np.sqrt(size), 0.16 * np.log2(channels) + 0.1
    ax.add_patch(Rectangle((x, -height / 2), width, height, facecolor=colour, edgecolor="white"))
    if x > 0:
        ax.plot([x - _GAP + 0.1, x - 0.1], [0, 0], color="gray", linewidth=1.5)
    middle = x + width / 2
    style = {"ha": "center", "fontsize": _LETTERS}
    ax.text(middle, height / 2 + 0.3, text, va="bottom", **style)
    ax.text(middle, -height / 2 - 0.4, f"{size}²\n× {channels}", va="top", **style)
    return x + width + _GAP


def _draw_signs(axes, signs, **options):
    """A sign to the left of each panel."""
    for ax, sign in zip(axes, signs, strict=True):
        ax.text(y=0.5, s=sign, transform=ax.transAxes, ha="right", va="center", **options)


def _draw_lines(ax, shape):
    """White lines between the pixels of a small image."""
    ax.set_xticks(np.arange(shape[1] + 1) - 0.5, labels=[])
    ax.set_yticks(np.arange(shape[0] + 1) - 0.5, labels=[])
    ax.tick_params(length=0)
    ax.grid(color="white", linewidth=2)
    ax.set_axisbelow(False)
    ax.spines[:].set_visible(False)
