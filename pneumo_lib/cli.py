"""The `pneumo` command: what a notebook does not fit.

The only module that prints. Everything heavy is imported inside the command that needs it, so
that `pneumo --help` answers at once. `cli_options.py` says what each command takes.
"""

import json
import logging
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pneumo_lib as pl
from pneumo_lib.cli_options import DISCLAIMER, parser
from pneumo_lib.interrupts import ended_by_ctrl_c
from pneumo_lib.logs import log_levels

_STOPPED = "\nStopped. What was finished is kept; the same command goes on."


def main(arguments=None):
    """Runs a command; returns its exit code: 0, 1 for an error, 130 for Ctrl-C."""
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("pneumo_lib").setLevel(logging.INFO)
    try:
        with ended_by_ctrl_c(_STOPPED):
            return _COMMANDS[options.command](options) or 0
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        return 130
    except Exception as error:
        if options.debug:
            raise
        said = " ".join(str(error).split()) or type(error).__name__  # one line, whatever came
        print(f"pneumo {options.command}: {said}", file=sys.stderr)
        return 1


def report(options):
    """Runs all notebooks and names the files they made."""
    try:
        import papermill  # noqa: F401  (asked for now, not when the first notebook runs)

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
    index = run_report(data=data, params=options.params, overrides=overrides, beyond=options.all)
    figures = Path(json.loads((index.parent / "report.json").read_text())["figures"])
    print(f"\nReport      {_short(index)}")
    print(f"Notebooks   {_short(index.parent)}/*.ipynb")
    if any(figures.glob("*.png")):
        print(f"Figures     {_short(figures)}/")


def sweep(options):
    """Trains a grid of networks; 1 if any failed."""
    try:
        run_sweep = pl.run_sweep
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"a sweep needs the package {error.name}: pip install -e .[notebooks,cluster]"
        ) from None
    try:
        resources = {n: float(v) for n, v in (pair.split("=") for pair in options.resources)}
    except ValueError:
        raise ValueError(
            "--resources must be names with amounts, such as GPU=1. "
            f"Received: {' '.join(options.resources)}"
        ) from None
    done = run_sweep(
        options.params, overrides=_settings(options.set), scheduler=options.scheduler,
        workers=options.workers, memory=options.memory, resources=resources,
        retries=options.retries,
    )  # fmt: skip
    if len(done.table):
        tested = done.summary[done.summary["part"] == "test"].drop(columns="part")
        print(f"\n{tested.round(3).to_string(index=False)}\n")
        print(f"Table       {_short(done.folder)}/table.csv, summary.csv")
        print(f"Figure      {_short(done.folder)}/scores.png")
    failed = [(name, f"{why} ({_short(path)})") for name, (why, path) in done.failed.items()]
    return _list_failures(failed, what="runs")


def slides(options):
    """Writes the talk about a finished report."""
    from pneumo_lib.slides import write_slides

    data = options.data if options.data == "phantoms" else _from_here(options.data)
    for path in write_slides(data):
        print(f"Slides      {_short(path)}")


def fetch(options):
    """Downloads the SIIM-ACR data set from Kaggle."""
    from pneumo_lib.fetch import fetch

    folder = _short(fetch(options.to, options.layout))
    print(f"Data set    {folder}\nNext        make report DATA={folder} PARAMS=params/siim.yaml")


def phantoms(options):
    """Draws synthetic chest X-rays in the layout of the real data set."""
    folder = pl.make_phantoms(options.to, count=options.count, size=options.size, seed=options.seed)
    print(f"Phantoms    {_short(Path(folder))}")


def predict(options):
    """Predicts X-ray files into a folder; 1 if any failed."""
    if options.scheduler:
        return _predict_archive(options)
    files = [name for name in options.files if not Path(name).exists()]
    if options.workers or any("://" in name or name[:1] == "@" for name in files):
        raise ValueError(
            "URLs, @lists and --workers belong to the prediction of an archive: "
            f"add --scheduler local. Received: {' '.join(options.files)}"
        )
    predict_files, run = pl.predict_files, _run(options)
    with _quiet_readers():
        outcome = predict_files(
            options.files, run, options.out, operating_point=_operating_point(options),
            dicom_seg=options.dicom_seg,
        )  # fmt: skip
    there = len(outcome.rows) - outcome.predicted - len(outcome.failed)
    print(f"Predicted   {outcome.predicted} files" + (f"; {there} were there" if there else ""))
    print(f"Table       {_short(Path(options.out).resolve() / 'predictions.csv')}")
    for path in outcome.segmentations[:3]:
        print(f"DICOM SEG   {_short(path)}")
    if len(outcome.segmentations) > 3:
        print(f"            and {len(outcome.segmentations) - 3} more")
    return _list_failures([(row["file"], row["error"]) for row in outcome.failed])


