"""Figures of cases, data and results: panels, colours, values, notes."""

import inspect
import types

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from pneumo_lib.evaluation.score_table import score_table
from pneumo_lib.plots import cases, data, results, style

pytestmark = pytest.mark.usefixtures("project_style")

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 16, 16), np.uint8)
MASKS = np.zeros((4, 16, 16), int)
MASKS[:2, 4:8, 4:8] = 1  # the first half positive, 1/16 of the image
CASES = pd.DataFrame(
    {
        "patient_id": ["a", "a", "b", "c", "d", "d"],
        "split": ["train"] * 4 + ["test"] * 2,
        "has_pneumothorax": [1, 0, 0, 0, 1, 0],
    }
)


def make_table():
    rng, rows = np.random.default_rng(0), []
    for backbone in ("vgg19", "small"):
        for epoch in (50, 100):
            for split in ("train", "test"):
                scores = pd.DataFrame({"image_id": range(8), "tp": rng.integers(1, 9, 8)})
                rows.append(scores.assign(backbone=backbone, epoch=epoch, split=split))
    scores = pd.concat(rows).assign(has_pneumothorax=True, fp=3, fn=4, tn=80)
    return score_table(scores, by=["backbone", "epoch"], n_bootstrap=20)


def learning_curves(**options):
    history = pd.DataFrame({"epoch": [1, 2, 3], "iou": [0.1, 0.2, 0.3], "val_iou": [0.0, 0.1, 0.2]})
    configs = [{"backbone": "vgg19"}, {"backbone": "small"}]
    runs = [types.SimpleNamespace(config=config, history=history) for config in configs]
    return results.learning_curves(runs, columns=["iou"], **options)


EXAMPLES = {
    "show_case": lambda **k: cases.show_case(IMAGES[0], MASKS[0], MASKS[1], **k),
    "gallery": lambda **k: cases.gallery(IMAGES, MASKS, [True, True, False, False], **k),
    "prediction_grid": lambda **k: cases.prediction_grid(
        IMAGES[:2], MASKS[:2], 1 - MASKS[:2], names=["train", "test"], **k
    ),
    "class_balance": lambda **k: data.class_balance(CASES, **k),
    "mask_areas": lambda **k: data.mask_areas(MASKS, **k),
    "mask_heatmap": lambda **k: data.mask_heatmap(MASKS, IMAGES, **k),
    "split_chart": lambda **k: data.split_chart({"by patient": CASES}, **k),
    "learning_curves": learning_curves,
    "milestone_chart": lambda **k: results.milestone_chart(make_table(), **k),
}
PLOTS = {
    name
    for module in (cases, data, results)
    for name, plot in inspect.getmembers(module, inspect.isfunction)
    if plot.__module__ == module.__name__ and name[0] != "_"
}


def labels(texts):
    return [text.get_text() for text in texts]


def legend_names(holder):
    legend = holder.legends[0] if hasattr(holder, "legends") else holder.get_legend()
    return labels(legend.get_texts())


@pytest.mark.parametrize("name", sorted(PLOTS))
def test_every_plot_fills_its_canvas_carries_its_note_and_neither_shows_nor_saves(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("shown"))
    figure = EXAMPLES[name](note="synthetic").figure
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    assert width / height >= 16 / 9 - 1e-6  # no taller than a slide
    filled = (np.asarray(figure.canvas.buffer_rgba())[..., :3] < 250).any(axis=(1, 2))
    assert np.diff(np.flatnonzero([True, *filled, True])).max() < 0.1 * len(filled)  # blank rows
    in_legends = [legend.get_title().get_text() for legend in figure.legends]
    assert "synthetic" in [figure.get_supxlabel(), *in_legends]
    assert list(tmp_path.iterdir()) == []


def test_use_style_sets_letters_of_at_least_a_thirtieth_of_the_height():
    height = plt.rcParams["figure.figsize"][1] * 72
    sizes = [plt.rcParams[f"{part}.labelsize"] for part in ("axes", "xtick", "ytick")]
    assert min(*sizes, plt.rcParams["legend.fontsize"]) >= height / 33


# -- cases


def test_show_case_colours_each_pixel_by_what_happened_there():
    mask, prediction = np.array([[1, 1, 0, 0]]), np.array([[1, 0, 1, 0]])
    ax = cases.show_case(np.zeros((1, 4), np.uint8), mask, prediction)
    overlays = [image.get_array() for image in ax.get_images()[1:]]
    assert [list(np.flatnonzero(overlay[..., 3])) for overlay in overlays] == [[0], [1], [2]]
    colours = [tuple(overlay[0, 0, :3]) for overlay in overlays]
    assert colours == [to_rgb(colour) for colour in (style.SKY, style.VERMILION, style.YELLOW)]
    assert legend_names(ax) == ["found", "missed", "false positive"]


@pytest.mark.parametrize(
    ("areas", "names"), [({"mask": 1}, ["pneumothorax"]), ({"prediction": 1}, ["prediction"])]
)
def test_show_case_names_a_mask_or_a_prediction_alone(areas, names):
    areas = {name: np.full((2, 2), value) for name, value in areas.items()}
    assert legend_names(cases.show_case(np.zeros((2, 2), np.uint8), **areas)) == names


def test_show_case_draws_on_the_axes_it_is_given():
    _, ax = plt.subplots()
    assert cases.show_case(np.zeros((2, 2), np.uint8), ax=ax) is ax
    assert ax.get_legend() is None


def test_gallery_labels_each_case():
    axes = np.reshape(EXAMPLES["gallery"]().axes, (2, 4))
    assert [ax.get_xlabel() for ax in axes[1]] == ["Label: 1", "Label: 1", "Label: 0", "Label: 0"]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["Image", "Mask"]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_prediction_grid_is_no_taller_than_a_slide_and_has_no_gaps(count):
    names = ["false positive\n0 pixels"] * count
    figure = cases.prediction_grid(IMAGES[:count], MASKS[:count], MASKS[:count], names=names)
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    assert width / height >= 16 / 9 - 1e-6
    places = [ax.get_position() for ax in figure.axes]
    assert places[1].x0 - places[0].x1 < 0.1 * places[0].width
    assert count == 1 or places[0].y0 - places[4].y1 < 0.1 * places[0].height
    [legend] = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    box = legend.get_window_extent()
    assert 0 < box.x0 - figure.axes[3].bbox.x1 < 0.1 * box.width


def test_a_case_and_its_legend_lie_in_the_middle_of_their_figure():
    figure = EXAMPLES["show_case"](note="synthetic").figure
    figure.canvas.draw()
    filled = (np.asarray(figure.canvas.buffer_rgba())[..., :3] < 250).any(axis=(0, 2))
    left, right = np.flatnonzero(filled)[[0, -1]]
    assert left == pytest.approx(len(filled) - right, abs=0.03 * len(filled))


def test_prediction_grid_shows_image_mask_prediction_and_errors():
    axes = EXAMPLES["prediction_grid"]().axes
    assert [ax.get_title() for ax in axes[:4]] == ["Image", "True mask", "Prediction", "Errors"]
    np.testing.assert_array_equal(axes[1].get_images()[0].get_array(), MASKS[0])
    np.testing.assert_array_equal(axes[2].get_images()[0].get_array(), 1 - MASKS[0])
    assert [axes[row].get_ylabel() for row in (0, 4)] == ["train", "test"]


def test_colours_of_errors_differ_in_grey_too():
    weights = [0.2126, 0.7152, 0.0722]
    grey = sorted(np.dot(to_rgb(colour), weights) for colour in style.ERRORS.values())
    assert np.diff(grey).min() > 0.15


# -- data


def test_class_balance_counts_the_images_of_each_split():
    axes = data.class_balance(CASES).axes
    assert [ax.get_title() for ax in axes] == ["TRAIN", "TEST"]
    assert [[bar.get_height() for bar in ax.patches] for ax in axes] == [[3, 1], [1, 1]]
    assert labels(axes[0].texts) == ["3\n75 %", "1\n25 %"]


def test_mask_areas_leaves_empty_masks_out():
    ax = data.mask_areas(MASKS)
    assert sum(bar.get_height() for bar in ax.patches) == 2
    assert labels(ax.texts) == ["median 6.2 %"]


def test_mask_heatmap_is_the_share_of_positive_images():
    masks = MASKS.copy()
    masks[1, 4] = 0  # one row in one of two positives
    shown = data.mask_heatmap(masks, IMAGES).get_images()[-1].get_array()
    assert [shown[0, 0], shown[4, 4], shown[5, 5]] == [0, 50, 100]


@pytest.mark.parametrize("plot", [data.mask_areas, data.mask_heatmap])
def test_maps_of_empty_masks_are_refused(plot):
    with pytest.raises(ValueError, match=r"at least one pneumothorax\. Received: 3 empty masks"):
        plot(np.zeros((3, 4, 4)))


def test_split_chart_marks_the_patients_with_images_in_two_splits():
    leaking = CASES.assign(patient_id=["a", "a", "b", "c", "c", "d"])
    kept, leaked = data.split_chart({"kept": CASES, "leaked": leaking}).axes
    assert [len(ax.collections[0].get_offsets()) for ax in (kept, leaked)] == [6, 6]
    assert labels(kept.texts) == []
    assert [(text.get_text(), text.get_position()[1]) for text in leaked.texts] == [("leaks", 2)]


# -- results


def test_learning_curves_draw_validation_and_train_of_each_run_on_the_whole_range():
    figure = learning_curves()
    ax = figure.axes[0]
    lines = [list(line.get_ydata()) for line in ax.get_lines() if len(line.get_xdata())]
    assert lines == [[0.0, 0.1, 0.2], [0.1, 0.2, 0.3]] * 2
    assert legend_names(figure)[:2] == ["VGG19", "small FCN (from scratch)"]
    assert ax.get_ylim() == (-0.02, 1.02)


def test_milestone_chart_places_each_score_and_the_numbers_of_the_report():
    table = make_table()
    figure = results.milestone_chart(table)
    assert [ax.get_title() for ax in figure.axes] == ["TRAIN", "TEST"]
    ax = figure.axes[1]
    assert labels(ax.get_xticklabels()) == ["50", "100", "report,\nas logged"]
    row = table.query("backbone == 'vgg19' and split == 'test'")
    drawn = [list(line.get_ydata()) for line in ax.get_lines()]
    assert list(row["mean_iou"]) in drawn
    assert [0.3190] in drawn
    low, high = row["mean_iou_lower"].iloc[0], row["mean_iou_upper"].iloc[0]
    np.testing.assert_allclose(ax.collections[0].get_segments()[0][:, 1], [low, high])
    assert legend_names(figure) == ["all background", "VGG19", "small FCN (from scratch)"]
    assert [table.query("split == 'test'")["mean_iou"].iloc[0]] * 2 in drawn  # all background


def test_milestone_chart_can_leave_the_report_out():
    ax = results.milestone_chart(make_table(), score="iou", report=False).axes[0]
    assert labels(ax.get_xticklabels()) == ["50", "100"]
    assert ax.get_ylabel() == "Foreground IoU"
    assert [0.3012] not in [list(line.get_ydata()) for line in ax.get_lines()]


def test_every_backbone_has_its_own_colour_and_marker():
    looks = list(style.BACKBONES.values())
    assert len({colour for _, colour, _ in looks}) == len({m for *_, m in looks}) == len(looks)
