"""Diagrams hold the numbers, squares and boxes that a reader would count."""

from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from pneumo_lib.models.receptive_field import ReceptiveField
from pneumo_lib.plots import architecture

matplotlib.use("agg")
pytestmark = pytest.mark.usefixtures("project_style")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_the_stamps_of_a_transposed_convolution_add_up():
    figure = architecture.transposed_convolution([[1, 2]], [[1, 1], [1, 1]], stride=1)
    *_, first, second, output = figure.axes
    assert texts(first) == ["1"] * 4 + ["→"]
    assert texts(second) == ["2"] * 4 + ["+"]
    assert texts(output) == ["1", "3", "2", "1", "3", "2", "="]


def test_each_input_pixel_makes_one_panel():
    figure = architecture.transposed_convolution(np.ones((2, 3)), np.ones((2, 2)), stride=2)
    assert len(figure.axes) == 1 + 6 + 1


def test_the_sum_of_four_stamps_fills_a_slide():
    figure = architecture.transposed_convolution(np.ones((2, 2)), np.ones((3, 3)), stride=2)
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    assert width / height == pytest.approx(16 / 9)
    panels = [ax.get_position() for ax in figure.axes]
    assert sum(place.width * place.height for place in panels) > 0.5


def test_each_phase_has_a_quarter_of_the_taps_and_of_the_output():
    figure = architecture.phases(6, 2, size=4)
    for ax, squares in zip(figure.axes, (36, 36, 16, 64), strict=True):
        colours = [to_hex(p.get_facecolor()) for p in ax.patches if isinstance(p, Rectangle)]
        counts = pd.Series(colours).value_counts()
        assert counts.sum() == squares
        assert counts.tolist() in ([squares // 4] * 4, [16])


@pytest.fixture
def table():
    rows = [
        ("image", "InputLayer", (32, 32, 3), 0),
        ("narrow", "Conv2D", (16, 16, 4), 100),
        ("wide", "Conv2D", (15, 15, 8), 200),
        ("pool", "MaxPooling2D", (8, 8, 8), 0),
        ("deconvolution_1", "FourierConv2DTranspose", (32, 32, 2), 1234),
        ("softmax", "Softmax", (32, 32, 2), 0),
    ]
    return pd.DataFrame(rows, columns=["layer", "type", "output_shape", "parameters"])


def test_a_network_shows_each_level_once_and_what_is_trained(table):
    (ax,) = architecture.architecture({"tiny": table}).axes
    assert texts(ax)[1::2] == ["32²\n× 3", "15²\n× 8", "8²\n× 8", "32²\n× 2", "32²\n× 2"]
    assert texts(ax)[::2] == ["", "", "", "1,234", ""]
    (more,) = architecture.architecture({"large": table.assign(parameters=1_048_578)}).axes
    assert texts(more)[6] == "1,049k"
    trained = [p for p in ax.patches if to_hex(p.get_facecolor()) == to_hex(architecture.TRAINED)]
    assert len(trained) == 1


def test_networks_are_drawn_below_each_other_and_no_letter_over_another(table):
    figure = architecture.architecture({"first": table, "second": table})
    figure.canvas.draw()
    axes = figure.axes
    letters = [text for ax in axes for text in (*ax.texts, ax._left_title) if text.get_text()]
    boxes = [text.get_window_extent() for text in letters]
    assert not [1 for a, b in combinations(boxes, 2) if a.padded(-1).overlaps(b.padded(-1))]
    assert [ax.get_title(loc="left") for ax in axes] == ["first", "second"]


def test_windows_lie_around_the_cell_in_the_middle_of_the_image():
    fine, coarse = ReceptiveField(8, 4, -2), ReceptiveField(20, 8, -6)
    networks = {"two maps": {"a": coarse, "b": fine}}
    (ax,) = architecture.windows(np.zeros((32, 32), "uint8"), networks).axes
    # Centres next to 16: 3.5 + 8 * 2 = 19.5 and 1.5 + 4 * 4 = 17.5.
    squares = [(patch.get_x() + 0.5, patch.get_width()) for patch in ax.patches]
    assert squares == [(10, 20), (14, 8)]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == ["a: 20² pixels", "b: 8² pixels"]


def test_windows_larger_than_the_image_are_whole_and_panels_share_their_scale():
    networks = {name: {"map": ReceptiveField(n, 8, 0)} for name, n in (("one", 8), ("two", 96))}
    first, second = architecture.windows(np.zeros((32, 32), "uint8"), networks).axes
    assert first.get_xlim() == second.get_xlim()
    assert second.get_xlim()[1] - second.get_xlim()[0] >= 96
