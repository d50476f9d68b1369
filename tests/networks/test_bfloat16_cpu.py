"""Gradients are correct with the kernels that a run on this machine uses."""

import os
import subprocess
import sys

import pytest

SET_BY_THE_TESTS = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_DISABLE_MOST_OPTIMIZATIONS")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_gradients_of_all_kernels_strides_and_widths_are_within_the_bound_of_the_type(precision):
    # In a separate process, with the flags of a run and not those of the tests.
    environ = {k: v for k, v in os.environ.items() if k not in SET_BY_THE_TESTS}
    command = [sys.executable, "-m", "benchmarks.gradients", f"--precision={precision}"]
    done = subprocess.run(
        [*command, "--cases=26"], env=environ, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "26 cases, 0 wrong" in done.stdout
