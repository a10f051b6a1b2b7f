"""Slides about a finished report: a PowerPoint file, and an HTML deck that needs no network.

`slides.yaml` lists the slides. Every figure, table, printed line and speaker note comes from the
notebooks that the report executed, and every number of a title from its runs: none is typed in.
"""

import base64
import json
import re
from pathlib import Path
from typing import NamedTuple

import jinja2
import nbformat
import yaml
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

from pneumo_lib._files import project_path
from pneumo_lib.models.names import BACKBONES
from pneumo_lib.runs import load_run
from pneumo_lib.study.findings import findings
from pneumo_lib.study.html import shrunk_picture
from pneumo_lib.study.notebooks import report_folder
from pneumo_lib.study.powerpoint import presentation, table_points

_ORDER = Path(__file__).with_name("slides.yaml")
_HTML = Path(__file__).with_name("slides.html")
_MARKDOWN = MarkdownIt().enable("table")
_TITLES = jinja2.Environment(undefined=jinja2.StrictUndefined)


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
    table: list | None  # rows of text, headings first
    chart: dict | None  # "kind" of PowerPoint; "categories"; "series", name to numbers
    source: str
    notes: str
    dark: bool  # the opening, and the first slide of a part


def write_slides(data="phantoms", *, folder=None):
    """Writes the slides of a finished report as `slides.pptx` and `slides.html`.

    Args:
        data: `"phantoms"` or the folder of the data set that the report was about.
        folder: of the report. Default: the one that `run_report()` chooses for `data`.

    Returns:
        The `Path`s of the two files.

    Raises:
        FileNotFoundError: if the report, a run or an exported figure is missing.
        ValueError: if `slides.yaml` names what a notebook does not show, or the report has no
            caveats.
    """
    folder = project_path(folder or report_folder(data))
    slides, note = plan_slides(folder)
    pictures = {slide.figure: shrunk_picture(slide.figure) for slide in slides if slide.figure}
    powerpoint, page = folder / "slides.pptx", folder / "slides.html"
    presentation(slides, pictures, note).save(powerpoint)
    template = jinja2.Environment(autoescape=True).from_string(_HTML.read_text(encoding="utf-8"))
    encoded = {path: base64.b64encode(png).decode() for path, png in pictures.items()}
    text = template.render(slides=slides, note=note, pictures=encoded, font_size=table_points)
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
    trained = [record for record in report["notebooks"] if record.get("learnt")]
    found = findings([load_run(record["parameters"]["run_name"]) for record in trained])
    names = [record["name"] for record in report["notebooks"]]
    # of a notebook that was executed several times, the first network
    paths = {name.partition("-")[0]: folder / f"{name}.ipynb" for name in reversed(names)}
    notebooks = {name: read_sections(path) for name, path in paths.items()}
    slides = []
    for entry in yaml.safe_load(_ORDER.read_text(encoding="utf-8")):
        if not entry.get("optional") or entry["from"].partition(" / ")[0] in notebooks:
            slides.append(fill_slide(entry, notebooks, found, figures=report["figures"]))
    return slides, report["caveats"]


def fill_slide(entry, notebooks, found, *, figures):
    """`Slide` of an entry of `slides.yaml`.

    Args:
        entry: dict.
        notebooks: of each executed notebook by its name, what `read_sections()` returns.
        found: what `findings()` returns: names in the Jinja templates of title and points.
        figures: folder of the exported figures.

    Raises:
        FileNotFoundError: if a figure is missing.
        ValueError: if the entry names what no notebook shows.
    """
    name, _, heading = entry["from"].partition(" / ")
    sections = notebooks.get(name, {})
    started = (section for start, section in sections.items() if start.startswith(heading))
    prose, tables, printed = next(started, Section([], [], []))
    column, lines = entry.get("table"), entry.get("printed", 0)
    tables = [*tables, *found["tables"].values()] if column in found["tables"] else tables
    table = found["tables"].get(column) or next((t for t in tables if column in t[0]), None)
    if not prose or (column and not table) or lines > len(printed):
        raise ValueError(
            "slides.yaml may ask only for what an executed notebook shows below a heading. "
            f"Received: {entry}. There are the headings {list(sections)}, and below this one "
            f"the tables {[rows[0] for rows in tables]} and {len(printed)} printed lines"
        )
    figure = Path(figures, f"{entry['figure']}.png") if "figure" in entry else None
    if figure and not figure.is_file():
        raise FileNotFoundError(f"A slide needs {figure}. Export all figures: make figures")
    render = [_TITLES.from_string(text) for text in (entry["title"], *entry.get("points", ()))]
    texts = (template.render(found) for template in render)
    title, *points = (text[:1].upper() + text[1:] for text in texts)  # of a network's name, too
    if table:
        kept = entry.get("columns", range(1, len(table[0])))
        table = [[row[0], *(row[k] for k in kept)] for row in table[: entry.get("rows", 99) + 1]]
    chart = _chart(entry["chart"], table) if "chart" in entry else None
    return Slide(
        title=title,
        points=[*filter(None, points), *printed[:lines]],
        figure=figure,
        table=None if chart else table,
        chart=chart,
        source=f"{name}.ipynb, {heading}",
        notes="\n\n".join(prose),
        dark=entry.get("dark", False),
    )


def _chart(kind, rows):
    """Categories and series of a chart from rows; "0.70 [0.5, 0.8]" is 0.70 and its name."""
    names, series, formats = [str(row[0]) for row in rows[1:]], {}, {}
    for heading, *cells in zip(*(row[1:] for row in rows), strict=True):
        texts = [str(cell).partition(" [") for cell in cells]
        if len(rows[0]) == 2:
            names = [
                f"{n.partition(' (')[0]}\n{''.join(t[1:])}".replace("\n ", "\n").strip()
                for n, t in zip(names, texts, strict=True)
            ]
        numbers = [re.match(r"-?\d+\.?\d*", text[0].replace(",", "")) for text in texts]
        series[heading] = tuple(float(number[0]) if number else None for number in numbers)
        digits = max((len(n[0].partition(".")[2]) for n in numbers if n), default=0)
        formats[heading] = f"#,##0.{'0' * digits}".rstrip(".") if "BAR" in kind else "General"
    return {"kind": kind, "categories": names, "series": series, "formats": formats}


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
            text = f"{int(text):,}" if re.fullmatch(r"\d{4,}", text) else text
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
