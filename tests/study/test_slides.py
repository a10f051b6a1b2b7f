"""The slides: what is read from executed notebooks, and what the two decks contain."""

import json
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from pptx import Presentation

from pneumo_lib.study import slides
from pneumo_lib.study.slides import fill_slide, plan_slides, read_sections, write_slides

ROOT = Path(__file__).parents[2]
ORDER = yaml.safe_load((ROOT / "pneumo_lib/study/slides.yaml").read_text())
CAVEATS = "synthetic · split: official"
TABLE = """<table><thead>
<tr><th>split</th><th colspan="2">train</th></tr>
<tr><th>epoch</th><th>5</th><th>10</th></tr>
<tr><th>back_bone</th><th></th><th></th></tr>
</thead><tbody>
<tr><th rowspan="2">vgg19</th><td>0.50</td><td>NaN</td></tr>
<tr><td>1</td><td>2</td></tr>
</tbody></table>"""
PROSE = """Before.

## First *heading*

Read **this** and [that](06_results.ipynb), `a_b` and 2 * 3 * 4
on a second line.

| name | value |
|---|---|
| one | **1** |
"""


@pytest.fixture
def report(tmp_path):
    """A report of one notebook with a table, a printed line and a figure."""
    printed = new_output("stream", text="Found: 0.61\nof nothing\n")
    warned = new_output("stream", name="stderr", text="A warning.\n")
    shown = new_output("execute_result", data={"text/html": TABLE})
    cells = [
        new_markdown_cell(PROSE),
        new_code_cell("print()", outputs=[warned, printed]),
        new_markdown_cell("Then.\n\nFigures are exported only when the parameter asks for it."),
        new_code_cell("table", outputs=[shown]),
        new_markdown_cell("## What was trained"),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "05_train_fcn-resnet50.ipynb")
    nbformat.write(new_notebook(cells=[]), tmp_path / "05_train_fcn-small.ipynb")
    Image.new("RGB", (3840, 2160), "red").save(tmp_path / "05_train_fcn_red.png")
    write_report(tmp_path, caveats=CAVEATS)
    return tmp_path


def write_report(folder, **content):
    names = [{"name": "05_train_fcn-resnet50"}, {"name": "05_train_fcn-small"}]
    content |= {"figures": str(folder), "notebooks": names}
    (folder / "report.json").write_text(json.dumps(content))


def use_order(monkeypatch, folder, *entries):
    path = folder / "order.yaml"
    path.write_text(yaml.safe_dump(list(entries)))
    monkeypatch.setattr(slides, "_ORDER", path)


def entry(**more):
    return {"title": "A title", "from": "05_train_fcn / First"} | more


# -- reading notebooks


def test_sections_hold_prose_without_marks_tables_and_printed_lines(report):
    sections = read_sections(report / "05_train_fcn-resnet50.ipynb")
    assert list(sections) == ["", "First heading", "What was trained"]
    first = sections["First heading"]
    assert first.prose == ["Read this and that, a_b and 2 * 3 * 4 on a second line.", "Then."]
    assert first.printed == ["Found: 0.61", "of nothing"]
    assert first.tables[0] == [["name", "value"], ["one", "1"]]


def test_a_pandas_table_keeps_its_digits_and_loses_its_merged_cells(report):
    table = read_sections(report / "05_train_fcn-resnet50.ipynb")["First heading"].tables[1]
    assert table == [["back bone", "train 5", "train 10"], ["VGG19", "0.50", "–"], ["", "1", "2"]]


def test_row_numbers_that_name_nothing_are_left_out():
    html = "<thead><tr><th></th><th>a</th></tr></thead><tr><th>0</th><td>x</td></tr>"
    assert slides._rows(BeautifulSoup(html, "html.parser")) == [["a"], ["x"]]


# -- the slides


def test_a_slide_takes_what_it_shows_from_a_section(report, monkeypatch):
    use_order(monkeypatch, report, entry(table="value", points=["Mind:"], printed=1), entry())
    (slide, plain), note = plan_slides(report)
    assert slide.points == ["Mind:", "Found: 0.61"]
    assert slide.table == [["name", "value"], ["one", "1"]]
    assert slide.notes.endswith("Then.")
    assert (plain.points, plain.table, plain.figure) == ([], None, None)
    assert note == CAVEATS


