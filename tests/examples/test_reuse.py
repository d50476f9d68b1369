"""The programs of docs/reuse.md run and do what the page says."""

import functools
import re
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import fdrl_jax as fdrl

KEY = jax.random.key(1)
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reuse.md").read_text("utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def run(mark):
    """Runs the only program of the page that contains a text, and returns its names."""
    (program,) = [program for program in PROGRAMS if mark in program]
    space = {"__name__": "page"}
    exec(compile(program, "reuse.md", "exec"), space)
    return space


def test_the_flow_moves_the_samples_to_the_target():
    space = run("def transport")
    end = space["transport"](space["jax"].random.key(1), space["x0"])
    np.testing.assert_allclose(np.mean(end, axis=0), 1.0, atol=0.2)


@pytest.mark.parametrize("mark", ["optimizer.init(params)", "nnx.grad", "eqx.filter_grad"])
def test_a_training_loop_of_each_library_learns_a_flow_to_the_data(mark):
    space = run(mark)

    # The prior is around 0 and the data around (1, 1).
    np.testing.assert_allclose(np.mean(space["samples"], axis=0), 1.0, atol=0.35)


def test_the_loop_with_averaged_weights_ends_nearer_to_held_out_data_than_the_prior(capsys):
    run("average = optax")
    prior, samples = (float(x) for x in re.findall(r"value=([\d.]+)", capsys.readouterr().out))
    assert samples < 0.1 * prior


def gradients_of_each_shard(space, params, key, real):
    """The gradients of the devices, one after the other."""
    shards = real.reshape(jax.device_count(), -1, 2)

    @jax.jit
    def of_shard(i, shard):
        prior_key, flow_key = jax.random.split(jax.random.fold_in(key, i))
        x0 = jax.random.normal(prior_key, shard.shape)
        return jax.grad(
            lambda params: space["method"].objective(
                flow_key, shard, x0, lambda x: space["net"].apply(params, x)
            )[0]
        )(params)

    return [of_shard(i, shard) for i, shard in enumerate(shards)]


def test_the_recipe_for_devices_averages_their_gradients_and_gives_each_its_own_noise():
    space = run("jax.shard_map")
    params = space["net"].init(jax.random.key(1), space["real"])

    each = gradients_of_each_shard(space, params, jax.random.key(2), space["real"])

    expected = jax.tree.map(lambda *grads: sum(grads) / len(grads), *each)
    assert jax.device_count() > 1
    chex.assert_trees_all_close(space["grads"], expected, rtol=1e-3, atol=1e-5)


def test_an_average_after_the_gradient_is_the_sum_over_devices():
    # What the page warns of; if JAX changes it, the page must change too.
    space = run("jax.shard_map")
    method, num = space["method"], jax.device_count()
    real = jnp.tile(space["real"][:4], (num, 1))

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=space["mesh"],
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=(PartitionSpec(), PartitionSpec("data")),
    )
    def naive(slope, real):
        def loss_fn(slope):
            return method.objective(KEY, real, 0.0 * real, lambda x: x @ slope)

        grads, record = jax.grad(loss_fn, has_aux=True)(slope)
        return jax.lax.pmean(grads, "data"), record.flowed

    slope = jnp.array([0.3, -0.2])
    grads, flowed = naive(slope, real)

    def loss(slope):
        return method.objective(KEY, real[:4], jnp.zeros((4, 2)), lambda x: x @ slope)[0]

    np.testing.assert_allclose(grads, num * jax.grad(loss)(slope), rtol=1e-4)
    np.testing.assert_array_equal(flowed[:4], flowed[4:8])  # The same noise on two devices.


@pytest.mark.parametrize("scale", [0.1, 5.0])
def test_a_flow_scales_with_its_data_as_the_page_says(scale):
    def log_ratio(x):
        return jnp.sum(jnp.cos(x), axis=-1) + x[:, 0] ** 2

    x0 = jax.random.normal(KEY, (8, 2))
    of, scaled = (
        fdrl.FDRL(num_steps=5, step_size=0.1 * c**2, noise_scale=0.1 * c) for c in (1.0, scale)
    )
    np.testing.assert_allclose(
        scaled.sample(KEY, scale * x0, lambda x: log_ratio(x / scale)),
        scale * of.sample(KEY, x0, log_ratio),
        rtol=1e-4,
        atol=1e-5 * scale,
    )


def test_the_examples_of_the_readme_are_short_and_run():
    example, of_shipped = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL
    )
    assert len(example.splitlines()) <= 6
    real, x0 = jax.random.normal(KEY, (2, 8, 2))
    space = {"key": KEY, "real": real, "x0": x0, "estimator": lambda x: 0.1 * jnp.sum(x**2, -1)}
    exec(compile(example, "README.md", "exec"), space)
    np.testing.assert_allclose(space["record"].flowed, space["samples"], rtol=1e-5)
    space = {"fdrl": fdrl, "jax": jax}
    exec(compile(of_shipped, "README.md", "exec"), space)
    assert space["images"].shape == space["horses"].shape == (64, 32, 32, 3)


def test_the_condition_in_the_page_on_classes_moves_samples_to_the_class():
    page = (ROOT / "docs" / "conditional.md").read_text("utf-8")
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    space = {"__name__": "page"}
    exec(compile(example, "conditional.md", "exec"), space)
    assert np.mean(space["x"]) > np.mean(space["x0"]) + 0.3
