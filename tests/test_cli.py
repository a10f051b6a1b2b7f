"""The `pneumo` command: what it passes on, prints and returns."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

import pneumo_lib as pl
import pneumo_lib.fetch
from pneumo_lib import report
from pneumo_lib.cli import main


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Arguments of `run_report`, which writes what the command reads back and no more."""
    received = []

    def fake(**arguments):
        received.append(arguments)
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "01_first.png").touch()
        summary = {"figures": str(tmp_path / "figures")}
        (tmp_path / "report.json").write_text(json.dumps(summary))
        return tmp_path / "index.html"

    monkeypatch.setattr(report, "run_report", fake)
    return received


def run_python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_report_without_options_runs_the_embedded_defaults(calls):
    assert main(["report"]) == 0
    assert calls == [{"data": None, "params": None, "overrides": {}, "beyond": False}]


def test_report_all_runs_the_notebooks_after_the_results_as_well(calls):
    assert main(["report", "--all"]) == 0
    assert calls[0]["beyond"]


def test_report_passes_values_with_the_type_that_yaml_gives_them(calls):
    options = ["--set", "epochs", "50", "--set", "milestones", "[25, 50]", "--set", "data", "x"]
    assert main(["report", *options, "--backbones", "vgg16", "small"]) == 0
    overrides = calls[0]["overrides"]
    assert overrides == {
        "epochs": 50,
        "milestones": [25, 50],
        "data": "x",
        "backbones": ["vgg16", "small"],
    }


def test_report_reads_paths_from_the_current_folder(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xrays").mkdir()
    (tmp_path / "vgg16.npz").touch()
    assert main(["report", "--data", "xrays", "--weights", "vgg16.npz"]) == 0
    assert calls[0]["data"] == str(tmp_path / "xrays")
    assert calls[0]["overrides"]["weights"] == str(tmp_path / "vgg16.npz")


def test_report_keeps_weights_that_are_a_name(calls):
    assert main(["report", "--weights", "imagenet"]) == 0
    assert calls[0]["overrides"]["weights"] == "imagenet"


def test_report_names_the_files_it_made(calls, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["report"])
    lines = capsys.readouterr().out.split("\n")
    assert lines[1:4] == ["Report      index.html", "Notebooks   ./*.ipynb", "Figures     figures/"]


def test_an_error_is_one_line_and_exit_code_1(calls, capsys, monkeypatch):
    def fail(**arguments):
        raise ValueError("`epochs` must be int")

    monkeypatch.setattr(report, "run_report", fail)
    assert main(["report"]) == 1
    assert capsys.readouterr().err == "pneumo report: `epochs` must be int\n"


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(report, "run_report", lambda **arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "report"])


def test_an_interrupt_ends_cleanly_and_says_how_to_go_on(capsys, monkeypatch):
    def interrupt(**arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "run_report", interrupt)
    assert main(["report"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_report_without_the_notebook_packages_says_how_to_get_them(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    for module in ("report", "kernels"):
        monkeypatch.delitem(sys.modules, f"pneumo_lib.{module}", raising=False)
        monkeypatch.delattr(f"pneumo_lib.{module}", raising=False)
    assert main(["report"]) == 1
    assert "needs the package papermill. `make env`" in capsys.readouterr().err


def test_an_unknown_command_is_refused_with_exit_code_2(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["deport"])
    assert "invalid choice" in capsys.readouterr().err


def test_fetch_names_the_folder_and_the_next_command(capsys, monkeypatch, tmp_path):
    received = []

    def download(to, layout):
        received.append((to, layout))
        return tmp_path / to

    monkeypatch.setattr(pneumo_lib.fetch, "fetch", download)
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", "siim", "--to", "xrays", "--layout", "dicom"]) == 0
    assert received == [("xrays", "dicom")]
    assert "make report DATA=xrays PARAMS=params/siim.yaml" in capsys.readouterr().out


def test_phantoms_draws_as_many_as_asked_for(capsys, monkeypatch, tmp_path):
    received = {}

    def make(folder, **options):
        received.update(options, folder=folder)
        return tmp_path

    monkeypatch.setitem(vars(pl), "make_phantoms", make)
    options = ["--to", str(tmp_path), "--count", "3", "--size", "64", "--seed", "7"]
    assert main(["phantoms", *options]) == 0
    assert received == {"folder": str(tmp_path), "count": 3, "size": 64, "seed": 7}
    assert "Phantoms" in capsys.readouterr().out


def test_python_m_pneumo_lib_is_the_same_command():
    done = run_python("-m", "pneumo_lib", "--version")
    assert done.stdout == f"pneumo {pl.__version__}\n"


def test_help_imports_nothing_heavy():
    code = "import sys; from pneumo_lib.cli import main\ntry: main(['--help'])\nexcept SystemExit: "
    heavy = "{'numpy', 'pandas', 'keras', 'tensorflow', 'papermill', 'yaml'}"
    done = run_python("-c", f"{code}print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout.endswith("[]\n")


def test_slides_names_the_decks_that_it_wrote(monkeypatch, capsys, tmp_path):
    from pneumo_lib import slides

    monkeypatch.setattr(slides, "write_slides", lambda data: [tmp_path / data / "slides.pptx"])
    assert main(["slides", "--data", "phantoms"]) == 0
    assert "phantoms/slides.pptx" in capsys.readouterr().out


def test_sweep_names_what_it_wrote_and_what_failed(monkeypatch, capsys, tmp_path):
    received = {}

    def run_sweep(params, **options):
        received.update(options, params=params)
        table = pd.DataFrame({"part": ["validation", "test"], "mean": [0.25, 0.5]})
        notebook = tmp_path / "a.ipynb"
        return SimpleNamespace(
            table=table, summary=table, failed={"a": ("no such loss", notebook)}, folder=tmp_path
        )

    monkeypatch.setitem(vars(pl), "run_sweep", run_sweep)
    options = [
        "--workers",
        "2",
        "--set",
        "seed",
        "[0, 1]",
        "--resources",
        "GPU=1",
        "--retries",
        "0",
    ]
    assert main(["sweep", "grid.yaml", *options]) == 1
    assert received == {
        "params": "grid.yaml",
        "overrides": {"seed": [0, 1]},
        "scheduler": "local",
        "workers": 2,
        "memory": None,
        "resources": {"GPU": 1.0},
        "retries": 0,
    }
    said = capsys.readouterr()
    assert " 0.5\n" in said.out
    assert "0.25" not in said.out
    assert f"{tmp_path}/table.csv" in said.out
    assert said.err == f"1 runs failed:\n  a: no such loss ({tmp_path}/a.ipynb)\n"


def test_sweep_refuses_resources_without_an_amount(capsys):
    assert main(["sweep", "grid.yaml", "--resources", "GPU"]) == 1
    assert "names with amounts, such as GPU=1. Received: GPU" in capsys.readouterr().err


def test_sweep_without_the_cluster_packages_says_how_to_get_them(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    for module in ("sweep", "cluster"):
        monkeypatch.delitem(sys.modules, f"pneumo_lib.{module}", raising=False)
        monkeypatch.delattr(f"pneumo_lib.{module}", raising=False)
    assert main(["sweep", "grid.yaml"]) == 1
    assert "needs the package distributed: pip install" in capsys.readouterr().err
