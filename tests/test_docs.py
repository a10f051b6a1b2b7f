"""Code blocks of `docs/` and of the site's pages: shell commands, Python, cells of a notebook."""

import ast
import inspect
import re
import shlex
import subprocess
from operator import attrgetter
from pathlib import Path

import pytest
from typer.main import get_command

import pneumo_lib as pl
from pneumo_lib.apps.cli import app

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "site").rglob("*.md")])
TARGETS = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.M)


def blocks(language):
    """Each block of a language, with the name of its page."""
    found = []
    for path in PAGES:
        for text in re.findall(rf"^ *```{language}\n(.*?)^ *```", path.read_text(), re.S | re.M):
            found.append(pytest.param(text, id=f"{path.stem}-{len(found)}"))
    assert found
    return pytest.mark.parametrize("text", found)


def commands(text):
    """Words of each command, without variables before it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"&&|;|\s&(\s|$)|\|", " && ", line), comments=True)
        for part in " \0".join(words).split(" \0&&"):
            command = [word for word in part.split(" \0") if word.strip("\0 ")]
            while command and re.match(r"\0?[A-Z_]+=", command[0]):
                command = command[1:]
            if command:
                yield [word.strip("\0") for word in command]


def check(command):
    """Whether it is a call of `pneumo` or `make`, which then must understand its words."""
    program, *words = command
    if program == "pneumo" and words[:1] != ["--install-completion"]:
        assert get_command(app).commands[words[0]].make_context(words[0], words[1:])
    elif program == "make":
        assert words[0] in TARGETS
    return program in ("pneumo", "make")


@blocks("sh")
def test_commands_are_valid_and_known(text):
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert any([check(command) for command in commands(text)])  # noqa: C419  (all are checked)


@blocks("python")
def test_python_calls_what_the_library_has_with_the_arguments_it_takes(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("pneumo_lib"):
            source = attrgetter(node.module.partition(".")[2])(pl)
            assert all(hasattr(source, alias.name) for alias in node.names)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("pl."):
            function = attrgetter(ast.unparse(node.func).removeprefix("pl."))(pl)
            named = {keyword.arg: 0 for keyword in node.keywords if keyword.arg}
            inspect.signature(function).bind(*node.args, **named)


@blocks("ipython3")
def test_cells_are_python_with_commands_that_are_known(text):
    lines = text.splitlines()
    ast.parse("\n".join(line for line in lines if line[0:1] not in ("!", "%")))
    for line in (line[1:] for line in lines if line.startswith("!")):
        [command] = commands(re.sub(r"\{.*?\}", "folder", line))
        assert check(command) or command[0] in ("git", "papermill")


def test_the_index_of_the_notebooks_is_complete_and_gives_the_times_that_they_give():
    rows = re.findall(
        r"^\| \[.*?\]\((.*?)\) \| (.*?) \| (.*?) \|$",
        (ROOT / "notebooks/README.md").read_text(),
        re.M,
    )
    paths = sorted((ROOT / "notebooks").glob("0*.ipynb"))
    assert [row[0] for row in rows] == [path.name for path in paths]
    for (_, question, takes), path in zip(rows, paths, strict=True):
        assert f"| {question} |" in (ROOT / "README.md").read_text()
        assert f"**Takes** {takes}" in path.read_text()
