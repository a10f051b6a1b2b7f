"""Plots of notebook 08 show the numbers they were given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color

from pneumo_lib.evaluation import metrics
from pneumo_lib.evaluation.operating_point import (
    OperatingPoint,
    apply_operating_point,
    choose_operating_point,
)
from pneumo_lib.plots import style
from pneumo_lib.plots.experiments import forest, operating_point_chart


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def test_forest_has_a_row_for_each_change_coloured_by_what_its_interval_says():
    rows = [("loss", "dice", 0.1, 0.05, 0.2), ("loss", "focal", -0.1, -0.2, -0.05)]
    rows += [("size", "256", 0.1, -0.1, 0.3)]
    table = pd.DataFrame(rows, columns=["factor", "level", "difference", "lower", "upper"])
    ax = forest(table, xlabel="Dice")
    assert [tick.get_text() for tick in ax.get_yticklabels()] == [
        "loss: dice",
        "loss: focal",
        "size: 256",
    ]
    intervals = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_ls() == "-"]
    intervals = [line for line in intervals if list(line.get_xdata()) not in ([0, 0], [0, 1])]
    assert [list(line.get_xdata()) for line in intervals] == table[
        ["lower", "upper"]
    ].values.tolist()
    colours = [line.get_color() for line in intervals]
    assert same_color(colours[0], style.BLUE)
    assert same_color(colours[1], style.VERMILION)
    assert [text.get_text() for text in ax.texts][1] == "-0.10 [-0.20, -0.05]"


def test_operating_point_chart_shows_each_image_and_the_score_of_the_triplet():
    rng = np.random.default_rng(0)
    y_true = np.zeros((12, 32, 32), np.uint8)
    y_true[:4, 8:20, 8:16] = 1
    y_pred = np.clip(0.5 * y_true + 0.6 * rng.random(y_true.shape) ** 3, 0, 1)
    point = choose_operating_point(y_true, y_pred)
    gate, outline = operating_point_chart(y_true, y_pred, point).axes
    healthy, lesions = gate.lines[:2]
    assert (len(healthy.get_xdata()), len(lesions.get_xdata())) == (8, 4)
    assert gate.lines[2].get_xdata()[0] == pytest.approx(100 * point.min_area)
    masks = {p: apply_operating_point(y_pred, p) for p in (point, OperatingPoint())}
    score = {p: metrics.siim_dice(metrics.confusion_counts(y_true, m)) for p, m in masks.items()}
    plain, chosen = outline.lines[2:]
    assert plain.get_ydata()[0] == pytest.approx(score[OperatingPoint()])
    assert chosen.get_ydata()[0] == pytest.approx(score[point])
    assert chosen.get_xdata()[0] == point.bottom_threshold
