"""`FDRL`: loss, divergence and flow as one object, and compiled flows that are reused."""

import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problem
from flax import nnx
from jax.tree_util import Partial

import fdrl_jax as fdrl
from fdrl_jax import bregman, compose, divergences

KEY = jax.random.key(1)
REAL, START = jax.random.normal(jax.random.key(0), (2, 12, 2))
FLOW = {"num_steps": 3, "step_size": 0.1, "noise_scale": 0.2}
PARAMS = small_problem.initial_variables()["params"]
PAIRS = [("lr", "kl"), ("ukl", "js"), ("lsif", "pearson")]


def estimator(params):
    return lambda x: small_problem.apply({"params": params}, x)


def method(**options):
    return fdrl.FDRL(**(FLOW | options))


# The kind of output


def test_neither_a_potential_nor_a_condition_guesses_what_an_estimator_returns():
    with pytest.raises(TypeError, match="output"):
        fdrl.first_variation(estimator(PARAMS), "pearson")
    with pytest.raises(TypeError, match="output"):
        compose.condition(estimator(PARAMS), lambda x: x, 0)


@pytest.mark.parametrize(("loss", "divergence"), PAIRS)
def test_sampling_reads_the_output_that_the_loss_trains(loss, divergence):
    of = method(loss=loss, divergence=divergence)

    samples = of.sample(KEY, START, estimator(PARAMS))

    potential = fdrl.first_variation(
        estimator(PARAMS), divergence, output="ratio" if loss == "lsif" else "log_ratio"
    )
    np.testing.assert_allclose(samples, fdrl.flow(KEY, START, potential, **FLOW), rtol=1e-6)
    np.testing.assert_allclose(of.potential(estimator(PARAMS))(START), potential(START), rtol=1e-6)


@functools.partial(jax.jit, static_argnames="of")
def trained(of):
    """Parameters of a small network after training towards N(0, 0.36² I) from N(0, I)."""
    net, optimizer = fdrl.networks.MLP((32, 32)), optax.adam(5e-3)

    def step(i, carry):
        params, opt_state = carry
        real_key, prior_key, flow_key = jax.random.split(jax.random.fold_in(KEY, i), 3)
        real = 0.36 * jax.random.normal(real_key, (128, 2))
        x0 = jax.random.normal(prior_key, (128, 2))

        def loss(params):
            return of.objective(flow_key, real, x0, Partial(net.apply, params))[0]

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    params = net.init(KEY, START)
    return jax.lax.fori_loop(0, 300, step, (params, optimizer.init(params)))[0]


@pytest.mark.usefixtures("optimised")
def test_samples_of_a_ratio_that_lsif_trains_reach_the_data():
    of = method(loss="lsif", divergence="pearson", num_steps=20, step_size=0.05, noise_scale=0.01)
    net = Partial(fdrl.networks.MLP((32, 32)).apply, trained(of))
    x0 = jax.random.normal(jax.random.key(5), (1_000, 2))

    samples = of.sample(KEY, x0, net)

    np.testing.assert_allclose(np.std(samples), 0.36, atol=0.06)


# The objective


@pytest.mark.parametrize(("loss", "divergence"), PAIRS)
def test_the_objective_is_that_of_the_function_and_returns_the_samples_of_the_flow(
    loss, divergence
):
    of = method(loss=loss, divergence=divergence, gradient_penalty=0.3)

    @jax.jit
    def both(params):
        return (
            of.objective(KEY, REAL, START, estimator(params)),
            fdrl.objective(
                KEY,
                REAL,
                START,
                estimator(params),
                bregman=loss,
                divergence=divergence,
                gradient_penalty=0.3,
                **FLOW,
            ),
            of.sample(KEY, START, estimator(params)),
        )

    (value, record), (expected, metrics), samples = both(PARAMS)

    chex.assert_trees_all_close((value, record.metrics), (expected, metrics), rtol=1e-6)
    np.testing.assert_allclose(record.flowed, samples, rtol=1e-6)


def test_the_losses_of_the_examples_average_to_the_loss():
    run = jax.jit(lambda params: method().objective(KEY, REAL[:5], START, estimator(params)))
    value, record = run(PARAMS)

    assert record.losses_real.shape == (5,)
    assert record.losses_flowed.shape == (12,)
    np.testing.assert_allclose(
        value, np.mean(record.losses_real) + np.mean(record.losses_flowed), rtol=1e-6
    )
    np.testing.assert_allclose(
        record.losses_flowed, bregman.LR.flowed_term(estimator(PARAMS)(record.flowed)), rtol=1e-6
    )


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_whole_weights_are_repeated_data(penalty):
    of = method(gradient_penalty=penalty)
    counts = np.array([1, 0, 3, 2] + [1] * 8)

    def loss(real, weights):
        return lambda params: of.objective(
            KEY, real, START, lambda x: estimator(params)(x**3), weights=weights
        )[0]

    weighted = jax.jit(jax.value_and_grad(loss(REAL, 0.1 * counts)))(PARAMS)
    repeated = jax.jit(jax.value_and_grad(loss(np.repeat(REAL, counts, axis=0), None)))(PARAMS)

    chex.assert_trees_all_close(weighted, repeated, rtol=1e-4)


