"""Execution of one notebook by papermill, in a kernel of its own.

TensorFlow keeps GPU memory until its process ends, so no two trainings share a kernel. Packages of
the extra "notebooks" are imported where they are needed: the library works without them.
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
    """A notebook stopped before its end; the text names notebook, cell and traceback."""


def execute(step, output, *, desc=None):
    """Runs a notebook with this Python, with a progress bar if `desc` names it.

    Args:
        step: `Step`.
        output: where the executed notebook is kept, after a failure up to the cell that failed.

    Raises:
        NotebookError: if a cell fails, or the kernel ends.
    """
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError, strip_color

    class ThisPython(AsyncKernelManager):
        # a kernel that a user installed as "python3" may belong to another environment
        kernel_spec = KernelSpec(**get_kernel_dict())

    def literal(path):  # papermill formats paths
        return str(path).replace("{", "{{").replace("}", "}}")

    kept = f"It is kept up to there: {output}"
    try:
        nb = papermill.execute_notebook(
            literal(step.notebook),
            literal(output),
            step.parameters,
            kernel_name="python3",
            kernel_manager_class=ThisPython,
            cwd=step.notebook.parent,
            extra_arguments=["--log-level=50"],  # kernels log about themselves; errors come back
            # `disable=None`: a bar in a terminal, nothing in a log file
            progress_bar={"desc": desc, "leave": False, "disable": None if desc else True},
        )
    except PapermillExecutionError as error:
        trace = strip_color("\n".join(error.traceback)) or f"{error.ename}: {error.evalue}"
        raise NotebookError(
            f"{step.name} failed at cell In [{error.exec_count}]:\n\n{error.source}\n\n{trace}\n\n"
            f"{kept}"
        ) from None
    except DeadKernelError:
        raise NotebookError(
            f"{step.name} lost its kernel: it was killed, as the system does when memory is short. "
            "Close other programs, or take a smaller `size`, and run the report again: what was "
            f"finished is kept. {kept}"
        ) from None
    skipped = [c for c in nb.cells if c.cell_type == "code" and c.source and not c.execution_count]
    if skipped:  # after `sys.exit(0)` papermill skips the rest and reports success
        raise NotebookError(f"{step.name} ended itself before this cell:\n\n{skipped[0].source}")


@contextmanager
def measured(*, every=0.25):
    """Dict that holds `seconds` and `peak_gb` at the end of the block.

    Peak of the resident memory of this process and all that it started (kernel, workers), sampled
    each `every` seconds; shared memory is counted once for each process.
    """
    import psutil

    used, start, done = {"peak_gb": 0.0}, time.perf_counter(), threading.Event()

    def sample():
        here = psutil.Process()
        while not done.wait(every):
            total = 0
            for process in (here, *here.children(recursive=True)):
                with suppress(psutil.Error):  # the process may have ended meanwhile
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
    """`runs/report` for the phantoms drawn by default, else `runs/report-<name of the folder>`."""
    name = "report" if data == "phantoms" else f"report-{Path(str(data)).name}"
    return project_path("runs") / name


def figures_folder(data):
    """Where notebooks export figures: only those of the default phantoms go into the repository."""
    return project_path("figures") if data == "phantoms" else report_folder(data) / "figures"
