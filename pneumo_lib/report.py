"""The whole study: runs the numbered notebooks in order and gathers what they made on one page.

Papermill runs every notebook in a kernel of its own (TensorFlow keeps GPU memory until its
process ends), the training notebook once per backbone. A notebook whose inputs did not change
since it last finished is not run again.
"""

import ast
import difflib
import hashlib
import json
import logging
import os
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import nbformat
import papermill
import psutil
import yaml
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError, strip_color

from pneumo_lib import pages
from pneumo_lib.paths import alone, figures_folder, project_path, report_folder, source_path
from pneumo_lib.runs import write_json

logger = logging.getLogger(__name__)

TRAINING = "05_train_fcn"
LAST = "06_results"  # with it the report is told
BACKBONES = ("vgg19", "resnet50", "inceptionv3", "small")  # "small" is the from-scratch control
_PACKAGE = Path(__file__).parent
_RUNNERS = ("__main__.py", "cli.py", "pages.py", "report.py")  # cannot change what a notebook does


class Step(NamedTuple):
    """One execution of one notebook."""

    name: str  # of the executed notebook, such as "05_train_fcn-vgg19"
    notebook: Path
    parameters: dict


class NotebookError(RuntimeError):
    """A notebook stopped before its end; the message names notebook, cell and traceback."""


def run_report(
    *, data=None, params=None, overrides=None, folder=None, notebooks="notebooks", beyond=False
):
    """Runs the notebooks and writes the report; earlier results stay when one of them fails.

    Args:
        data: `"phantoms"` or the folder of a data set; `None` takes `data` of `params`.
        params: YAML file of parameters, such as `params/siim.yaml`; `None`: the defaults that
            the notebooks themselves hold.
        overrides: dict of single parameters, stronger than `params`. `backbones`, a list, names
            the networks to train; every other name must be a parameter of some notebook.
        folder: where the executed notebooks and pages go. Default: `runs/report` for phantoms,
            else `runs/report-<name of the data folder>`.
        notebooks: folder of the numbered notebooks.
        beyond: whether to run also the notebooks after `LAST`, which ask further questions.

    Returns:
        `Path` of `index.html`; `report.json` beside it holds times and peak memory.

    Raises:
        ValueError: if a parameter is unknown or of another type than its default.
        FileNotFoundError: if there is no notebook, or `data` or `params` do not exist.
        NotebookError: if a cell of a notebook fails.
    """
    paths = sorted(source_path(notebooks).glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(f"No numbered notebook, such as 01_*.ipynb, in {notebooks}")
    settings = {"data": "phantoms"} | read_params(params) | (overrides or {})
    settings = _absolute_paths(settings | ({} if data is None else {"data": data}))
    steps = plan(paths, settings)
    steps = [step for step in steps if beyond or step.notebook.stem <= LAST]
    folder = project_path(folder or report_folder(settings["data"]))
    with alone(folder):
        folder.mkdir(parents=True, exist_ok=True)
        links = {path.name: os.path.relpath(path, folder) for path in paths}  # of those not run
        links |= {step.notebook.name: f"{step.name}.html" for step in reversed(steps)}

        inputs = _fingerprint(settings)
        trained, records = [], []
        for number, step in enumerate(steps, start=1):
            key = _key(step, inputs, trained)
            records.append(_run(step, key, folder, progress=f"{number}/{len(steps)}"))
            pages.write_notebook_page(folder / f"{step.name}.ipynb", links)
            if step.notebook.stem == TRAINING:
                trained.append(key)  # what comes after reads the runs, so it depends on them
        summary = {"figures": str(figures_folder(settings["data"])), "notebooks": records}
        write_json(folder / "report.json", summary)
        return pages.write_index(folder, records, settings)


def read_params(path):
    """Parameters of a YAML file as a dict; `{}` for `None`."""
    if path is None:
        return {}
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No parameter file {path}. The project's own are in params/")
    params = yaml.safe_load(path.read_text()) or {}
    if not isinstance(params, dict):
        raise ValueError(f"{path} must hold lines of `name: value`. Received: {params!r}")
    return params


def notebook_parameters(notebook):
    """Names and defaults in the cell tagged `parameters`, as a dict of literals.

    Read from the syntax tree: papermill's own inspection returns text, and loses a value that
    spans two lines or is annotated `int | None`.
    """
    nb = nbformat.read(notebook, as_version=4)
    cells = [c.source for c in nb.cells if "parameters" in c.metadata.get("tags", ())]
    defaults = {}
    for statement in ast.parse("\n".join(cells)).body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement
        try:
            defaults[getattr(target, "target", target).id] = ast.literal_eval(statement.value)
        except (AttributeError, ValueError):
            raise ValueError(
                f"The parameters cell of {Path(notebook).name} must hold assignments of literals "
                f"only. Received: {ast.unparse(statement)}"
            ) from None
    return defaults


def plan(notebooks, settings):
    """The steps of a report: each notebook with those of `settings` that it declares."""
    declared = {path: notebook_parameters(path) for path in notebooks}
    settings = {"export": True} | settings
    backbones = settings.pop("backbones", list(BACKBONES))
    if "backbone" in settings:
        raise ValueError("`backbone` is set for each training run. Give a list: `backbones`")
    settings = check_parameters(settings, {k: v for d in declared.values() for k, v in d.items()})
    steps = []
    for path, defaults in declared.items():
        own = {name: value for name, value in settings.items() if name in defaults}
        if path.stem == TRAINING:
            for backbone in backbones:
                steps.append(Step(f"{path.stem}-{backbone}", path, own | {"backbone": backbone}))
        else:
            steps.append(Step(path.stem, path, own))
    return steps


def check_parameters(settings, defaults):
    """`settings` with numbers of the type of their default; refuses what papermill lets pass.

    Papermill only warns of a misspelt parameter and runs with the default instead.
    """
    checked = {}
    for name, value in settings.items():
        if name not in defaults and name not in ("data", "export"):
            close = difflib.get_close_matches(name, defaults, n=1)
            hint = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(defaults)}"
            raise ValueError(f"No notebook has a parameter `{name}`. {hint}")
        default = defaults.get(name, value)
        if (type(default) is float and type(value) is int) or (
            type(default) in (float, type(None)) and type(value) is str
        ):
            with suppress(ValueError):
                value = float(value)  # YAML reads 1e-3 as text
        # None is a value of text parameters (`weights`) and replaces a default of None
        free = default is None or (value is None and isinstance(default, str))
        if type(value) is not type(default) and not free:
            kind = type(default).__name__
            raise ValueError(
                f"`{name}` must be {kind}, as its default {default!r}. Received: {name}={value!r}"
            )
        checked[name] = value
    return checked