def test_a_penalised_part_of_the_batch_may_have_no_weight():
    penalised = method(gradient_penalty=1.0, gradient_penalty_fraction=0.25)
    weights = jnp.array([0.0] * 3 + [1.0] * 9)

    def loss(params):
        return penalised.objective(KEY, REAL, START, estimator(params), weights=weights)[0]

    value, gradient = jax.value_and_grad(loss)(PARAMS)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones((12, 1)), r"one number per data point, shape \(12,\), got shape \(12, 1\)"),
        (np.ones(3), "one number per data point"),
        (-np.ones(12), "finite numbers >= 0, at least one of them positive; got minimum -1"),
        (np.zeros(12), "at least one of them positive"),
        (np.full(12, np.nan), "finite"),
    ],
)
def test_weights_that_make_no_sense_are_an_error(weights, message):
    with pytest.raises(ValueError, match=message):
        method().objective(KEY, REAL, START, estimator(PARAMS), weights=weights)


# The object


def test_the_method_is_a_static_argument_of_a_compiled_function():
    traces = []

    @functools.partial(jax.jit, static_argnames="of")
    def loss(of, params):
        traces.append(of)
        return of.objective(KEY, REAL, START, estimator(params))[0]

    first = loss(method(divergence="alpha(0.5)"), PARAMS)
    assert loss(method(divergence="alpha(0.5)"), PARAMS) == first
    assert len(traces) == 1
    loss(method(), PARAMS)
    assert len(traces) == 2


def test_refinement_steps_follow_the_bridging_steps_and_an_observer_sees_both():
    of = method(num_refine_steps=2)
    net = estimator(PARAMS)

    samples, path = of.sample(KEY, START, net, observe=lambda x, drift: x)

    assert path.shape == (5, 12, 2)
    np.testing.assert_allclose(path[3], of.sample(KEY, START, net, num_refine_steps=0), rtol=1e-5)
    np.testing.assert_allclose(samples, of.sample(KEY, START, net), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "lsif"}, ValueError, "use 'lsif' with 'pearson', or 'kl' with 'lr' or 'ukl'"),
        ({"loss": "lssif"}, ValueError, "unknown Bregman loss 'lssif'; did you mean 'lsif'"),
        ({"divergence": "jss"}, ValueError, "unknown divergence 'jss'"),
        ({"num_steps": 2.5}, ValueError, "num_steps must be a whole number >= 0, got 2.5"),
        ({"num_refine_steps": -1}, ValueError, "num_refine_steps must be a whole number >= 0"),
        ({"step_size": 0.0}, ValueError, "step_size must be above 0 and finite, got 0.0"),
        ({"step_size": jnp.float32(0.1)}, TypeError, "step_size must be a number, got"),
        ({"noise_scale": -0.1}, ValueError, "noise_scale must be >= 0 and finite, got -0.1"),
        ({"noise_scale": float("nan")}, ValueError, "noise_scale must be >= 0 and finite"),
        ({"gradient_penalty": np.float32(-1.0)}, ValueError, "gradient_penalty must be >= 0"),
        ({"gradient_penalty_fraction": 0.0}, ValueError, "gradient_penalty_fraction must be above"),
        (
            {"step_size": lambda k: 0.1, "step_size_decay": 0.5},
            ValueError,
            "got a function of the step for step_size; include the decay in it",
        ),
    ],
)
def test_a_method_that_cannot_work_is_an_error_when_it_is_made(options, error, message):
    with pytest.raises(error, match=message):
        method(**options)


def test_a_changed_copy_is_checked_too():
    with pytest.raises(ValueError, match="unconstrained ratio"):
        dataclasses.replace(method(loss="lsif", divergence="pearson"), divergence="kl")


def test_a_step_size_may_be_a_function_of_the_step():
    of = method(step_size=lambda k: 0.1 / (k + 1))

    samples = of.sample(KEY, START, estimator(PARAMS))

    potential = of.potential(estimator(PARAMS))
    expected = fdrl.flow(KEY, START, potential, **(FLOW | {"step_size": lambda k: 0.1 / (k + 1)}))
    np.testing.assert_allclose(samples, expected, rtol=1e-6)


def at_steps(schedule, *steps):
    return [float(schedule(np.float32(k))) for k in steps]


def schedules(num_steps=10, noise_scale=0.1, **options):
    method = fdrl.FDRL(num_steps=num_steps, step_size=2.0, noise_scale=noise_scale, **options)
    return method.schedules()


def test_the_step_size_decays_geometrically_over_k_steps_and_then_stays():
    step_size = schedules(step_size_decay=0.01)["step_size"]

    assert at_steps(step_size, 0, 5, 10, 15) == pytest.approx([2.0, 0.2, 0.02, 0.02])


