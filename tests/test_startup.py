"""Importing the package changes nothing; loading Keras prints nothing but errors."""

import json
import os
import subprocess
import sys

import pytest


def run(code, **environment):
    chosen = ("TF_", "MALLOC_")  # Dask chooses for its workers, and for the tests that come after
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if not k.startswith(chosen)} | environment,
    )


def test_importing_the_package_leaves_environment_and_standard_error_as_they_are():
    code = """
import json, os
before = dict(os.environ), os.fstat(2)
import pneumo_lib
print(json.dumps([dict(os.environ) == before[0], os.path.samestat(os.fstat(2), before[1])]))
"""
    assert json.loads(run(code).stdout) == [True, True]


@pytest.mark.parametrize(
    "first",
    ["import pneumo_lib as pl; pl.build_fcn", "from pneumo_lib.training import features"],
)
def test_any_module_loads_keras_without_output_and_computes_one_operation_at_a_time(first):
    done = run(f"{first}; import keras, os; keras.ops.ones(3); print(*map(os.getenv, {NAMES}))")
    assert (done.stdout, done.stderr) == ("1 2\n", "")


NAMES = ["TF_NUM_INTEROP_THREADS", "TF_CPP_MIN_LOG_LEVEL"]


def test_environment_of_the_user_is_kept_and_standard_error_works_afterwards():
    code = "from pneumo_lib._startup import keras; import os; os.write(2, b'shown')"
    done = run(f"{code}; print(*map(os.getenv, {NAMES}))", **dict.fromkeys(NAMES, "3"))
    assert (done.stdout, done.stderr) == ("3 3\n", "shown")


def test_output_before_a_failure_is_shown(tmp_path):
    (tmp_path / "keras.py").write_text(
        "import os; os.write(2, b'no such library'); raise ImportError('cannot load')"
    )
    done = run("from pneumo_lib._startup import keras", PYTHONPATH=f"{tmp_path}:{os.getcwd()}")
    assert "no such library" in done.stderr
    assert "cannot load" in done.stderr


FAULTS = """
from pneumo_lib._startup import keras
import resource

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for turn in range(3):
    before = faults()
    freed_at_once = len(b"x" * 40_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the GNU C library is asked to keep memory")
def test_freed_memory_is_kept_unless_the_user_chose_otherwise():
    kept = int(run(FAULTS).stdout)
    assert kept < 40_000_000 / 4096 / 10
    assert int(run(FAULTS, MALLOC_ARENA_MAX="2").stdout) > 10 + 2 * kept  # also with huge pages
