"""Gradients in bfloat16 are right on the kernels that a run on this machine uses."""

import os
import subprocess
import sys

import pytest


def check(*arguments):
    # A process of its own, with the flags of a run and not those of the tests.
    environ = {k: v for k, v in os.environ.items() if k not in OWN_OF_THE_TESTS}
    command = [sys.executable, "-m", "benchmarks.gradients", *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True)


OWN_OF_THE_TESTS = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")


def test_some_gradients_are_within_the_bound_of_the_type():
    done = check("--cases=8")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 cases, 0 wrong" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_hundreds_of_gradients_are_within_the_bound_of_the_type(precision):
    done = check("--cases=120", "--seed=1", f"--precision={precision}")

    assert done.returncode == 0, done.stdout + done.stderr
