"""Whatever a config holds, a run goes well or ends before training with one line."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from experiments.request import Request
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import build, modes, schema
from experiments.errors import UserError
from experiments.training import memory
from fdrl_jax import parallel, steps

HOSTILE = [
    *(None, True, b"x", [], (), {}, {"a": 1}, [None], ["x"], [[1]], ((1,),), (1, 2), object(), 1j),
    *(0, -1, 1, 10**9, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, -(10**400)),
    *(0.0, -0.0, -0.5, 0.999, 1.5, 1e30, 1.7e308, 5e-324),
    *(float("nan"), [float("nan")], float("inf"), -float("inf")),
    *("", "many", "\0", "a\nb", "\ud800", "x" * 10**5, "../x", "/", "*", "folder", "npz", "pair"),
    *("tfds:x", "tfds:", "tfds:../../etc", "tfds:/etc", "tfds:**", "tfds:\0", "~", "a" * 500),
    *("1e400*kl", "nan*kl", "-1*kl", "0*kl", "alpha:1e400"),
    *((65_536,) * 4, ((65_536, 8),), ((1, 1), (1, 1)), ((8, 2), (8, 9))),
]
# What a rule lets through is bounded: those that are tried together in a traced step.
EXTREME = {key: [v for v in HOSTILE if rule(v) is None] for key, rule in schema.RULES.items()}
TRACED = [key for key, values in EXTREME.items() if values and not key.startswith("data.")]


def built(flat):
    """Returns the experiment of a flat config, or nothing if it was refused in one short line."""
    try:
        return build.experiment(schema.unflatten(flat), fit_prior=False)
    except UserError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 2_000
    return None


def trace(experiment):
    """Runs everything that comes before the first number: shapes, and the step's program."""
    with contextlib.suppress(UserError):
        memory.check_state(experiment)
    step = experiment.make_train_step(experiment.problem)
    run = parallel.map_steps(steps.repeat_steps(step, experiment.steps_per_dispatch))
    num = parallel.num_devices()
    state, constants = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((num, *np.shape(a)), a.dtype),
        (jax.eval_shape(experiment.init_state), experiment.constants),
    )
    return jax.eval_shape(run, experiment.key, state, constants, None, 1, 0)


@pytest.mark.parametrize("name", ["swissroll", "digits"])
def test_no_value_of_any_key_ends_in_a_traceback(name, tiny, capfd):
    base = schema.flatten(tiny(name))
    # Built-in sets read no key of the data; one of them is enough to show it.
    keys = [key for key in schema.RULES if name == "swissroll" or not key.startswith("data.")]
    num_built = sum(built({**base, key: v}) is not None for key in keys for v in HOSTILE)
    assert num_built > 100


@pytest.mark.parametrize("key", [key for key in schema.RULES if key.startswith("data.")])
def test_no_value_of_a_key_of_the_data_ends_in_a_traceback(key, tiny, tmp_path, capfd):
    for i in range(4):
        write_grey(tmp_path / "a" / f"{i}.png", i)
        write_grey(tmp_path / "b" / f"{i}.png", 100 + i)
    base = schema.flatten(tiny("folder")) | {"data.dir": str(tmp_path), "data.image_size": 8}
    classes = {"data.source_class": "a", "data.target_class": "b", "prior.name": "source"}
    assert built(base) is not None
    others = [{"data.name": "tfds:x"}, {"data.name": "npz"}] if key == "data.dir" else [classes]
    for changes in ({}, *others):
        for value in HOSTILE:
            # Not all that the machine holds, and no worker processes, whose start takes seconds.
            if (key, value) not in (("data.dir", "/"), ("data.num_workers", 1)):
                built({**base, "prior.rank": 2, **changes, key: value})


def write_grey(path, level):
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    Image.new("L", (8, 8), level).save(path)


@given(data=st.data())
@settings(derandomize=True, max_examples=25, deadline=None)
def test_extreme_values_together_are_refused_or_make_a_step(data, tiny):
    flat = schema.flatten(tiny("swissroll"))
    for key in data.draw(st.lists(st.sampled_from(TRACED), min_size=1, max_size=5)):
        flat[key] = data.draw(st.sampled_from(EXTREME[key]), label=key)
    experiment = built(flat)
    if experiment is not None:
        trace(experiment)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("swissroll", {"network.hidden_sizes": (65_536,) * 4}),
        ("digits", {"network.blocks": ((65_536, 2), (65_536, 1))}),
    ],
)
def test_a_network_beyond_the_memory_is_refused_before_anything_is_allocated(
    name, changes, tiny, tmp_path
):
    with pytest.raises(UserError, match=r"parameters needs at least .* GiB are free. Try a small"):
        modes.run(Request("train", tiny(name, changes), tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_step_beyond_the_memory_is_refused_before_it_runs(monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 8)
    x = np.arange(parallel.num_devices(), dtype=np.float32)
    with pytest.raises(UserError, match=r"the compiled train step needs at least .* GiB"):
        memory.checked(parallel.map_sampler(lambda x: 2.0 * x))(x)


def test_a_checked_function_computes_what_it_computes_unchecked():
    double = memory.checked(parallel.map_sampler(lambda x: 2.0 * x))
    x = np.arange(parallel.num_devices(), dtype=np.float32)
    for _ in range(2):
        np.testing.assert_array_equal(double(x), 2.0 * x)


def test_memory_that_ran_out_is_explained_and_other_errors_are_not(monkeypatch):
    def allocate(_):
        jnp.zeros(2**50, jnp.uint8).block_until_ready()

    def fail(_):
        raise RuntimeError("a defect")

    from experiments.modes import dry_run

    monkeypatch.setattr(dry_run, "run", allocate)
    with pytest.raises(UserError, match=r"out of memory: .*Try a smaller network\.width"):
        modes.run(Request("dry_run", {}))
    monkeypatch.setattr(dry_run, "run", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        modes.run(Request("dry_run", {}))


@pytest.mark.parametrize("name", ["a/b", ".hidden", "a\nb", "x" * 201, "\u00e9" * 101])
def test_a_name_that_no_file_can_have_is_refused(name):
    assert "a name for a file" in schema.RULES["sample.name"](name)
    assert schema.RULES["sample.name"]("v1.5 of J\u00f6rg") is None
