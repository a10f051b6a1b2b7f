"""Figures of the metrics show the values they are given, with their note."""

from functools import partial

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from pneumo_lib.evaluation.calibration import reliability_table
from pneumo_lib.evaluation.logged_metrics import logged_mean_iou_at
from pneumo_lib.evaluation.score_table import score_table, with_groups
from pneumo_lib.plots import data, metrics
from pneumo_lib.plots.style import BLUE, GREEN, PURPLE, VERMILION

pytestmark = pytest.mark.usefixtures("project_style")


SHARE = np.array([0.0, 0.5])
POINTS = pd.DataFrame(
    {"name": "VGG19", "share": SHARE, "logged": logged_mean_iou_at(SHARE), "iou": [0.0, 0.1]}
)
CASES = pd.DataFrame({"patient_id": list("AAB"), "split": ["train", "test", "validation"]})


def two_squares(apart=3):
    masks = np.zeros((2, 1, 32, 32), np.uint8)
    masks[0, 0, 8:12, 8:12] = masks[1, 0, 8:12, 8 + apart : 12 + apart] = 1
    return np.full((1, 32, 32), 90, np.uint8), *masks


def make_table():
    area = np.array([-1, -1, 2, 4, 6, 8])
    scores = pd.DataFrame({"image_id": range(6), "split": "test", "has_pneumothorax": area >= 0})
    scores = scores.assign(tp=area.clip(0) // 2, fp=0, fn=area.clip(0) // 2, tn=90)
    groups = with_groups(scores, pd.DataFrame({"image_id": range(6)}))
    return score_table(groups, by="lesion", n_bootstrap=5)


IMAGES = np.array([True, False, True, False]), np.array([0.9, 0.1, 0.4, 0.6])
TABLE = reliability_table([0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8])
FIGURES = {
    "saturation_chart": partial(metrics.saturation_chart, POINTS),
    "roc_chart": partial(metrics.roc_chart, {"small": IMAGES}),
    "reliability_chart": partial(metrics.reliability_chart, {"pixels": TABLE}),
    "group_chart": partial(metrics.group_chart, make_table(), by="lesion"),
    "paired_chart": partial(metrics.paired_chart, [0.1, 0.5], [0.2, 0.4], names="AB"),
    "outline_figure": partial(metrics.outline_figure, *two_squares()),
    "split_chart": partial(data.split_chart, {"by image": CASES}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_plot_is_no_taller_than_a_slide_carries_its_note_and_draws_without_warning(name):
    figure = FIGURES[name](note="synthetic", title="a title").figure
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    assert width / height >= 16 / 9 - 1e-6
    texts = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    assert {"synthetic", "a title"} <= set(texts)


def test_measured_points_lie_on_the_formula_with_the_values_of_the_report():
    ax = metrics.saturation_chart(POINTS)
    formula, logged, true, report = ax.get_lines()
    np.testing.assert_allclose(formula.get_ydata(), logged_mean_iou_at(formula.get_xdata() / 100))
    np.testing.assert_allclose(logged.get_xdata(), [0, 50])
    np.testing.assert_allclose(logged.get_ydata(), POINTS["logged"])
    np.testing.assert_allclose(true.get_ydata(), [0, 0.1])
    assert sorted(report.get_ydata()) == [0.3190, 0.4302, 0.4514]
    np.testing.assert_allclose(
        logged_mean_iou_at(np.array(report.get_xdata()) / 100), report.get_ydata()
    )


def test_roc_passes_the_points_counted_by_hand():
    roc, precision = FIGURES["roc_chart"]().axes
    # ranked by score: positive, healthy, positive, healthy
    curve = roc.get_lines()[1].get_xydata().tolist()
    assert [0, 0.5] in curve
    assert [0.5, 1] in curve
    assert precision.get_lines()[1].get_ydata()[0] == 0.5  # the share of positives


def test_the_reliability_diagram_shows_frequencies_and_counts_of_filled_bins():
    reliability, counts = FIGURES["reliability_chart"]().axes
    drawn = reliability.get_lines()[1].get_xydata()
    drawn = drawn[~np.isnan(drawn).any(axis=1)]
    np.testing.assert_allclose(drawn, [[0.1, 0], [0.2, 0], [0.8, 1], [0.9, 1]])
    assert np.nansum(counts.get_lines()[0].get_ydata()) == 4


def test_groups_without_the_score_and_the_baseline_are_left_out():
    ax = FIGURES["group_chart"]()
    names = [text.get_text().split("\n")[0] for text in ax.get_xticklabels()]
    assert names == ["smallest", "small", "large", "largest"]


def test_the_pair_of_each_image_is_a_point():
    points = FIGURES["paired_chart"]().collections[0].get_offsets()
    np.testing.assert_allclose(points, [[0.1, 0.2], [0.5, 0.4]])


def test_the_farthest_point_of_two_outlines_is_as_far_as_they_were_moved():
    ax = metrics.outline_figure(*two_squares(apart=3)).axes[0]
    (x0, y0), (x1, y1) = ax.get_lines()[0].get_xydata()
    assert np.hypot(x1 - x0, y1 - y0) == 3
    assert "Hausdorff 95: 3.0 pixels" in ax.get_xlabel()


def test_a_patient_in_several_splits_is_marked_and_images_have_the_colour_of_their_split():
    ax = FIGURES["split_chart"]().axes[0]
    [mark] = [text for text in ax.texts if text.get_text() == "leaks"]
    assert (mark.get_position()[1], mark.get_color()) == (0, VERMILION)
    colours = [to_hex(colour, keep_alpha=False) for colour in ax.collections[0].get_facecolors()]
    assert colours == [BLUE.lower(), PURPLE.lower(), GREEN.lower()]
