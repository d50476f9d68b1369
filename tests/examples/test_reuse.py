"""The programs of docs/reuse.md run, and do what they say."""

import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "reuse.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
FLOW, *LOOPS = PROGRAMS
LIBRARIES = ("net.apply(params", "nnx.grad", "eqx.filter_grad")


def run(program):
    space = {"__name__": "page"}
    exec(compile(program, "reuse.md", "exec"), space)
    return space


def test_the_flow_moves_the_samples_to_the_target():
    space = run(FLOW)
    end = space["transport"](space["jax"].random.key(1), space["x0"])
    np.testing.assert_allclose(np.mean(end, axis=0), 1.0, atol=0.2)


def test_there_is_a_training_loop_of_each_library():
    assert len(LOOPS) == len(LIBRARIES)
    assert all(name in loop for name, loop in zip(LIBRARIES, LOOPS, strict=True))


@pytest.mark.parametrize("program", LOOPS, ids=["optax", "nnx", "equinox"])
def test_a_training_loop_of_another_library_learns_a_lower_ratio_on_data(program):
    """The prior is far from the data, so the ratio of samples over data is below 1 there."""
    metrics = run(program)["metrics"]
    assert 0.0 < metrics["ratio_real"] < 1.0
    assert metrics["ratio_flowed"] > metrics["ratio_real"]
