"""The report: the numbered notebooks executed in order, and pages that gather their results.

The training notebook is executed once for each backbone. A notebook whose inputs did not change
since it last finished is not executed again; to execute it all the same, after a change of the
library that leaves numbers as they are, delete its `.key.json`.
"""

import hashlib
import json
import logging
from pathlib import Path

import nbformat

from pneumo_lib._files import IN_CHECKOUT, file_lock, project_path, source_path, write_json
from pneumo_lib.models import names
from pneumo_lib.runs import (
    RESULTS_VERSION,
    caveats,
    default_name,
    is_finished,
    load_run,
    package_versions,
    weights_checksum,
)
from pneumo_lib.study import html
from pneumo_lib.study.notebooks import (
    Step,
    execute,
    figures_folder,
    measured,
    notebook_parameters,
    report_folder,
)
from pneumo_lib.study.parameters import absolute_paths, check_parameters, read_params

logger = logging.getLogger(__name__)

TRAINING = "05_train_fcn"
LAST = "06_results"  # the notebooks after it ask further questions
BACKBONES = tuple(name for name in names.BACKBONES if name != "vgg16")  # those of the report


def run_report(
    *, data=None, params=None, overrides=None, folder=None, notebooks="notebooks", beyond=False
):
    """Runs the notebooks and writes the report; earlier results stay when one of them fails.

    Args:
        data: `"phantoms"` or the folder of a data set; `None` takes `data` of `params`.
        params: YAML file of parameters, such as `params/siim.yaml`.
        overrides: dict of single parameters, stronger than `params`. `backbones`, a list, names
            the networks to train; every other name must be a parameter of some notebook.
        folder: of the executed notebooks and pages; `None`: see `report_folder()`.
        notebooks: folder of the numbered notebooks.
        beyond: whether to run also the notebooks after `LAST`.

    Returns:
        `Path` of `index.html`; `report.json` beside it holds times, peak memory and the caveats
        that every slide about this report carries.

    Raises:
        ValueError: for an unknown parameter, or a value that it cannot have.
        FileNotFoundError: if there is no notebook, or `data` or `params` do not exist.
        NotebookError: if a cell of a notebook fails.
    """
    paths = sorted(source_path(notebooks).glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise FileNotFoundError(
            f"No numbered notebook, such as 01_*.ipynb, in {source_path(notebooks)}. {IN_CHECKOUT}"
        )
    settings = {"data": "phantoms"} | read_params(params) | (overrides or {})
    settings = absolute_paths(settings | ({} if data is None else {"data": data}))
    steps = plan(paths, settings)
    steps = [step for step in steps if beyond or step.notebook.stem <= LAST]
    folder = project_path(folder or report_folder(settings["data"]))
    with file_lock(folder):
        folder.mkdir(parents=True, exist_ok=True)
        inputs, trained, records = _inputs(settings), [], []
        for number, step in enumerate(steps, start=1):
            key = _key(step, inputs, trained)
            record = _run(step, key, folder, progress=f"{number}/{len(steps)}")
            records.append(record)
            if step.notebook.stem == TRAINING:  # the notebooks after it depend on its weights
                trained.append([key, record["learnt"]])
        runs = [load_run(r["parameters"]["run_name"]) for r in records if r["learnt"]]
        summary = {"figures": str(figures_folder(settings["data"])), "notebooks": records}
        write_json(folder / "report.json", summary | {"caveats": caveats(runs) if runs else None})
        return html.write_report(folder, records, settings, runs=runs, notebooks=paths)


def plan(notebooks, settings):
    """List of `Step` of a report: each notebook with those of `settings` that it declares."""
    declared = {path: notebook_parameters(path) for path in notebooks}
    settings = {"export": True} | settings
    backbones = settings.pop("backbones", list(BACKBONES))
    if not isinstance(backbones, list) or not backbones:
        raise ValueError(
            "`backbones` must be a list of names, such as [vgg16, small]. "
            f"Received: backbones={backbones!r}"
        )
    for name in {"backbone", "run_names"} & settings.keys():
        raise ValueError(
            f"`{name}` is set by the report. Received: {name}={settings[name]!r}. "
            "Give `backbones`, the networks to train, instead"
        )
    if settings.get("run_name") and len(backbones) > 1:  # the second would replace the first
        raise ValueError(
            "`run_name` names one network: give one of `backbones` with it, or leave it out. "
            f"Received: run_name={settings['run_name']!r}, backbones={', '.join(backbones)}"
        )
    known = {"backbone": None} | {k: v for d in declared.values() for k, v in d.items()}
    for backbone in backbones:
        checked = check_parameters(settings | {"backbone": backbone}, known)
    steps, run_names = [], []
    for path, defaults in declared.items():
        own = {name: checked[name] for name in settings if name in defaults}
        if path.stem != TRAINING:
            own |= {"run_names": run_names} if "run_names" in defaults else {}
            steps.append(Step(path.stem, path, own))
            continue
        for backbone in backbones:
            network = own | {"backbone": backbone}
            if "run_name" in defaults:  # the name is given, so that it is known here
                network["run_name"] = _run_name(defaults | network)
                run_names.append(network["run_name"])
            steps.append(Step(f"{path.stem}-{backbone}", path, network))
    return steps


def _run_name(parameters):
    """Name of the run folder that the training notebook makes with all its `parameters`."""
    chosen = (parameters[name] for name in ("backbone", "decoder", "size"))
    return parameters["run_name"] or default_name(Path(parameters["data"]).name, *chosen)


# -- what has to be run again ------------------------------------------------------------------


def _inputs(settings):
    """What all steps depend on: versions of the packages; name, size and time of data files."""
    roots = [Path(settings["data"]), Path(settings.get("weights") or "")]
    files = [f for root in roots if root.is_absolute() for f in (root, *root.rglob("*"))]
    stats = {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()}
    return [RESULTS_VERSION, package_versions(), stats]


def _key(step, inputs, trained):
    """SHA-256 of all that decides the outputs of a step; stored outputs do not."""
    cells = [(c.cell_type, c.source) for c in nbformat.read(step.notebook, as_version=4).cells]
    parameters = notebook_parameters(step.notebook) | step.parameters
    named = [source_path(v) for v in parameters.values() if str(v).endswith((".yaml", ".yml"))]
    contents = [path.read_text(encoding="utf-8") for path in named if path.is_file()]
    if parameters.get("initial"):
        contents.append(weights_checksum(load_run(parameters["initial"]).folder))
    decisive = [cells, step.parameters, contents, inputs, trained]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _learnt(step):
    """Checksum of the weights that a training step learnt; None if there is no such run."""
    name = step.parameters.get("run_name")
    folder = project_path("runs") / str(name)
    return weights_checksum(folder) if name and is_finished(folder) else None


# -- one notebook ------------------------------------------------------------------------------


def _run(step, key, folder, *, progress):
    """Record of a step, which is executed unless its notebook and the run it trained are there."""
    executed, record_path = folder / f"{step.name}.ipynb", folder / f"{step.name}.key.json"
    if executed.is_file() and record_path.is_file():
        record = json.loads(record_path.read_text())
        if (record["key"], record.get("learnt")) == (key, _learnt(step)):
            logger.info("%s %s: unchanged, not run again", progress, step.name)
            return record
    unfinished = folder / f"{step.name}.unfinished.ipynb"  # stays, to look at, if a cell fails
    with measured() as used:
        execute(step, unfinished, desc=f"{progress} {step.name}")
    unfinished.replace(executed)
    record = {"name": step.name, "key": key, "parameters": step.parameters}
    record |= {"learnt": _learnt(step), **used}
    write_json(record_path, record)
    logger.info("%s %s: %.0f s, %.1f GB", progress, step.name, used["seconds"], used["peak_gb"])
    return record
