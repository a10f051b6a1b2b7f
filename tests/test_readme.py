"""Every command of the README, tried.

The short ones run. Of `make` the recipe is asked for (`make -n`), papermill stops before the first
cell (`--prepare-only`), and `pneumo` reads its options: `.ci/run` runs `make report`, `make slides`
and `make site` with small data, and the two commands on top are what it is made of.
"""

import re
import shlex
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner
from papermill.cli import papermill
from typer.main import get_command

from pneumo_lib.apps.cli import app
from pneumo_lib.study.notebooks import notebook_parameters
from pneumo_lib.study.parameters import check_parameters

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def commands():
    """Lines of the `sh` blocks, and what stands between backticks and starts like a command."""
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", README, re.S | re.M):
        yield from (shlex.split(line, comments=True) for line in block.splitlines() if line.strip())
    prose = re.sub(r"^ *```.*?^ *```", "", README, flags=re.S | re.M)
    for text in re.findall(r"`((?:make [a-z]|\.venv/bin/)[^`]*)`", prose):
        yield shlex.split(text.replace("\n", " "))


def named(program):
    found = [c for c in commands() if Path(c[0]).name == program]
    return pytest.mark.parametrize("command", found, ids=" ".join)


def test_every_command_is_of_a_kind_that_is_tried_below():
    assert {Path(c[0]).name for c in commands()} == {
        *("make", "papermill", "pneumo", "dask", "cp", "pip", "uv")
    }


@named("make")
def test_make_knows_the_target_and_what_to_do(command):
    done = subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ".venv/bin" in done.stdout
    for setting in command[2:]:
        name, _, value = setting.partition("=")
        assert value in done.stdout, f"{name} is not used"


@named("papermill")
def test_papermill_takes_the_notebook_and_its_parameters(command, tmp_path):
    notebook, written = ROOT / command[1], tmp_path / command[2]
    options = [str(ROOT / x) if x.endswith(".yaml") else x for x in command[3:]]
    arguments = [str(notebook), str(written), *options, "--prepare-only"]
    done = CliRunner().invoke(papermill, arguments)
    assert done.exit_code == 0, done.output
    given = nbformat.read(written, as_version=4).metadata.papermill.parameters
    if "-f" not in command:  # a file may hold parameters of other notebooks
        check_parameters(dict(given), notebook_parameters(notebook))
        assert len(given) == command.count("-p") > 0


@named("pneumo")
def test_pneumo_takes_the_options(command):
    assert get_command(app).commands[command[1]].make_context(command[1], command[2:])


@named("dask")
def test_dask_takes_the_options(command):
    module = import_module(f"distributed.cli.dask_{command[1]}")
    assert module.main.make_context(command[1], command[2:])


@named("cp")
def test_what_is_copied_is_there(command, tmp_path):
    shutil.copy(ROOT / command[1], tmp_path)


@named("pip")
def test_what_pip_installs_is_an_extra_of_the_project(command):
    extra = re.search(r"\[(\w+)\]", command[-1])[1]
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()


@named("uv")
def test_uv_installs_the_lock_and_the_package_and_runs_the_command_of_make(command):
    options, program, arguments = command[1:9], command[9], command[10:]
    assert options[:4] == ["run", "--no-project", "--python", "3.12"]
    assert options[4:] == ["--with-requirements", "requirements.lock", "--with-editable", "."]
    target = {"pneumo": "report", "pytest": "test"}[program]
    recipe = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert " ".join([program, *arguments]) in recipe.stdout


def test_the_example_in_python_runs_with_smaller_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("PNEUMO_HOME", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    smaller = {
        "size=128": "size=32, phantom_count=40",
        'backbone="vgg19", epochs=5': 'backbone="small", epochs=1',
    }
    for text, small in smaller.items():
        assert text in code
        code = code.replace(text, small)
    namespace = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert (tmp_path / "runs/try/model.keras").is_file()


def test_the_table_of_notebooks_is_that_of_the_folder():
    names = [path.name for path in sorted((ROOT / "notebooks").glob("0*.ipynb"))]
    assert re.findall(r"^\| \[.*?\]\(notebooks/(.*?)\)", README, re.M) == names


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []
