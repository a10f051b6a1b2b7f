"""The course site: built once from the stored notebooks, as `make site` does."""

import subprocess
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parents[1]
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for path in [*(ROOT / "site").glob("*.*"), *(ROOT / "notebooks").glob("*.ipynb")]:
        (source / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "sphinx", "-q", "-W", str(source), str(built)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # -W: a link that leads nowhere is an error
    return built


def page(site, name):
    return BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def test_the_site_lists_all_notebooks_in_reading_order(site):
    links = page(site, "index").select("nav .toctree-l1 > a")
    assert [link["href"].removesuffix(".html") for link in links] == NAMES


@pytest.mark.parametrize("name", ["index", *NAMES])
def test_a_page_loads_nothing_from_other_hosts(site, name):
    tags = page(site, name).select("script[src], link[href], img[src], iframe[src]")
    sources = [tag.get("src") or tag.get("href") for tag in tags]
    assert sources
    assert [source for source in sources if "//" in source] == []
    assert all((site / source.split("?")[0]).is_file() for source in sources if source[0] != "#")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_describes_its_figures_and_offers_its_notebook_for_download(site, name):
    built = page(site, name)
    described = [image["alt"] for image in built.select("article img")]
    assert described
    assert all(text.startswith("Figure: ") for text in described)
    (button,) = built.select("a.btn-download-source-button")
    assert (site / button["href"]).read_bytes() == (ROOT / f"notebooks/{name}.ipynb").read_bytes()


def test_formulas_are_drawn_by_the_browser_itself(site):
    text = page(site, "01_introduction")
    assert text.select("math mfrac")
    assert "\\frac" not in text.get_text()


def test_solutions_are_folded(site):
    solutions = page(site, "03_data_preparation").select("details")
    assert len(solutions) == 3
    assert all(tag.select("summary") and tag.select("pre") for tag in solutions)
    assert not any(tag.has_attr("open") for tag in solutions)
