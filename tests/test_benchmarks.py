"""The benchmarks, which no other test runs, use only names that the library has."""

import ast
import importlib.util
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


def used(tree):
    """`(module, name)` of what a script takes from the library."""
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {a.asname or a.name: a.name for a in node.names if "pneumo_lib" in a.name}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pneumo_lib"):
            for alias in node.names:
                yield node.module, alias.name
                modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module and is_module(module):
                yield module, node.attr


def is_module(name):
    try:
        return bool(importlib.util.find_spec(name))
    except ModuleNotFoundError:  # its parent is a module, not a package: a function or a class
        return False


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.name for script in SCRIPTS])
def test_every_name_taken_from_the_library_exists(script):
    missing = [
        f"{module}.{name}"
        for module, name in used(ast.parse(script.read_text(encoding="utf-8")))
        if not hasattr(importlib.import_module(module), name) and not is_module(f"{module}.{name}")
    ]
    assert missing == []


def test_a_name_that_is_gone_is_found():
    tree = ast.parse("from pneumo_lib import rle\nimport pneumo_lib as pl\nrle.gone\npl.train")
    assert set(used(tree)) >= {("pneumo_lib.data.rle", "gone"), ("pneumo_lib", "train")}
