"""What a fresh clone relies on: the package lists agree, importing stays light, nothing private."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import pneumo_lib as pl

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED_EXTRAS = re.findall(r"--extra (\w+)", MAKEFILE)
TARGETS = re.findall(r"^([\w-]+):.*##", MAKEFILE, re.M)
JUPYTER = "jupyter_client jupyter_core IPython ipykernel ipywidgets nbformat nbconvert papermill"


def requirements(*extras):
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def tracked_files():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout, so what is tracked is unknown")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


# -- pyproject.toml, requirements.lock and environment.yml


@pytest.mark.parametrize("requirement", requirements(*LOCKED_EXTRAS), ids=lambda r: r.name)
def test_the_lock_holds_a_version_that_pyproject_allows(requirement):
    name = canonicalize_name(requirement.name)
    versions = re.findall(rf"^{re.escape(name)}==([^ ;\\]+)", LOCK, re.M)
    assert versions, "not in requirements.lock: run `make lock`"
    assert all(requirement.specifier.contains(version) for version in versions)


def test_every_line_of_the_lock_is_exact_and_has_checksums():
    packages = re.split(r"^(?=[a-z0-9])", re.sub(r"^ *#.*\n", "", LOCK, flags=re.M), flags=re.M)[1:]
    assert len(packages) > 50
    for package in packages:
        assert re.match(r"[a-z0-9._-]+==[^ ]+ ", package)
        assert "--hash=sha256:" in package


def test_the_conda_environment_installs_the_extras_of_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["dependencies"][-1] == {"pip": [f"-e .[{','.join(LOCKED_EXTRAS)}]"]}
    packages = re.findall(r"^ +- (?!pip:).*", (ROOT / "environment.yml").read_text(), re.M)
    assert [line for line in packages if "#" not in line] == []


def test_conda_pyproject_and_makefile_ask_for_the_same_pythons():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = next(d for d in environment["dependencies"] if str(d).startswith("python "))
    assert SpecifierSet(python.removeprefix("python ")) == SpecifierSet(PROJECT["requires-python"])
    lowest, highest = re.search(r"\((3, \d+)\) <= .* <= \((3, \d+)\)", MAKEFILE).groups()
    for minor in range(9, 20):
        allowed = minor in range(int(lowest[3:]), int(highest[3:]) + 1)
        assert SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}") == allowed


def test_the_gpu_extra_asks_for_the_tensorflow_of_the_cpu():
    cpu = next(r for r in requirements() if r.name == "tensorflow")
    (gpu,) = (r for r in requirements("gpu") if r.name == "tensorflow" and r.extras)
    assert gpu.extras == {"and-cuda"}
    assert gpu.specifier == cpu.specifier


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert PROJECT["version"] == pl.__version__ == citation["version"]
    assert f"## {pl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


# -- make env and make test

STUB = """#!/bin/sh
echo "$(basename $0) $*" >> calls
case "$*" in *" uv") [ {uv} = no ] && exit 1; cp .venv/bin/python .venv/bin/uv ;; esac
[ {uv} != fails ] || [ "$(basename $0)" != uv ]
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("uv", "installer"),
    [("yes", "uv pip install"), ("no", "python -m pip"), ("fails", "python -m pip")],
)
def test_make_env_installs_the_lock_with_its_hashes_by_uv_or_where_it_cannot_by_pip(
    uv, installer, tmp_path
):
    folder = tmp_path / "a blank and an ö"
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(STUB.format(uv=uv))
    python.chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    done = subprocess.run(["make", "env"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("uv could not be installed" in done.stderr) == (uv == "no")
    calls = (folder / "calls").read_text().splitlines()
    lock, package = [call for call in calls if call.startswith(installer)][-2:]
    assert lock.endswith("--require-hashes --no-deps -r requirements.lock")
    assert package == calls[-1]
    assert package.endswith("-e .")


def test_a_killed_test_worker_ends_the_run_with_an_error(tmp_path):
    killed = "import os\n\ndef test_a():\n    os.kill(os.getpid(), 9)\n\ndef test_b():\n    pass\n"
    (tmp_path / "test_killed.py").write_text(killed)
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    line = [sys.executable, "-m", "pytest", *settings, "-n", "1", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "crashed while running" in done.stdout


# -- importing


def test_importing_the_package_loads_nothing_heavy():
    heavy = "keras tensorflow matplotlib pandas numpy cv2 sklearn jupyter_core IPython papermill"
    done = run_python(
        f"import sys, pneumo_lib; print(sorted(set({heavy.split()}) & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr


def test_every_public_name_but_the_explorer_resolves_without_jupyter():
    code = f"""
import sys
for name in {JUPYTER.split()}:
    sys.modules[name] = None
import pneumo_lib as pl
for name in {{*dir(pl)}} - {{"explore"}}:
    getattr(pl, name)
print(len(dir(pl)))
"""
    done = run_python(code)
    assert done.stdout.strip() == str(len(pl.__all__)), done.stderr
    assert done.stderr == ""  # TensorFlow's start-up lines would stand in every notebook


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        pl.__getattr__("nothing")


# -- sources


@pytest.mark.parametrize("command", [["check", "."], ["format", "--check", "."]], ids=" ".join)
def test_ruff_is_content(command):
    done = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", ".ci/run"])
def test_every_make_command_that_is_written_down_exists(name):
    written = set(re.findall(r"(?:^|`|&& )make ([a-z-]+)", (ROOT / name).read_text(), re.M))
    assert written <= set(TARGETS)


def test_nothing_tracked_names_this_machine_or_a_private_package_index():
    private = [
        *(re.escape(f"{p}/") for p in (ROOT, Path.home()) if len(p.parts) > 2),  # not "/tmp/"
        r"(?<!emit-)(?:extra-)?index-url[ =]|--find-links[ =]",
        r"https?://[^\s\"']*(?:devpi|artifactory|mirror)",
    ]
    found = []
    for path in tracked_files():
        text = "" if path.samefile(__file__) else path.read_text(errors="replace")
        found += [f"{path.name}: {m[0]}" for p in private for m in re.finditer(p, text)]
    assert found == []


def test_no_made_or_downloaded_data_are_tracked():
    for path in tracked_files():
        assert path.relative_to(ROOT).parts[0] not in {"data", "runs", ".venv"}
        assert path.suffix not in {".dcm", ".npy", ".npz", ".h5", ".keras", ".csv"}


def test_a_wheel_is_whole_and_says_outside_of_the_checkout_where_notebooks_and_params_are(tmp_path):
    pytest.importorskip("pip", reason="environments of uv are without")
    source, site, work = (tmp_path / name for name in ("source", "site", "work"))
    work.mkdir()
    junk = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pneumo_lib", source / "pneumo_lib", ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    files = {p.relative_to(source) for p in (source / "pneumo_lib").rglob("*") if p.is_file()}
    settings = {k: v for k, v in os.environ.items() if k != "PNEUMO_HOME"}
    settings |= {"PYTHONPATH": str(site), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}

    def run(*command):
        line = [sys.executable, *map(str, command)]
        return subprocess.run(line, cwd=work, env=settings, capture_output=True, text=True)

    made = ["--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--target", site]
    done = run("-m", "pip", "install", "--quiet", *made, source)
    assert done.returncode == 0, done.stderr
    installed = {p.relative_to(site) for p in (site / "pneumo_lib").rglob("*") if p.is_file()}
    assert installed == files
    assert run(site / "bin/pneumo", "--version").stdout == f"pneumo {PROJECT['version']}\n"
    for command in (["report"], ["sweep", "params/sweep.yaml"]):
        done = run(site / "bin/pneumo", *command)
        assert done.returncode == 1
        assert "come with the checkout of the repository (git clone)" in done.stderr
    done = run(site / "bin/pneumo", "doctor")
    assert "-> Notebooks and params/ come with the checkout" in done.stdout
    assert not any(work.iterdir())
