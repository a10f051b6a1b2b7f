"""The site: built once, as by `make site`, with an untrained network in the page that segments."""

import base64
import json
import re
import shutil
import subprocess
import sys
import zlib
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
from bs4 import BeautifulSoup
from dicom_files import dicom_bytes, lookup_table, palette
from pydicom import uid

import pneumo_lib as pl
from pneumo_lib.data.phantom.draw import draw_phantom
from pneumo_lib.inference.prediction_rows import NOTE

ROOT = Path(__file__).parents[1]
NAMES = [path.stem for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))]
PHONE = {"width": 390, "height": 844}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
POINT = '{"top_threshold": 0.5, "min_area": 0.001, "bottom_threshold": 0.5}'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run: the small FCN, whose probabilities are all over the range."""
    folder = tmp_path_factory.mktemp("home") / "runs/phantoms-small-64"
    folder.mkdir(parents=True)
    network = pl.build_small_fcn(size=64)
    score = network.layers[-2]
    kernel, bias = score.get_weights()
    score.set_weights([8 * kernel, 0 * bias])
    network.save(folder / "model.keras")
    (folder / "config.json").write_text('{"size": 64, "backbone": "small", "synthetic": true}')
    (folder / "operating_point.json").write_text(POINT)
    for name in ("history", "scores"):
        (folder / f"{name}.csv").write_text("epoch\n1\n")
    return folder


def build_site(folder, home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMO_HOME", str(home))
        command = [sys.executable, ROOT / "site/build.py", folder]
        return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build_site(folder, run.parents[1])
    assert done.returncode == 0, done.stderr  # a link that leads nowhere is an error
    return folder


@pytest.fixture(scope="module")
def browser():
    engine = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with engine.sync_playwright() as started:
        chromium = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield chromium
        chromium.close()


def page(site, name):
    return BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


# -- pages


def test_the_site_lists_all_notebooks_in_reading_order(site):
    links = [link["href"] for link in page(site, "index").select("nav .toctree-l1 > a")]
    assert [link.removesuffix(".html") for link in links[: len(NAMES)]] == NAMES
    assert {"docs/export.html", "howto/real_data.html", "api/index.html"} < set(links)


def test_no_page_loads_anything_from_other_hosts(site):
    paths = [path for path in site.rglob("*.html") if "_static" not in path.parts]  # of the theme
    assert len(paths) > 50
    for path in paths:
        text = path.read_text(encoding="utf-8")  # by hand: a parser takes a minute for them all
        tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=\"([^\"]+)\"", text)
        sources = [source.split("?")[0] for source in tags if source[:5] != "data:"]
        assert len(sources) > 5
        assert [source for source in sources if "//" in source] == []
        assert [s for s in sources if s[0] != "#" and not (path.parent / s).is_file()] == [], path


def test_the_first_page_states_only_numbers_that_the_readme_or_the_recipes_state(site):
    text = page(site, "index").select_one("article").get_text()
    known = (ROOT / "README.md").read_text() + (ROOT / "docs/recipes.md").read_text()
    numbers = re.findall(r"\d+\.\d+", text)
    assert len(numbers) > 20
    assert [number for number in numbers if number not in known] == []


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
    solutions = page(site, "03_data_preparation").select("article details")
    assert len(solutions) == 3
    assert all(tag.select("summary") and tag.select("pre") for tag in solutions)
    assert not any(tag.has_attr("open") for tag in solutions)


def test_no_page_is_wider_than_a_phone(site, browser):
    tab, wide = browser.new_page(viewport=PHONE), {}
    pages = [path for path in site.rglob("*.html") if not {"_static", "_modules"} & {*path.parts}]
    assert len(pages) > 30
    for path in pages:
        tab.goto(path.as_uri(), wait_until="domcontentloaded")
        wide[path.name] = tab.evaluate("document.documentElement.scrollWidth")
    assert {name: width for name, width in wide.items() if width > PHONE["width"]} == {}


# -- API reference


def packages(package=pl):
    """The packages that the library declares, by importing them."""
    yield package
    for found in (getattr(package, name) for name in package.__all__):
        if hasattr(found, "__path__") and found.__name__.startswith("pneumo_lib"):
            yield from packages(found)


def test_every_public_function_and_class_is_described_on_the_page_of_its_package(site):
    packed = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    lines = re.findall(r"^(\S+) py:\w+ \S+ (\S+)", zlib.decompress(packed).decode(), re.M)
    where = dict(lines)
    wanted = set()
    for package in packages():
        for public in (getattr(package, name) for name in package.__all__):
            if getattr(public, "__module__", "").startswith("pneumo_lib") and callable(public):
                wanted.add(f"{public.__module__}.{public.__qualname__}")
    assert len(wanted) > 150
    assert wanted - set(where) == set()
    parts = {name: name.split(".") for name in wanted}
    assert [n for n in wanted if not where[n].startswith(f"api/{parts[n][1]}")] == []


def test_a_description_has_its_source_and_links_to_what_it_names(site):
    described = page(site, "api/training").find(id="pneumo_lib.training.train.train").parent
    links = [link["href"] for link in described.select("a.reference")]
    assert "data.html#pneumo_lib.data.prepare.Prepared" in links
    [source] = [link for link in links if link.startswith("../_modules/")]
    path, _, anchor = source.removeprefix("../").partition("#")
    text = BeautifulSoup((site / path).read_text(), "html.parser").find(id=anchor).get_text()
    assert "def train(" in text


def described(site, name):
    return page(site, f"api/{name.split('.')[0]}").find(id=f"pneumo_lib.{name}").parent


def test_a_word_of_a_description_is_no_link_to_a_function_of_that_name(site):
    links = [link["href"] for link in described(site, "training.losses.dice").select("a.reference")]
    assert not any("geometry.smooth" in link for link in links)
    assert "smooth" in described(site, "training.losses.dice").get_text()


def test_a_sentence_is_not_cut_at_its_colon_and_shared_arguments_stand_once(site):
    text = described(site, "evaluation.operating_point.choose_operating_point").get_text(" ")
    assert "is one of the choices: a mask pays only where" in " ".join(text.split())
    text = described(site, "evaluation.score_table.score_table").get_text()
    assert text.count("their seed; confidence level") == 1


def test_each_setting_of_a_training_is_described(site):
    text = described(site, "training.config.TrainingConfig").get_text()
    assert [one for one in pl.training.config.describe().values() if one[:20] not in text] == []


def test_no_markup_is_left_in_a_description(site):
    texts = {path.stem: page(site, f"api/{path.stem}") for path in (site / "api").glob("*.html")}
    found = {name: text.select_one("article").get_text() for name, text in texts.items()}
    left = ("``", ":py:", "Alias for field number")
    assert [name for name, text in found.items() if any(mark in text for mark in left)] == []


def test_commands_can_be_copied_from_the_page_of_all_commands(site):
    text = page(site, "docs/command_line").select_one("article").get_text()
    assert "pneumo report --data data/siim --params params/siim.yaml" in text
    assert "–data" not in text


# -- the page that segments


def dicom_with_table(image):
    return dicom_bytes(image, VOILUTSequence=lookup_table([0, 128, 255], 8))


@pytest.fixture(scope="module")
def files():
    """Bytes by name of X-rays of every kind that the page reads."""
    image, *_ = draw_phantom(10, size=512, seed=1)
    odd = draw_phantom(12, size=512, seed=1)[0][:499, :433]
    framed = np.zeros((600, 700), np.uint8)
    framed[31:530, 201:634] = odd
    deep = odd.astype(np.uint16)
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    window = {"WindowCenter": 1900, "WindowWidth": 3000}
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2}
    pictures = {
        "whole.png": image,
        "odd.png": odd,
        "small.png": odd[:40, :50],
        "framed.png": framed,
        "deep.png": deep * 200 + 3000,
        "colour.png": cv2.applyColorMap(image, cv2.COLORMAP_BONE),
    }
    return {
        **{name: cv2.imencode(".png", p)[1].tobytes() for name, p in pictures.items()},
        "grey.jpg": jpeg,
        "window.dcm": dicom_bytes(deep * 14 + 100, bits=12, **window),
        "inverted.dcm": dicom_bytes(4000 - deep * 14, bits=12, **inverted),
        "signed.dcm": dicom_bytes(odd.astype(np.int16) - 99, uid.ImplicitVRLittleEndian),
        "jpeg.dcm": dicom_bytes(image, uid.JPEGBaseline8Bit, frame=jpeg),
    }


@pytest.fixture(scope="module")
def opened(site, browser):
    """The page, opened as a file, after the first phantom; and all that it asked for."""
    if not (site / "segment.html").is_file():
        pytest.skip("npm cannot be reached, so the site has no page that segments")
    asked = []
    tab = browser.new_page(viewport=PHONE)
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((site / "segment.html").as_uri())
    tab.wait_for_function("window.pneumo?.result", timeout=120_000)
    return tab, asked


def segment(tab, data, name):
    text = base64.b64encode(data).decode()
    return tab.evaluate(
        """async ([text, name]) => {
            await pneumo.open(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), name);
            const { error, probability, score } = pneumo.result;
            return { error, score, probability: probability && Array.from(probability) };
        }""",
        [text, name],
    )


KINDS = "whole.png odd.png small.png framed.png deep.png colour.png grey.jpg window.dcm"


@pytest.mark.parametrize("name", [*KINDS.split(), "inverted.dcm", "signed.dcm", "jpeg.dcm"])
def test_the_page_gives_the_probabilities_of_predict(opened, run, files, tmp_path, name):
    path, data = tmp_path / name, files[name]
    path.write_bytes(data)
    [expected] = pl.predict(path, run, keep=True)  # exact: not decoded at a reduced size
    found = segment(opened[0], data, name)
    assert found["error"] is None
    probability = np.reshape(found["probability"], (64, 64))
    assert np.ptp(expected.probability) > 0.3  # one grey level would be seen
    np.testing.assert_allclose(probability, expected.probability, atol=1e-3)
    assert found["score"] == pytest.approx(expected.score, abs=1e-3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"text", "must be PNG, JPEG or DICOM"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "complete PNG or JPEG"),
        (dicom_with_table(np.eye(64, dtype=np.uint8)), "has a VOI LUT: use pneumo predict"),
        (
            dicom_bytes(np.eye(64, dtype=np.uint8), **palette(range(256))),
            "has a palette: use pneumo predict",
        ),
    ],
)
def test_the_page_refuses_what_it_cannot_read_and_says_why(opened, data, reason):
    tab, _ = opened
    assert reason in segment(tab, data, "x")["error"]
    assert reason in tab.inner_text("#segment-status")


def test_threshold_and_mask_follow_the_slider_and_the_operating_point(opened, run, files, tmp_path):
    tab, name = opened[0], "whole.png"
    (tmp_path / name).write_bytes(files[name])
    segment(tab, files[name], name)
    marked = "() => { const { data } = document.getElementById('segment-picture').getContext('2d')"
    marked += ".getImageData(0, 0, 512, 512); let n = 0; for (let i = 0; i < data.length; i += 4)"
    marked += " n += data[i] !== data[i + 2]; return n; }"
    for threshold in (None, 0.25, 0.75):
        if threshold:
            tab.fill("#segment-threshold", str(threshold))
        point = threshold and pl.evaluation.OperatingPoint(threshold, 0.0, threshold)
        [expected] = pl.predict(tmp_path / name, run, operating_point=point)
        assert tab.evaluate(marked) == pytest.approx(expected.mask.sum(), abs=20)
    tab.uncheck("#segment-overlay")
    assert tab.evaluate(marked) == 0
    tab.check("#segment-overlay")
    tab.click("#segment-own")
    assert "0.50 (the run's own)" in tab.inner_text("#segment-threshold-value")


def test_a_file_can_be_chosen_and_nothing_is_asked_for_but_files_of_the_site(opened, tmp_path):
    tab, asked = opened
    path = tmp_path / "chosen.png"
    path.write_bytes(cv2.imencode(".png", np.full((64, 64), 9, np.uint8))[1].tobytes())
    tab.set_input_files("#segment-file", path)
    tab.wait_for_function("document.getElementById('segment-status').innerText.includes('chosen')")
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == []
    assert NOTE in tab.inner_text("article")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390  # of a phone


# -- without a network, or without npm


@pytest.fixture
def build(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "site")
    return import_module("build")


def test_without_a_trained_control_the_first_page_says_so_and_there_is_no_page(
    build, tmp_path, monkeypatch
):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="no network is trained from scratch") as error:
        build.write_page(tmp_path, None)
    build.copy_sources(tmp_path / "source")
    build.render(tmp_path / "source", browser={}, missing=str(error.value))
    index = (tmp_path / "source/index.md").read_text()
    assert "no network is trained from scratch (small). `make report` trains" in index
    assert not re.search(r"\(segment\.md\)|^segment$", index, re.M)
    assert not (tmp_path / "source/segment.md").exists()


def test_the_page_shows_the_control_of_the_report_not_a_later_trial(build, tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    for name, size, epochs in (("report", 128, 20), ("short", 128, 5), ("trial", 64, 40)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = {"size": size, "epochs": epochs, "backbone": "small"}
        (folder / "config.json").write_text(json.dumps(config))
        for file in ("model.keras", "history.csv", "scores.csv"):
            (folder / file).write_text("epoch\n1\n")
    assert build.best_control().folder.name == "report"


def test_an_archive_of_npm_with_another_checksum_is_refused_and_removed(build, tmp_path):
    archive = tmp_path / "onnxruntime-web-1.30.0.tgz"
    archive.write_bytes(b"something else")
    with pytest.raises(ValueError, match="must have npm's checksum"):
        build.fetch_packages(tmp_path, kept=tmp_path)
    assert not archive.exists()