def test_without_training_steps_the_decay_is_complete_after_the_first_step():
    flow = schedules(num_steps=0, step_size_decay=0.01)

    assert at_steps(flow["step_size"], 0, 1, 2) == pytest.approx([2.0, 0.02, 0.02])
    assert at_steps(flow["noise_scale"], 0, 1, 2) == pytest.approx([0.1, 0.01, 0.01])


def test_the_noise_scale_keeps_the_entropy_weight_when_the_step_size_changes():
    flow = schedules(step_size_decay=0.01)

    etas, nus = (np.array(at_steps(flow[name], 0, 3, 12)) for name in ("step_size", "noise_scale"))
    np.testing.assert_allclose(nus**2 / (2.0 * etas), 0.1**2 / 4.0, rtol=1e-5)


def test_a_decay_draws_no_noise_where_the_noise_scale_is_zero():
    assert schedules(noise_scale=0.0, step_size_decay=0.5)["noise_scale"] == 0.0


def test_without_decay_both_are_plain_numbers():
    assert schedules() == {"step_size": 2.0, "noise_scale": 0.1}


# Compilation outside of `jax.jit`


def counting(traces):
    def apply(params, x):
        traces.append(x.shape)
        return small_problem.apply({"params": params}, x)

    return apply


@pytest.mark.parametrize("divergence", ["kl", "alpha(0.5)"])
@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_samples_for_other_parameters_and_keys_need_no_compilation(divergence, decay):
    traces = []
    apply = counting(traces)

    def samples(scale, key=KEY):
        params = jax.tree.map(lambda a: scale * a, PARAMS)
        of = method(divergence=divergence, step_size_decay=decay)  # A new object each time.
        return of.sample(key, START, Partial(apply, params))

    first, other = samples(1.0), samples(2.0, jax.random.key(9))

    assert traces == [(12, 2)]
    of = method(divergence=divergence, step_size_decay=decay)
    plain = of.sample(KEY, START, estimator(PARAMS))
    np.testing.assert_allclose(first, plain, rtol=1e-5)
    assert np.all(other != first)


def test_both_stages_need_no_compilation_either():
    traces = []
    apply = counting(traces)
    for scale in (1.0, 2.0):
        params = jax.tree.map(lambda a, scale=scale: scale * a, PARAMS)
        potential = fdrl.first_variation(Partial(apply, params), "kl", output="log_ratio")
        fdrl.two_stage(KEY, START, potential, num_refine_steps=2, **FLOW)
    assert traces == [(12, 2)]


def test_a_product_of_pytrees_is_a_pytree():
    traces = []
    parts = [Partial(counting(traces), PARAMS), Partial(counting(traces), PARAMS)]
    for weight in (0.5, 0.7):
        potential = compose.product(parts, [1.0, weight])
        moved = fdrl.flow(KEY, START, potential, **FLOW)
    assert len(traces) == 2
    np.testing.assert_allclose(
        moved,
        fdrl.flow(KEY, START, lambda x: 1.7 * estimator(PARAMS)(x), **FLOW),
        rtol=1e-5,
    )


def test_the_potential_of_an_nnx_module_follows_its_parameters_without_compilation():
    traces = []

    class Linear(nnx.Module):
        def __init__(self):
            self.slope = nnx.Param(jnp.array([1.0, 2.0]))

        def __call__(self, x):
            traces.append(x.shape)
            return x @ self.slope[...]

    model = Linear()
    potential = fdrl.first_variation(model, "kl", output="log_ratio")
    first = fdrl.flow(KEY, START, potential, **FLOW)
    model.slope[...] = jnp.array([3.0, 4.0])
    second = fdrl.flow(KEY, START, potential, **FLOW)

    assert traces == [(12, 2)]
    np.testing.assert_allclose(first - second, jnp.full((12, 2), 0.6), rtol=1e-4)


def test_a_plain_function_is_traced_again_because_what_it_closes_over_may_have_changed():
    scale = 1.0

    def potential(x):
        return scale * jnp.sum(x, axis=-1)

    first = fdrl.flow(KEY, START, potential, **FLOW)
    scale = 2.0
    second = fdrl.flow(KEY, START, potential, **FLOW)

    np.testing.assert_allclose(first - second, 0.3 * np.ones((12, 2)), rtol=1e-4)


def test_potentials_of_equal_parts_have_equal_structure():
    apply = counting([])
    first, second = (
        fdrl.first_variation(Partial(apply, PARAMS), "alpha(0.5)", output="log_ratio")
        for _ in range(2)
    )
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert divergences.get("alpha(0.5)") is divergences.get("alpha(0.50)")


# The top of the package


def test_a_newcomer_sees_at_most_twelve_modules():
    names = [name for name in dir(fdrl) if not name.startswith("_")]
    modules = [name for name in names if inspect.ismodule(getattr(fdrl, name))]
    assert len(modules) <= 12
    assert set(names) <= set(fdrl.__all__)
