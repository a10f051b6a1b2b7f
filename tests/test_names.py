"""Names taken from the library by scripts, notebooks and pages exist, even if no test runs them."""

import re
from importlib import import_module
from inspect import ismodule
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("tests/*/*.py")]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")]
STUBS = sorted(ROOT.glob("pneumo_lib/**/*.pyi"))
PAGES += [*ROOT.glob("params/*.yaml"), ROOT / "Makefile"]
IMPORT = re.compile(r"\bfrom (pneumo_lib[\w.]*) import (?:\(([^)]*)\)|([\w, ]+))")


def used(text):
    """Dotted names, such as `pneumo_lib.data.rle`; those in the code of strings too."""
    yield from (f"pneumo_lib{names}" for names in re.findall(r"\bpl((?:\.[A-Za-z]\w*)+)", text))
    for module, several, one in IMPORT.findall(text):
        for name in re.sub(r"#.*", "", several or one).split(","):
            if name.strip():
                yield f"{module}.{name.split()[0]}"


def exists(dotted):
    found, *names = dotted.split(".")
    found = import_module(found)
    for name in names:
        if not ismodule(found):
            return True  # an attribute of a class or a value
        try:
            found = getattr(found, name)
        except AttributeError:
            try:
                found = import_module(f"{found.__name__}.{name}")
            except ModuleNotFoundError:
                return False
    return True


@pytest.mark.parametrize("path", sorted(SCRIPTS + PAGES), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_name_taken_from_the_library_exists(path):
    text = "" if path.samefile(__file__) else path.read_text(encoding="utf-8")
    assert [name for name in sorted(set(used(text))) if not exists(name)] == []


def test_a_name_that_is_gone_is_found():
    text = "from pneumo_lib.data import rle\nfrom pneumo_lib.models import (\n    gone,  # no\n)\n"
    names = set(used(f"{text}pl.train\n'pl.data.lost(a)'"))
    assert {name for name in names if not exists(name)} == {
        "pneumo_lib.models.gone",
        "pneumo_lib.data.lost",
    }
    assert {"pneumo_lib.data.rle", "pneumo_lib.train"} <= names


@pytest.mark.parametrize("stub", STUBS, ids=lambda path: path.parent.name)
def test_every_name_declared_in_a_stub_exists(stub):
    package = ".".join(stub.parent.relative_to(ROOT).parts)
    names = import_module(package).__all__
    assert [name for name in names if not exists(f"{package}.{name}")] == []
