"""The report's HTML: each executed notebook as a page, and one index with results and figures.

All of it can be read without a network and copied elsewhere: images are embedded, formulas
become MathML, and nothing is loaded from other hosts.
"""

import base64
import html
import io
import re
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from latex2mathml.converter import convert as mathml
from nbconvert import HTMLExporter
from PIL import Image, ImageChops

from pneumo_lib.paths import figures_folder
from pneumo_lib.runs import load_run
from pneumo_lib.tables import format_table, score_table

_PAGE_PIXELS = (1600, 1600)
_INDEX = Path(__file__).with_name("report.html")
# nbconvert's page without the scripts it fetches from other hosts, with a way back, and with
# words for those who cannot see a figure.
_NOTEBOOK = """
{%- extends "lab/index.html.j2" -%}
{% block html_head_js %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block body_header %}
{{ super() }}<p><a href="index.html">← All of the report</a></p>
{% endblock %}
{% block data_png scoped %}
<div class="jp-RenderedImage jp-OutputArea-output">
<img alt="{{ output.metadata.alt | escape_html }}"
src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"></div>
{% endblock %}
"""
# Formulas, and the code in which a dollar is just a dollar.
_MATH = re.compile(r"<(pre|code)\b.*?</\1>|\$\$(?P<block>.+?)\$\$|\$(?P<inline>[^$\n]+?)\$", re.S)


class _OfflineExporter(HTMLExporter):
    """nbconvert's exporter, with formulas as MathML instead of a script that draws them."""

    @jinja2.pass_context
    def markdown2html(self, context, source):
        return _MATH.sub(_to_mathml, super().markdown2html(context, source))


def _to_mathml(match):
    for display in ("block", "inline"):
        if latex := match[display]:
            return mathml(html.unescape(latex), display=display)
    return match[0]


def write_notebook_page(executed, links):
    """Writes an executed notebook as HTML beside it; returns the page's `Path`.

    Args:
        executed: path of the `.ipynb`.
        links: dict from a notebook's file name to the page that links to it should open.
    """
    nb = nbformat.read(executed, as_version=4)
    heading = executed.stem
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            heading = next(re.finditer(r"^#+ *(.+)", cell.source, re.M), [0, heading])[1]
        # A finished progress bar tells nothing, and it is a widget that needs a script to show.
        cell["outputs"] = [o for o in cell.get("outputs", []) if not _is_widget(o)]
        for output in cell["outputs"]:
            output.setdefault("metadata", {})["alt"] = f"Figure: {heading}"
    exporter = _OfflineExporter(raw_template=_NOTEBOOK, embed_images=True)
    resources = {"metadata": {"name": executed.stem, "path": str(executed.parent)}}
    text, _ = exporter.from_notebook_node(nb, resources=resources)
    for name, target in links.items():
        text = text.replace(f'href="{html.escape(name)}"', f'href="{html.escape(target)}"')
    page = executed.with_suffix(".html")
    page.write_text(text, encoding="utf-8")
    return page


def _is_widget(output):
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def write_index(folder, records, settings):
    """Writes the report's first page from the records of its notebooks; returns its `Path`.

    Args:
        folder: of the report; the executed notebooks and their pages lie in it.
        records: list of dicts with `name`, `seconds`, `peak_gb`, `parameters` and `learnt`, None
            unless the notebook trained the run that its parameter `run_name` names.
        settings: dict of parameters, with `data`.
    """
    runs = [load_run(r["parameters"]["run_name"]) for r in records if r["learnt"]]
    figures = figures_folder(settings["data"])
    notebooks = [r | {"title": _title(folder / f"{r['name']}.ipynb")} for r in records]
    # figures are named after the notebook, which may have run several times ("05_train_fcn-vgg19")
    titles = {n["name"].split("-")[0]: n["title"] for n in notebooks}
    sections = [
        (title, [_figure(path, stem) for path in sorted(figures.glob(f"{stem}_*.png"))])
        for stem, title in titles.items()
        if settings.get("export", True)  # else those that lie there are of another run
    ]
    configs = [run.config for run in runs]
    template = jinja2.Environment(autoescape=True).from_string(_INDEX.read_text(encoding="utf-8"))
    page = folder / "index.html"
    text = template.render(
        data=Path(settings["data"]).name,
        synthetic=settings["data"] == "phantoms",
        settings=settings,
        notebooks=notebooks,
        sections=[section for section in sections if section[1]],
        configs=configs,
        random_features=[c["backbone"] for c in configs if c["weights"] == "random features"],
        results=_results_tables(runs),
        seconds=sum(record["seconds"] for record in records),
        peak_gb=max(record["peak_gb"] for record in records),
    )
    page.write_text(text, encoding="utf-8")
    return page


def _results_tables(runs):
    """Scores after the last epoch: dict from caption to HTML, the all-background row first."""
    if not runs:
        return {}
    parts = [
        run.scores[run.scores["epoch"] == run.scores["epoch"].max()].assign(
            network=run.config["backbone"], weights=run.config["weights"]
        )
        for run in runs
    ]
    table = format_table(score_table(pd.concat(parts), by=["network", "weights"])).fillna("–")
    found = {}
    for split in ("test", "validation", "train"):
        rows = table[table["split"] == split]
        if len(rows):
            images, positives = rows.iloc[0][["images", "positives"]]
            text = rows.drop(columns=["split", "images", "positives"]).to_html(
                index=False, border=0, escape=True
            )
            # the interval goes below its score, so that all columns fit on a page
            text = re.sub(r" (\[[\d., -]+\])</td>", r"<br><small>\1</small></td>", text)
            found[f"{split}: {images} images, {positives} of them with pneumothorax"] = text
    return found


def _title(executed):
    """First heading of a notebook."""
    for cell in nbformat.read(executed, as_version=4).cells:
        if cell.cell_type == "markdown" and cell.source.startswith("# "):
            return cell.source.splitlines()[0].removeprefix("# ")
    return executed.stem


def _figure(path, stem):
    caption = path.stem.removeprefix(stem).strip("_").replace("_", " ")
    data = base64.b64encode(shrunk_picture(path)).decode()
    return {"caption": caption.capitalize(), "source": f"data:image/png;base64,{data}"}


def shrunk_picture(path):
    """Bytes of a PNG at screen size, without empty borders: 300 dpi made the page 24 MB."""
    image, small = Image.open(path).convert("RGB"), io.BytesIO()
    empty = Image.new("RGB", image.size, image.getpixel((0, 0)))
    image = image.crop(ImageChops.difference(image, empty).getbbox())
    image.thumbnail(_PAGE_PIXELS)
    image.save(small, "png", optimize=True)
    return small.getvalue()
