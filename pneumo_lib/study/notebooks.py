"""One notebook, executed by papermill in a kernel of its own, and what that took.

TensorFlow keeps GPU memory until its process ends, so no two trainings share a kernel. What the
extra "notebooks" brings is imported where it is needed: the library works without it.
"""

import ast
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import nbformat

from pneumo_lib._files import project_path


class Step(NamedTuple):
    """One execution of one notebook."""

    name: str  # of the executed notebook, such as "05_train_fcn-vgg19"
    notebook: Path
    parameters: dict


class NotebookError(RuntimeError):
    """A notebook stopped before its end.

    The text names notebook, cell and traceback; `args[1]` is the reason in one line.
    """

    def __str__(self):
        return self.args[0]


def execute(step, output, *, desc=None):
    """Runs a notebook in a kernel of its own, with a progress bar if `desc` names it.

    Args:
        step: `Step`.
        output: where the executed notebook is kept, after a failure up to the cell that failed.

    Raises:
        NotebookError: if a cell fails, or the kernel ends.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError, strip_color

    kept = f"It is kept up to there: {output}"
    try:
        nb = papermill.execute_notebook(
            step.notebook,
            output,
            step.parameters,
            kernel_name="python3",
            cwd=step.notebook.parent,
            extra_arguments=["--log-level=50"],  # kernels log about themselves; errors come back
            # `disable=None`: a bar in a terminal, nothing in a log file
            progress_bar={"desc": desc, "leave": False, "disable": None if desc else True},
        )
    except PapermillExecutionError as error:
        why = f"{error.ename}: {error.evalue}"
        trace = strip_color("\n".join(error.traceback)) or why
        raise NotebookError(
            f"{step.name} failed at cell In [{error.exec_count}]:\n\n{error.source}\n\n{trace}\n\n"
            f"{kept}",
            why,
        ) from None
    except DeadKernelError:
        why = "it was killed, as the system does when memory is short"
        raise NotebookError(
            f"{step.name} lost its kernel: {why}. "
            "Close other programs, or take a smaller `size`, and run the report again: what was "
            f"finished is kept. {kept}",
            f"lost its kernel: {why}",
        ) from None
    skipped = [c for c in nb.cells if c.cell_type == "code" and c.source and not c.execution_count]
    if skipped:  # after `sys.exit(0)` papermill skips the rest and reports success
        why = "ended itself before this cell:"
        raise NotebookError(
            f"{step.name} {why}\n\n{skipped[0].source}", f"{why} {skipped[0].source}"
        )


@contextmanager
def measured(*, every=0.25):
    """Dict that holds `seconds` and `peak_gb` at the end of the block.

    Peak of the resident memory of this process and all it started (kernel, workers), sampled
    `every` so many seconds; memory they share is counted once for each.
    """
    import psutil

    used, start, done = {"peak_gb": 0.0}, time.perf_counter(), threading.Event()

    def sample():
        here = psutil.Process()
        while not done.wait(every):
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


def report_folder(data):
    """`runs/report` for the phantoms drawn by default; every folder of data gets one of its own."""
    return project_path(
        "runs/report" if data == "phantoms" else f"runs/report-{Path(str(data)).name}"
    )


def figures_folder(data):
    """Where notebooks export figures: only those of the default phantoms go into the repository."""
    return project_path("figures") if data == "phantoms" else report_folder(data) / "figures"
