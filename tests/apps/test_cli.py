"""The `pneumo` command: arguments that it passes on, output, exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from typer.main import get_command

import pneumo_lib as pl
from pneumo_lib.apps.cli import app, main
from pneumo_lib.inference.prediction_rows import NOTE
from pneumo_lib.study import report

ROOT = Path(__file__).parents[2]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """Arguments that `run_report` receives; in its place only what the command reads is written."""
    received = []

    def fake(**arguments):
        received.append(arguments)
        (tmp_path / "figures").mkdir()
        (tmp_path / "figures" / "01_first.png").touch()
        summary = {"figures": str(tmp_path / "figures"), "result": "Nothing."}
        (tmp_path / "report.json").write_text(json.dumps(summary))
        return tmp_path / "index.html"

    monkeypatch.setattr(report, "run_report", fake)
    return received


def run_python(*arguments, **environment):
    line, environment = [sys.executable, *arguments], os.environ | environment
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment)


def test_report_without_options_runs_the_defaults_and_prints_the_files_it_made(
    calls, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 0
    assert calls == [{"data": None, "params": None, "overrides": {}, "beyond": False}]
    lines = capsys.readouterr().out.split("\n")
    assert lines[1:5] == [
        *("Result      Nothing.", "Report      index.html"),
        *("Notebooks   *.ipynb", "Figures     figures"),
    ]


def test_report_passes_values_with_the_type_that_yaml_gives_them(calls):
    options = ["--set", "epochs", "50", "--set", "milestones", "[25, 50]", "--set", "data", "x"]
    assert main(["report", *options]) == 0
    assert calls[0]["overrides"] == {"epochs": 50, "milestones": [25, 50], "data": "x"}


@pytest.mark.parametrize(
    "words", [["--backbones", "vgg16 small"], ["--backbones", "vgg16", "small"]]
)
def test_names_after_one_option_are_one_word_or_several(calls, words):
    assert main(["report", *words, "--all"]) == 0
    assert calls[0]["overrides"] == {"backbones": ["vgg16", "small"]}
    assert calls[0]["beyond"]


@pytest.mark.parametrize("value", ["-1", "a b", ""])
def test_a_setting_takes_the_word_after_its_name_and_no_other(value, monkeypatch):
    received = {}
    monkeypatch.setattr(
        "pneumo_lib.cluster.sweep.run_sweep", lambda params, **o: received.update(o, p=params)
    )
    main(["sweep", "--set", "shift", value, "grid.yaml"])
    assert received["p"] == "grid.yaml"
    assert received["overrides"] == {"shift": {"-1": -1, "": None}.get(value, value)}


def test_a_setting_without_a_value_is_refused(calls, capsys):
    assert main(["report", "--set", "epochs", "--all"]) == 1
    assert "--set takes a name and a value. Received: epochs" in capsys.readouterr().err


def test_report_reads_paths_from_the_current_folder_and_keeps_names(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "xrays").mkdir()
    assert main(["report", "--data", "xrays", "--weights", "imagenet"]) == 0
    assert calls[0]["data"] == str(tmp_path / "xrays")
    assert calls[0]["overrides"]["weights"] == "imagenet"


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


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [("report", "sphinx", "notebooks,talk"), ("sweep grid.yaml", "distributed", "cluster")],
)
def test_without_the_packages_of_an_extra_a_command_names_them(command, package, extra):
    code = f"import sys; sys.modules[{package!r}] = None; from pneumo_lib.apps.cli import main; "
    done = run_python("-c", f"{code}sys.exit(main({command.split()}))")
    assert done.returncode == 1
    assert f"needs the package {package}: pip install -e '.[{extra}]'" in done.stderr


def test_an_unknown_command_is_refused_with_exit_code_2_and_the_nearest(capsys):
    assert main(["deport"]) == 2
    assert "No such command 'deport'. Did you mean 'report'" in capsys.readouterr().err


def test_without_a_command_the_three_that_most_people_want_are_shown_and_can_be_called(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    lines = [line.strip().split("  ")[0] for line in shown.splitlines() if line[:2] == "  "]
    assert [line.split()[1] for line in lines] == ["report", "predict", "doctor"]
    for line in lines:
        _, name, *words = line.split()
        assert get_command(app).commands[name].make_context(name, words)
    assert f"All commands: pneumo --help. For {NOTE}." in shown


def test_the_exit_codes_stand_in_the_help_and_in_the_documentation(capsys):
    """What each stands for is tested where a command ends with it."""
    assert main(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    page = (ROOT / "docs/command_line.md").read_text()
    for code, meaning in (
        (0, "all done"),
        (1, "anything failed"),
        (2, "wrong call"),
        (130, "Ctrl-C"),
    ):
        assert f"{code} {meaning}" in shown
        assert f"| {code} | " in page


def test_fetch_names_the_folder_and_the_next_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("pneumo_lib.data.download.fetch", lambda to, layout: tmp_path / to / layout)
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", "siim", "--to", "xrays", "--layout", "dicom"]) == 0
    assert "make report DATA=xrays/dicom PARAMS=params/siim.yaml" in capsys.readouterr().out


def test_phantoms_draws_as_many_as_asked_for(capsys, tmp_path):
    options = ["--to", str(tmp_path), "--count", "3", "--size", "64", "--seed", "7"]
    assert main(["phantoms", *options]) == 0
    settings = json.loads((tmp_path / "phantoms.json").read_text())
    assert len(list((tmp_path / "png_images").iterdir())) == 3
    assert (settings["size"], settings["seed"]) == (64, 7)
    assert f"Phantoms    {tmp_path}" in capsys.readouterr().out


def test_python_m_pneumo_lib_is_the_same_command():
    done = run_python("-m", "pneumo_lib", "--version")
    assert done.stdout == f"pneumo {pl.__version__}\n"


def test_help_imports_nothing_heavy():
    code = "import sys; from pneumo_lib.apps.cli import main; main(['--help']); "
    heavy = "{'numpy', 'pandas', 'keras', 'tensorflow', 'papermill', 'yaml', 'rich', 'pydantic'}"
    done = run_python("-c", f"{code}print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_options(shell):
    script = run_python("-m", "pneumo_lib", _PNEUMO_COMPLETE=f"source_{shell}")
    assert f"complete_{shell}" in script.stdout
    words = dict.fromkeys(("COMP_WORDS", "_TYPER_COMPLETE_ARGS"), "pneumo export --fo")
    words |= {"COMP_CWORD": "2", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = run_python("-m", "pneumo_lib", _PNEUMO_COMPLETE=f"complete_{shell}", **words)
    assert "--format" in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="Windows has no pseudo-terminals")
def test_colour_is_for_terminals_that_want_it():
    in_terminal = "import pty, sys; pty.spawn(sys.argv[1:])"
    wrong = ("predict", "a", "b", "--run", "c", "--out", "d", "--scheduler", "local")
    line = ("-c", in_terminal, sys.executable, "-m", "pneumo_lib", *wrong)
    assert "\x1b[31mpneumo predict: " in run_python(*line, NO_COLOR="", TERM="xterm").stdout
    plain = run_python(*line, NO_COLOR="1", TERM="xterm").stdout
    plain += run_python("-m", "pneumo_lib", *wrong, NO_COLOR="", TERM="xterm").stderr
    assert plain.count("pneumo predict: ") == 2
    assert "\x1b" not in plain


def test_slides_names_the_decks_that_it_wrote(monkeypatch, capsys, tmp_path):
    from pneumo_lib.study import slides

    monkeypatch.setattr(slides, "write_slides", lambda data: [tmp_path / data / "slides.pptx"])
    assert main(["slides", "--data", "phantoms"]) == 0
    assert "phantoms/slides.pptx" in capsys.readouterr().out


def test_sweep_names_what_it_wrote_and_what_failed(monkeypatch, capsys, tmp_path):
    received = {}

    def run_sweep(params, **options):
        received.update(options, params=params)
        table = pd.DataFrame({"split": ["validation", "test"], "mean": [0.25, 0.5]})
        failed = {"a": ("no such loss", tmp_path / "a.txt")}
        return SimpleNamespace(table=table, summary=table, failed=failed, folder=tmp_path)

    monkeypatch.setattr("pneumo_lib.cluster.sweep.run_sweep", run_sweep)
    options = ["--workers", "2", "--set", "seed", "[0, 1]", "--retries", "0"]
    options += ["--resources", "GPU=1", "RAM=2e9"]
    assert main(["sweep", "grid.yaml", *options]) == 1
    assert received == {
        "params": "grid.yaml", "overrides": {"seed": [0, 1]}, "scheduler": "local", "workers": 2,
        "memory": None, "resources": {"GPU": 1.0, "RAM": 2e9}, "retries": 0,
    }  # fmt: skip
    printed = capsys.readouterr()
    assert " 0.5\n" in printed.out
    assert "0.25" not in printed.out
    assert f"{tmp_path}/table.csv" in printed.out
    assert printed.err == f"1 runs failed:\n  a: no such loss ({tmp_path}/a.txt)\n"


def test_sweep_refuses_resources_without_an_amount(capsys):
    assert main(["sweep", "grid.yaml", "--resources", "GPU"]) == 1
    assert "names with amounts, such as GPU=1. Received: GPU" in capsys.readouterr().err
