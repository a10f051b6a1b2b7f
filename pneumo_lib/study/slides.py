"""The talk: the report as a PowerPoint file and as an HTML deck that needs no network.

`slides.yaml` names what each slide shows. Every figure, table, printed line and speaker note comes
from the notebooks that the report executed, so that no number is typed in.
"""

import base64
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

import jinja2
import nbformat
import yaml
from bs4 import BeautifulSoup
from pptx import Presentation
from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
from pptx.util import Inches, Pt

from pneumo_lib._files import project_path
from pneumo_lib.plots.style import BACKBONES
from pneumo_lib.study.html import shrunk_picture
from pneumo_lib.study.notebooks import report_folder

_ORDER = Path(__file__).with_name("slides.yaml")
_HTML = Path(__file__).with_name("slides.html")
_WIDTH, _HEIGHT, _MARGIN = 13.333, 7.5, 0.5  # inches
_BODY = _WIDTH - 2 * _MARGIN
_TOP, _BOTTOM = 1.25, 6.95  # of what is between title and small print
_POINTS = 22  # size of the letters, the largest for tables too
_NAMES = {key: name for key, (name, *_) in BACKBONES.items()}


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
    """Writes the talk about a finished report as `slides.pptx` and `slides.html`.

    Args:
        data: `"phantoms"` or the folder of the data set that the report was about.
        folder: of the report. Default: the one that `run_report()` chooses for `data`.

    Returns:
        The `Path`s of the two files.

    Raises:
        FileNotFoundError: if the report, an executed notebook or an exported figure is missing.
        ValueError: if `slides.yaml` names what a notebook does not show, or the report has no
            caveats.
    """
    folder = project_path(folder or report_folder(data))
    slides, note = plan_slides(folder)
    pictures = {slide.figure: shrunk_picture(slide.figure) for slide in slides if slide.figure}
    powerpoint, page = folder / "slides.pptx", folder / "slides.html"
    _presentation(slides, pictures, note).save(powerpoint)
    template = jinja2.Environment(autoescape=True).from_string(_HTML.read_text(encoding="utf-8"))
    text = template.render(
        slides=slides,
        note=note,
        pictures={path: base64.b64encode(png).decode() for path, png in pictures.items()},
        letters=_letter_size,
    )
    page.write_text(text, encoding="utf-8")
    return powerpoint, page


def plan_slides(folder):
    """The slides of the talk, and the small print that goes below each of them.

    Args:
        folder: of the report, with the executed notebooks and `report.json`.

    Returns:
        List of `Slide`, and text such as "synthetic radiographs · split: official".
    """
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"The talk needs the report in {folder}. Make it: make report")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if not report.get("caveats"):
        raise ValueError(
            "Every slide carries the caveats of the report's training runs. Received: "
            f"{folder / 'report.json'}, which names none. Make the report again: make report"
        )
    read, slides = {}, []
    for entry in yaml.safe_load(_ORDER.read_text(encoding="utf-8")):
        if entry.get("optional") and not _executed(folder, entry["from"]):
            continue
        section = _section(folder, entry["from"], read)
        figure = Path(report["figures"], f"{entry['figure']}.png") if "figure" in entry else None
        if figure and not figure.is_file():
            raise FileNotFoundError(f"A slide needs {figure}. Export all figures: make figures")
        number, lines = entry.get("table", 0), entry.get("printed", 0)
        if number > len(section.tables) or lines > len(section.printed):
            raise ValueError(
                "slides.yaml may ask only for what a notebook shows. Received: table "
                f"{number} and {lines} printed lines of {entry['from']}, which has "
                f"{len(section.tables)} and {len(section.printed)}"
            )
        points = entry.get("points", []) + section.printed[:lines]
        table = section.tables[number - 1] if number else None
        slides.append(Slide(entry["title"], points, figure, table, "\n\n".join(section.prose)))
    return slides, report["caveats"]


def _section(folder, where, read):
    """The section that `where` names; `read` keeps the notebooks already read."""
    name, _, heading = where.partition(" / ")
    if name not in read:
        executed = _executed(folder, where)
        if not executed:
            raise FileNotFoundError(
                f"The talk needs {folder / name}.ipynb. Make the report first: make report"
            )
        read[name] = read_sections(executed)
    for start, section in read[name].items():
        if start.startswith(heading):
            return section
    raise ValueError(
        f"slides.yaml must name sections of the notebooks. Received: {where}. Sections there: "
        f"{', '.join(filter(None, read[name]))}"
    )


def _executed(folder, where):
    """The notebook that `where` names; of one that ran several times, its first network."""
    name = where.partition(" / ")[0]
    for path in [folder / f"{name}.ipynb", *(folder / f"{name}-{key}.ipynb" for key in BACKBONES)]:
        if path.is_file():
            return path
    return None


# -- reading an executed notebook --------------------------------------------------------------


def read_sections(notebook):
    """Dict from each heading of a notebook to its `Section`; what comes first is below ""."""
    current = Section([], [], [])
    sections = {"": current}
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type == "markdown":
            for piece in re.split(r"^(?=##+ )", cell.source, flags=re.M):
                if piece.startswith("##"):
                    heading, _, piece = piece.partition("\n")
                    current = sections.setdefault(heading.strip("# "), Section([], [], []))
                for block in re.split(r"\n\s*\n", piece.strip()):
                    if block.startswith("|"):
                        current.tables.append(_markdown_table(block))
                    elif block and not block.startswith("Figures are exported"):
                        current.prose.append(_plain(block))
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            if "text/html" in shown:
                current.tables.append(_html_table(shown["text/html"]))
            if output.get("name") == "stdout":  # a warning is no result
                lines = map(str.strip, output["text"].splitlines())
                current.printed.extend(filter(None, lines))
    return sections


