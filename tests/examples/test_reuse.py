"""The programs of docs/reuse.md run and do what the page says."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import fdrl_jax as fdrl

KEY = jax.random.key(1)
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


@pytest.mark.parametrize(
    ("program", "estimator"),
    [*zip(LOOPS, ("lambda x: net.apply(params, x)", "model", "jax.vmap(model)"), strict=True)],
    ids=["optax", "nnx", "equinox"],
)
def test_a_training_loop_of_another_library_learns_a_flow_to_the_data(program, estimator):
    space = run(program)
    potential = fdrl.first_variation(eval(estimator, space), "kl")
    x0 = jax.random.normal(jax.random.key(5), (500, 2))

    x = jax.jit(lambda key, x: fdrl.flow(key, x, potential, **space["flow"]))(KEY, x0)

    # The prior is around 0 and the data around (1, 1).
    np.testing.assert_allclose(np.mean(x, axis=0), 1.0, atol=0.35)
