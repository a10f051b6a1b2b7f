"""The explaining drawings say what a reader would count."""

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from pneumo_lib import diagrams

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    matplotlib.pyplot.close("all")


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_the_stamps_of_a_transposed_convolution_add_up():
    figure = diagrams.transposed_convolution([[1, 2]], [[1, 1], [1, 1]], stride=1)
    *_, first, second, output = figure.axes
    assert texts(first) == ["1"] * 4 + ["→"]
    assert texts(second) == ["2"] * 4 + ["+"]
    assert texts(output) == ["1", "3", "2", "1", "3", "2", "="]


def test_each_input_pixel_makes_one_panel():
    figure = diagrams.transposed_convolution(np.ones((2, 3)), np.ones((2, 2)), stride=2)
    assert len(figure.axes) == 1 + 6 + 1


def test_each_phase_has_a_quarter_of_the_taps_and_of_the_output():
    figure = diagrams.phases(6, 2, size=4)
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


def test_a_network_shows_each_grid_once_and_what_is_trained(table):
    (ax,) = diagrams.architecture({"tiny": table}).axes
    assert texts(ax)[1::2] == ["32²\n× 3", "15²\n× 8", "8²\n× 8", "32²\n× 2", "32²\n× 2"]
    assert texts(ax)[::2] == ["image", "", "", "1,234", "softmax"]
    trained = [p for p in ax.patches if to_hex(p.get_facecolor()) == to_hex(diagrams.TRAINED)]
    assert len(trained) == 1


def test_networks_are_drawn_below_each_other(table):
    axes = diagrams.architecture({"first": table, "second": table}).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["first", "second"]
