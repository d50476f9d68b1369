"""`FDRL`: the objective by its definition, its penalty, weights, labels and cost."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problem

import fdrl_jax as fdrl
from fdrl_jax import bregman
from fdrl_jax.method import objective

KEY = jax.random.key(1)
REAL, START = jax.random.normal(jax.random.key(0), (2, 12, 2))
OF_REAL, OF_START = jnp.arange(12) % 3, jnp.arange(8) % 3
FLOW = {"num_steps": 3, "step_size": 0.1, "noise_scale": 0.2}
PARAMS = small_problem.initial_variables()["params"]
PAIRS = [("lr", "kl"), ("ukl", "js"), ("lsif", "pearson")]


def method(**options):
    return fdrl.FDRL(**(FLOW | options))


def estimator(params):
    return lambda x: small_problem.apply({"params": params}, x)


def cubic(params):
    """An output whose gradient differs from example to example, and with labels by class."""

    def apply(x, labels=1):
        slope = x @ params["slope"] * (1.0 + labels)
        return slope + params["curvature"] * jnp.sum(x**3, -1) * (2.0 - labels)

    return apply


def loss_of(of, params, make=estimator, real=REAL, x0=START, **options):
    return of.objective(KEY, make(params), real=real, x0=x0, **options)[0]


# The objective


CASES = [(pair, labelled, 0.7, 1.0) for pair in PAIRS for labelled in (False, True)]
CASES += [(PAIRS[0], False, 0.0, 1.0), (PAIRS[1], True, 0.7, 0.25)]


@pytest.mark.parametrize(("pair", "labelled", "penalty", "fraction"), CASES)
def test_loss_and_gradient_follow_the_definition_without_a_gradient_through_the_flow(
    pair, labelled, penalty, fraction
):
    of = method(loss=pair[0], divergence=pair[1], gradient_penalty=penalty)
    labels = (OF_REAL, OF_START) if labelled else None
    x0, of_real, of_start = START[:8], *((OF_REAL, OF_START) if labelled else (1, 1))

    def by_definition(params):
        potential = of.potential(lambda x: cubic(PARAMS)(x, of_start))  # Constant.
        flowed = fdrl.flow(KEY, x0, potential, **FLOW)
        outputs = cubic(params)(REAL, of_real), cubic(params)(flowed, of_start)

        def mean_square(x, labels):
            num = round(fraction * len(x))
            each = jax.vmap(jax.grad(lambda x, label: cubic(params)(x, label)))
            return jnp.mean(jnp.sum(each(x, jnp.broadcast_to(labels, len(x)))[:num] ** 2, -1))

        squares = mean_square(REAL, of_real) + mean_square(flowed, of_start)
        return bregman.loss(pair[0], *outputs)[0] + penalty / 2 * squares

    def computed(params):
        options = {"real": REAL, "x0": x0, "labels": labels, "penalised": fraction}
        return objective(of, KEY, cubic(params), **options)[0]

    found, expected = (jax.jit(jax.value_and_grad(f))(PARAMS) for f in (computed, by_definition))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_record_has_the_samples_and_the_penalty():
    of = method(gradient_penalty=0.7)
    value, record = of.objective(KEY, estimator(PARAMS), real=REAL[:5], x0=START)
    bare, _ = method().objective(KEY, estimator(PARAMS), real=REAL[:5], x0=START)
    np.testing.assert_allclose(value, bare + record.metrics["gradient_penalty"], rtol=1e-6)
    samples, path = of.sample(KEY, START, estimator(PARAMS), observe=lambda x, drift: drift)
    np.testing.assert_allclose(record.flowed, samples, rtol=1e-5)
    norms = np.linalg.norm(path[-1], axis=-1)
    np.testing.assert_allclose(record.metrics["drift_norm"], norms.mean(), rtol=1e-5)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_whole_weights_are_repeated_data(penalty):
    of, counts = method(gradient_penalty=penalty), np.array([1, 0, 3, 2] + [1] * 8)

    def loss(real, weights):
        return jax.jit(jax.value_and_grad(lambda p: loss_of(of, p, cubic, real, weights=weights)))(
            PARAMS
        )

    repeated = loss(np.repeat(REAL, counts, axis=0), None)
    chex.assert_trees_all_close(loss(REAL, 0.1 * counts), repeated, rtol=1e-4)


def test_a_penalised_part_of_the_batch_may_have_no_weight():
    def loss(params):
        weights = jnp.array([0.0] * 3 + [1.0] * 9)
        options = {"real": REAL, "x0": START, "weights": weights, "penalised": 0.25}
        return objective(method(gradient_penalty=1.0), KEY, estimator(params), **options)[0]

    chex.assert_tree_all_finite(jax.jit(jax.value_and_grad(loss))(PARAMS))


@pytest.mark.parametrize("weights", [-np.ones(12), np.zeros(12), [np.inf] + [1.0] * 11])
def test_traced_weights_that_make_no_sense_give_nan(weights):
    loss = jax.jit(lambda weights: loss_of(method(), PARAMS, weights=weights))
    assert np.isnan(loss(jnp.asarray(weights)))
    assert np.isfinite(loss(jnp.ones(12)))


# Sampling


@pytest.mark.parametrize(("loss", "divergence"), PAIRS)
def test_sampling_reads_the_output_that_the_loss_trains(loss, divergence):
    samples = method(loss=loss, divergence=divergence).sample(KEY, START, estimator(PARAMS))
    output = "ratio" if loss == "lsif" else "log_ratio"
    potential = fdrl.first_variation(estimator(PARAMS), divergence, output=output)
    np.testing.assert_allclose(samples, fdrl.flow(KEY, START, potential, **FLOW), rtol=1e-6)


def test_refinement_steps_follow_the_bridging_steps_and_an_observer_sees_both():
    of, net = method(num_refine_steps=2), estimator(PARAMS)
    samples, path = of.sample(KEY, START, net, observe=lambda x, drift: x)
    assert path.shape == (5, 12, 2)
    np.testing.assert_allclose(path[3], of.sample(KEY, START, net, num_refine_steps=0), rtol=1e-5)
    np.testing.assert_allclose(samples, of.sample(KEY, START, net), rtol=1e-5)


def test_samples_of_labels_follow_their_own_ratio_and_compile_once_for_a_pytree():
    traces = []

    def apply(params, x, labels):
        traces.append(1)
        return cubic(params)(x, labels)

    bound = jax.tree_util.Partial(apply, PARAMS)
    found = [method().sample(KEY, START[:8], bound, labels=OF_START + i) for i in (0, 1)]
    assert len(traces) == 1
    expected = method().sample(KEY, START[:8], lambda x: cubic(PARAMS)(x, OF_START))
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    with pytest.raises(ValueError, match=r"labels must be one per prior sample, \(8,\), got \(3,"):
        method().sample(KEY, START[:8], bound, labels=OF_START[:3])


# The object


def test_an_entropy_weight_is_the_noise_scale_by_equation_9():
    by_weight = fdrl.FDRL(num_steps=3, step_size=0.5, entropy_weight=0.04)
    by_scale = fdrl.FDRL(num_steps=3, step_size=0.5, noise_scale=0.2)
    net = estimator(PARAMS)
    expected = by_scale.sample(KEY, START, net)
    np.testing.assert_allclose(by_weight.sample(KEY, START, net), expected, rtol=1e-6)
    assert by_weight.schedules()["noise_scale"] == pytest.approx(0.2)
    halved = dataclasses.replace(by_weight, step_size=lambda k: 0.5 / (k + 1))
    schedule = halved.schedules()["noise_scale"]
    np.testing.assert_allclose(schedule(3), np.sqrt(2 * 0.125 * 0.04), rtol=1e-6)


def test_numbers_may_be_traced_and_several_methods_run_at_once():
    @jax.jit
    def loss(of):
        return loss_of(of, PARAMS, cubic)

    methods = [method(step_size=eta, gradient_penalty=0.1) for eta in (0.1, 0.2)]
    expected = [loss_of(of, PARAMS, cubic) for of in methods]
    np.testing.assert_allclose([loss(of) for of in methods], expected, rtol=1e-5)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *methods)
    np.testing.assert_allclose(jax.vmap(loss)(stacked), expected, rtol=1e-5)
    slope = jax.grad(lambda eta: loss_of(method(step_size=eta), PARAMS, cubic))(0.1)
    assert slope == 0.0, "no gradient goes through the flow"
    assert jax.tree.structure(methods[0]) == jax.tree.structure(methods[1])
    # Its structure holds anything: gradients below 0, booleans, the shapes of an optimizer.
    gradient = jax.grad(lambda of: -(of.step_size**2) - of.gradient_penalty)(methods[0])
    assert (gradient.step_size, gradient.gradient_penalty) == (-0.2, -1.0)
    assert jax.tree.map(lambda leaf: leaf > 1.0, methods[0]).step_size is False
    assert optax.adam(0.1).init(methods[0])[0].mu.step_size == 0.0


def test_the_method_is_a_static_argument_whose_zeros_cost_nothing():
    @functools.partial(jax.jit, static_argnames="of")
    def loss(of, params):
        return loss_of(of, params)

    def program(of):
        return str(jax.make_jaxpr(jax.grad(lambda p: loss_of(of, p)))(PARAMS))

    assert loss(method(), PARAMS) == loss(method(), PARAMS)
    assert program(method(gradient_penalty=0.0)) == program(method())
    assert len(program(method(gradient_penalty=0.1))) > len(program(method()))


def test_the_estimator_is_traced_once_for_flow_and_loss_and_the_flow_stores_nothing():
    shapes = []

    def counted(params):
        return lambda x: shapes.append(x.shape) or estimator(params)(x)

    jax.jit(jax.grad(lambda p: loss_of(method(gradient_penalty=1.0), p, counted)))(PARAMS)
    assert shapes == [(12, 2), (24, 2)]

    def temporary_bytes(num_steps):
        gradient = jax.grad(lambda p: loss_of(method(num_steps=num_steps), p))
        return jax.jit(gradient).lower(PARAMS).compile().memory_analysis().temp_size_in_bytes

    # The norm of a drift per example, and the counter of steps.
    assert temporary_bytes(500) - temporary_bytes(10) <= 490 * 4 * (len(START) + 2)


OF_METHOD = {
    "pair": ({"loss": "lsif"}, "use output 'log_ratio' .the losses 'lr' and 'ukl'"),
    "steps": ({"num_steps": 2.5}, "num_steps must be a whole number >= 0, got 2.5"),
    "step size": ({"step_size": 0.0}, "step_size must be above 0 and finite, got 0.0"),
    "noise": ({"noise_scale": -0.1}, "noise_scale must be >= 0 and finite, got -0.1"),
    "penalty": ({"gradient_penalty": np.float32(-1.0)}, "gradient_penalty must be >= 0"),
    "no step": ({"step_size": None}, "step_size must be a number, got NoneType"),
    "no penalty": ({"gradient_penalty": None}, "gradient_penalty must be a number, got NoneType"),
    "both": ({"entropy_weight": 0.1}, "either noise_scale or entropy_weight, got 0.2 and 0.1"),
    "weight": ({"noise_scale": None, "entropy_weight": -1.0}, "entropy_weight must be >= 0"),
}


@pytest.mark.parametrize(("options", "message"), OF_METHOD.values(), ids=OF_METHOD)
def test_a_method_that_cannot_work_is_an_error(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        dataclasses.replace(method(), **options)


OF_OBJECTIVE = {
    "features": ({"real": REAL[:, :1]}, "same features"),
    "no data": ({"real": REAL[:0]}, r"not be empty, got shapes \(0, 2\) and \(12, 2\)"),
    "bytes": ({"real": np.zeros((12, 2), np.uint8)}, r"in \[-1, 1\], got uint8: x / 127.5"),
    "column": ({"estimator": lambda x: x[:, :1]}, r"got \(12, 1\); drop the last axis"),
    "labels": ({"labels": (OF_REAL, OF_START)}, r"got 2 entries of shapes \(12,\), \(8,\)"),
    "one label": ({"labels": OF_REAL}, "labels must be a pair: .* got 12 entries"),
    "weights": ({"weights": np.ones((12, 1))}, r"shape \(12,\), got shape \(12, 1\)"),
    "negative": ({"weights": -np.ones(12)}, "numbers >= 0, at least one .* got minimum -1"),
}


@pytest.mark.parametrize(("change", "message"), OF_OBJECTIVE.values(), ids=OF_OBJECTIVE)
def test_inputs_that_would_give_wrong_numbers_are_errors(change, message):
    options = {"estimator": estimator(PARAMS), "real": REAL, "x0": START} | change
    with pytest.raises((ValueError, TypeError), match=message):
        method().objective(KEY, options.pop("estimator"), **options)
