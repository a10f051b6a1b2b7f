"""Execution of notebooks, one after the other, and a line for each that shows how far it is.

Packages of the extra "notebooks" are imported where they are needed: the library works without.
"""

import ast
import csv
import json
import os
import shutil
import sys
import textwrap
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from pneumo_lib._files import project_path

# Between two notebooks in one process: no name, figure, network or memory of the first one stays.
_RESET = """%reset -f
import ctypes, sys
if "keras" in sys.modules: sys.modules["keras"].utils.clear_session()
if sys.platform == "linux": getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # glibc keeps it
%reset -f"""
_LINE = "{desc} {percentage:3.0f}% {bar:20} {elapsed}, {remaining} to go{postfix}"


class Step(NamedTuple):
    """One execution of one notebook."""

    name: str  # of the executed notebook, such as "05_train_fcn-vgg19"
    notebook: Path
    parameters: dict


class NotebookError(RuntimeError):
    """A notebook stopped before its end; the text begins with notebook, cell and reason."""


class Kernel(ExitStack):
    """Process of this Python that executes notebooks, started with the first one. A context.

    One process for all notebooks imports TensorFlow once instead of nine times. With a GPU each
    notebook has its own: TensorFlow keeps GPU memory until its process ends.
    """

    def __init__(self):
        super().__init__()
        self._client = None

    def execute(self, step, output, *, after_cell=lambda: None):
        """Runs a notebook.

        Args:
            step: `Step`.
            output: path of the executed notebook, written also when a cell fails.
            after_cell: function without arguments, called after each cell of code.

        Raises:
            NotebookError: if a cell fails, or the process ends.
        """
        client = self._without_state(step.notebook.parent)
        import nbformat
        from nbclient.exceptions import CellExecutionError, DeadKernelError
        from papermill.iorw import load_notebook_node
        from papermill.parameterize import parameterize_notebook

        nb = load_notebook_node(str(step.notebook))
        if step.parameters:
            python = {"kernel_name": "python3", "language": "python"}
            nb = parameterize_notebook(nb, step.parameters, **python)
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        client.nb, number = nb, 0
        client.reset_execution_trackers()
        try:
            for index, cell in enumerate(nb.cells):
                if cell.cell_type == "code" and cell.source.strip():
                    number += 1
                    client.execute_cell(cell, index, execution_count=number)
                    after_cell()
            return
        except CellExecutionError as error:
            reason = f"{textwrap.shorten(f'{error.ename}: {error.evalue}', 500)}. "
        except DeadKernelError:
            reason = (
                "the process was killed, as the system does when memory is short. Close other "
                "programs, or take a smaller `size`, and run the report again: what was finished "
                "is kept. "
            )
        finally:
            client.set_widgets_metadata()
            nbformat.write(nb, output)
        traceback = f"The notebook up to there, with the traceback: {output}"
        raise NotebookError(f"{step.name}, cell In [{number}]: {reason}{traceback}")

    def _without_state(self, folder):
        """`nbclient.NotebookClient` of a process that is new, or in which all was deleted."""
        # Imported by nbformat through jsonschema, it compiles a grammar of addresses: two seconds.
        sys.modules.setdefault("rfc3987_syntax", None)
        from ipykernel.kernelspec import get_kernel_dict
        from jupyter_client.kernelspec import KernelSpec
        from jupyter_client.manager import AsyncKernelManager
        from nbclient import NotebookClient
        from nbformat.v4 import new_code_cell, new_notebook

        class ThisPython(AsyncKernelManager):
            # a kernel that a user installed as "python3" may belong to another environment
            kernel_spec = KernelSpec(**get_kernel_dict())

        if self._client and not any(map(shutil.which, ("nvidia-smi", "rocm-smi"))):
            self._client.nb = new_notebook(cells=[new_code_cell(_RESET)])
            self._client.execute_cell(self._client.nb.cells[0], 0)
            return self._client
        self.close()
        quiet = ["--log-level=50"]  # kernels log about themselves; errors come back
        options = {"timeout": None, "extra_arguments": quiet}
        self._client = NotebookClient(new_notebook(), ThisPython(), **options)
        self.enter_context(self._client.setup_kernel(cleanup_kc=True, cwd=str(folder)))
        return self._client


def read_cells(notebook):
    """Cells of a notebook file as dicts, `source` as one text.

    Without nbformat, which takes seconds to import: a report of which nothing changed needs none.
    """
    cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in cells]


class Progress:
    """Line in the terminal about a running notebook: its time, and epoch and Dice of its training.

    A context that ends with `seconds`; `peak_gb`, the highest resident memory of this process and
    all that it started, in 10^9 bytes; and `training`, text on the last epoch, or "".

    Args:
        step: `Step`.
        desc: start of the line.
    """

    def __init__(self, step, desc):
        from tqdm import tqdm

        settings, run = notebook_parameters(step.notebook), step.parameters.get("run_name")
        self.epochs = (settings | step.parameters).get("epochs", 0) if run else 0
        self.history = project_path(f"runs/{run}/history.csv")
        self.started, self.peak_gb, self.epoch, self.training = time.time(), 0.0, 0, ""
        cells = sum(cell["cell_type"] == "code" for cell in read_cells(step.notebook))
        total = cells + bool(step.parameters) + self.epochs
        # `disable=None`: a line in a terminal, nothing in a log file
        self.bar = tqdm(total=total, desc=desc, bar_format=_LINE, leave=False, disable=None)
        self.done = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self.watcher.start()
        return self

    def __exit__(self, *error):
        self.done.set()
        self.watcher.join()
        self.bar.close()

    def _watch(self):
        import psutil

        here, over = psutil.Process(), False
        while not over:
            over, total = self.done.wait(0.25), 0
            for process in (here, *here.children(recursive=True)):
                with suppress(psutil.Error):  # it may have ended meanwhile
                    total += process.memory_info().rss  # shared memory counts for each process
            self.peak_gb = round(max(self.peak_gb, total / 1e9), 2)
            self.seconds = round(time.time() - self.started, 1)
            with suppress(FileNotFoundError):
                self._read_epoch()

    def _read_epoch(self):
        if self.epochs and self.history.stat().st_mtime > self.started:
            *_, row = csv.DictReader(self.history.read_text(encoding="utf-8").splitlines())
            epoch, dice = int(row["epoch"]), float(row.get("val_dice") or row["dice"])
            self.bar.update(epoch - self.epoch)
            self.epoch, self.training = epoch, f", epoch {epoch} of {self.epochs}, Dice {dice:.3f}"
        self.bar.set_postfix_str(self.training[2:])


def notebook_parameters(notebook):
    """Names and defaults in the cell tagged `parameters`, as a dict of literals.

    Read from the syntax tree: papermill's own inspection returns text, and loses a value that
    spans two lines or is annotated `int | None`.
    """
    tagged = (c for c in read_cells(notebook) if "parameters" in c["metadata"].get("tags", ()))
    cells = [cell["source"] for cell in tagged]
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
    """Where notebooks export figures: beside the report, or `figures/` for `make figures`.

    Only figures of the default phantoms may lie in `figures/`, which belongs to the repository.
    """
    printed = data == "phantoms" and os.environ.get("PNEUMO_FIGURES")
    return project_path("figures") if printed else report_folder(data) / "figures"