def test_an_optional_slide_is_left_out_where_its_notebook_was_not_run(report, monkeypatch):
    missing = {"from": "08_better_fcn / What helps", "optional": True}
    use_order(monkeypatch, report, entry(**missing), entry(title="Here", optional=True))
    assert [slide.title for slide in plan_slides(report)[0]] == ["Here"]


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"from": "05_train_fcn / Second"}, ValueError, "Received: .*Second.*the headings .*First"),
        ({"from": "06_results / First"}, ValueError, r"the headings \[\]"),
        ({"table": "mass"}, ValueError, r"the tables \[\['name', 'value'\], .* and 2 printed"),
        ({"printed": 3}, ValueError, "and 2 printed lines"),
        ({"figure": "05_train_fcn_blue"}, FileNotFoundError, "05_train_fcn_blue.png. Export"),
    ],
)
def test_what_is_missing_is_named_with_the_remedy(report, monkeypatch, more, error, message):
    use_order(monkeypatch, report, entry(**more))
    with pytest.raises(error, match=message):
        plan_slides(report)


@pytest.mark.parametrize("caveats", [None, ""])
def test_a_report_without_caveats_gets_no_slides(report, caveats):
    write_report(report, caveats=caveats)
    with pytest.raises(ValueError, match=r"Every slide carries the caveats.*names none"):
        plan_slides(report)
    (report / "report.json").unlink()
    with pytest.raises(FileNotFoundError, match="The talk needs the report in"):
        plan_slides(report)


def test_both_decks_show_the_same_natively(report, monkeypatch):
    picture = entry(figure="05_train_fcn_red")
    use_order(monkeypatch, report, entry(), entry(table="name", printed=2), picture)
    powerpoint, page = write_slides(folder=report)

    deck = Presentation(powerpoint)
    assert deck.slide_width / deck.slide_height == pytest.approx(16 / 9, rel=1e-3)
    opening, table, figure = deck.slides
    for number, slide in enumerate(deck.slides, start=1):
        texts = [shape.text_frame.text for shape in slide.shapes if shape.has_text_frame]
        assert f"{CAVEATS}   {number}" in texts
    assert opening.shapes.title.text == "A title"
    assert opening.notes_slide.notes_text_frame.text.startswith("Read this and that")
    (drawn,) = (shape.table for shape in table.shapes if shape.has_table)
    assert [cell.text for cell in drawn.rows[1].cells] == ["one", "1"]
    assert "Found: 0.61\nof nothing" in [s.text for s in table.shapes if s.has_text_frame]
    (picture,) = (shape for shape in figure.shapes if shape.shape_type == 13)
    assert picture.left > 0
    assert picture.left + picture.width < deck.slide_width
    assert picture.width / picture.height == pytest.approx(16 / 9, rel=1e-3)
    assert picture._element.nvPicPr.cNvPr.get("descr") == "A title"

    html = page.read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|<script[^>]*src""", html)
    sections = BeautifulSoup(html, "html.parser").select("section")
    assert {tag.footer.span.get_text() for tag in sections} == {CAVEATS}
    assert [tag.get_text() for tag in sections[1].select("td")] == ["one", "1"]
    assert sections[2].img["src"].startswith("data:image/png;base64,")
    assert [tag.aside.get_text() for tag in sections] == [
        s.notes_slide.notes_text_frame.text for s in deck.slides
    ]


# -- the order in which the report is told


@pytest.fixture(scope="module")
def stored():
    """Sections of the notebooks as they are in the repository."""
    return {path.stem: read_sections(path) for path in (ROOT / "notebooks").glob("0*.ipynb")}


@pytest.mark.parametrize("slide", ORDER, ids=lambda slide: slide["title"])
def test_a_slide_of_the_talk_finds_what_it_shows_and_has_a_title_of_one_line(slide, stored):
    listed = (ROOT / "figures/README.md").read_text()
    assert "figure" not in slide or f"`{slide['figure']}`" in listed
    found = fill_slide({k: v for k, v in slide.items() if k != "figure"}, stored, figures="")
    assert found.notes
    assert len(found.title) <= 45
