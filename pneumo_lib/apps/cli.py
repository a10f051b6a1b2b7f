"""The `pneumo` command line, the only module that prints.

A command imports what it needs when it runs, so that `pneumo --help` answers at once.
"""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from pneumo_lib.apps import cli_options as shared

_DISCLAIMER = "For research and teaching, not a medical device."
_START = f"""Pneumothorax on chest X-rays. What most people want:

  pneumo report                                       the whole study on synthetic X-rays
  pneumo predict FILE_OR_FOLDER --run RUN --out NEW   outline pneumothorax on X-rays of your own
  pneumo doctor                                       what is installed, trained and missing

All commands: pneumo --help. {_DISCLAIMER}"""
_COLOURS = {"ok": "green", "missing": "yellow", "wrong": "red"}

app = typer.Typer(
    help="Chest X-ray pneumothorax segmentation with FCNs.",
    epilog=f"`pneumo COMMAND --help` lists its options, with an example. {_DISCLAIMER}\n\n"
    "Exit codes: 0 all done, 1 anything failed, 2 wrong call, 130 Ctrl-C.",
    invoke_without_command=True,
    rich_markup_mode="markdown" if sys.stdout.isatty() else None,  # boxes on a terminal only
    pretty_exceptions_enable=False,  # Python's own traceback for --debug
    context_settings={
        "help_option_names": ["-h", "--help"],
        "color": False if os.environ.get("NO_COLOR") else None,  # `None`: on a terminal
    },
)