def _absolute_paths(settings):
    """`data` and `weights` as absolute paths: a kernel works in the notebooks' folder."""
    settings = dict(settings)
    if settings["data"] != "phantoms":
        settings["data"] = str(project_path(settings["data"]))
        if not Path(settings["data"]).is_dir():
            raise FileNotFoundError(
                f"`data` must be 'phantoms' or a folder. Received: {settings['data']}. "
                "The SIIM-ACR data set is downloaded by: pneumo fetch siim --to data/siim"
            )
    weights = settings.get("weights")
    if weights and project_path(weights).is_file():
        settings["weights"] = str(project_path(weights))
    return settings


# -- what has to be run again ------------------------------------------------------------------


def _fingerprint(settings):
    """Of the library and of every data file (name, size, time of change), as text."""
    lines = [
        f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path in sorted(_PACKAGE.glob("*.py"))
        if path.name not in _RUNNERS
    ]
    roots = [Path(settings["data"]), Path(settings.get("weights") or "")]
    files = [f for root in roots if root.is_absolute() for f in (root, *root.rglob("*"))]
    for path in sorted(f for f in files if f.is_file()):
        status = path.stat()
        lines.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(lines)


def _key(step, inputs, trained):
    """SHA-256 of all that decides the outputs of a step; stored outputs do not."""
    cells = [(c.cell_type, c.source) for c in nbformat.read(step.notebook, as_version=4).cells]
    decisive = json.dumps([cells, step.parameters, inputs, trained], sort_keys=True)
    return hashlib.sha256(decisive.encode()).hexdigest()


# -- one notebook ------------------------------------------------------------------------------


def _run(step, key, folder, *, progress):
    """Runs a step unless it is there already; returns its record for report.json."""
    executed, record_path = folder / f"{step.name}.ipynb", folder / f"{step.name}.key.json"
    if executed.is_file() and record_path.is_file():
        record = json.loads(record_path.read_text())
        if record["key"] == key:
            logger.info("%s %s: unchanged, not run again", progress, step.name)
            return record
    unfinished = folder / f"{step.name}.unfinished.ipynb"  # stays, to look at, if a cell fails
    with measured() as used:
        _execute(step, unfinished, progress)
    unfinished.replace(executed)
    record = {"name": step.name, "key": key, "parameters": step.parameters, **used}
    write_json(record_path, record)
    logger.info("%s %s: %.0f s, %.1f GB", progress, step.name, used["seconds"], used["peak_gb"])
    return record


def _execute(step, output, progress):
    try:
        nb = papermill.execute_notebook(
            step.notebook,
            output,
            step.parameters,
            kernel_name="python3",
            cwd=step.notebook.parent,
            extra_arguments=["--log-level=50"],  # kernels log about themselves; errors come back
            # `disable=None`: a bar in a terminal, nothing in a log file
            progress_bar={"desc": f"{progress} {step.name}", "leave": False, "disable": None},
        )
    except PapermillExecutionError as error:
        trace = strip_color("\n".join(error.traceback)) or f"{error.ename}: {error.evalue}"
        raise NotebookError(
            f"{step.name} failed at cell In [{error.exec_count}]:\n\n{error.source}\n\n{trace}\n\n"
            f"It is kept up to there: {output}"
        ) from None
    except DeadKernelError:
        raise NotebookError(
            f"{step.name} lost its kernel: it was killed, as the system does when memory is short. "
            "Close other programs, or take a smaller `size`, and run the report again: what was "
            f"finished is kept. It is kept up to there: {output}"
        ) from None
    skipped = [c for c in nb.cells if c.cell_type == "code" and c.source and not c.execution_count]
    if skipped:  # after `sys.exit(0)` papermill skips the rest and reports success
        raise NotebookError(f"{step.name} ended itself before this cell:\n\n{skipped[0].source}")


@contextmanager
def measured():
    """Dict that holds `seconds` and `peak_gb` at the end of the block.

    Peak of the resident memory of this process and all it started (kernel, workers), sampled
    four times a second; memory they share is counted once for each.
    """
    used, start, done = {"peak_gb": 0.0}, time.perf_counter(), threading.Event()

    def sample():
        here = psutil.Process()
        while not done.wait(0.25):
            total = 0
            for process in (here, *here.children(recursive=True)):
                with suppress(psutil.Error):  # it may have ended meanwhile
                    total += process.memory_info().rss
            used["peak_gb"] = round(max(used["peak_gb"], total / 1e9), 2)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield used
    finally:
        done.set()
        sampler.join()
        used["seconds"] = round(time.perf_counter() - start, 1)
