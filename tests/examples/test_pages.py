"""The Python programs in the pages run and do what the pages say."""

import functools
import re
import warnings
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdrl_jax as fdrl

ROOT = Path(__file__).parents[2]
NEEDS_FILES = re.compile(r'"runs/|OWNER/NAME|cifar-10-batches-py|mnist\.npz')


def programs(page):
    """The programs of a page that need no files, with few images."""
    text = (ROOT / page).read_text().replace('64, labels="horse"', '4, labels="horse"')
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [program for program in found if not NEEDS_FILES.search(program)]


PAGES = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if programs(page)]


def given():
    """What the pages say that the reader has."""
    key = jax.random.key(1)
    real, x0, held_out = jax.random.normal(key, (3, 256, 2))
    return {
        "__name__": "page", "jax": jax, "jnp": jnp, "np": np, "fdrl": fdrl, "key": key,
        "real": real, "data": real, "x0": x0, "generated": x0 + 0.5, "held_out": held_out,
        "numerator": real + 0.5, "denominator": x0, "x": x0,
        "images": jnp.clip(0.3 * jax.random.normal(key, (64, 8, 8, 1)), -1.0, 1.0),
        "estimator": lambda x: 0.1 * jnp.sum(x**2, axis=-1),
        "log_ratio": lambda x: jnp.sum(x, axis=-1),
    }  # fmt: skip


def run(page, mark=""):
    """Runs the programs of a page that contain a text, with short fits; returns their names."""
    space = given()
    with mock.patch.object(fdrl, "fit", functools.partial(fdrl.fit, num_steps=2)):
        for program in programs(page):
            if mark in program:
                exec(compile(program, page, "exec"), space)
    return space


def test_the_programs_of_the_readme_run():
    first, *_ = programs("README.md")
    assert "pretrained" in first
    space = run("README.md")
    assert space["horses"].shape == (4, 32, 32, 3)
    assert len(first.splitlines()) <= 6


FIVE = {
    "fit(": lambda v: np.std(np.linalg.norm(v["samples"], axis=-1)) < 0.2,
    "FDRL(": lambda v: np.allclose(v["samples"].mean(axis=0), 2.0, atol=0.3),
    "flow(": lambda v: np.allclose(abs(v["x"]), 1.0, atol=0.2),
    "refine(": lambda v: v["refined"].distances.min() < 0.3 * v["refined"].distances[0],
    "fit_ratio(": lambda v: (
        np.corrcoef(v["ratio"].log_ratio(x := v["denominator"]), x.sum(1)).min() > 0.95
    ),
}
SLOW = {"fit(", "fit_ratio("}


@pytest.mark.parametrize(
    "call", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in FIVE]
)
def test_the_five_calls_are_the_first_programs_of_the_reference_and_do_what_it_says(call):
    program, space = programs("docs/api/index.md")[list(FIVE).index(call)], {}
    assert f"fdrl.{call}" in program
    assert len(program.splitlines()) < 12
    exec(compile(program, call, "exec"), space)
    assert FIVE[call](space)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_programs_of_a_page_run(page):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "refinement moved")
        run(page)


@pytest.mark.slow
@pytest.mark.parametrize("mark", ["optimizer.init(params)", "nnx.grad", "eqx.filter_grad"])
def test_a_training_loop_of_each_library_learns_a_flow_to_the_data(mark):
    # The prior is around 0 and the data around (1, 1).
    samples = run("docs/reuse.md", mark)["samples"]
    np.testing.assert_allclose(np.mean(samples, axis=0), 1.0, atol=0.35)