def main(arguments=None):
    """Run a command and return its exit code, see the help of `pneumo`."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app(arguments, prog_name="pneumo")
    except SystemExit as end:
        return end.code


def command(example):
    """Decorator that registers a function as a command with an example in its help."""
    return app.command(cls=shared.Command, epilog=f"Example: {example}")


def _print_version(wanted: bool):
    if wanted:
        from importlib.metadata import version

        typer.echo(f"pneumo {version('pneumo')}")
        raise typer.Exit


@app.callback()
def before_a_command(
    context: typer.Context,
    version: Annotated[
        bool, Option("--version", callback=_print_version, is_eager=True, help="show the version")
    ] = False,
    debug: Annotated[bool, Option("--debug", help="show the traceback of an error")] = False,
):
    if context.invoked_subcommand is None:  # `shared.Command` reads `debug`
        typer.echo(_START)


@command("pneumo report --data data/siim --params params/siim.yaml --backbones vgg16 small")
def report(
    data: shared.Data = None,
    params: Annotated[str | None, Option(metavar="YAML", help="such as params/siim.yaml")] = None,
    weights: Annotated[str, Option(parser=shared.from_here, help="imagenet, auto or a file")] = "",
    backbones: Annotated[str, Option(metavar="NAME ...", help="networks to train")] = "",
    settings: shared.Settings = (),
    beyond: Annotated[bool, Option("--all", help="also the notebooks after 06_results")] = False,
):
    """Run all notebooks and write runs/report/index.html."""
    import sphinx  # noqa: F401  (fails here, not when the first notebook runs)

    from pneumo_lib.study.report import run_report

    overrides = shared.read_settings(settings)
    overrides |= {"weights": weights} if weights else {}
    overrides |= {"backbones": backbones.split()} if backbones else {}
    index = run_report(data=data, params=params, overrides=overrides, beyond=beyond)
    summary = json.loads((index.parent / "report.json").read_text(encoding="utf-8"))
    figures = Path(summary["figures"])
    typer.echo()
    if summary.get("result"):
        _show("Result", summary["result"])
    _show("Report", index)
    _show("Notebooks", index.parent / "*.ipynb")
    if any(figures.glob("*.png")):
        _show("Figures", figures)


@command("pneumo sweep params/sweep.yaml --workers 2")
def sweep(
    params: Annotated[str, Argument(metavar="YAML", help="a grid, such as params/sweep.yaml")],
    settings: shared.Settings = (),
    scheduler: shared.Scheduler = "local",
    workers: shared.Workers = None,
    memory: Annotated[str | None, Option(help="limit of a worker, such as 4GB")] = None,
    resources: Annotated[str, Option(metavar="NAME=N ...", help="of a run, such as GPU=1")] = "",
    retries: Annotated[int, Option(metavar="N", help="of a failed run")] = 1,
):
    """Train a grid of networks on several processes or machines.

    Writes runs/sweep-NAME/: table.csv, summary.csv, a figure, the errors of failed runs. The same
    command again trains only unfinished runs. docs/clusters.md shows SLURM and Kubernetes.
    """
    from pneumo_lib.cluster.sweep import run_sweep

    try:
        amounts = {n: float(v) for n, v in (pair.split("=") for pair in resources.split())}
    except ValueError:
        raise ValueError(
            f"--resources must be names with amounts, such as GPU=1. Received: {resources}"
        ) from None
    options = dict(scheduler=scheduler, workers=workers, memory=memory, retries=retries)
    done = run_sweep(params, overrides=shared.read_settings(settings), resources=amounts, **options)
    if len(done.table):
        tested = done.summary[done.summary["split"] == "test"].drop(columns="split")
        typer.echo(f"\n{tested.round(3).to_string(index=False)}\n")
        _show("Table", done.folder / "table.csv", "summary.csv")
        _show("Figure", done.folder / "scores.png")
    failed = [(name, f"{why} ({_short(path)})") for name, (why, path) in done.failed.items()]
    return _list_failures(failed, what="runs")


@command("pneumo slides --data data/siim")
def slides(data: shared.Data = "phantoms"):
    """Write slides of a finished report, PowerPoint and HTML."""
    from pneumo_lib.study.slides import write_slides

    for path in write_slides(data):
        _show("Slides", path)


@command("pneumo fetch siim --to data/siim")
def fetch(
    data: Annotated[Literal["siim"], Argument(help="the data set")],
    to: Annotated[str, Option(metavar="FOLDER", help="for its files")],
    layout: Annotated[Literal["png", "dicom"], Option(help="of the files")] = "png",
):
    """Download the SIIM-ACR data set from Kaggle."""
    from pneumo_lib.data.download import fetch

    folder = _short(fetch(to, layout))
    _show("Data set", folder)
    _show("Next", f"make report DATA={folder} PARAMS=params/siim.yaml")


@command("pneumo phantoms --to data/few --count 20 --size 1024")
def phantoms(
    to: Annotated[str, Option(metavar="FOLDER", help="for the files")],
    count: Annotated[int, Option(metavar="N", help="X-rays")] = 800,
    size: Annotated[int, Option(metavar="N", help="pixels on a side")] = 256,
    seed: Annotated[int, Option(metavar="N", help="of the random numbers")] = 0,
):
    """Draw synthetic chest X-rays in the layout of the real data set."""
    from pneumo_lib.data.phantom.draw import make_phantoms

    _show("Phantoms", Path(make_phantoms(to, count=count, size=size, seed=seed)))


@command("pneumo predict xrays/ one.dcm --run runs/phantoms-small-128 --out predictions")
def predict(
    files: Annotated[list[str], Argument(metavar="FILE_OR_FOLDER", help="folders are searched")],
    run: shared.Run,
    out: Annotated[str, Option(metavar="FOLDER", help="new, or of an earlier call")],
    threshold: shared.Threshold = None,
    dicom_seg: Annotated[bool, Option("--dicom-seg", help="also write DICOM SEG objects")] = False,
    scheduler: shared.Scheduler = None,
    workers: shared.Workers = None,
    as_json: shared.Json = False,
):
    """Outline pneumothorax on new X-rays with a trained network.

    Reads PNG, JPEG and DICOM. Writes predictions.csv, and for each file a probability map, a mask
    at the size of the file and an overlay. The same command again predicts only new files.

    With --scheduler, many processes predict an archive of any size: one folder, one list of files
    (@list.txt) or one URL (s3://bucket/xrays). Parquet files in --out, which may be a URL too,
    then hold the masks as run lengths.
    """
    listed = any("://" in name or name[:1] == "@" for name in files if not Path(name).exists())
    if (len(files) > 1 or dicom_seg) if scheduler else (workers or listed):
        raise ValueError(
            "An archive is one folder, URL or @list, with --scheduler and without --dicom-seg. "
            f"Received: {' '.join(files)}. Put several files into a list, one a line, and add "
            "--scheduler local"
        )
    point = _operating_point(threshold)
    if scheduler:
        return _predict_archive(files[0], run, out, point, scheduler, workers, as_json)
    from pneumo_lib.inference.predict_files import predict_files
    from pneumo_lib.inference.prediction_rows import typed

    outcome = predict_files(files, run, out, operating_point=point, dicom_seg=dicom_seg)
    if as_json:
        found = {"files": [typed(row) for row in outcome.rows], "predicted": outcome.predicted}
        failed = {row["file"]: row["error"] for row in outcome.failed}
        found |= {"failed": failed, "dicom_seg": outcome.segmentations}
        return _print_json(found, code=int(bool(failed)))
    there = sum(not row["error"] for row in outcome.rows) - outcome.predicted
    _show("Predicted", f"{outcome.predicted} files" + (f"; {there} were there" if there else ""))
    _show("Table", Path(out).resolve() / "predictions.csv")
    for path in outcome.segmentations:
        _show("DICOM SEG", path)
    return _list_failures([(row["file"], row["error"]) for row in outcome.failed])


def _predict_archive(archive, run, out, point, scheduler, workers, as_json):
    """Predict an archive by Dask and return the exit code: 1 if any file failed."""
    from pneumo_lib.cluster.archive import predict_archive

    options = dict(operating_point=point, scheduler=scheduler, workers=workers)
    outcome = predict_archive(archive, run, out, **options)
    if as_json:
        failed = outcome.failed or outcome.without_row
        return _print_json(outcome._asdict(), code=int(bool(failed)))
    without, there = len(outcome.without_row), outcome.rows - outcome.predicted
    _show("Listed", f"{outcome.listed} files")
    _show("Rows", f"{outcome.rows}, one a file; {there} were there, {without} are missing")
    _show("Table", f"{out.rstrip('/')}/parts/*.parquet, see README.txt there")
    code = _list_failures(outcome.failures + [(name, "no row") for name in outcome.without_row])
    if outcome.failed > len(outcome.failures):
        typer.echo(f"{outcome.failed} in all: the rows with an error", err=True)
    return code


@command("pneumo submit --run runs/siim-small-128 --images data/siim --to submission.csv")
def submit(
    run: shared.Run,
    images: Annotated[str, Option(help="a data set, or files <ImageId>.dcm or .png")],
    to: Annotated[str, Option(metavar="CSV", help="for the table")],
    part: Annotated[Literal["test", "train", "all"], Option(help="official part")] = "test",
    rows: Annotated[Literal["image", "region"], Option(help="one row for each")] = "image",
    threshold: shared.Threshold = None,
):
    """Write the SIIM-ACR submission table.

    ImageId,EncodedPixels with masks of 1024 x 1024 pixels, -1 where nothing was found or where an
    image could not be read.
    """
    from pneumo_lib.inference.submission import write_submission

    point = _operating_point(threshold)
    count, failed = write_submission(images, run, to, part=part, rows=rows, operating_point=point)
    _show("Submission", Path(to).resolve(), f"{count} images. {_DISCLAIMER}")
    return _list_failures(failed)


@command("pneumo average siim-s0 siim-s1 siim-s2 --to siim-mean")
def average(runs: shared.Runs, to: Annotated[str, Option(metavar="NAME", help="of the new run")]):
    """Make an ensemble of trained networks.

    It predicts the mean of the probabilities of its members, networks of one kind, trained on the
    same data with different seeds.
    """
    from pneumo_lib.study.ensemble import average_runs

    _show("Run", average_runs(runs, run=to).folder, f"ensemble of {len(runs)}")


@command("pneumo export --run runs/phantoms-small-128 --format onnx --to network.onnx")
def export(
    run: shared.Run,
    to: Annotated[str, Option(metavar="PATH", help="of the file, which must not exist")],
    format: Annotated[Literal["onnx", "savedmodel", "litert"], Option(help="of the file")] = "onnx",
):
    """Write a trained network for other programs.

    The file takes grey images and includes their preprocessing. Before it is kept, its output on
    synthetic X-rays is compared with that of Keras.
    """
    from pneumo_lib.inference.export import export_network

    path, difference = export_network(run, to, format=format)
    _show("Network", path.resolve(), f"how to use it in {path.name}.txt")
    _show("Checked", f"probabilities differ from Keras' by {difference:.1e} at most")


@command("pneumo verify phantoms-small-128")
def verify(run: shared.OneRun, as_json: shared.Json = False):
    """Score a trained network again and compare with its scores.csv."""
    from pneumo_lib.inference.rescore import verify_run

    found = verify_run(run)
    if as_json:
        return _print_json(found._asdict(), code=int(not found.matches))
    recorded, computed = found.siim_dice
    _show("Images", f"{found.images}, {found.images_that_differ} with other pixel counts")
    _show("Pixels", f"{found.pixels_that_differ:.1e} of all have another class")
    _show("SIIM-ACR", f"Dice {computed:.6f}, recorded {recorded:.6f}")
    if not found.matches:
        raise ValueError(
            "the scores are NOT those of the saved network: one of the two has changed. Train the "
            f"run again. Largest differences: {', '.join(found.worst)}"
        )
    return typer.echo("The scores are those of the saved network.")


@command("pneumo doctor")
def doctor(
    weights: Annotated[
        Path | None, Option(metavar="FILE", help="check a file of weights, or a folder, instead")
    ] = None,
    as_json: shared.Json = False,
):
    """Check packages, devices, weights, data, runs and disk.

    Names a remedy for what is missing. Downloads nothing.
    """
    if weights:
        from pneumo_lib.apps.weights_check import examine_weights

        findings = examine_weights(weights)
    else:
        from pneumo_lib.apps.doctor import examine

        findings = examine()
    failed = int(any(finding.state == "wrong" for finding in findings))
    if as_json:
        return _print_json([finding._asdict() for finding in findings], code=failed)
    for finding in findings:
        state = typer.style(f"{finding.state:9}", fg=_COLOURS[finding.state])
        typer.echo(f"{state}{finding.what:22}{finding.value}")
        if finding.remedy:
            typer.echo(f"{'':31}-> {finding.remedy}")
    return failed


def _operating_point(threshold):
    """Operating point of a plain threshold; None, the run's own point, without one."""
    from pneumo_lib.evaluation.operating_point import OperatingPoint

    return OperatingPoint(threshold, 0.0, threshold) if threshold else None


def _show(label, *facts):
    typer.echo(typer.style(f"{label:12}", bold=True) + ", ".join(str(_short(f)) for f in facts))


def _print_json(value, *, code):
    """Print what a command found, and return its exit code."""
    typer.echo(json.dumps(value, indent=2, default=str))
    return code


def _short(fact):
    """A path inside the current folder as a relative one; other facts unchanged."""
    inside = isinstance(fact, Path) and fact.is_relative_to(Path.cwd())
    return fact.relative_to(Path.cwd()) if inside else fact


def _list_failures(failed, *, what="files"):
    """Print names with reasons on standard error and return the exit code."""
    if failed:
        typer.secho(f"{len(failed)} {what} failed:", fg="red", err=True)
    for name, reason in failed:
        typer.echo(f"  {name}: {reason}", err=True)
    return int(bool(failed))
