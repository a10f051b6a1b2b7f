"""How far a predicted outline lies from the true one, in pixels and in millimetres.

Built on SciPy's distance transform, which is a dependency anyway. Of the libraries that offer
the finished scores, MedPy is GPL, MONAI needs PyTorch, surface-distance (2024) uses names that
NumPy 2 no longer has, MeshMetrics needs VTK, and SimpleITK (alive, 50 MB) has no percentile.
"""

import numpy as np
import pandas as pd
from scipy.ndimage import binary_erosion, distance_transform_edt

from pneumo_lib.evaluation.metrics import confusion_counts


def boundary_scores(y_true, y_pred, *, threshold=0.5, spacing=None, missed=None):
    """Hausdorff 95 and average surface distance of each image: 0 is perfect, lower is better.

    The outline is every pixel of a mask with a background pixel, or the image's edge, on one of
    its four sides. `hd95` is the larger of the two directed 95th percentiles of the distance to
    the other outline: where the worst twentieth begins. `asd` is the mean distance over the pixels
    of both outlines (average symmetric surface distance).

    Empty masks, for which there is no distance: both empty gives NaN, to be left out; one empty
    gives the diagonal of the image, the worst there is, so that missing a lesion or inventing
    one never pays. Libraries differ in this rule, so say it beside the number.

    Args:
        y_true: `(n, height, width)`, any dtype, values 0 or 1.
        y_pred: same shape, probabilities in [0, 1], or masks of 0 and 1.
        threshold: a pixel is foreground where `y_pred >= threshold`.
        spacing: mm from one pixel of the masks to the next, a number or `(n,)`, NaN where
            unknown; see `prepared_spacing()`.
        missed: distance in pixels where one mask is empty, or `float("nan")` to leave those
            images out; None is the diagonal.

    Returns:
        DataFrame of n rows with the columns `hd95`, `asd` (pixels) and, with `spacing`,
        `hd95_mm`, `asd_mm`.

    Raises:
        ValueError: as `confusion_counts()`.

    Example:
        >>> y_true, y_pred = np.zeros((2, 1, 9, 9))
        >>> y_true[0, 1, 1] = y_pred[0, 4, 5] = 1  # one pixel each, 3 rows and 4 columns apart
        >>> boundary_scores(y_true, y_pred, spacing=2.0).loc[0].to_dict()
        {'hd95': 5.0, 'asd': 5.0, 'hd95_mm': 10.0, 'asd_mm': 10.0}

    Reference:
        Maier-Hein et al. (2024), Nature Methods 21:195-212, doi:10.1038/s41592-023-02151-z.
    """
    confusion_counts(y_true, y_pred, threshold=threshold)  # refuses what is no mask
    if missed is None:
        missed = float(np.hypot(*np.shape(y_true)[1:]))
    rows = []
    for truth, probability in zip(y_true, y_pred, strict=True):
        masks = np.asarray(truth) != 0, np.asarray(probability) >= threshold
        outlines = [outline(mask) for mask in masks]
        found = [mask.any() for mask in masks]
        if not all(found):
            rows.append((missed if any(found) else np.nan,) * 2)
            continue
        there, back = _distances(*outlines), _distances(*outlines[::-1])
        hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
        rows.append((hd95, np.concatenate([there, back]).mean()))
    table = pd.DataFrame(rows, columns=["hd95", "asd"], dtype=np.float64)
    if spacing is not None:
        table = table.assign(hd95_mm=table["hd95"] * spacing, asd_mm=table["asd"] * spacing)
    return table


def prepared_spacing(cases, *, size, pixels=1024):
    """Millimetres from one pixel of the prepared masks to the next, NaN where unknown.

    The SIIM-ACR headers need care: their `PixelSpacing` (0.14 to 0.19 mm) is that of the
    detector, yet the files were reduced to 1024 pixels. Taken at its word a chest would be 142
    to 199 mm wide. The widths before the reduction stand only in NIH's own table
    (`OriginalImage[Width`); give them as `pixels` and the millimetres are right.

    Args:
        cases: case table; `pixel_spacing` (mm) exists where the data came as DICOM.
        size: pixels on a side of the prepared masks.
        pixels: on a side of the image that the spacing belongs to, a number or one per case.

    Returns:
        `(n,)` float64.
    """
    spacing = cases.get("pixel_spacing", pd.Series(np.nan, index=cases.index))
    return np.asarray(spacing, dtype=np.float64) * np.asarray(pixels) / size


def outline(mask):
    """The pixels of a boolean mask that have background, or the image's edge, on a side."""
    return mask & ~binary_erosion(mask)


def _distances(one, other):
    """Distance from each pixel of one outline to the nearest of the other."""
    return distance_transform_edt(~other)[one]
