"""The `pneumo` command: what a notebook does not fit.

The only module that prints. Everything heavy is imported inside the command that needs it, so
that `pneumo --help` answers at once.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

import pneumo_lib as pl


def main(arguments=None):
    """Runs a command; returns its exit code: 0, 1 for an error, 130 for Ctrl-C."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("pneumo_lib").setLevel(logging.INFO)
    try:
        options.run(options)
    except KeyboardInterrupt:
        print("\nStopped. What was finished is kept; the same command goes on.", file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        print(f"pneumo {options.command}: {error or type(error).__name__}", file=sys.stderr)
        return 1
    return 0


def report(options):
    """Runs all notebooks and names the files they made."""
    try:
        from pneumo_lib.report import run_report
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"the report needs the package {error.name}. `make env` installs everything; "
            "with pip: pip install -e .[notebooks]"
        ) from None
    overrides = _settings(options.set)
    if options.weights:
        overrides["weights"] = _from_here(options.weights)
    if options.backbones:
        overrides["backbones"] = options.backbones
    data = options.data if options.data in (None, "phantoms") else _from_here(options.data)
    index = run_report(data=data, params=options.params, overrides=overrides)
    figures = Path(json.loads((index.parent / "report.json").read_text())["figures"])
    print(f"\nReport      {_short(index)}")
    print(f"Notebooks   {_short(index.parent)}/*.ipynb")
    if any(figures.glob("*.png")):
        print(f"Figures     {_short(figures)}/")


def fetch(options):
    """Downloads the SIIM-ACR data set from Kaggle."""
    from pneumo_lib.fetch import fetch

    folder = _short(fetch(options.to, options.layout))
    print(f"Data set    {folder}\nNext        make report DATA={folder} PARAMS=params/siim.yaml")


def phantoms(options):
    """Draws synthetic chest X-rays in the layout of the real data set."""
    folder = pl.make_phantoms(options.to, count=options.count, size=options.size, seed=options.seed)
    print(f"Phantoms    {_short(Path(folder))}")


def _parser():
    parser = argparse.ArgumentParser(
        prog="pneumo", description="Chest X-ray pneumothorax segmentation with FCNs."
    )
    parser.add_argument("--version", action="version", version=f"pneumo {pl.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = _add(commands, report, "run all notebooks and write runs/report/index.html")
    command.add_argument("--data", metavar="FOLDER", help="a data set instead of the phantoms")
    command.add_argument("--params", metavar="YAML", help="parameters, such as params/siim.yaml")
    command.add_argument("--weights", help="imagenet, auto, or a file of backbone weights")
    command.add_argument("--backbones", nargs="+", metavar="NAME", help="networks to train")
    command.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
        help="one notebook parameter, such as --set epochs 50; may be repeated",
    )  # fmt: skip

    command = _add(commands, fetch, "download the SIIM-ACR data set from Kaggle")
    command.add_argument("data", choices=["siim"])
    command.add_argument("--to", required=True, metavar="FOLDER")
    command.add_argument("--layout", choices=["png", "dicom"], default="png", help="default: png")

    command = _add(commands, phantoms, "draw synthetic chest X-rays")
    command.add_argument("--to", required=True, metavar="FOLDER")
    command.add_argument("--count", type=int, default=800)
    command.add_argument("--size", type=int, default=256, help="pixels on a side")
    command.add_argument("--seed", type=int, default=0)
    return parser


def _add(commands, function, text):
    command = commands.add_parser(function.__name__, help=text, description=f"{text}.".capitalize())
    command.set_defaults(run=function)
    return command


def _settings(pairs):
    """Dict of `--set NAME VALUE`, each value read as in a YAML file."""
    import yaml

    return {name: yaml.safe_load(value) for name, value in pairs}


def _from_here(path):
    """An existing path as an absolute one: on a command line it starts at the current folder."""
    return str(Path(path).expanduser().resolve()) if Path(path).expanduser().exists() else path


def _short(path):
    """`path` from the current folder, if it lies inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
