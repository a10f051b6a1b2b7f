"""The exercises at the end of notebooks: every folded solution runs and prints what is shown."""

import contextlib
import io
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
WITH = sorted(NOTEBOOKS.glob("0[2-8]*.ipynb"))
SOLUTION = re.compile(
    r"<details><summary>Solution \d</summary>\n\n```python\n(.*?)\n```\n\n```text\n(.*?)\n```.*?"
    r"\n\n</details>",
    re.S,
)


def exercises(path):
    cells = [c.source for c in nbformat.read(path, as_version=4).cells]
    return next((text for text in cells if text.startswith("## Exercises")), "")


def all_solutions():
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for number, (code, printed) in enumerate(SOLUTION.findall(exercises(path)), start=1):
            yield pytest.param(code, printed, id=f"{path.stem}-{number}")


@pytest.mark.parametrize(("code", "printed"), [*all_solutions()])
def test_a_solution_is_complete_and_prints_what_stands_below_it(code, printed):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "solution", "exec"), {})
    assert output.getvalue().strip() == printed


@pytest.mark.parametrize("path", WITH, ids=lambda path: path.stem)
def test_a_notebook_ends_with_two_or_three_exercises_each_with_a_solution(path):
    text = exercises(path)
    numbers = re.findall(r"^(\d)\. \*\*", text, re.M)
    assert numbers in (["1", "2"], ["1", "2", "3"])
    assert len(SOLUTION.findall(text)) == len(numbers) == text.count("<details>")
