"""The report, on tiny stand-in notebooks: what it executes, refuses, repeats and writes."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from pneumo_lib import _files, runs
from pneumo_lib._files import write_csv, write_json
from pneumo_lib.data.phantom import draw as phantom
from pneumo_lib.models.names import BACKBONES
from pneumo_lib.study import html, report
from pneumo_lib.study import notebooks as study_notebooks
from pneumo_lib.study.findings import conclusion
from pneumo_lib.study.notebooks import NotebookError, notebook_parameters
from pneumo_lib.study.report import run_report

ROOT = Path(__file__).parents[2]
TRAINING = """data = "phantoms"
size = 64
backbone = "vgg19"
decoder = "deconvolution"
initial = None
epochs = 1
run_name = None"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project without notebooks, in a folder with a blank, braces and a letter beyond ASCII."""
    folder = tmp_path / "pro{ject} für Ärzte"
    (folder / "notebooks").mkdir(parents=True)
    monkeypatch.setenv("PNEUMO_HOME", str(folder))
    return folder


@pytest.fixture
def executed(project, monkeypatch):
    """Names of the notebooks that were run, where a copy stands for running them."""
    names = []

    def execute(kernel, step, output, after_cell):
        names.append(step.notebook.stem)
        output.write_bytes(step.notebook.read_bytes())
        if name := step.parameters.get("run_name"):
            learnt = str(len(names)).encode()  # no training ends twice with the same bytes
            synthetic = Path(step.parameters["data"]).name != "real"
            options = {"learnt": learnt, "synthetic": synthetic}
            write_run(project, name, backbone=step.parameters["backbone"], **options)

    monkeypatch.setattr(report.Kernel, "execute", execute)
    return names


@pytest.fixture
def without_pages(monkeypatch):
    """Sphinx is left out, which takes most of the time of a report of stand-ins."""
    monkeypatch.setattr(html, "write_report", lambda *_, **__: None)


def write_notebook(project, name, parameters, *sources, title="A question?"):
    """A notebook of a title, a parameters cell and code cells."""
    tag = {"tags": ["parameters"]}
    cells = [new_markdown_cell(f"# {title}"), new_code_cell(parameters, metadata=tag)]
    cells += [new_code_cell(source) for source in sources]
    nb = new_notebook(cells=cells)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nb.metadata["kernelspec"] = kernel
    nbformat.write(nb, project / "notebooks" / f"{name}.ipynb")


def write_run(project, name, *, backbone, learnt=b"weights", synthetic=True, found=2):
    """A finished run that found no pixel after its first epoch, `found` of 2 after its second."""
    folder = project / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.keras").write_bytes(learnt)
    cases = {"image_id": [*"abc"] * 2, "split": ["train", "validation", "test"] * 2}
    counts = {"tp": [0] * 3 + [found] * 3, "fp": 0, "fn": [2] * 3 + [2 - found] * 3, "tn": 2}
    table = {"epoch": [1] * 3 + [2] * 3, "has_pneumothorax": True} | cases | counts
    write_csv(folder / "scores.csv", pd.DataFrame(table))
    write_csv(folder / "history.csv", pd.DataFrame({"epoch": [1, 2], "val_dice": [0, found / 2]}))
    config = {"backbone": backbone, "weights": "random <features>", "split_scheme": "patient"}
    config |= {
        "leaked_patients": 3,
        "device": "CPU",
        "data_name": "phantoms",
        "size": 64,
        "seed": 0,
    }
    config["synthetic"] = synthetic
    write_json(folder / "config.json", config)


def records(index):
    return json.loads(index.with_name("report.json").read_text())["notebooks"]


def soup(index, name="index"):
    page = index.with_name(f"{name}.html").read_text(encoding="utf-8")
    return BeautifulSoup(page, "html.parser")


def outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    return "".join(o.get("text", "") for c in cells for o in c.get("outputs", []))


def test_notebooks_run_in_their_order_and_folder_with_the_parameters_that_they_declare(project):
    write_notebook(project, "02_second", "seed = 1\nsize = 32", "print(seed, size)")
    write_notebook(project, "05_train_fcn", "backbone = 'vgg19'", "print('network', backbone)")
    first = "import os; print('size' in dir(), os.getcwd())"
    write_notebook(project, "01_first", "seed = 1", first, title="What is *it*?")
    (project / "mine.yaml").write_text("seed: 5\nsize: 64\nbackbones: [vgg16, small]\n")
    index = run_report(params=project / "mine.yaml", overrides={"seed": 7})
    assert index == project / "runs/report/index.html"
    assert [
        (r["name"], outputs(index.with_name(f"{r['name']}.ipynb"))) for r in records(index)
    ] == [
        ("01_first", f"False {project / 'notebooks'}\n"),
        ("02_second", "7 64\n"),
        ("05_train_fcn-vgg16", "network vgg16\n"),
        ("05_train_fcn-small", "network small\n"),
    ]
    links = soup(index).select("table a")
    assert [(a["href"], a.get_text()) for a in links[:4:2]] == [
        ("01_first.html", "What is it?"),
        ("02_second.html", "A question?"),
    ]
    assert all((index.parent / a["href"]).is_file() for a in links)


