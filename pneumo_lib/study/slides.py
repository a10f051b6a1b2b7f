"""Slides about a finished report: a PowerPoint file, and an HTML deck that needs no network.

`slides.yaml` lists the slides. Every figure, table, printed line and speaker note comes from the
notebooks that the report executed, so that no number is typed in.
"""

import base64
import io
import json
from pathlib import Path
from typing import NamedTuple

import jinja2
import nbformat
import yaml
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from pptx import Presentation
from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
from pptx.util import Inches, Pt

from pneumo_lib._files import project_path
from pneumo_lib.models.names import BACKBONES
from pneumo_lib.study.html import shrunk_picture
from pneumo_lib.study.notebooks import report_folder

_ORDER = Path(__file__).with_name("slides.yaml")
_HTML = Path(__file__).with_name("slides.html")
_WIDTH, _HEIGHT, _MARGIN = 13.333, 7.5, 0.5  # inches
_BODY = _WIDTH - 2 * _MARGIN
_TOP, _BOTTOM = 1.25, 6.95  # of what is between title and small print
_POINTS = 22  # font size, the largest for tables too
_MARKDOWN = MarkdownIt().enable("table")


class Section(NamedTuple):
    """What stands below one heading of an executed notebook."""

    prose: list  # paragraphs
    tables: list  # each a list of rows of text, headings first
    printed: list  # lines


class Slide(NamedTuple):
    """One slide, before it is drawn."""

    title: str
    points: list  # lines of text
    figure: Path | None
    table: list | None
    notes: str


def write_slides(data="phantoms", *, folder=None):
    """Writes the slides of a finished report as `slides.pptx` and `slides.html`.

    Args:
        data: `"phantoms"` or the folder of the data set that the report was about.
        folder: of the report. Default: the one that `run_report()` chooses for `data`.

    Returns:
        The `Path`s of the two files.

    Raises:
        FileNotFoundError: if the report or an exported figure is missing.
        ValueError: if `slides.yaml` names what a notebook does not show, or the report has no
            caveats.
    """
    folder = project_path(folder or report_folder(data))
    slides, note = plan_slides(folder)
    pictures = {slide.figure: shrunk_picture(slide.figure) for slide in slides if slide.figure}
    powerpoint, page = folder / "slides.pptx", folder / "slides.html"
    _presentation(slides, pictures, note).save(powerpoint)
    template = jinja2.Environment(autoescape=True).from_string(_HTML.read_text(encoding="utf-8"))
    encoded = {path: base64.b64encode(png).decode() for path, png in pictures.items()}
    text = template.render(slides=slides, note=note, pictures=encoded, font_size=_font_size)
    page.write_text(text, encoding="utf-8")
    return powerpoint, page


def plan_slides(folder):
    """List of `Slide`, and the small print of them all, of the report in `folder`."""
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"The talk needs the report in {folder}. Make it: make report")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if not report.get("caveats"):
        raise ValueError(
            "Every slide carries the caveats of the report's training runs. Received: "
            f"{folder / 'report.json'}, which names none. Make the report again: make report"
        )
    names = [record["name"] for record in report["notebooks"]]
    # of a notebook that was executed several times, the first network
    paths = {name.partition("-")[0]: folder / f"{name}.ipynb" for name in reversed(names)}
    notebooks = {name: read_sections(path) for name, path in paths.items()}
    slides = []
    for entry in yaml.safe_load(_ORDER.read_text(encoding="utf-8")):
        if not entry.get("optional") or entry["from"].partition(" / ")[0] in notebooks:
            slides.append(fill_slide(entry, notebooks, figures=report["figures"]))
    return slides, report["caveats"]


def fill_slide(entry, notebooks, *, figures):
    """`Slide` of an entry of `slides.yaml`.

    Args:
        entry: dict.
        notebooks: of each executed notebook by its name, what `read_sections()` returns.
        figures: folder of the exported figures.

    Raises:
        FileNotFoundError: if a figure is missing.
        ValueError: if the entry names what no notebook shows.
    """
    name, _, heading = entry["from"].partition(" / ")
    sections = notebooks.get(name, {})
    found = (section for start, section in sections.items() if start.startswith(heading))
    prose, tables, printed = next(found, Section([], [], []))
    column, lines = entry.get("table"), entry.get("printed", 0)
    table = next((rows for rows in tables if column in rows[0]), None)
    if not prose or (column and not table) or lines > len(printed):
        raise ValueError(
            "slides.yaml may ask only for what an executed notebook shows below a heading. "
            f"Received: {entry}. There are the headings {list(sections)}, and below this one "
            f"the tables {[rows[0] for rows in tables]} and {len(printed)} printed lines"
        )
    figure = Path(figures, f"{entry['figure']}.png") if "figure" in entry else None
    if figure and not figure.is_file():
        raise FileNotFoundError(f"A slide needs {figure}. Export all figures: make figures")
    points = entry.get("points", []) + printed[:lines]
    return Slide(entry["title"], points, figure, table, "\n\n".join(prose))


# -- reading an executed notebook --------------------------------------------------------------


