"""Plots of single cases: image, mask, prediction and errors."""

import numpy as np
from matplotlib.patches import Patch

from pneumo_lib.plots.style import ERRORS, ORANGE, SKY, new_axes, new_figure, tint, without_ticks

_MASK = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "nearest"}


def show_case(image, mask=None, prediction=None, *, ax=None, title=None, legend=True, note=None):
    """`Axes` with a radiograph and, in colour, its mask, a prediction, or the errors.

    Args:
        image: `(height, width)` uint8.
        mask: `(height, width)` of 0 and 1, the truth, or None.
        prediction: `(height, width)` of 0 and 1, or None. With a mask, its errors are drawn.
        legend: whether to explain the colours.
    """
    ax = new_axes(ax, note)
    ax.imshow(image, cmap="gray", vmin=0, vmax=255)
    areas, colours = {"pneumothorax": mask, "prediction": prediction}, (ORANGE, SKY)
    if mask is not None and prediction is not None:
        true, predicted = np.asarray(mask) > 0, np.asarray(prediction) > 0
        errors = true & predicted, true & ~predicted, ~true & predicted
        areas, colours = dict(zip(ERRORS, errors, strict=True)), ERRORS.values()
    patches = []
    for (name, area), colour in zip(areas.items(), colours, strict=True):
        if area is not None:
            ax.imshow(tint(area, colour), interpolation="nearest")
            patches.append(Patch(color=colour, label=name))
    ax.set_axis_off()
    ax.set_title(title)
    if legend and patches:
        ax.legend(handles=patches, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def gallery(images, masks, labels, *, title=None, note=None):
    """`Figure` with a column for each case: image, mask, label.

    Args:
        images: `(n, height, width)` uint8; up to 6 are readable on a slide.
        masks: `(n, height, width)` of 0 and 1.
        labels: n of them, True where there is a pneumothorax.
    """
    size = 12.8, min(7.2, 25.6 / len(images) + 1.2)  # no wider than its panels are high
    figure, axes = new_figure(2, len(images), title=title, note=note, figsize=size)
    for column, image, mask, label in zip(axes.T, images, masks, labels, strict=True):
        column[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        column[1].imshow(mask, **_MASK)
        column[1].set_xlabel(f"Label: {int(label)}")
    axes[0, 0].set_ylabel("Image")
    axes[1, 0].set_ylabel("Mask")
    without_ticks(axes)
    return figure


def prediction_grid(images, masks, predictions, *, names, title=None, note=None):
    """`Figure` with a row for each case: image, true mask, prediction, errors.

    Args:
        images: `(n, height, width)` uint8; 2 are large on a slide, 4 still fit.
        masks: `(n, height, width)` of 0 and 1, the truth.
        predictions: `(n, height, width)` of 0 and 1.
        names: n labels of the rows, such as a split and, on a second line, a Dice.
    """
    size = 12.8, min(7.2, 0.8 + 0.5 * bool(title) + 2.2 * len(images))
    figure, axes = new_figure(len(images), 4, title=title, note=note, figsize=size)
    cases = zip(axes, images, masks, predictions, names, strict=True)
    for row, image, mask, prediction, name in cases:
        row[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        row[1].imshow(mask, **_MASK)
        row[2].imshow(prediction, **_MASK)
        show_case(image, mask, prediction, ax=row[3], legend=False)
        row[0].set_ylabel(name, rotation=0, ha="right", va="center")
    for ax, heading in zip(axes[0], ("Image", "True mask", "Prediction", "Errors"), strict=True):
        ax.set_title(heading)
    without_ticks(axes[:, :3])
    patches = [Patch(color=colour, label=name) for name, colour in ERRORS.items()]
    # of the panels, not of the figure: beside a margin of its own the layout leaves gaps
    beside = axes[(len(axes) - 1) // 2, 3]
    beside.legend(handles=patches, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
