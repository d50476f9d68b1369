"""The five uses of the library, each in fewer than twelve lines, as the pages show them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import fdrl_jax as fdrl

KEY = jax.random.key(0)
ANGLES = 2 * np.pi * np.random.default_rng(0).integers(0, 8, 20_000) / 8
MODES = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)
RING = MODES + 0.0141 * np.random.default_rng(1).normal(size=MODES.shape)


@pytest.mark.slow
def test_a_generator_of_own_data_finds_all_modes_of_the_ring():
    sampler = fdrl.fit(KEY, 100.0 + 10.0 * RING)
    samples = (np.asarray(sampler(jax.random.key(1), 2_000)) - 100.0) / 10.0
    angle = np.round(np.arctan2(*samples.T[::-1]) / (2 * np.pi / 8)) % 8
    centres = np.stack([np.cos(2 * np.pi * angle / 8), np.sin(2 * np.pi * angle / 8)], axis=-1)
    near = np.linalg.norm(samples - centres, axis=-1) < 4 * 0.0141
    assert near.mean() >= 0.94
    assert np.bincount(angle[near].astype(int), minlength=8).min() > 150


def test_own_training_loop():
    method = fdrl.FDRL(num_steps=10, step_size=0.1, entropy_weight=1e-3)
    net, (k0, k1, k2) = fdrl.networks.MLP((16,)), jax.random.split(KEY, 3)
    params, x0 = net.init(k0, RING[:1]), jax.random.normal(k1, (64, 2))

    def loss(params):
        return method.objective(k2, Partial(net.apply, params), real=RING[:64], x0=x0)[0]

    gradient = jax.grad(loss)(params)  # Then any optimizer.
    samples = method.sample(KEY, x0, Partial(net.apply, params))
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    assert samples.shape == (64, 2)


def test_the_flow_along_any_potential():
    x0 = jax.random.normal(KEY, (500, 2))
    end = fdrl.flow(
        KEY, x0, lambda x: 10 * (jnp.linalg.norm(x, axis=-1) - 1) ** 2, num_steps=100,
        step_size=0.02, noise_scale=0.01,
    )  # fmt: skip
    np.testing.assert_allclose(np.linalg.norm(end, axis=-1), 1.0, atol=0.1)


def test_better_samples_of_another_generator():
    x = 0.5 * jax.random.normal(KEY, (500, 2)) + 1.0
    real = np.asarray(jax.random.normal(jax.random.key(1), (500, 2)))
    log_ratio = lambda x: 0.5 * jnp.sum(x**2 - 4 * (x - 1) ** 2, -1) + jnp.log(4.0)  # noqa: E731
    refined = fdrl.refine(KEY, x, log_ratio, real=real)
    assert refined.distances[refined.num_steps] < 0.7 * refined.distances[0]


@pytest.mark.slow
def test_the_ratio_of_two_sets():
    x, y = np.random.default_rng(0).normal(size=(2, 1_000, 1))
    ratio = fdrl.fit_ratio(KEY, x + 1.0, y)
    found = ratio.log_ratio(np.array([[0.0], [1.0]]))
    np.testing.assert_allclose(found, [-0.5, 0.5], atol=0.3)


def test_sixteen_names():
    assert {*dir(fdrl)} == {
        *("FDRL", "fit", "Sampler", "pretrained", "flow", "drift", "first_variation", "fit_ratio"),
        *("DensityRatio", "mutual_information", "refine", "condition", "priors", "networks"),
        *("metrics", "training", "__version__"),
    }
    for name in ("langevin", "method", "divergences", "bregman", "compose", "refinement", "fit"):
        module = __import__(f"fdrl_jax.{name}", fromlist=["*"])
        assert [*dir(module)] == sorted(module.__all__), name
    for module in (fdrl.priors, fdrl.metrics, fdrl.training, fdrl.networks):
        assert sorted(dir(module)) == sorted(module.__all__), module