def _plain(markdown):
    """Prose for the speaker: without line breaks and the marks of Markdown."""
    text = re.sub(r"\n(?![-\d>])", " ", markdown)
    text = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\*\*|`|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)", "", text)


def _markdown_table(block):
    rows = [
        [_plain(cell.strip()) for cell in r.strip()[1:-1].split("|")] for r in block.split("\n")
    ]
    return [rows[0], *rows[2:]]


def _html_table(html):
    """Rows of text of a table written by pandas: headings in one row, merged cells undone."""
    lines = BeautifulSoup(html, "html.parser").select("tr")
    grid, covered = [], set()  # covered: places that a merged cell from above reaches
    for number, line in enumerate(lines):
        row = []
        for cell in line.select("th, td"):
            while (number, len(row)) in covered:
                row.append("")
            for _ in range(int(cell.get("colspan", 1))):
                covered |= {(number + k, len(row)) for k in range(1, int(cell.get("rowspan", 1)))}
                row.append(cell.get_text(" ", strip=True))
        grid.append([_NAMES.get(text, text.replace("NaN", "–")) for text in row])
    heads = sum(line.find_parent("thead") is not None for line in lines)
    index = len(lines[heads].select("th"))  # columns that name the rows: their own name is last
    first = []
    for column, texts in enumerate(zip(*grid[:heads], strict=True)):
        texts = [text for text in texts if text]
        first.append(" ".join(texts[-1:] if column < index else texts).replace("_", " "))
    rows = [first, *grid[heads:]]
    numbered = not first[0] and [row[0] for row in rows[1:]] == [
        str(k) for k in range(len(rows) - 1)
    ]
    return [row[1:] for row in rows] if numbered else rows


# -- PowerPoint --------------------------------------------------------------------------------


def _presentation(slides, pictures, note):
    deck = Presentation()
    deck.slide_width, deck.slide_height = Inches(_WIDTH), Inches(_HEIGHT)
    for number, slide in enumerate(slides, start=1):
        page = deck.slides.add_slide(deck.slide_layouts[5])  # a title and nothing else
        top = 2.2 if number == 1 else 0.3
        _put_text(page.shapes.title, [slide.title], top, 0.9, size=44 if number == 1 else 30)
        page.shapes.title.text_frame.paragraphs[0].font.bold = True
        _put_text(page, [f"{note}   {number}"], 7.0, 0.4, size=12)
        top = 3.4 if number == 1 else _TOP
        if slide.figure:
            picture = page.shapes.add_picture(io.BytesIO(pictures[slide.figure]), 0, Inches(top))
            ratio = min(Inches(_BOTTOM - top) / picture.height, Inches(_BODY) / picture.width)
            picture.width, picture.height = int(ratio * picture.width), int(ratio * picture.height)
            picture.left = (deck.slide_width - picture.width) // 2
            picture._element.nvPicPr.cNvPr.set("descr", slide.title)
        if slide.table:
            top = _put_table(page, slide.table, top) + 0.3
        if slide.points:
            _put_text(page, slide.points, top, _BOTTOM - top, size=_POINTS)
        page.notes_slide.notes_text_frame.text = slide.notes
    return deck


def _put_text(shape, lines, top, height, *, size):
    """Write lines into a title, or into a new box on a slide."""
    if not hasattr(shape, "text_frame"):
        shape = shape.shapes.add_textbox(0, 0, 0, 0)
    shape.left, shape.top = Inches(_MARGIN), Inches(top)
    shape.width, shape.height = Inches(_BODY), Inches(height)
    frame = shape.text_frame
    frame.word_wrap, frame.vertical_anchor = True, MSO_ANCHOR.TOP
    for number, line in enumerate(lines):
        paragraph = frame.paragraphs[0] if number == 0 else frame.add_paragraph()
        paragraph.text, paragraph.font.size = line, Pt(size)
        paragraph.space_after = Pt(size / 3)
        paragraph.alignment = PP_ALIGN.LEFT


def _put_table(page, rows, top):
    """Add a native table; returns where it ends, in inches from above."""
    size = _letter_size(rows)
    height = 1.9 * size / 72
    frame = page.shapes.add_table(
        len(rows), len(rows[0]), Inches(_MARGIN), Inches(top), Inches(_BODY), 0
    )
    widths = _column_letters(rows)
    for column, width in zip(frame.table.columns, widths, strict=True):
        column.width = int(Inches(_BODY) * width / sum(widths))
    for cells, texts in zip(frame.table.rows, rows, strict=True):
        cells.height = Inches(height)
        for cell, text in zip(cells.cells, texts, strict=True):
            cell.text, cell.vertical_anchor = text, MSO_ANCHOR.MIDDLE
            cell.margin_left = cell.margin_right = Inches(0.08)
            cell.text_frame.paragraphs[0].font.size = Pt(size)
    return top + height * (len(rows) + 1)  # the headings may take two lines


def _column_letters(rows):
    """How many letters wide each column is; headings may break between words."""
    return [
        3
        + max(max(map(len, column[0].split() or [""])), *map(len, column[1:]), len(column[0]) // 2)
        for column in zip(*rows, strict=True)
    ]


def _letter_size(rows):
    """Size in points at which a table fills its slide and no line of it breaks."""
    width = 72 * _BODY / (0.52 * sum(_column_letters(rows)))
    height = 72 * (_BOTTOM - _TOP) / (1.9 * (len(rows) + 1))
    return int(min(_POINTS, width, height))
