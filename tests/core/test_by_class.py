"""A density ratio for each class: objective, training step and samplers with labels."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_problem

import fdrl_jax as fdrl
from fdrl_jax import bregman, networks
from fdrl_jax.training import rng, samplers
from fdrl_jax.training.problem import Constants, Estimator

KEY = jax.random.key(1)
REAL, START = jax.random.normal(jax.random.key(0), (2, 12, 2))
START = START[:8]
OF_REAL, OF_START = jnp.arange(12) % 3, jnp.arange(8) % 3
METHOD = fdrl.FDRL(num_steps=3, step_size=0.1, noise_scale=0.2)
MEANS = np.array([[-1.0, 0.5], [1.0, 0.5]])


def by_class(params, x, labels):
    """A log-ratio whose slope and curvature depend on the class."""
    slope = x @ params["slope"] * (1.0 + labels)
    return slope + params["curvature"] * jnp.sum(x**3, -1) * (2.0 - labels)


PARAMS = {"slope": jnp.array([0.3, -0.2]), "curvature": jnp.float32(0.1)}


@pytest.mark.parametrize(("penalty", "fraction"), [(0.0, 1.0), (0.7, 1.0), (0.7, 0.25)])
def test_the_objective_follows_the_definition_for_the_label_of_each_example(penalty, fraction):
    options = {"gradient_penalty": penalty, "gradient_penalty_fraction": fraction}
    method = dataclasses.replace(METHOD, **options)

    def computed(params):
        estimator = jax.tree_util.Partial(by_class, params)
        return method.objective(KEY, REAL, START, estimator, labels=(OF_REAL, OF_START))[0]

    def expected(params):
        potential = method.potential(lambda x: by_class(PARAMS, x, OF_START))  # Constant.
        flowed = fdrl.flow(KEY, START, potential, num_steps=3, **method.schedules())
        outputs = by_class(params, REAL, OF_REAL), by_class(params, flowed, OF_START)
        value, _ = bregman.loss("lr", *outputs)

        def mean_square(x, labels):
            num = round(fraction * len(x))
            each = jax.vmap(jax.grad(lambda x, label: by_class(params, x, label)))
            return jnp.mean(jnp.sum(each(x[:num], labels[:num]) ** 2, -1))

        return value + penalty / 2 * (mean_square(REAL, OF_REAL) + mean_square(flowed, OF_START))

    found, wanted = (jax.jit(jax.value_and_grad(f))(PARAMS) for f in (computed, expected))
    chex.assert_trees_all_close(found, wanted, rtol=1e-5)


def test_an_estimator_that_ignores_labels_has_the_objective_without_labels():
    plain = METHOD.objective(KEY, REAL, START, lambda x: by_class(PARAMS, x, 0))
    labelled = METHOD.objective(
        KEY, REAL, START, lambda x, _: by_class(PARAMS, x, 0), labels=(OF_REAL, OF_START)
    )
    chex.assert_trees_all_equal(plain, labelled)


def test_one_label_is_needed_per_example():
    with pytest.raises(ValueError, match=r"12 and 8, got shapes \(12,\) and \(12,\)"):
        METHOD.objective(KEY, REAL, START, lambda x, _: x[:, 0], labels=(OF_REAL, OF_REAL))
    with pytest.raises(ValueError, match=r"labels must be a pair, .* got 12 entries"):
        METHOD.objective(KEY, REAL, START, lambda x, _: x[:, 0], labels=OF_REAL)


def _slope_by_class(variables, x, labels):
    return jnp.sum(x * variables["params"]["slope"][labels], -1)


def _problem():
    return small_problem.problem(Estimator(_slope_by_class, takes_labels=True), noise_scale=0.05)


def _draw(means, host_batch, key, positions):
    """A point near the mean of its class, which alternates."""
    labels = positions % 2
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    return {"real": means[labels] + 0.1 * noise, "label": labels}


CONSTANTS = Constants(data=jnp.asarray(MEANS), prior=small_problem.PRIOR.params)


def _state():
    return small_problem.initial_state(variables={"params": {"slope": jnp.zeros((2, 2))}})


def test_trained_samples_of_a_class_flow_towards_the_data_of_this_class():
    step = jax.jit(small_problem.train_step(_problem(), draw=_draw))
    state = _state()
    for _ in range(60):
        state, metrics = step(rng.root_key(0), state, CONSTANTS)
    assert np.isfinite(metrics["loss"])
    sample = jax.jit(samplers.make_sampler(_problem()))
    positions = jnp.arange(200)
    batch = {"position": positions, "label": positions % 2}
    drawn = sample(small_problem.KEY, state.variables, CONSTANTS, batch).refined
    start = jax.jit(samplers.make_start_sampler(_problem()))
    x0 = start(small_problem.KEY, state.variables, CONSTANTS, batch)
    for label in (0, 1):
        before, after = (np.mean(x[label::2], axis=0) - MEANS[label] for x in (x0, drawn))
        assert np.linalg.norm(after) < 0.5 * np.linalg.norm(before)


def test_micro_batches_keep_the_labels_of_their_examples():
    whole, parts = (
        jax.jit(small_problem.train_step(_problem(), draw=_draw, num_micro_batches=num))
        for num in (1, 4)
    )
    arguments = (rng.root_key(0), _state(), CONSTANTS)
    chex.assert_trees_all_close(whole(*arguments), parts(*arguments), rtol=1e-4, atol=1e-6)


def test_a_batch_without_classes_is_an_error_that_names_its_entries():
    sample = samplers.make_sampler(_problem())
    with pytest.raises(ValueError, match=r"under 'label', got \['position'\]"):
        sample(small_problem.KEY, _state().variables, CONSTANTS, {"position": jnp.arange(4)})


def test_a_residual_network_with_an_output_per_class_takes_labels():
    network = networks.resnet(networks.ResNetSpec(4, ((4, 2),)), num_outputs=3)
    x = jax.random.normal(KEY, (4, 8, 8, 1))
    variables = network.init(KEY, x)
    estimator = Estimator.from_network(network)
    assert estimator.takes_labels
    assert not Estimator.from_network(networks.MLP()).takes_labels
    labels = jnp.array([2, 0, 1, 2])
    outputs = network.apply(variables, x)
    found = estimator.of(estimator.prepare(variables), {"label": labels})(x)
    np.testing.assert_allclose(found, outputs[jnp.arange(4), labels], rtol=1e-6)
    with pytest.raises(ValueError, match="from 0 to 2"):
        estimator.apply(variables, x, jnp.array([0, 1, 2, 3]))
    traced = jax.jit(estimator.apply)(variables, x, jnp.array([0, 1, 2, 3]))
    np.testing.assert_array_equal(np.isnan(traced), [False, False, False, True])
