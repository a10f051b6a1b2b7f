"""What every committed notebook must be like; `pytest --nbval-lax notebooks` runs them."""

import ast
import json
import re
from dataclasses import asdict
from pathlib import Path

import nbformat
import pytest
import yaml

from pneumo_lib.study import notebooks, report
from pneumo_lib.study.parameters import read_params
from pneumo_lib.training.config import TrainingConfig, describe

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# tested with experiments.py and sweep.py, which read them
EXPERIMENTS = ("better", "siim_better", "recipe", "trial", "sweep", "folds")
PARAMS = sorted(p for p in (ROOT / "params").glob("*.yaml") if p.stem not in EXPERIMENTS)
LONGEST_CELL = 25
SET_BY_THE_REPORT = {"backbone", "run_names", "training_seed", "export"}
OF_ONE_RUN = {"run_name", "fold", "experiments", "train_here", "compare"}  # not of a whole report
# A path from the root of a file system; `a/tmp`, `https://tmp/` and `</tmp/` are none.
ABSOLUTE = re.compile(r"(?<![\w.~:/<>)])/(?:home|root|Users|tmp|work|mnt|opt|usr|var|content)/\S*")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [c for c in read(path).cells if c.cell_type == "code" and c.source.strip()]


def prose(path):
    return "\n\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")


def outputs(path):
    return [output for cell in code_cells(path) for output in cell.outputs]


def is_checked(cell):
    return "NBVAL_CHECK_OUTPUT" in cell.source or "nbval-check-output" in cell.metadata.get(
        "tags", []
    )


# -- form


@each_notebook
def test_a_notebook_is_valid_has_ids_and_no_metadata_of_a_machine(path):
    raw = json.loads(path.read_text())
    nbformat.validate(raw)
    ids = [cell["id"] for cell in raw["cells"]]
    assert len(set(ids)) == len(ids)
    assert raw["metadata"]["kernelspec"]["name"] == "python3"
    assert "papermill" not in raw["metadata"]
    assert "execution" not in {key for cell in raw["cells"] for key in cell["metadata"]}


@each_notebook
def test_a_notebook_opens_with_a_question_and_goals_and_closes_with_takeaways(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# .*\?", first.source, re.S)
    for heading in ("You will learn", "Needs", "Writes", "Takes"):
        assert f"**{heading}" in prose(path)
    assert len(re.findall(r"^## Takeaways", prose(path), re.M)) == 1


@each_notebook
def test_links_to_notebooks_open_and_the_next_one_is_linked(path):
    links = re.findall(r"\]\(([^)#:]+\.ipynb)[^)]*\)", prose(path))
    assert [link for link in links if not (path.parent / link).is_file()] == []
    following = NOTEBOOKS[NOTEBOOKS.index(path) + 1 :]
    assert not following or following[0].name in links


# -- code


@each_notebook
def test_code_is_plain_python_of_at_most_25_lines_a_cell_without_definitions(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)  # they belong in the library
    for cell in code_cells(path):
        tree = ast.parse(cell.source)  # no `!command` (papermill passes `!false`) and no magic
        assert not [node.name for node in ast.walk(tree) if isinstance(node, kinds)]
        if "parameters" not in cell.metadata.get("tags", []):  # one parameter a line
            assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


@each_notebook
def test_code_imports_the_library_as_pl_and_neither_patches_the_path_nor_ends_itself(path):
    code = "\n".join(cell.source for cell in code_cells(path))
    assert "import pneumo_lib as pl" in code
    assert not re.findall(r"sys\.path|sys\.exit|exit\(|os\.chdir|%cd", code)


@each_notebook
def test_neither_cells_nor_outputs_hold_an_absolute_path(path):
    texts = [cell.source for cell in read(path).cells]
    for output in outputs(path):
        data = output.get("data", {})
        texts += [output.get("text", ""), *(data.get(k, "") for k in ("text/plain", "text/html"))]
    assert [m[0] for text in texts for m in ABSOLUTE.finditer(text)] == []
    assert not any(str(ROOT) in text for text in texts)


# -- parameters


@each_notebook
def test_one_parameters_cell_holds_literals_with_a_comment_each(path):
    cells = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    assert notebooks.notebook_parameters(path)  # refuses what is no literal
    statements = ast.parse(cells[0].source).body
    lines = cells[0].source.splitlines()
    for statement in statements:  # papermill shows the comment as help
        assert "#" in " ".join(lines[statement.lineno - 1 : statement.end_lineno])


def test_a_parameter_has_the_same_default_in_every_notebook():
    defaults = {}
    for path in NOTEBOOKS:
        for name, value in notebooks.notebook_parameters(path).items():
            assert defaults.setdefault(name, value) == value, f"{name} in {path.stem}"


def test_the_training_notebook_has_every_setting_with_its_default_and_help():
    path = ROOT / "notebooks/05_train_fcn.ipynb"
    of_data = {"data", "phantom_count", "size", "split", "fold"}
    settings = notebooks.notebook_parameters(path)
    settings = {
        n: v
        for n, v in settings.items()
        if n not in of_data | {"training_seed", "run_name", "export"}
    }
    assert settings == asdict(TrainingConfig())
    [cell] = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
    lines = cell.source.splitlines()
    for name, text in describe().items():
        assert any(re.fullmatch(f"{name} = .*  # {re.escape(text)}", line) for line in lines)


def test_the_demo_file_lists_every_default_of_a_report_with_its_help():
    text = (ROOT / "params/demo.yaml").read_text()
    assert yaml.safe_load(text) is None  # only what differs from the defaults counts
    listed = yaml.safe_load(re.sub(r"^# (\w+: )", r"\1", text, flags=re.M))
    embedded = {}
    for path in NOTEBOOKS:
        embedded |= notebooks.notebook_parameters(path)
    assert tuple(listed.pop("backbones")) == report.BACKBONES
    assert listed.pop("seeds") is None
    assert {k: v for k, v in embedded.items() if k not in SET_BY_THE_REPORT | OF_ONE_RUN} == listed
    assert all(f"# {help}\n" in text for name, help in describe().items() if name in listed)


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.stem)
def test_a_parameter_file_holds_only_what_notebooks_declare(path):
    settings = read_params(path)
    steps = report.plan(NOTEBOOKS, settings)  # refuses unknown names and other types
    assert {"backbones", "seeds"} | {n for s in steps for n in s.parameters} >= settings.keys()


# -- stored outputs: nbval passes a notebook that has none


@each_notebook
def test_every_cell_was_run_once_in_order_without_error_or_warning_and_some_are_compared(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any(is_checked(cell) for cell in cells)
    for output in outputs(path):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text


@each_notebook
def test_cells_that_show_something_have_their_output_stored(path):
    assert any(output.output_type != "stream" for output in outputs(path))  # a figure or a table
    for cell in code_cells(path):
        last = ast.parse(cell.source).body[-1:]
        # a call may return None, any other expression at the end of a cell is shown
        shown = last and isinstance(last[0], ast.Expr) and not isinstance(last[0].value, ast.Call)
        silenced = cell.source.rstrip().endswith(";")
        speaks = re.search(r"^(print|display)\(", cell.source, re.M) or is_checked(cell)
        if speaks or (shown and not silenced):
            assert cell.outputs, cell.source