def _predict_archive(options):
    """Predicts an archive on Dask's processes; 1 if any file failed."""
    if len(options.files) > 1 or options.dicom_seg:
        raise ValueError(
            "An archive is one folder, URL or @list, without --dicom-seg. "
            f"Received: {' '.join(options.files)}. Put single files into a list, one a line"
        )
    try:
        predict_archive = pl.predict_archive
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"--scheduler needs the package {error.name}: pip install -e .[cluster]"
        ) from None
    outcome = predict_archive(
        options.files[0], _run(options), options.out, operating_point=_operating_point(options),
        scheduler=options.scheduler, workers=options.workers,
    )  # fmt: skip
    without, there = len(outcome.without_row), outcome.rows - outcome.predicted
    print(f"Listed      {outcome.listed} files")
    print(f"Rows        {outcome.rows}, one a file; {there} were there, {without} are missing")
    print(f"Table       {options.out.rstrip('/')}/parts/*.parquet, see README.txt there")
    code = _list_failures(outcome.failures + [(name, "no row") for name in outcome.without_row])
    if outcome.failed > len(outcome.failures):
        print(f"{outcome.failed} in all: the rows with an error", file=sys.stderr)
    return code


def submit(options):
    """Writes the table that the SIIM-ACR competition takes; 1 if any image failed."""
    write_submission, run = pl.write_submission, _run(options)
    with _quiet_readers():
        count, failed = write_submission(
            options.images, run, options.to, part=options.part, rows=options.rows,
            operating_point=_operating_point(options),
        )  # fmt: skip
    print(f"Submission  {_short(Path(options.to).resolve())}, {count} images. {DISCLAIMER}")
    return _list_failures(failed)


def export(options):
    """Writes a trained network for other programs."""
    path, difference = pl.export_network(_run(options), options.to, format=options.format)
    print(f"Network     {_short(path.resolve())}, how to use it in {path.name}.txt")
    print(f"Checked     probabilities differ from Keras' by {difference:.1e} at most")


def average(options):
    """Makes the mean of several networks a run of its own."""
    run = pl.average_runs(list(map(_from_here, options.runs)), run=options.to)
    print(f"Run         {_short(run.folder)}, the mean of {len(options.runs)}")


def verify(options):
    """Scores a run again; 1 if the saved network gives other scores than the recorded ones."""
    found = pl.verify_run(_run(options))
    recorded, computed = found.siim_dice
    print(f"Images      {found.images}, {found.images_that_differ} with other counts of pixels")
    print(f"Pixels      {found.pixels_that_differ:.1e} of all fell on the other side")
    print(f"SIIM-ACR    Dice {computed:.6f}, recorded {recorded:.6f}")
    if found.matches:
        print("The scores are those of the saved network.")
        return 0
    worst = ", ".join(found.worst)
    print(
        "The scores are NOT those of the saved network: one of the two was changed. Train the run "
        f"again. Largest differences: {worst}", file=sys.stderr,
    )  # fmt: skip
    return 1


def doctor(options):
    """Says what is in place; 1 if something must be mended."""
    findings = pl.examine()
    for finding in findings:
        print(f"{finding.state:9}{finding.what:22}{finding.value}")
        if finding.remedy:
            print(f"{'':31}-> {finding.remedy}")
    return int(any(finding.state == "wrong" for finding in findings))


def _operating_point(options):
    """`None`, the run's own, without `--threshold`."""
    if options.threshold is None:
        return None
    if not 0 < options.threshold <= 1:
        raise ValueError(
            "--threshold must be a probability above 0 and at most 1. "
            f"Received: {options.threshold}"
        )
    from pneumo_lib.operating_point import OperatingPoint

    return OperatingPoint(options.threshold, 0.0, options.threshold)


def _run(options):
    """The run that was named: a path from here, or a name below `runs/`."""
    return pl.load_run(_from_here(options.run))


@contextmanager
def _quiet_readers():
    """Keeps from the screen what is told in the list of failures, and what quotes headers."""
    levels = {"pneumo_lib__inference": logging.ERROR, "pydicom": logging.CRITICAL}
    with log_levels(**levels), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")
        yield


def _list_failures(failed, *, what="files"):
    if not failed:
        return 0
    print(f"{len(failed)} {what} failed:", file=sys.stderr)
    for name, reason in failed:
        print(f"  {name}: {reason}", file=sys.stderr)
    return 1


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


_COMMANDS = {
    command.__name__: command
    for command in (
        *(report, sweep, slides, fetch, phantoms, predict, submit),
        *(average, export, verify, doctor),
    )
}
