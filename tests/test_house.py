"""The layout of the library: which way imports go, what a reader must read, how long it may get."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "pneumo_lib"
MODULES = sorted(LIBRARY.rglob("*.py"))
# What somebody reads who wants to know how an X-ray becomes a score, ninety minutes of it.
SPINE = (
    *("data/siim", "data/images", "data/rle", "data/splits", "data/prepare"),
    *("models/backbones", "models/fcn", "models/decoders", "models/layers/conv_transpose"),
    *("training/config", "training/train", "training/callbacks", "training/losses", "runs"),
    *("evaluation/metrics", "evaluation/score_table"),
)

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(LIBRARY)))


def lines_of(paths):
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def lint_imports(folder):
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_imports_go_one_way_down():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("data/rle", "pneumo_lib.training"),  # upwards
        ("plots/style", "pneumo_lib.inference"),  # beside
        ("training/train", "dask"),  # an extra
        ("evaluation/metrics", "tensorflow"),  # a backend
    ],
)
def test_an_import_that_is_not_allowed_is_found(module, imported, tmp_path):
    """Else the test above would also pass if the contracts were empty."""
    copied = ("pneumo_lib", "pyproject.toml")
    subprocess.run(["cp", "-r", *(ROOT / name for name in copied), tmp_path], check=True)
    with (tmp_path / f"pneumo_lib/{module}.py").open("a") as file:
        file.write(f"\nimport {imported}  # noqa\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    package = module.split("/")[0]
    assert f"pneumo_lib.{package} is not allowed to import {imported}" in done.stdout


@each_module
def test_no_module_imports_the_package_itself_or_a_private_name_of_another(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pneumo_lib"):
            names = [alias.name for alias in node.names]
            private = [name for name in names if name[0] == "_" and node.module != "pneumo_lib"]
            assert not private, f"line {node.lineno}: {private}"
            if node.module == "pneumo_lib":  # its modules only, not what it lends from them
                assert all((LIBRARY / f"{name}.py").exists() for name in names), node.lineno
        if isinstance(node, ast.Import):
            assert "pneumo_lib" not in [alias.name for alias in node.names], node.lineno


FORBIDDEN = {"print", "eval", "exec", "input", "os.system", "os.popen"}
FORBIDDEN |= {"yaml.load", "yaml.unsafe_load"}
PICKLES = {"pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle"}


@each_module
def test_a_module_prints_asserts_evaluates_and_unpickles_nothing_and_starts_no_shell(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"line {getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), where
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            assert not {m.split(".")[0] for m in modules} & PICKLES, where
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in FORBIDDEN, where
            options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            assert not options.get("shell"), where
            assert not options.get("allow_pickle"), where
            assert options.get("safe_mode") in (None, True), where


def test_lint_sees_every_module_and_every_test():
    """A pattern such as `data` would leave out `pneumo_lib/data` beside the folder of images."""
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run([ruff, "check", "--show-files"], cwd=ROOT, capture_output=True, text=True)
    seen = {Path(line) for line in done.stdout.splitlines()}
    assert {*MODULES, *(ROOT / "tests").rglob("*.py")} <= seen


def test_the_spine_grows_no_longer():
    """The aim is 3,000 lines; whoever shortens it lowers the number."""
    assert lines_of(LIBRARY / f"{name}.py" for name in SPINE) <= 3_253


def test_the_library_grows_no_longer():
    """The aim is 11,300 lines; whoever shortens it lowers the number."""
    assert lines_of(MODULES) <= 13_922


def test_training_is_read_in_half_an_hour():
    """1,300 lines, without the losses and the augmentation, which are looked up one by one."""
    others = {"losses.py", "augmentation.py"}
    assert lines_of(p for p in (LIBRARY / "training").glob("*.py") if p.name not in others) <= 1_300


def test_every_folder_has_a_line_in_the_readme_of_the_library():
    text = (LIBRARY / "README.md").read_text(encoding="utf-8")
    folders = {path.parent.relative_to(LIBRARY) for path in MODULES} - {Path(".")}
    missing = [str(folder) for folder in folders if f"`{folder}/`" not in text]
    assert not missing
