"""The case explorer in a real browser: in JupyterLab and as a web page, on a run made for it.

Nothing here asserts a time: a step waits, long enough for a busy machine, until it has happened.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from test_cases import make_run

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "09_case_explorer.ipynb"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PATIENCE = 120  # seconds, for one step on a machine with much else to do
HOSTILE = "<img src=x onerror=alert(1)>.png"

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (apt-get install chromium)"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A project folder with one finished run, and Jupyter's own files apart from the user's."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMO_HOME", str(folder))
        for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
            patch.setenv(f"JUPYTER_{name}", str(folder / "jupyter" / name))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        make_run(folder, size=128)
        yield folder


@pytest.fixture(scope="module")
def browser():
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as engine:
        chromium = engine.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield chromium
        chromium.close()


@contextmanager
def serve(command, log):
    """The address with its token of a server that listens while the block runs, and its process."""
    with log.open("w") as screen:
        server = subprocess.Popen(command, cwd=ROOT, stdout=screen, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (address := re.search(r"http://127\.0\.0\.1:\d+\S*token=\w+", log.read_text())):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield address[0], psutil.Process(server.pid)
    finally:
        started = [*psutil.Process(server.pid).children(recursive=True)]
        server.terminate()
        for process in started:  # `make` does not pass the signal on; kernels end with their server
            if process.is_running():
                process.terminate()
        _, alive = psutil.wait_procs([psutil.Process(server.pid), *started], timeout=10)
        for process in alive:
            process.kill()
        server.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def opened(browser, address):
    """A page, and what its console complained about until the end of the block."""
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.set_default_timeout(1000 * PATIENCE)
    complaints = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: line.type == "error" and complaints.append(line.text))
    page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
    page.on("request", lambda request: _complain_if_outside(request.url, complaints))
    page.goto(address, timeout=1000 * PATIENCE)
    yield page, complaints
    page.close()


def _complain_if_outside(url, complaints):
    if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
        complaints.append(f"asked another host: {url}")


def choose(page, label, option):
    control = page.locator(".widget-dropdown", has=page.get_by_text(label, exact=True))
    control.locator("select").select_option(label=option)


def wait_for(page, selector, text):
    playwright.expect(page.locator(selector)).to_contain_text(text, timeout=1000 * PATIENCE)


def wait_for_colour(page, colour):
    """Until the picture on show has that colour, "red" or "blue", in the middle of the lesion."""
    page.wait_for_function(
        """colour => {
            const picture = document.querySelector(".pneumo-frame img");
            if (!picture?.complete || !picture.naturalWidth) return false;
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(picture, 0, 0);
            const [x, y] = [(6 / 32) * canvas.width, (8 / 32) * canvas.height];
            const [red, , blue] = context.getImageData(x, y, 1, 1).data;
            return colour === (red > blue + 50 ? "red" : blue > red + 50 ? "blue" : "grey");
        }""",
        arg=colour,
    )


def use_the_panel(page):
    """Choose a case, move the slider, step with the keyboard, open a file that is no X-ray."""
    page.locator(".pneumo-viewer[data-painted]").scroll_into_view_if_needed()
    wait_for(page, ".pneumo-title", "perfect")
    choose(page, "Cases", "missed")
    wait_for(page, ".pneumo-title", "missed large")
    wait_for_colour(page, "red")  # all of the lesion is missed

    slider = page.locator(".widget-hslider", has=page.get_by_text("Threshold", exact=True))
    slider.get_by_role("slider").press("Home")  # the lowest threshold, under which it is found
    wait_for(page, ".pneumo-frame figcaption", "≥ 0.01")
    wait_for(page, ".pneumo-scores", "1.00")
    wait_for_colour(page, "blue")

    page.locator(".pneumo-stage").hover()
    page.keyboard.press("ArrowRight")
    wait_for(page, ".pneumo-title", "missed small")
    wait_for(page, ".pneumo-position", "2 / 2")
    page.keyboard.press("+")
    wait_for(page, ".pneumo-zoom", "×1.5")

    file = {"name": HOSTILE, "mimeType": "image/png", "buffer": b"no image" * 300_000}
    page.locator(".pneumo-file").set_input_files(file)
    wait_for(page, ".pneumo-status", HOSTILE)  # its name is text on the page, not markup
    assert page.locator(".pneumo-status img").count() == 0


def listens_at(process):
    """The addresses at which a process and those it started wait for connections."""
    family = [process, *process.children(recursive=True)]
    connections = [c for p in family for c in p.net_connections("inet")]
    return {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_the_web_page_shows_the_panel_on_this_machine_to_those_with_the_token(home, browser):
    options = f"--no-browser --port={free_port()}"
    binaries = Path(sys.executable).parent
    command = ["make", "-o", "env", "explore", f"BIN={binaries}", f"OPTIONS={options}"]
    with serve(command, home / "voila.log") as (address, process):
        with opened(browser, address) as (page, complaints):
            use_the_panel(page)
            assert complaints == []
            assert listens_at(process) == {"127.0.0.1"}
        stranger = browser.new_context()
        assert "/login" in stranger.request.get(address.split("?")[0]).url
        stranger.close()


def test_the_panel_works_in_jupyterlab(home, browser):
    folder = home / "notebooks"  # a copy: JupyterLab saves what it runs
    folder.mkdir()
    shutil.copy(NOTEBOOK, folder)
    command = [sys.executable, "-m", "jupyterlab", str(folder), "--ip=127.0.0.1", "--no-browser"]
    command += [f"--port={free_port()}", "--expose-app-in-browser"]
    command += ["--LabApp.news_url=None", "--LabApp.extension_manager=readonly"]
    if os.name == "posix" and os.geteuid() == 0:
        command.append("--allow-root")
    with serve(command, home / "lab.log") as (address, process):
        address = address.replace("/lab?", f"/lab/tree/{NOTEBOOK.name}?")
        with opened(browser, address) as (page, complaints):
            page.wait_for_function(
                "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel"
            )
            page.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
            use_the_panel(page)
            notebook = "jupyterapp.shell.currentWidget.content"
            page.evaluate(f"{notebook}.mode = 'command'")  # in which arrow keys move its cursor
            before = page.evaluate(f"{notebook}.activeCellIndex")
            page.mouse.move(0, 0)
            page.locator(".pneumo-stage").hover()
            page.keyboard.press("ArrowUp")
            wait_for(page, ".pneumo-frame figcaption", "≥ 0.06")
            assert page.evaluate(f"{notebook}.activeCellIndex") == before
            assert complaints == []
            assert listens_at(process) == {"127.0.0.1"}


@pytest.mark.parametrize("target", ["explore", "lab"])
def test_make_serves_on_this_machine_only_and_keeps_the_token(target):
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1]
    assert re.search(r"--(Voila\.)?ip=127\.0\.0\.1", recipe)
    assert not re.search(r"token=|password=|allow_origin|disable_check_xsrf", recipe)
