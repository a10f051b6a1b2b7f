"""The slides: what is read from executed notebooks, and what the two decks contain."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from pptx import Presentation

from pneumo_lib.plots.style import ERRORS
from pneumo_lib.runs import load_run
from pneumo_lib.study import slides
from pneumo_lib.study.findings import findings
from pneumo_lib.study.slides import plan_slides, read_sections, write_slides

ROOT = Path(__file__).parents[2]
README = (ROOT / "figures/README.md").read_text()
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
def report(tmp_path, monkeypatch):
    """A report of one notebook with a table, a printed line and a figure, about one run."""
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    write_run(tmp_path / "runs/mine")
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


def write_run(folder, backbone="small", found=(2, 1, 0)):
    """A run of a train, a validation and 4 test images; of 3 pixels, 2, 1 and 0 found in test."""
    folder.mkdir(parents=True)
    (folder / "model.keras").touch()
    split = ["train", "validation", *["test"] * 4]
    counts = {"tp": [0, 0, *found, 0], "fp": [0] * 5 + [1], "tn": [7] * 5 + [9]}
    table = pd.DataFrame({"epoch": 1, "image_id": range(6), "split": split} | counts)
    table["has_pneumothorax"] = table["image_id"] < 5
    table["fn"] = 10 - table[["tp", "fp", "tn"]].sum(axis=1)
    table.to_csv(folder / "scores.csv", index=False)
    pd.DataFrame({"epoch": [1], "val_iou": [0.25]}).to_csv(folder / "history.csv", index=False)
    config = {"backbone": backbone, "weights": "from scratch", "seed": 0, "leaked_patients": 0}
    config["parameters"] = {"trainable": 10, "total": 40}
    (folder / "config.json").write_text(json.dumps(config))


def write_report(folder, **content):
    trained = {"learnt": "a checksum", "parameters": {"run_name": "mine"}}
    names = [{"name": "05_train_fcn-resnet50"} | trained, {"name": "05_train_fcn-small"}]
    content = {"figures": str(folder), "notebooks": names} | content
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


def test_a_count_of_a_thousand_or_more_is_grouped_whatever_stands_in_its_column():
    cells = {"a": "53426", "b": "6212", "c": "0.12345", "d": "999"}
    html = "<thead><tr><th></th><th>n</th></tr></thead>"
    html += "".join(f"<tr><th>{k}</th><td>{text}</td></tr>" for k, text in cells.items())
    rows = slides._rows(BeautifulSoup(html, "html.parser"))
    assert rows == [["", "n"], ["a", "53,426"], ["b", "6,212"], ["c", "0.12345"], ["d", "999"]]


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


def test_a_title_or_point_begins_with_a_capital_whatever_network_it_names(report, monkeypatch):
    use_order(monkeypatch, report, entry(title="{{ chosen }} wins", points=["{{ chosen }}."]))
    [slide], _ = plan_slides(report)
    assert (slide.title, slide.points) == ("Small FCN wins", ["Small FCN."])


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


def test_titles_state_the_numbers_of_the_run(report, monkeypatch):
    title = "{{ chosen }} misses {{ test[chosen].missed }} of {{ test[chosen].positives }}"
    use_order(monkeypatch, report, entry(title=title, points=["{{ images }}", "{{ '' }}"]))
    ((slide,), _) = plan_slides(report)
    assert slide.title == "Small FCN misses 1 of 3"
    assert slide.points == ["6"]  # an empty point is left out


def test_findings_are_what_a_reader_counts(report):
    write_run(report / "runs/other", "vgg19", found=(3, 3, 3))
    found = findings([load_run("other"), load_run("mine")])
    assert (found["images"], found["positives"], found["learnt"]) == (6, 5, 25)
    assert found["pixels"] == pytest.approx(100 * 15 / 60)  # 5 lesions of 3 pixels in 6 x 10
    assert found["empty"]["siim_dice"] == 0.25
    assert found["chosen"] == "VGG19"  # equal on validation: the first
    assert found["dice"] == [1, 1, 1]
    assert [found["test"][name]["missed"] for name in ("VGG19", "small FCN")] == [0, 1]
    assert found["test"]["small FCN"]["alarms"] == 1
    assert found["tables"]["found"] == [
        ["", "found", "missed"], ["VGG19", 3, 0], ["small FCN", 2, 1]
    ]  # fmt: skip
    assert found["tables"]["curves"] == [["", "VGG19", "small FCN"], [1, 0.25, 0.25]]


def test_a_table_becomes_a_chart_that_can_be_edited(report, monkeypatch):
    rows = [["", "found", "missed"], ["a", "1,204", "–"], ["b", "0.5", "2"]]
    made = slides.findings
    monkeypatch.setattr(slides, "findings", lambda runs: made(runs) | {"tables": {"counts": rows}})
    use_order(monkeypatch, report, entry(table="counts", chart="BAR_STACKED"))
    deck = Presentation(write_slides(folder=report)[0])
    (chart,) = (shape.chart for shape in deck.slides[0].shapes if shape.has_chart)
    assert list(chart.plots[0].categories) == ["a", "b"]
    assert [list(series.values) for series in chart.plots[0].series] == [[1204, 0.5], [None, 2]]
    formats = chart._chartSpace.xpath(".//c:val//c:formatCode/text()")
    assert formats == ["#,##0.0", "#,##0"]  # as many decimals as in the text
    assert [f"#{s.format.fill.fore_color.rgb}" for s in chart.plots[0].series] == [
        ERRORS["found"], ERRORS["missed"]
    ]  # fmt: skip


def test_a_column_without_any_number_has_no_bars():
    chart = slides._chart("BAR_CLUSTERED", [["network", "parameters"], ["VGG19", "unknown"]])
    assert chart["series"] == {"parameters": (None,)}


def test_an_interval_goes_below_the_name_of_its_bar():
    rows = [["backbone", "test"], ["small FCN (from scratch)", "0.70 [0.52, 0.84]"]]
    chart = slides._chart("BAR_CLUSTERED", rows)
    assert chart["categories"] == ["small FCN\n[0.52, 0.84]"]
    assert chart["series"] == {"test": (0.7,)}
    assert chart["formats"] == {"test": "#,##0.00"}


def test_both_decks_show_the_same_natively(report, monkeypatch):
    picture = entry(figure="05_train_fcn_red")
    opening = entry(dark=True, points=["A question?"])
    use_order(monkeypatch, report, opening, entry(table="name", printed=2), picture)
    powerpoint, page = write_slides(folder=report)

    deck = Presentation(powerpoint)
    assert deck.slide_width / deck.slide_height == pytest.approx(16 / 9, rel=1e-3)
    opening, table, figure = deck.slides
    for slide in deck.slides:
        assert slide.placeholders[11].text == f"05_train_fcn.ipynb, First  ·  {CAVEATS}"
    assert opening.shapes.title.text == "A title"
    assert opening.notes_slide.notes_text_frame.text.startswith("Read this and that")
    (drawn,) = (shape.table for shape in table.shapes if shape.has_table)
    assert [cell.text for cell in drawn.rows[1].cells] == ["one", "1"]
    assert table.placeholders[1].text == "Found: 0.61\nof nothing"
    (picture,) = (shape for shape in figure.shapes if shape.shape_type == 13)
    assert picture.width / picture.height == pytest.approx(16 / 9, rel=1e-3)
    assert picture._element.nvPicPr.cNvPr.get("descr") == "A title"

    html = page.read_text()
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|<script[^>]*src""", html)
    sections = BeautifulSoup(html, "html.parser").select("section")
    assert all(CAVEATS in tag.footer.span.get_text() for tag in sections)
    assert [tag.get_text() for tag in sections[1].select("td")] == ["one", "1"]
    assert sections[2].img["src"].startswith("data:image/png;base64,")
    assert [tag.aside.get_text() for tag in sections] == [
        s.notes_slide.notes_text_frame.text for s in deck.slides
    ]


