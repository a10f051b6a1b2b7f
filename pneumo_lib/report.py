"""The whole study: runs the numbered notebooks in order and gathers what they made on one page.

Every notebook runs in a kernel of its own, the training notebook once per backbone. One whose
inputs did not change since it last finished is not run again.
"""

import ast
import hashlib
import json
import logging
import os
from pathlib import Path

import nbformat

from pneumo_lib import names, pages
from pneumo_lib.kernels import Step, execute, measured
from pneumo_lib.parameters import absolute_paths, check_parameters, read_params
from pneumo_lib.paths import alone, figures_folder, project_path, report_folder, source_path
from pneumo_lib.runs import write_json

logger = logging.getLogger(__name__)

TRAINING = "05_train_fcn"
LAST = "06_results"  # with it the report is told
BACKBONES = tuple(name for name in names.BACKBONES if name != "vgg16")  # those of the report
_PACKAGE = Path(__file__).parent
# cannot change what a notebook does
_RUNNERS = ("__main__.py", "cli.py", "interrupts.py", "kernels.py", "pages.py", "report.py")
_RUNNERS += ("sweep.py",)


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
    settings = absolute_paths(settings | ({} if data is None else {"data": data}))
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
    if settings.get("run_name") and len(backbones) > 1:  # the second would replace the first
        raise ValueError(
            "`run_name` names one network: give one of `backbones` with it, or leave it out. "
            f"Received: run_name={settings['run_name']!r}, backbones={', '.join(backbones)}"
        )
    known = {"backbone": None} | {k: v for d in declared.values() for k, v in d.items()}
    for backbone in backbones:
        checked = check_parameters(settings | {"backbone": backbone}, known)
    settings = {name: checked[name] for name in settings}
    steps = []
    for path, defaults in declared.items():
        own = {name: value for name, value in settings.items() if name in defaults}
        if path.stem == TRAINING:
            for backbone in backbones:
                steps.append(Step(f"{path.stem}-{backbone}", path, own | {"backbone": backbone}))
        else:
            steps.append(Step(path.stem, path, own))
    return steps


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
        execute(step, unfinished, desc=f"{progress} {step.name}")
    unfinished.replace(executed)
    record = {"name": step.name, "key": key, "parameters": step.parameters, **used}
    write_json(record_path, record)
    logger.info("%s %s: %.0f s, %.1f GB", progress, step.name, used["seconds"], used["peak_gb"])
    return record