def read_sections(notebook):
    """Dict from each heading of a notebook to its `Section`; what comes first is below ""."""
    sections = {"": (current := Section([], [], []))}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown":
            text = BeautifulSoup(_MARKDOWN.render(cell.source), "html.parser")
            for block in text.find_all(recursive=False):
                if block.name in ("h2", "h3", "h4"):
                    current = sections.setdefault(_text(block), Section([], [], []))
                elif block.name == "table":
                    current.tables.append(_rows(block))
                elif not _text(block).startswith("Figures are exported"):
                    lines = [f"- {_text(item)}" for item in block.select("li")] or [_text(block)]
                    current.prose.append("\n".join(lines))
        for output in cell.get("outputs", []):
            html = output.get("data", {}).get("text/html", "")
            current.tables.extend(map(_rows, BeautifulSoup(html, "html.parser").select("table")))
            if output.get("name") == "stdout":  # a warning is no result
                lines = map(str.strip, output["text"].splitlines())
                current.printed.extend(filter(None, lines))
    return sections


def _text(element):
    """Text of an HTML element on one line."""
    return " ".join(element.get_text().split())


def _rows(table):
    """Rows of text of an HTML table: headings in one row, a merged cell in its first place."""
    lines, grid = table.select("tr"), {}
    for place, line in enumerate(lines):
        column = 0
        for cell in line.select("th, td"):
            while (place, column) in grid:
                column += 1
            width, height = (int(cell.get(name, 1)) for name in ("colspan", "rowspan"))
            text = BACKBONES.get(_text(cell), _text(cell).replace("NaN", "–"))
            for k in range(width * height):
                grid[place + k // width, column + k % width] = text if k < width else ""
    columns = range(1 + max(column for _, column in grid))
    rows = [[grid.get((place, column), "") for column in columns] for place in range(len(lines))]
    heads = len(table.select("thead tr"))
    index = len(lines[heads].select("th"))  # columns that name the rows: their own name is last
    first = []
    for column, texts in enumerate(zip(*rows[:heads], strict=True)):
        texts = [text for text in texts if text]
        first.append(" ".join(texts[-1:] if column < index else texts).replace("_", " "))
    rows = [first, *rows[heads:]]
    numbers = [str(number) for number in range(len(rows) - 1)]  # an index that names nothing
    return [row[not first[0] and [r[0] for r in rows[1:]] == numbers :] for row in rows]


# -- PowerPoint --------------------------------------------------------------------------------


def _presentation(slides, pictures, note):
    deck = Presentation()
    deck.slide_width, deck.slide_height = Inches(_WIDTH), Inches(_HEIGHT)
    for number, slide in enumerate(slides, start=1):
        page = deck.slides.add_slide(deck.slide_layouts[5])  # a title and nothing else
        title_top, size, top = (2.2, 44, 3.4) if number == 1 else (0.3, 30, _TOP)
        title = _write(page.shapes.title, [slide.title], title_top, 0.9, size=size)
        title.paragraphs[0].font.bold = True
        _write(page.shapes.add_textbox(0, 0, 0, 0), [f"{note}   {number}"], 7.0, 0.4, size=12)
        if slide.figure:
            picture = page.shapes.add_picture(io.BytesIO(pictures[slide.figure]), 0, Inches(top))
            ratio = min(Inches(_BOTTOM - top) / picture.height, Inches(_BODY) / picture.width)
            picture.width, picture.height = int(ratio * picture.width), int(ratio * picture.height)
            picture.left = (deck.slide_width - picture.width) // 2
            picture._element.nvPicPr.cNvPr.set("descr", slide.title)
        if slide.table:
            top = _add_table(page, slide.table, top) + 0.3
        if slide.points:
            box = page.shapes.add_textbox(0, 0, 0, 0)
            _write(box, slide.points, top, _BOTTOM - top, size=_POINTS)
        page.notes_slide.notes_text_frame.text = slide.notes
    return deck


def _write(shape, lines, top, height, *, size):
    """Writes lines into a shape as wide as the slide; returns its text frame."""
    shape.left, shape.top = Inches(_MARGIN), Inches(top)
    shape.width, shape.height = Inches(_BODY), Inches(height)
    frame = shape.text_frame
    frame.word_wrap, frame.vertical_anchor = True, MSO_ANCHOR.TOP
    frame.text = "\n".join(lines)
    for paragraph in frame.paragraphs:
        paragraph.font.size, paragraph.space_after = Pt(size), Pt(size / 3)
        paragraph.alignment = PP_ALIGN.LEFT
    return frame


def _add_table(page, rows, top):
    """Adds a native table; returns where it ends, in inches from the top of the slide."""
    size, widths = _font_size(rows), _column_letters(rows)
    height = 1.9 * size / 72
    place = Inches(_MARGIN), Inches(top), Inches(_BODY), 0
    table = page.shapes.add_table(len(rows), len(rows[0]), *place).table
    for column, width in zip(table.columns, widths, strict=True):
        column.width = int(Inches(_BODY) * width / sum(widths))
    for cells, texts in zip(table.rows, rows, strict=True):
        cells.height = Inches(height)
        for cell, text in zip(cells.cells, texts, strict=True):
            cell.text, cell.vertical_anchor = text, MSO_ANCHOR.MIDDLE
            cell.margin_left = cell.margin_right = Inches(0.08)
            cell.text_frame.paragraphs[0].font.size = Pt(size)
    return top + height * (len(rows) + 1)  # the headings may take two lines


def _column_letters(rows):
    """How many letters wide each column is; headings may break between words."""
    columns = [
        (*column[0].split(), *column[1:], column[0][::2]) for column in zip(*rows, strict=True)
    ]
    return [3 + max(map(len, texts)) for texts in columns]


def _font_size(rows):
    """Size in points at which a table fills its slide and no line of it breaks."""
    width = 72 * _BODY / (0.52 * sum(_column_letters(rows)))
    height = 72 * (_BOTTOM - _TOP) / (1.9 * (len(rows) + 1))
    return int(min(_POINTS, width, height))
