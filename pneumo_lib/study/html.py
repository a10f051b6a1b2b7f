"""The report's HTML: a first page with results and figures, and each executed notebook as a page.

Rendered by Sphinx as the course is, with `site/conf.py`: all of it can be read without a network
and copied elsewhere.
"""

import io
import re
import shutil
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

import jinja2
from PIL import Image, ImageChops
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

from pneumo_lib._files import source_path
from pneumo_lib.evaluation.score_table import format_table, score_table
from pneumo_lib.models.names import BACKBONES
from pneumo_lib.study.findings import run_scores
from pneumo_lib.study.notebooks import figures_folder

_INDEX = Path(__file__).with_name("report.md")


def write_report(folder, records, settings, *, runs, notebooks=()):
    """Writes the report's first page and a page for each notebook; returns the first one's `Path`.

    Args:
        folder: of the report, with the executed notebooks in it.
        records: list of dicts with `name`, `seconds` and `peak_gb`.
        settings: dict of parameters, with `data`.
        runs: list of `Run` that the report trained.
        notebooks: paths of all notebooks; a link to one that was not executed downloads it.
    """
    names = [record["name"] for record in records]
    # of a notebook that ran several times ("05_train_fcn-vgg19"), the first
    executed = {name.partition("-")[0]: name for name in reversed(names)}
    figures = {}
    if settings.get("export", True):  # else those in the folder are of another run
        figures = {name: _figures(stem, settings) for stem, name in sorted(executed.items())}
    with TemporaryDirectory() as temporary, patch_docutils(), docutils_namespace():
        source, built, cache = (Path(temporary, name) for name in ("source", "built", "cache"))
        source.mkdir()
        index = _first_page(records, settings, runs, figures)
        (source / "index.md").write_text(index, encoding="utf-8")
        for path in (path for shown in figures.values() for path in shown):
            (source / path.name).write_bytes(shrunk_picture(path))
        links = {f"{stem}.ipynb": f"{name}.ipynb" for stem, name in executed.items()}
        for path in (path for path in notebooks if path.name not in links):
            shutil.copy(path, temporary)
            links[path.name] = f"path:../{path.name}"
        for name in names:
            text = _with_links(folder / f"{name}.ipynb", links)
            (source / f"{name}.ipynb").write_text(text, encoding="utf-8")
        Sphinx(source, source_path("site"), built, cache, "html", status=None).build()
        shutil.rmtree(folder / "_images", ignore_errors=True)  # of an earlier report
        shutil.copytree(built, folder, dirs_exist_ok=True)
    return folder / "index.html"


def _with_links(path, links):
    """Text of a notebook with other links; its title, which search shows, names the network."""
    text = path.read_text(encoding="utf-8")
    for link, target in links.items():
        text = text.replace(f"]({link}", f"]({target}")
    network = path.stem.partition("-")[2]
    return re.sub(r'"# [^"\\]+', rf"\g<0> ({network})", text, count=1) if network else text


def _first_page(records, settings, runs, figures):
    """Markdown; values from outside stand in HTML, where they are escaped."""
    configs = [run.config for run in runs]
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        # an empty line would end the HTML around a value, and what follows would be Markdown
        finalize=lambda value: " ".join(value.split()) if type(value) is str else value,
    )
    return environment.from_string(_INDEX.read_text(encoding="utf-8")).render(
        data=Path(settings["data"]).name,
        synthetic=_synthetic(settings["data"], configs),
        settings=settings,
        notebooks=records,
        figures={name: shown for name, shown in figures.items() if shown},
        configs=configs,
        weights=dict.fromkeys((BACKBONES[c["backbone"]], c["weights"]) for c in configs),
        results=_results_tables(runs),
        seeds=len({c["seed"] for c in configs}),
        seconds=sum(record["seconds"] for record in records),
        peak_gb=max(record["peak_gb"] for record in records),
    )


def _synthetic(data, configs):
    """Whether the X-rays are drawn: `True`, `False`, or `None` where it is unknown."""
    if configs:
        return configs[0]["synthetic"]
    return True if data == "phantoms" or (Path(data) / "phantoms.json").is_file() else None


def _results_tables(runs):
    """Scores at the milestones: dict from caption to HTML, the all-background row first."""
    if not runs:
        return {}
    table = score_table(run_scores(runs), by=["network", "weights", "epoch"], mean_over="seed")
    table = format_table(table).astype(object).fillna("–").replace({"network": BACKBONES})
    found = {}
    for split in ("test", "validation", "train"):  # the split to read comes first
        if (rows := table[table["split"] == split]).empty:
            continue
        images, positives = rows.iloc[0][["images", "positives"]]
        rows = rows.drop(columns=["weights", "split", "images", "positives"])
        text = rows.to_html(index=False, border=0, classes="table")
        # the interval goes below its score, so that all columns fit on a page
        text = re.sub(r" (\[[\d., -]+\])</td>", r"<br><small>\1</small></td>", text)
        found[f"{split}: {images} images, {positives} of them with pneumothorax"] = text
    return found


def _figures(stem, settings):
    """Dict from a notebook's exported figures to their captions, in the order of the notebook."""
    paths = figures_folder(settings["data"]).glob(f"{stem}_*.png")
    paths = sorted(paths, key=lambda path: path.stat().st_mtime_ns)
    listed = source_path("figures/README.md").read_text(encoding="utf-8")
    captions = dict(re.findall(r"^\| `([\w*]+)` \| (.+) \|$", listed, re.M))
    found = {}
    for path in paths:
        name = path.stem.removeprefix(f"{stem}_").replace("_", " ").capitalize()
        found[path] = f"{name}."
        for pattern, sentence in captions.items():
            if fnmatch(path.stem, pattern):
                network = path.stem.removeprefix(pattern.rstrip("*"))
                found[path] = f"{sentence[:-1]}: {network}." if network else sentence
    return found


def shrunk_picture(path):
    """Bytes of a PNG of a page's width at most, without empty borders."""
    from pneumo_lib.plots.style import PAGE_PIXELS  # matplotlib

    image, small = Image.open(path).convert("RGB"), io.BytesIO()
    empty = Image.new("RGB", image.size, image.getpixel((0, 0)))
    image = image.crop(ImageChops.difference(image, empty).getbbox())
    image.thumbnail((PAGE_PIXELS, PAGE_PIXELS))
    image.save(small, "png")
    return small.getvalue()
