"""Exported figures: files, shape, colours on black."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgba

from pneumo_lib.plots import style

ROOT = Path(__file__).parents[2]
README = (ROOT / "figures/README.md").read_text()
pytestmark = pytest.mark.usefixtures("project_style")


def small_figure(size=(3.2, 1.8)):
    """Black axes and title, a blue line with hollow markers, an image with a letter on it."""
    figure, ax = plt.subplots(figsize=size)
    ax.set_title("Title", color="black")
    ax.plot([0, 1], [0, 1], "o-", color=style.BLUE, markerfacecolor="white")
    ax.imshow(np.zeros((2, 2, 3)))
    ax.text(0, 0, "R", color="black")
    return figure


@pytest.fixture
def all_formats(monkeypatch):
    monkeypatch.setenv("PNEUMO_FIGURES", "300")


@pytest.mark.parametrize("size", [(3.2, 1), (3.2, 1.8), (1.6, 1.8)])
def test_export_writes_a_png_of_a_pages_width_in_the_shape_of_the_figure(tmp_path, size):
    figure = small_figure(size)
    (path,) = style.export(figure, "small", folder=tmp_path)
    assert plt.imread(path).shape[:2] == (round(1600 * size[1] / size[0]), 1600)
    assert tuple(figure.get_size_inches()) == size


@pytest.mark.usefixtures("all_formats")
def test_export_writes_all_formats_at_300_dots_per_inch_that_repeat_byte_for_byte(tmp_path):
    contents = []
    for folder in ("first", "second"):
        paths = style.export(small_figure().axes[0], "02_case", folder=tmp_path / "deep" / folder)
        names = ["02_case.png", "02_case.svg", "02_case.pdf"]
        assert [path.relative_to(tmp_path / "deep" / folder) for path in paths] == [
            *map(Path, names),
            *(Path("dark") / name for name in names),
        ]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert plt.imread(paths[0]).shape[:2] == (540, 960)


@pytest.mark.usefixtures("all_formats")
def test_export_writes_the_same_on_black(tmp_path):
    paths = style.export(small_figure(), "case", folder=tmp_path)
    corner, corner_on_black = (plt.imread(path)[0, 0, :3] for path in (paths[0], paths[3]))
    assert corner.min() == 1
    assert corner_on_black.max() < 0.1


def test_on_black_inverts_text_axes_and_backgrounds_but_neither_hues_nor_text_on_images():
    figure = small_figure()
    (ax,), (line,) = figure.axes, figure.axes[0].lines
    with style.on_black(figure):
        assert to_rgba(ax.title.get_color())[0] > 0.9
        assert to_rgba(ax.spines["left"].get_edgecolor())[0] > 0.8
        assert to_rgba(line.get_markerfacecolor())[0] < 0.1
        assert to_hex(line.get_color()).upper() == style.BLUE
        assert ax.texts[0].get_color() == "black"


def test_on_black_inverts_the_text_of_a_table():
    figure, ax = plt.subplots()
    cell = ax.table([["1"]])[0, 0]
    with style.on_black(figure):
        assert to_rgba(cell.get_text().get_color())[0] > 0.8
        assert to_rgba(cell.get_facecolor())[0] < 0.1


def test_on_black_puts_everything_back():
    figure = small_figure()
    figure.canvas.draw()
    before = np.asarray(figure.canvas.buffer_rgba()).copy()
    with style.on_black(figure):
        figure.canvas.draw()
        assert (np.asarray(figure.canvas.buffer_rgba()) != before).any()
    figure.canvas.draw()
    np.testing.assert_array_equal(figure.canvas.buffer_rgba(), before)


# -- figures/README.md


def exported_names():
    """Patterns of the figures that the notebooks collect, read from their code."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        code = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells)
        for name in set(re.findall(r"""^ *figures\[f?"(\w+(?:\{\w+\})?)"\]""", code, re.M)):
            yield f"{path.stem}_{name}"


def test_the_list_of_figures_names_what_the_notebooks_export_with_a_sentence_each():
    listed = dict(re.findall(r"^\| `([\w*]+)` \| (.+) \|$", README, re.M))
    assert all(sentence.endswith(".") for sentence in listed.values())
    patterns = {name: re.sub(r"\{\w+\}", r"[\\w*]+", name) for name in exported_names()}
    for name, pattern in patterns.items():
        assert any(re.fullmatch(pattern, figure) for figure in listed), f"{name} is not listed"
    for figure in listed:
        made = any(re.fullmatch(pattern, figure) for pattern in patterns.values())
        assert made, f"no notebook makes {figure}"
