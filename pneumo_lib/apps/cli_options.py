"""Shared by all commands of `pneumo`: one-line errors, exit codes, options."""

import logging
import math
import os
import warnings
from typing import Annotated

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from pneumo_lib._logs import log_levels
from pneumo_lib.apps.interrupts import ended_by_ctrl_c

_STOPPED = "\nStopped. What was finished is kept; the same command goes on."
_WORDS = {"--set": 2, "--backbones": math.inf, "--resources": math.inf}  # that an option takes
_LEVELS = {
    "pneumo_lib": logging.INFO,
    "pneumo_lib__inference": logging.ERROR,  # commands list failed files at their end
    "pydicom": logging.CRITICAL,  # its warnings quote patient data
}


class Command(TyperCommand):
    """Command that prints an error as one line and exits with the code its function returns."""

    def parse_args(self, ctx, args):
        """Read `--set epochs 50` as `--set "epochs 50"`: a Typer option takes one word."""
        words, room = [], 0
        for word in args:
            if word.startswith("--"):
                room = _WORDS.get(word, 0)
            elif room:
                room -= 1
                if words[-1] not in _WORDS:
                    words[-1] += f" {word}"
                    continue
            words.append(word)
        return super().parse_args(ctx, words)

    def invoke(self, ctx):
        """Run the function; the exit code is 1 after an error, 130 after Ctrl-C."""
        try:
            with ended_by_ctrl_c(_STOPPED), log_levels(**_LEVELS), warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="pydicom")
                status = super().invoke(ctx) or 0
        except KeyboardInterrupt:
            typer.echo(_STOPPED, err=True)
            status = 130
        except Exception as error:
            if ctx.parent.params["debug"]:
                raise
            reason = " ".join(str(error).split()) or type(error).__name__  # one line
            if isinstance(error, ModuleNotFoundError):
                extra = "cluster" if self.name in ("sweep", "predict") else "notebooks,talk"
                remedy = f"pip install -e '.[{extra}]', or `make env` for everything"
                reason = f"needs the package {error.name}: {remedy}"
            typer.secho(f"pneumo {self.name}: {reason}", fg="red", err=True)
            status = 1
        ctx.exit(status)


def from_here(path):
    """Absolute path of an existing file or folder; any other text unchanged."""
    there = os.path.expanduser(path)
    return os.path.realpath(there) if path != "phantoms" and os.path.exists(there) else path


def read_settings(pairs):
    """Dict of the pairs of `--set NAME VALUE`, with values parsed as YAML."""
    import yaml

    if alone := [pair for pair in pairs if " " not in pair]:
        raise ValueError(f"--set takes a name and a value. Received: {alone[0]}")
    return {name: yaml.safe_load(value) for name, value in (pair.split(" ", 1) for pair in pairs)}


_RUN = dict(metavar="RUN", parser=from_here, help="folder of a trained network, or name in runs/")
_SET = "one setting, such as --set epochs 50; may be repeated; params/demo.yaml lists the names"
_WORKERS = "processes of --scheduler local; default: one for two cores"
_P = "lowest probability of a pneumothorax pixel; default: the run's operating point"

Run = Annotated[str, Option(**_RUN)]
OneRun = Annotated[str, Argument(**_RUN)]
Runs = Annotated[list[str], Argument(**_RUN)]
Data = Annotated[str, Option(metavar="FOLDER", parser=from_here, help="a data set, or phantoms")]
Settings = Annotated[list[str], Option("--set", metavar="NAME VALUE", help=_SET)]
Threshold = Annotated[float, Option(metavar="P", min=1e-6, max=1, help=_P)]
Scheduler = Annotated[
    str, Option(metavar="ADDRESS", help="local, or tcp://HOST:PORT of a running Dask scheduler")
]
Json = Annotated[bool, Option("--json", help="print one JSON value, for other programs")]
Workers = Annotated[int, Option(metavar="N", help=_WORKERS)]