# -- the order in which the report is told


@pytest.fixture
def talk(report):
    """The deck of the notebooks in the repository, with grey squares as figures."""
    names = [path.stem for path in (ROOT / "notebooks").glob("0*.ipynb")]
    for name in names:
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", report)
    for figure in (slide["figure"] for slide in ORDER if "figure" in slide):
        Image.new("RGB", (160, 90), "gray").save(report / f"{figure}.png")
    trained = {"learnt": "a checksum", "parameters": {"run_name": "mine"}}
    records = [{"name": name} for name in names] + [{"name": "05_train_fcn"} | trained]
    write_report(report, caveats=CAVEATS, notebooks=records)
    return Presentation(write_slides(folder=report)[0])


def test_the_talk_has_no_letter_below_18_points_but_in_footers_and_nothing_beyond_its_slides(talk):
    assert len(talk.slides) == len(ORDER)
    parts = [talk.slide_master, *talk.slide_layouts, *talk.slides]
    charts = [s.chart for slide in talk.slides for s in slide.shapes if s.has_chart]
    for element in [shape._element for part in parts for shape in part.shapes]:
        sizes = [int(size) for size in element.xpath(".//@sz[number() = number()]")]
        small = element.xpath(".//p:cNvPr/@name")[0].startswith(("Footer", "Number"))
        assert small or all(size >= 1800 for size in sizes)
    assert len(charts) == sum("chart" in slide for slide in ORDER)
    assert all(chart.font.size.pt >= 18 for chart in charts)
    for slide in talk.slides:
        assert len(slide.shapes.title.text) <= 100, slide.shapes.title.text  # two lines
        for shape in slide.shapes:
            assert shape.left >= 0, shape.name
            assert shape.left + shape.width <= talk.slide_width, shape.name
            lowest = slide.placeholders[11].top  # the footer
            assert shape.top + shape.height <= lowest or shape.name.startswith("Text"), shape.name
            assert not shape.is_placeholder or shape.text_frame.text, shape.name


@pytest.mark.parametrize("slide", ORDER, ids=lambda slide: slide["title"][:40])
def test_a_figure_of_the_talk_is_listed(slide):
    assert "figure" not in slide or f"`{slide['figure']}`" in README
