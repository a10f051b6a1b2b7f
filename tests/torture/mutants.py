"""Mutation testing: `python mutants.py MODULE FOLDER PART PARTS` tries every PARTS-th mutant.

Each mutant is a module with one thing changed by an operator of Cosmic Ray: an operator, a
comparison, a condition, a number, a decorator. It stands in a copy of the project, and the tests of
the module run in a forked process that has everything heavy imported already, so one takes seconds.
`survivors.yaml` names those that no test can tell from the original and says why; every other one
that survives is a gap in the tests.
"""

import difflib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODULES = {
    "metrics": "evaluation/metrics",
    "logged_metrics": "evaluation/logged_metrics",
    "rle": "data/rle",
    "conv_transpose": "models/layers/conv_transpose",
}


def mutants(folder, *, module):
    """Tries all mutants of a module, as many at a time as there are cores."""
    folder.mkdir(parents=True)
    workers, cores = [], os.cpu_count()
    for part in range(cores):
        with (folder / f"{part}.txt").open("w") as tried:
            line = [module, str(folder / str(part)), str(part), str(cores)]
            command = [sys.executable, "-W", "ignore", __file__, *line]
            workers.append(subprocess.Popen(command, stdout=tried))
    statuses = [worker.wait() for worker in workers]
    if any(statuses):
        return {"inputs": 0, "wrong": ["a worker failed; the unchanged module must pass its tests"]}
    said = [line for file in folder.glob("*.txt") for line in file.read_text().splitlines()]
    tried = [json.loads(line) for line in said]
    survived = [mutant["change"] for mutant in tried if mutant["status"] == 0]
    reasons = yaml.safe_load((HERE / "survivors.yaml").read_text()).get(module, [])
    examined = {change for reason in reasons for change in reason["mutants"]}
    gaps = sorted(set(survived) - examined)
    return {"inputs": len(tried), "survived": len(survived), "wrong": gaps}


def every_mutant(source):
    """What is changed, as "old -> new", and the changed source, for each mutant."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(operator_names()):
        if get_operator(name).arguments():
            continue  # an operator for names that one chooses oneself
        operator = get_operator(name)()
        count = sum(1 for node in nodes for _ in operator.mutation_positions(node))
        for occurrence in range(count):
            changed = mutate_code(source, operator, occurrence)
            yield difference(source, changed), changed


def difference(old, new):
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), n=0))[3:]
    sides = [" ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+"]
    return " -> ".join(sides)


def status_of_tests(project, module, seconds):
    """Exit status of pytest in a fork of this process; None if it took too long."""
    child = os.fork()
    if child == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        package = MODULES[module].split("/")[0]
        tests = str(project / "tests" / package / f"test_{module}.py")
        options = ["-q", "-x", "-p", "no:cacheprovider", f"--basetemp={project / 'scratch'}"]
        os._exit(pytest.main([*options, "-W", "ignore::pytest.PytestAssertRewriteWarning", tests]))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def work(module, project, part, parts):
    """Prints a line of JSON for each mutant of this part."""
    for name in ("pneumo_lib", "tests", "params"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", project)
    os.chdir(project)
    sys.path.insert(0, str(project))
    os.environ |= {"PYTHONPATH": str(project), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True  # a mutant may have the size and the second of the one before
    file = project / "pneumo_lib" / f"{MODULES[module]}.py"
    source = file.read_text()
    started = time.monotonic()
    healthy = status_of_tests(project, module, 600)
    limit = 10 * (time.monotonic() - started)
    file.write_text("raise SystemExit")
    if healthy or not status_of_tests(project, module, limit):
        sys.exit(f"The tests of {module} must pass, and must take it from {project}.")
    for number, (change, changed) in enumerate(every_mutant(source)):
        if number % parts == part:
            file.write_text(changed)
            status = status_of_tests(project, module, limit)
            print(json.dumps({"change": change, "status": status}), flush=True)


if __name__ == "__main__":
    import keras  # noqa: F401  (all of it once, for all forks)
    import pandas  # noqa: F401
    import pytest
    import scipy.signal  # noqa: F401
    import tensorflow  # noqa: F401

    work(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
