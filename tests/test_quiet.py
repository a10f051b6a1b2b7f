"""TensorFlow's start-up messages stay off the screen, errors do not."""

import subprocess
import sys


def stderr_of(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return done.stderr


def test_loading_keras_through_the_library_says_nothing():
    code = "import pneumo_lib as pl; pl.keras.ops.ones(3); pl.build_fcn"
    assert stderr_of(code) == ""


def test_what_was_said_before_a_failure_comes_out():
    code = """
import os
from pneumo_lib.quiet import quiet_start
with quiet_start():
    os.write(2, b"no such library")
    raise ImportError("cannot load")
"""
    assert "no such library" in (said := stderr_of(code))
    assert "cannot load" in said


def test_standard_error_works_again_afterwards():
    code = """
import os
from pneumo_lib.quiet import quiet_start
with quiet_start():
    os.write(2, b"hidden")
os.write(2, b"shown")
"""
    assert stderr_of(code) == "shown"
