"""The report: the numbered notebooks executed in order, and pages that gather their results.

The training notebook is executed once for each backbone. A notebook whose inputs did not change
since it last finished is not executed again; to execute it all the same, after a change of the
library that leaves numbers as they are, delete its `.key.json`.
"""

import hashlib
import itertools
import json
import logging
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pneumo_lib import _files, runs
from pneumo_lib._checks import refuse
from pneumo_lib.models import names
from pneumo_lib.study.notebooks import (
    Kernel,
    Progress,
    Step,
    figures_folder,
    notebook_parameters,
    read_cells,
    report_folder,
)
from pneumo_lib.study.parameters import DATA, absolute_paths, check_parameters, read_params
from pneumo_lib.training.config import TrainingConfig

logger = logging.getLogger(__name__)

_SUMMARY = "report.json"
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
            the networks to train, and `seeds`, a list, the seeds of training to train each with;
            every other name must be a parameter of some notebook.
        folder: of the executed notebooks and pages; `None`: see `report_folder()`.
        notebooks: folder of the numbered notebooks.
        beyond: whether to run also the notebooks after `LAST`.

    Returns:
        `Path` of `index.html`; `report.json` beside it holds times, peak memory, the result in
        one sentence, and the caveats that every slide about this report carries.

    Raises:
        ValueError: for an unknown parameter, or a value that it cannot have.
        FileNotFoundError: if there is no notebook, or `data` or `params` do not exist.
        NotebookError: if a cell of a notebook fails.
    """
    place = _files.source_path(notebooks)
    if not (paths := sorted(place.glob("[0-9][0-9]_*.ipynb"))):
        rule = f"No numbered notebook, such as 01_*.ipynb, in {place}"
        raise FileNotFoundError(f"{rule}. {_files.IN_CHECKOUT}")
    settings = {"data": "phantoms"} | read_params(params) | (overrides or {})
    settings = absolute_paths(settings | ({} if data is None else {"data": data}))
    steps = plan(paths, settings)
    steps = [step for step in steps if beyond or step.notebook.stem <= LAST]
    folder = _files.project_path(folder or report_folder(settings["data"]))
    with _files.file_lock(folder):
        folder.mkdir(parents=True, exist_ok=True)
        records = _run_all(steps, settings, folder)
        _write_pages(folder, records, settings, paths)
    return folder / "index.html"


def _write_pages(folder, records, settings, paths):
    """Writes the pages, unless they are about the same records, and then `report.json`."""
    kept = _files.made_from(folder, record=_SUMMARY) or {}
    sources = (Path(__file__).with_name("report.md"), _files.source_path("site/conf.py"))
    sources = [path.read_text(encoding="utf-8") for path in sources]
    key = _digest([records, settings, sources, [str(path) for path in paths]])
    if kept.get("key") == key and (folder / "index.html").is_file():
        return
    from pneumo_lib.study import html  # Sphinx and matplotlib, which an unchanged report needs not
    from pneumo_lib.study.findings import conclusion

    trained = [runs.load_run(r["parameters"]["run_name"]) for r in records if r["learnt"]]
    html.write_report(folder, records, settings, runs=trained, notebooks=paths)
    summary = {"key": key, "figures": str(figures_folder(settings["data"])), "notebooks": records}
    summary["caveats"] = runs.caveats(trained) if trained else None
    summary |= {"result": conclusion(trained)} if trained else {}
    _files.write_json(folder / _SUMMARY, summary)


def plan(notebooks, settings):
    """List of `Step` of a report: each notebook with those of `settings` that it declares."""
    declared = {path: notebook_parameters(path) for path in notebooks}
    settings = {"export": True} | settings
    backbones = settings.pop("backbones", list(BACKBONES))
    seeds = settings.pop("seeds", None) or [None]
    for name, given, example in [
        ("backbones", backbones, "names, such as [vgg16, small]"),
        ("seeds", seeds, "whole numbers, such as [0, 1, 2]"),
    ]:
        if not isinstance(given, list) or not given:
            refuse(name, given, f"a list of {example}")
    for name in {"backbone", "run_names", "training_seed"} & settings.keys():
        raise ValueError(
            f"`{name}` is set by the report. Received: {name}={settings[name]!r}. "
            "Give `backbones`, the networks to train, and `seeds` instead"
        )
    networks = list(itertools.product(backbones, seeds))
    if settings.get("run_name") and len(networks) > 1:  # the second would replace the first
        raise ValueError(
            "`run_name` names one network: give one of `backbones` with it, or leave it out. "
            f"Received: run_name={settings['run_name']!r}, backbones={', '.join(backbones)}"
        )
    known = {"backbone": None} | {k: v for d in declared.values() for k, v in d.items()}
    for seed in seeds:
        TrainingConfig(seed=seed or 0)  # checks it
    for backbone in backbones:
        checked = check_parameters(settings | {"backbone": backbone}, known)
    steps, run_names = [], []
    for path, defaults in declared.items():
        own = {name: checked[name] for name in settings if name in defaults}
        if path.stem != TRAINING:
            own |= {"run_names": run_names} if "run_names" in defaults else {}
            steps.append(Step(path.stem, path, own))
            continue
        for backbone, seed in networks:
            network = own | {"backbone": backbone}
            again = f"-seed{seed}" if seed else ""
            if seed is not None:
                network["training_seed"] = seed
            if "run_name" in defaults:  # the name is given, so that it is known here
                network["run_name"] = _run_name(defaults | network, again)
                run_names.append(network["run_name"])
            steps.append(Step(f"{path.stem}-{backbone}{again}", path, network))
    return steps


def _run_name(parameters, again):
    """Name of the run folder that the training notebook makes with all its `parameters`."""
    chosen = (parameters[name] for name in ("backbone", "decoder", "size"))
    data_name = Path(parameters["data"]).name
    return parameters["run_name"] or runs.default_name(data_name, *chosen) + again


def _inputs(settings):
    """What all steps depend on: package versions; name, size and time of data files; figures."""
    roots = [Path(settings["data"]), Path(settings.get("weights") or "")]
    files = [f for root in roots if root.is_absolute() for f in (root, *root.rglob("*"))]
    stats = {str(f): (f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()}
    versions = runs.RESULTS_VERSION, runs.package_versions()
    return [*versions, stats, str(figures_folder(settings["data"]))]


def _key(step, inputs, trained):
    """SHA-256 of all that decides the outputs of a step; stored outputs do not."""
    cells = [(cell["cell_type"], cell["source"]) for cell in read_cells(step.notebook)]
    parameters = notebook_parameters(step.notebook) | step.parameters
    named = [
        _files.source_path(v) for v in parameters.values() if str(v).endswith((".yaml", ".yml"))
    ]
    contents = [path.read_text(encoding="utf-8") for path in named if path.is_file()]
    if parameters.get("initial"):
        contents.append(runs.weights_checksum(runs.load_run(parameters["initial"]).folder))
    return _digest([cells, step.parameters, contents, inputs, trained])


def _digest(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _learnt(step):
    """Checksum of the weights that a training step learnt; None if there is no such run."""
    name = step.parameters.get("run_name")
    folder = _files.project_path("runs") / str(name)
    return runs.weights_checksum(folder) if name and runs.is_finished(folder) else None


def _run_all(steps, settings, folder):
    """Records of the steps, of which those are executed whose notebook or run is not there."""
    inputs, trained, records, start = _inputs(settings), [], [], time.monotonic()
    with ExitStack() as stack:
        kernel = None
        for number, step in enumerate(steps, start=1):
            key, desc = _key(step, inputs, trained), f"{number}/{len(steps)} {step.name}"
            record = _files.made_from(folder, record=f"{step.name}.key.json") or {}
            made = (record.get("key"), record.get("learnt")) == (key, _learnt(step))
            if made and (folder / f"{step.name}.ipynb").is_file():
                logger.info("%s: unchanged, not run again", desc)
            else:
                if kernel is None:
                    stack.enter_context(_data_prepared(steps))
                    kernel = stack.enter_context(Kernel())
                record = _run(kernel, step, key, folder, desc=desc)
            records.append(record)
            if step.notebook.stem == TRAINING:  # the notebooks after it depend on its weights
                trained.append([key, record["learnt"]])
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    logger.info("%d notebooks in %d min %02d s", len(steps), minutes, seconds)
    return records


def _run(kernel, step, key, folder, *, desc):
    """Record of a step, which is executed."""
    executed = folder / f"{step.name}.ipynb"
    unfinished = folder / f"{step.name}.unfinished.ipynb"  # stays, to look at, if a cell fails
    with Progress(step, desc) as line:
        kernel.execute(step, unfinished, after_cell=line.bar.update)
    unfinished.replace(executed)
    record = {"name": step.name, "key": key, "parameters": step.parameters}
    record |= {"learnt": _learnt(step), "seconds": line.seconds, "peak_gb": line.peak_gb}
    _files.write_json(folder / f"{step.name}.key.json", record)
    logger.info("%s: %.0f s, %.1f GB%s", desc, line.seconds, line.peak_gb, line.training)
    return record


@contextmanager
def _data_prepared(steps):
    """Draws phantoms and prepares data in another process while the first notebooks need neither.

    An error is left to the notebook that needs the data.
    """
    wanted = [notebook_parameters(step.notebook) | step.parameters for step in steps]
    wanted = [settings for settings in wanted if "phantom_count" in settings]
    source = {name: s[name] for s in wanted[-1:] for name in DATA if name in s}
    code = "import json, sys, pneumo_lib as pl; pl.prepare_data(**json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", code, json.dumps(source)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with ExitStack() as stack:
        if source:
            quiet |= {"env": os.environ | {"TQDM_DISABLE": "1"}}
            process = stack.enter_context(subprocess.Popen(command, **quiet))
            stack.callback(process.terminate)
        yield