def test_the_kernel_is_the_python_that_started_the_report(project, monkeypatch):
    other = project / "kernels/python3/kernel.json"  # as another environment may install it
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps({"argv": ["false"], "display_name": "", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(project))
    write_notebook(project, "01_first", "seed = 1", "import sys; print(sys.executable)")
    index = run_report()
    assert outputs(index.with_name("01_first.ipynb")).strip() == sys.executable


@pytest.mark.parametrize("beyond", [False, True])
def test_notebooks_after_the_results_are_run_only_when_asked_for(project, executed, beyond):
    write_notebook(project, "06_results", "seed = 1")
    write_notebook(project, "07_more", "seed = 1")
    nb = nbformat.read(project / "notebooks/06_results.ipynb", as_version=4)
    nb.cells.append(new_markdown_cell("[next](07_more.ipynb)"))
    nbformat.write(nb, project / "notebooks/06_results.ipynb")
    index = run_report(beyond=beyond)
    assert executed == ["06_results", "07_more"][: 1 + beyond]
    (link,) = [a for a in soup(index, "06_results").select("article a") if a.text == "next"]
    assert (index.parent / link["href"]).is_file()
    assert link["href"].endswith("07_more.html" if beyond else "07_more.ipynb")


# -- not run again unless something changed


@pytest.mark.usefixtures("without_pages")
def test_an_unchanged_notebook_is_not_run_again(project, executed, caplog):
    write_notebook(project, "01_first", "seed = 1")
    run_report()
    with caplog.at_level("INFO", "pneumo_lib"):
        run_report()
    assert executed == ["01_first"]
    assert "unchanged" in caplog.text


@pytest.mark.usefixtures("without_pages")
@pytest.mark.parametrize(
    "change", ["parameter", "source", "results", "package", "data", "experiments"]
)
def test_a_notebook_is_run_again_when_its_inputs_change(project, executed, change, monkeypatch):
    data = project / "xrays"
    data.mkdir()
    (data / "a.png").write_bytes(b"1")
    (project / "mine.yaml").write_text("epochs: 1")
    parameters = "size = 96\nexperiments = 'mine.yaml'"
    write_notebook(project, "01_first", parameters)
    run_report(data=data, overrides={"size": 96})
    size = 128 if change == "parameter" else 96
    if change == "source":
        write_notebook(project, "01_first", parameters, "'more'")
    if change == "results":
        monkeypatch.setattr(runs, "RESULTS_VERSION", runs.RESULTS_VERSION + 1)
    if change == "package":
        (project / "numpy-9.9.dist-info").mkdir()
        (project / "numpy-9.9.dist-info/METADATA").write_text("Name: numpy\nVersion: 9.9\n")
        monkeypatch.syspath_prepend(project)
    if change == "data":
        (data / "a.png").write_bytes(b"12")
    if change == "experiments":
        (project / "mine.yaml").write_text("epochs: 2")
    run_report(data=data, overrides={"size": size})
    assert executed == ["01_first", "01_first"]


@pytest.mark.usefixtures("without_pages")
@pytest.mark.parametrize("change", ["parameter", "initial run", "run deleted", "run replaced"])
def test_results_are_run_again_when_training_changed_but_earlier_notebooks_are_not(
    project, executed, change
):
    write_notebook(project, "01_first", "size = 1")
    write_notebook(project, "05_train_fcn", TRAINING)
    write_notebook(project, "06_results", "size = 1")
    write_run(project, "first", backbone="vgg16")
    settings = {"backbones": ["vgg16"], "initial": "first"}
    run_report(overrides=settings)
    if change == "parameter":
        settings["epochs"] = 2
    if change == "initial run":
        write_run(project, "first", backbone="vgg16", learnt=b"more")
    if change == "run deleted":
        shutil.rmtree(project / "runs/phantoms-vgg16-64")
    if change == "run replaced":
        write_run(project, "phantoms-vgg16-64", backbone="vgg16", learnt=b"of other settings")
    run_report(overrides=settings)
    ran = ["01_first", "05_train_fcn", "06_results"]
    assert executed == [*ran, "05_train_fcn", "06_results"]


# -- failures


@pytest.mark.usefixtures("without_pages")
def test_an_error_names_notebook_cell_and_reason_and_leaves_earlier_results(project):
    write_notebook(project, "01_first", "seed = 1")
    write_notebook(project, "02_second", "seed = 1", "print(1 / seed)  # a slip")
    run_report()
    unfinished = project / "runs/report/02_second.unfinished.ipynb"
    for _ in range(2):  # what failed is run again
        with pytest.raises(NotebookError) as caught:
            run_report(overrides={"seed": 0})
        assert str(caught.value) == (
            "02_second, cell In [3]: ZeroDivisionError: division by zero. The notebook up to "
            f"there, with the traceback: {unfinished}"
        )
        assert outputs(project / "runs/report/02_second.ipynb") == "1.0\n"
        (error,) = nbformat.read(unfinished, as_version=4).cells[-1].outputs
        assert "print(1 / seed)" in re.sub(r"\x1b\[[\d;]*m", "", "".join(error.traceback))


def test_a_long_reason_is_cut(project):
    write_notebook(project, "01_first", "seed = 1", "raise ValueError('no\\n' * 5000)")
    with pytest.raises(
        NotebookError, match=r"cell In \[2\]: ValueError: no no .* \[...\]\. The"
    ) as e:
        run_report()
    assert len(str(e.value)) < 1000


def test_a_notebook_that_exits_early_is_refused(project):
    write_notebook(project, "01_first", "seed = 1", "import sys; sys.exit(0)", "print('never')")
    with pytest.raises(NotebookError, match=r"01_first, cell In \[2\]: SystemExit: 0"):
        run_report()


# -- processes


LOOK = "import os, sys\nprint(os.getpid(), 'left' in dir(), 'yes' if 'left' in globals() else 'no')"


@pytest.mark.usefixtures("without_pages")
@pytest.mark.parametrize("gpu", [False, True])
def test_notebooks_share_one_process_but_no_name_and_with_a_gpu_not_even_that(
    project, gpu, monkeypatch
):
    tools = project / "tools"
    tools.mkdir()
    if gpu:
        (tools / "nvidia-smi").write_text("")
        (tools / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    write_notebook(project, "01_first", "left = 1", LOOK)
    write_notebook(project, "02_second", "seed = 1", LOOK)
    folder = run_report().parent
    first, second = (
        outputs(folder / f"{name}.ipynb").split() for name in ("01_first", "02_second")
    )
    assert first[1:] == ["True", "yes"]
    assert second[1:] == ["False", "no"]
    assert (first[0] != second[0]) == gpu
    counts = [c.execution_count for c in nbformat.read(folder / "02_second.ipynb", 4).cells[1:]]
    assert counts == [1, 2]


@pytest.mark.usefixtures("without_pages")
def test_data_are_prepared_while_the_first_notebooks_run(project):
    source = "import glob, os, time\nwhile not glob.glob('../data/prepared/*/meta.json'):\n"
    source += "    time.sleep(0.1)"
    write_notebook(project, "01_first", "phantom_count = 800\nsize = 128\ndata = 'x'", source)
    run_report(overrides={"phantom_count": 30, "size": 64, "backbones": ["small"]})
    (meta,) = (project / "data/prepared").glob("*/meta.json")
    assert json.loads(meta.read_text())["size"] == 64


IN_A_TERMINAL = """
import pty, sys
pty.spawn(["sh", "-c", 'stty cols 120 rows 30; exec "$@"', "-", *sys.argv[1:]])
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pseudo-terminals")
def test_a_terminal_shows_time_epoch_and_dice_and_at_the_end_the_result(project):
    epochs = """import os, time, shutil
os.makedirs(f"../runs/{run_name}")
for epoch in (1, 2):
    with open(f"../runs/{run_name}/history.csv", "w") as file:
        file.write("epoch,dice,val_dice\\n1,0.2,0.125\\n2,0.6,0.5\\n"[: 31 + 10 * (epoch - 1)])
    time.sleep(1.5)
"""
    parameters = TRAINING.replace("epochs = 1", "epochs = 4")
    write_notebook(project, "05_train_fcn", parameters, epochs)
    line = [sys.executable, "-c", IN_A_TERMINAL, sys.executable, "-m", "pneumo_lib", "report"]
    environment = {k: v for k, v in os.environ.items() if k != "TQDM_DISABLE"}
    options = {"capture_output": True, "text": True, "env": environment}
    shown = subprocess.run([*line, "--backbones", "small"], **options).stdout
    assert "1/1 05_train_fcn-small" in shown
    assert "to go, epoch 1 of 4, Dice 0.125" in shown
    assert re.search(r"05_train_fcn-small: \d+ s, [\d.]+ GB, epoch 2 of 4, Dice 0.500", shown)
    assert re.search(r"1 notebooks in 0 min \d\d s", shown)


def test_run_report_finds_the_notebooks_when_runs_and_data_are_elsewhere(
    project, executed, monkeypatch
):
    write_notebook(project, "01_first", "seed = 1")
    monkeypatch.setattr(_files, "_CHECKOUT", project)
    monkeypatch.setenv("PNEUMO_HOME", str(project / "elsewhere"))
    for name in ("site", "figures"):
        shutil.copytree(ROOT / name, project / name)
    assert run_report() == project / "elsewhere/runs/report/index.html"
    assert executed == ["01_first"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"notebooks": "runs"}, "No numbered notebook"),
        ({"data": "nowhere"}, "`data` must be 'phantoms' or a folder"),
        ({"params": "nowhere.yaml"}, "No parameter file"),
        ({"params": "list.yaml"}, "list.yaml must hold lines of `name: value`"),
        ({"params": "latin.yaml"}, r"latin.yaml must be YAML in UTF-8. Received: .*byte 0xf6"),
        ({"params": "open.yaml"}, r"open.yaml must be YAML in UTF-8. Received: .*expected ','"),
        ({"overrides": {"epoch": 3}}, r"parameter `epoch`\. Did you mean epochs"),
        ({"overrides": {"backbone": "vgg16"}}, "`backbone` is set by the report.*`backbones`"),
        ({"overrides": {"run_names": "a"}}, "`run_names` is set by the report.*`backbones`"),
    ],
)
def test_what_could_not_run_is_refused_before_the_first_notebook(
    project, executed, options, message
):
    write_notebook(project, "05_train_fcn", TRAINING)
    (project / "list.yaml").write_text("[1, 2]")
    (project / "open.yaml").write_text("a: [1")
    (project / "latin.yaml").write_bytes("data: Röntgen".encode("latin-1"))
    options |= {name: project / options[name] for name in {"data", "params"} & options.keys()}
    with pytest.raises((FileNotFoundError, ValueError), match=f"(?s){message}"):
        run_report(**options)
    assert executed == []


# -- parameters


def test_one_run_name_for_several_networks_is_refused(project):
    write_notebook(project, "05_train_fcn", TRAINING)
    notebooks = list((project / "notebooks").glob("05_*.ipynb"))
    with pytest.raises(ValueError, match=r"`run_name` names one network.*backbones=vgg16, small"):
        report.plan(notebooks, {"backbones": ["vgg16", "small"], "run_name": "mine"})
    assert len(report.plan(notebooks, {"backbones": ["vgg16", "small"], "run_name": None})) == 2
    assert len(report.plan(notebooks, {"backbones": ["small"], "run_name": "mine"})) == 1


def test_each_network_is_trained_with_each_seed_on_one_split(project):
    write_notebook(project, "05_train_fcn", TRAINING)
    notebooks = list((project / "notebooks").glob("05_*.ipynb"))
    steps = report.plan(notebooks, {"backbones": ["vgg16", "small"], "seeds": [0, 2]})
    names = ["phantoms-vgg16-64", "phantoms-vgg16-64-seed2"]
    names += ["phantoms-small-64", "phantoms-small-64-seed2"]
    assert [step.parameters["run_name"] for step in steps] == names
    assert [step.parameters["training_seed"] for step in steps] == [0, 2, 0, 2]
    assert all("seed" not in step.parameters for step in steps)  # of the split
    for wrong, message in ((3, "`seeds` must be a list"), ([-1], "`seed` must be a whole")):
        with pytest.raises(ValueError, match=message):
            report.plan(notebooks, {"seeds": wrong})


def test_the_page_shows_means_over_the_seeds_of_a_network(project):
    for name, found in (("a", 2), ("b", 0)):
        write_run(project, name, backbone="vgg19", found=found)
    config = project / "runs/b/config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1'))
    tables = html._results_tables([runs.load_run(name) for name in "ab"])
    assert all("<td>0.50<br>" in table for table in tables.values())  # of a Dice of 1 and of 0


def test_notebook_parameters_reads_literals_on_several_lines_and_with_annotations(project):
    write_notebook(project, "01_first", "a = [\n  1,\n  2,\n]  # list\nb: int | None = None")
    assert notebook_parameters(project / "notebooks/01_first.ipynb") == {"a": [1, 2], "b": None}


@pytest.mark.parametrize("line", ["b = 2 * a", "import os", "a, b = 1, 2", "print(1)"])
def test_notebook_parameters_refuses_what_is_no_literal_assignment(project, line):
    write_notebook(project, "01_first", line)
    with pytest.raises(ValueError, match=f"literals only. Received: {re.escape(line[:6])}"):
        notebook_parameters(project / "notebooks/01_first.ipynb")


# -- what it writes


@pytest.mark.usefixtures("without_pages")
def test_report_json_holds_time_and_memory_of_each_notebook(project):
    source = "import time; block = bytearray(300_000_000); time.sleep(1)"
    write_notebook(project, "01_first", "seed = 1", source)
    before = psutil.Process().memory_info().rss / 1e9  # the runner's own counts as well
    index = run_report()
    (record,) = records(index)
    assert record["name"] == "01_first"
    assert 1 <= record["seconds"] < 60
    assert 0.3 < record["peak_gb"] < before + 4


def test_real_data_get_a_folder_of_their_own_for_pages_and_figures(project):
    data = project / "xrays"
    data.mkdir()
    write_notebook(project, "01_first", "data = 'phantoms'", "print(data)")
    index = run_report(data=data)
    assert index == project / "runs/report-xrays/index.html"
    assert outputs(index.with_name("01_first.ipynb")).strip() == str(data)
    assert study_notebooks.figures_folder(str(data)) == project / "runs/report-xrays/figures"


@pytest.mark.parametrize(
    ("data", "trained", "origin"),
    [
        ("phantoms", False, "synthetic"),
        ("drawn", False, "synthetic"),
        ("xrays", False, "unknown origin"),
        ("real", True, "real X-rays"),
        ("xrays", True, "synthetic"),  # runs know more than a folder
    ],
)
def test_the_first_page_never_calls_phantoms_real(project, executed, data, trained, origin):
    for folder in ("xrays", "real", "drawn"):
        (project / folder).mkdir()
    phantom.make_phantoms(project / "drawn", count=1, size=64)
    write_notebook(project, "01_first", "seed = 1")
    if trained:
        write_notebook(project, "05_train_fcn", TRAINING)
    index = run_report(data=data, overrides={"backbones": ["small"]})
    text = soup(index).article.get_text()
    assert f"{data} ({origin})" in text
    assert ("Synthetic data." in text) == (origin == "synthetic")
    caveats = json.loads(index.with_name("report.json").read_text())["caveats"]
    assert (caveats is not None) == trained
    assert ("synthetic radiographs" in (caveats or "")) == (trained and data == "xrays")


def test_the_index_shows_the_exported_figures_of_its_notebooks_large_after_a_click(project):
    figures = project / "runs/report/figures"
    figures.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(figures / "99_other_notebook.png")
    source = "from PIL import Image\nfor name in ('signs', 'rare_target', 'air'):\n"
    source += "    Image.new('RGB', (3840, 2160)).save("
    source += "f'../runs/report/figures/01_introduction_{name}.png')"
    write_notebook(project, "01_introduction", "export = False", f"assert export; {source}")
    index = run_report()
    listed = (ROOT / "figures/README.md").read_text()
    captions = ["The two signs: the pleural line, and no vessels beyond it.", "Rare target."]
    captions.append(
        "How many X-rays pass through lung, soft tissue and bone, and what free air changes."
    )
    assert captions[0] in listed  # and in the order of the notebook
    images = soup(index).select("figure img")
    assert [image["alt"] for image in images] == captions
    files = [io.BytesIO((index.parent / image["src"]).read_bytes()) for image in images]
    assert [Image.open(file).size for file in files] == [(1600, 900)] * 3
    assert [image.parent["href"] for image in images] == [image["src"] for image in images]
    assert [tag.get_text() for tag in soup(index).select(".caption-text")] == captions
    write_notebook(project, "01_introduction", "export = False")
    assert not soup(run_report(overrides={"export": False})).select("figure")  # of earlier runs


def test_pages_are_written_again_only_when_something_changed(project, executed):
    write_notebook(project, "01_first", "seed = 1")
    index = run_report()
    index.write_text("kept")
    run_report()
    assert index.read_text() == "kept"
    run_report(overrides={"seed": 2})
    assert "<td>2</td>" in index.read_text()


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"small": 2, "vgg19": 0, "resnet50": 1}, "ahead of ResNet50, .*: +0.33 Dice on"),
        ({"small": 0, "vgg19": 2}, "behind VGG19, the best frozen backbone: -1.00 Dice on"),
        ({"small": 1, "vgg19": 1}, "level with VGG19, the best frozen backbone: +0.00 Dice on"),
        ({"vgg19": 1}, "VGG19 reaches a Dice of 0.67 on the positive test cases; the control"),
    ],
)
def test_the_result_is_told_in_one_sentence(project, found, sentence):
    for backbone, pixels in found.items():  # Dice 2 · 1 / (2 + 1) = 0.67 for one pixel of two
        write_run(project, backbone, backbone=backbone, found=pixels)
    text = conclusion([runs.load_run(name) for name in found])
    assert re.search(sentence.replace("+", r"\+"), text)


def test_notebook_pages_load_nothing_and_keep_formulas_links_and_figures(project):
    draw = "from PIL import Image\nImage.new('RGB', (9, 9))"
    write_notebook(project, "05_train_fcn", "backbone = 'a'", draw)
    write_notebook(project, "01_first", "size = 1")
    path = project / "notebooks/01_first.ipynb"
    nb = nbformat.read(path, as_version=4)
    text = "Cost `$5` is not $a_1 < b$, [next](05_train_fcn.ipynb)\n\n$$\\frac{1}{2}$$"
    nb.cells.append(new_markdown_cell(text))
    nbformat.write(nb, path)
    index = run_report(overrides={"backbones": ["vgg16", "small"]})
    page = soup(index, "01_first")
    assert len(page.select("math")) == 2
    assert page.select("math mfrac")
    assert "$5" in [code.get_text() for code in page.select("code")]
    assert page.select_one("article p a")["href"] == "05_train_fcn-vgg16.html"
    assert page.select('a[href="index.html"]')
    trained = soup(index, "05_train_fcn-small")
    assert trained.h1.get_text() == "A question? (small)"
    assert trained.select_one("article img")["alt"] == "Figure: A question? (small)"
    for any_page in (page, trained, soup(index)):
        loaded = any_page.select("script[src], link[href], img[src], iframe[src]")
        sources = [tag.get("src") or tag["href"] for tag in loaded]
        files = [source.split("?")[0] for source in sources if not source.startswith("#")]
        assert all((index.parent / name).is_file() for name in files)


def test_progress_widgets_are_left_out_of_the_pages(project):
    bar = "from tqdm.notebook import tqdm\nfor _ in tqdm(range(3)): pass"
    write_notebook(project, "01_first", "seed = 1", bar, "print('after')")
    shown = soup(run_report(), "01_first").article.get_text()
    assert "after" in shown
    assert "it/s" not in shown


def test_the_results_of_each_split_start_with_the_all_background_row(project, executed):
    write_notebook(project, "05_train_fcn", TRAINING)
    page = soup(run_report(overrides={"backbones": ["vgg19"]}))
    splits = ["test", "validation", "train"]
    headings = [heading.get_text() for heading in page.select("h3")]
    assert [heading.split(":")[0].lower() for heading in headings[:3]] == splits
    for split in splits:
        (section,) = page.select(f"section#{split}-1-images-1-of-them-with-pneumothorax")
        rows = [[td.get_text() for td in row.select("td")] for row in section.select("tr")[1:]]
        names = [["all background", "–"], ["VGG19", "1"], ["VGG19", "2"]]
        assert [row[:2] for row in rows] == names
        assert "1.00[1.00, 1.00]" in rows[2]  # of the last epoch: the first found nothing
    assert [item.get_text() for item in page.select("section#results > ul > li")] == [
        "VGG19: weights are random <features>"
    ]
    notes = [note.strong.get_text() for note in page.select(".admonition")]
    assert notes == ["Synthetic data.", "Patients leak."]


def test_random_features_of_several_seeds_are_warned_of_once(project):
    write_run(project, "one", backbone="vgg19")
    write_notebook(project, "01_first", "seed = 1")
    folder = run_report().parent
    one = runs.load_run(project / "runs/one")
    seeds = [
        one._replace(config=one.config | {"weights": "random features", "seed": s}) for s in (0, 1)
    ]
    record = {"name": "01_first", "seconds": 1, "peak_gb": 1}
    page = soup(html.write_report(folder, [record], {"data": "phantoms"}, runs=seeds))
    warnings = [note.get_text() for note in page.select(".admonition")]
    assert "could not be loaded for\nVGG19: these" in warnings[1]


# -- the runs of this report


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ({"backbones": ["vgg16", "small"]}, ["phantoms-vgg16-64", "phantoms-small-64"]),
        ({"backbones": ["vgg16"], "decoder": "skips"}, ["phantoms-vgg16-skips-64"]),
        ({"backbones": ["vgg16"], "run_name": "mine"}, ["mine"]),
    ],
)
def test_results_and_first_page_are_about_the_runs_that_this_report_trained(
    project, executed, overrides, names
):
    for other in ("phantoms-resnet50-64", "phantoms-vgg16-fcn8s-64", "phantoms-vgg16-64-fast"):
        write_run(project, other, backbone="resnet50")
    write_notebook(project, "05_train_fcn", TRAINING)
    write_notebook(project, "06_results", "run_names = None")
    index = run_report(overrides=overrides)
    assert records(index)[-1]["parameters"] == {"run_names": names}
    labels = "|".join(map(re.escape, BACKBONES.values()))
    results = re.findall(rf"<td>({labels})</td>\s*<td>[12]</td>", index.read_text())
    each_milestone = [BACKBONES[name] for name in overrides["backbones"] for _ in range(2)]
    assert results == 3 * each_milestone  # on test, validation and train


def test_notebook_06_shows_the_runs_of_another_decoder(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "pneumo_lib")
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    (tmp_path / "notebooks").mkdir()
    for name in ("05_train_fcn", "06_results"):
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "notebooks")
    small = {"phantom_count": 40, "size": 32, "epochs": 1, "milestones": [1], "export": False}
    index = run_report(overrides=small | {"decoder": "skips", "backbones": ["small"]})
    assert "surely above it at the end" in outputs(index.with_name("06_results.ipynb"))
    assert "epoch 1 of 1, Dice 0." in caplog.text
