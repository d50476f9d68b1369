"""The training step: algorithm 1, with keys that depend only on the seed and the step."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problem

import fdrl_jax as fdrl
from fdrl_jax import bregman, divergences, networks, priors
from fdrl_jax.training import rng, samplers, state, steps
from fdrl_jax.training.problem import Constants, Estimator, FlowParams, Problem

CONSTANTS, KEY = small_problem.CONSTANTS, small_problem.KEY


@functools.cache
def compiled(**options):
    return jax.jit(small_problem.train_step(**options))


def from_host(data, host_batch, key, positions):
    return host_batch


def host_batch(num=16):
    real, source = jax.random.normal(jax.random.key(5), (2, num, 2))
    return {"real": 0.5 + real, "source": source}


@functools.cache
def one_step(num_micro_batches=1):
    """One step of plain gradient descent from stored data and prior samples, without noise."""
    step = small_problem.train_step(
        small_problem.problem(prior_sample=priors.batch().sample, noise_scale=0.0),
        draw=from_host,
        optimizer=optax.sgd(0.1),
        ema_rate=0.75,
        num_micro_batches=num_micro_batches,
    )
    return jax.jit(step)(KEY, small_problem.initial_state(optax.sgd(0.1)), CONSTANTS, host_batch())


@jax.jit
def step_by_definition(params):
    """The loss, the last drift, and gradients of the loss without and with that of the flow."""
    batch = host_batch()

    def potential(params):
        return lambda x: small_problem.apply({"params": params}, x)

    def flowed(params, num_steps=4):
        return fdrl.flow(
            jax.random.key(0),
            batch["source"],
            potential(params),
            num_steps=num_steps,
            step_size=0.1,
            noise_scale=0.0,
        )

    def loss(params, flow_params):
        out_real = small_problem.apply({"params": params}, batch["real"])
        out_flowed = small_problem.apply({"params": params}, flowed(flow_params))
        return bregman.loss(bregman.LR, out_real, out_flowed)[0]

    value, (partial, through_flow) = jax.value_and_grad(loss, (0, 1))(params, params)
    drift = fdrl.drift(flowed(params, num_steps=3), potential(params))
    return value, drift, partial, through_flow


def test_a_step_follows_the_gradient_of_the_loss_without_a_gradient_through_the_flow():
    params = small_problem.initial_variables()["params"]
    after, metrics = one_step()

    value, _, partial, through_flow = step_by_definition(params)

    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, partial)
    chex.assert_trees_all_close(after.variables["params"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(partial), rtol=1e-5)
    assert optax.tree.norm(through_flow) > 0.05 * metrics["grad_norm"]


def test_the_drift_norm_is_the_mean_length_of_the_drift_in_the_last_step_of_the_flow():
    _, metrics = one_step()

    _, drift, *_ = step_by_definition(small_problem.initial_variables()["params"])

    expected = np.linalg.norm(drift, axis=-1).mean()
    np.testing.assert_allclose(metrics["drift_norm"], expected, rtol=1e-5)


def test_a_step_updates_the_average_of_parameters_by_one_minus_its_rate():
    before = small_problem.initial_variables()["params"]
    after, _ = one_step()

    expected = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, before, after.variables["params"])
    chex.assert_trees_all_close(after.ema_variables["params"], expected, rtol=1e-6)
    assert after.step == 1


def test_metrics_are_finite_scalars_of_the_loss_and_the_norms_of_gradient_and_drift():
    _, metrics = one_step()

    assert {*metrics} == {
        *("loss", "output_real", "output_flowed", "ratio_real", "ratio_flowed"),
        *("grad_norm", "drift_norm"),
    }
    for name, value in metrics.items():
        assert value.shape == (), name
        assert np.isfinite(value), name


def test_micro_batches_give_the_step_of_the_whole_batch():
    state = small_problem.initial_state()
    whole = compiled()(KEY, state, CONSTANTS, None)

    parts = compiled(num_micro_batches=4)(KEY, state, CONSTANTS, None)

    chex.assert_trees_all_close(parts, whole, rtol=2e-5, atol=1e-6)


def test_micro_batches_split_the_hosts_batch_as_well():
    chex.assert_trees_all_close(one_step(num_micro_batches=2), one_step(), rtol=2e-5, atol=1e-6)


def test_another_step_or_seed_gives_other_numbers():
    first = small_problem.initial_state()
    runs = ((KEY, first), (KEY, first._replace(step=jnp.int32(1))), (rng.root_key(4), first))

    assert len({float(compiled()(*run, CONSTANTS, None)[1]["loss"]) for run in runs}) == 3


def test_data_is_drawn_from_arrays_and_host_batch_with_one_key_at_consecutive_positions():
    calls = []

    def draw(*arguments):
        jax.debug.callback(lambda *values: calls.append(values), *arguments, ordered=True)
        return {"real": jnp.zeros((4, 2))}

    step = small_problem.train_step(small_problem.problem(num_steps=0), draw=draw, batch_size=4)
    state = small_problem.initial_state()
    batches = [jnp.zeros(4), jnp.ones(4)]
    for batch in batches:
        state, _ = step(KEY, state, CONSTANTS, batch)

    jax.effects_barrier()
    assert len(calls) == 2
    for i, (data, batch, key, positions) in enumerate(calls):
        np.testing.assert_array_equal(data, CONSTANTS.data)
        np.testing.assert_array_equal(batch, batches[i])
        np.testing.assert_array_equal(key, calls[0][2])
        np.testing.assert_array_equal(positions, 4 * i + np.arange(4))


def test_dequantisation_noise_is_added_to_data_and_not_to_prior_samples():
    num, standard_deviation = 4_096, 0.03
    squares = Estimator(lambda v, x: jnp.sum(x**2, -1) + 0.0 * v["params"]["offset"])
    step = small_problem.train_step(
        small_problem.problem(squares, prior_sample=priors.batch().sample, num_steps=0),
        draw=from_host,
        batch_size=num,
        dequantisation=standard_deviation,
    )
    zeros = {"real": jnp.zeros((num, 2)), "source": jnp.zeros((num, 2))}

    _, metrics = jax.jit(step)(KEY, small_problem.initial_state(), CONSTANTS, zeros)

    expected = 2.0 * standard_deviation**2  # The variance of a chi square of 2 is 2 x 2.
    error = 2.0 * standard_deviation**2 / np.sqrt(num)
    assert metrics["output_real"] == pytest.approx(expected, abs=5.0 * error)
    assert metrics["output_flowed"] == 0.0


@functools.cache
def repeated():
    return jax.jit(steps.repeat_steps(small_problem.train_step(), 5))


def test_n_steps_and_then_m_equal_n_plus_m_steps_bit_for_bit():
    start = small_problem.initial_state()
    whole, history = repeated()(KEY, start, CONSTANTS, None, 5)

    middle, first = repeated()(KEY, start, CONSTANTS, None, 2)
    end, second = repeated()(KEY, middle, CONSTANTS, None, 3)

    chex.assert_trees_all_equal(end, whole)
    assert end.step == 5
    for name, values in history.items():
        pieces = np.concatenate([first[name][:2], second[name][:3]])
        np.testing.assert_array_equal(pieces, values, err_msg=name)


def test_repeated_steps_are_the_steps_one_by_one():
    state = small_problem.initial_state()
    end, history = repeated()(KEY, state, CONSTANTS, None, 2)

    for i in range(2):
        state, metrics = compiled()(KEY, state, CONSTANTS, None)
        chex.assert_trees_all_close(jax.tree.map(lambda h, i=i: h[i], history), metrics, rtol=1e-5)
    chex.assert_trees_all_close(end, state, rtol=1e-5)


def test_zero_steps_change_nothing():
    start = small_problem.initial_state()

    end, _ = repeated()(KEY, start, CONSTANTS, None, 0)

    chex.assert_trees_all_equal(end, start)


def test_untrained_variables_are_refreshed_once_per_step_and_constant_within_it():
    def apply(variables, x):  # The slope of the potential is the count of refreshes.
        return variables["vectors"] * x[:, 0] + 0.0 * variables["params"]["offset"]

    def refresh(variables):
        return {**variables, "vectors": variables["vectors"] + 1.0}

    variables = {**small_problem.initial_variables(), "vectors": jnp.float32(0.0)}
    step = small_problem.train_step(
        small_problem.problem(Estimator(apply, refresh)), num_micro_batches=2
    )
    end, metrics = jax.jit(steps.repeat_steps(step, 3))(
        KEY, small_problem.initial_state(variables=variables), CONSTANTS, None, 3
    )

    np.testing.assert_allclose(metrics["drift_norm"], [1.0, 2.0, 3.0], rtol=1e-6)
    assert end.variables["vectors"] == end.ema_variables["vectors"] == 3.0


def test_kernels_of_the_averaged_network_have_spectral_norm_one():
    net = networks.MLP((8, 8), spectral_norm=True)
    step = small_problem.train_step(
        small_problem.problem(Estimator.from_network(net)), ema_rate=0.99
    )
    start = state.create(net.init(KEY, jnp.ones((1, 2))), small_problem.OPTIMIZER)
    end, _ = jax.jit(steps.repeat_steps(step, 50))(KEY, start, CONSTANTS, None, 50)

    layers = networks.prepare(net, end.ema_variables)["params"].values()
    norms = [np.linalg.norm(layer["kernel"], 2) for layer in layers]

    assert len(norms) == 3
    np.testing.assert_allclose(norms, 1.0, atol=2e-3)
    # Normalised first and averaged afterwards, they would differ from 1.
    stale = {**end.ema_variables, "spectral": end.variables["spectral"]}
    layers = networks.prepare(net, stale)["params"].values()
    assert max(abs(np.linalg.norm(layer["kernel"], 2) - 1.0) for layer in layers) > 0.05


def test_a_network_of_bfloat16_parameters_trains_and_samples_by_its_float32_average():
    def apply(variables, x):
        wide = {name: a.astype(jnp.float32) for name, a in variables["params"].items()}
        return small_problem.apply({"params": wide}, x)

    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), small_problem.initial_variables())
    problem = small_problem.problem(Estimator(apply))
    repeated = jax.jit(steps.repeat_steps(small_problem.train_step(problem), 3))
    end, _ = repeated(KEY, small_problem.initial_state(variables=half), CONSTANTS, None, 3)
    dtypes = [leaf.dtype for leaf in jax.tree.leaves((end.variables, end.ema_variables))]
    assert dtypes == [jnp.bfloat16] * 3 + [jnp.float32] * 3

    sampler = jax.jit(samplers.make_sampler(problem))
    drawn = sampler(KEY, end.ema_variables, CONSTANTS, {"position": jnp.arange(4)})
    assert np.all(np.isfinite(drawn.refined))


def test_a_trained_estimator_moves_the_prior_towards_the_data():
    step = jax.jit(steps.repeat_steps(small_problem.train_step(ema_rate=0.9), 300))
    data = Constants(data=jnp.array([1.0, 1.0]), prior=small_problem.PRIOR.params)
    end, _ = step(KEY, small_problem.initial_state(), data, None, 300)
    sampler = samplers.make_sampler(small_problem.problem())

    samples = jax.jit(sampler)(KEY, end.ema_variables, data, {"position": jnp.arange(500)})

    gaps = [np.linalg.norm(np.mean(stage, axis=0) - 1.0) for stage in samples]
    assert gaps[0] > 4.0 * gaps[1]


def test_a_loss_and_a_divergence_that_do_not_fit_are_an_error_before_any_step():
    problem = small_problem.problem()._replace(bregman=bregman.LSIF, divergence=divergences.JS)

    with pytest.raises(ValueError, match="'lsif' trains an unconstrained ratio"):
        small_problem.train_step(problem)


@pytest.mark.parametrize("num", [3, 0, -4])
def test_a_batch_that_does_not_divide_into_micro_batches_is_an_error(num):
    with pytest.raises(ValueError, match=f"16 does not divide into {num} micro-batches"):
        small_problem.train_step(num_micro_batches=num)


@pytest.mark.parametrize("dequantisation", [0.0, 0.5])
def test_integer_data_train_like_the_same_floats(dequantisation):
    step = jax.jit(
        small_problem.train_step(draw=from_host, dequantisation=dequantisation),
    )
    integers = {"real": jnp.arange(32).reshape(16, 2) % 3}
    floats = {"real": jnp.float32(integers["real"])}

    actual, expected = (
        step(KEY, small_problem.initial_state(), CONSTANTS, batch) for batch in (integers, floats)
    )

    chex.assert_trees_all_close(actual, expected, rtol=1e-6)


def scans(jaxpr):
    """The loops of a traced program, those inside other equations too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
            continue
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from scans(inner)


def test_weights_are_cast_once_per_train_step_and_never_inside_the_flow():
    net = networks.resnet(networks.ResNetSpec(4, ((4, 2),)), dtype=jnp.bfloat16)
    variables = dict(net.init(KEY, jnp.zeros((1, 8, 8, 1))))
    optimizer = optax.sgd(1e-3)

    def draw(arrays, host_batch, key, positions):
        return {"real": jnp.zeros((4, 8, 8, 1))}

    def casts_in_the_flow(estimator):
        prior = priors.uniform((8, 8, 1))
        of = Problem(estimator, "lr", "kl", FlowParams(3, 1.0, 0.0), prior.sample)
        step = steps.make_train_step(of, optimizer=optimizer, draw=draw, batch_size=4)
        traced = jax.make_jaxpr(step)(KEY, state.create(variables, optimizer), CONSTANTS)
        (loop,) = scans(traced.jaxpr)
        return len(re.findall(r"bf16\[[13],[13],\d+,\d+\] = convert_element_type", str(loop)))

    prepared = Estimator.from_network(net)
    assert casts_in_the_flow(prepared._replace(prepare=lambda variables: variables)) > 0
    assert casts_in_the_flow(prepared) == 0


# Options


def test_a_step_may_skip_batches():
    step, state = compiled(), small_problem.initial_state()
    later = state._replace(step=jnp.int32(2))

    _, offset = step(KEY, state, CONSTANTS, None, 2)
    _, expected = step(KEY, later, CONSTANTS, None)

    chex.assert_trees_all_equal(offset, expected)
    assert offset["loss"] != step(KEY, state, CONSTANTS, None)[1]["loss"]
    _, history = repeated()(KEY, state, CONSTANTS, None, 1, 2)
    np.testing.assert_allclose(history["loss"][0], expected["loss"], rtol=1e-6)


def test_several_seeds_train_at_once_under_vmap_as_they_do_one_by_one():
    keys = jax.vmap(rng.root_key)(jnp.arange(3))
    run = steps.repeat_steps(small_problem.train_step(), 4)
    start = small_problem.initial_state()

    together, _ = jax.jit(jax.vmap(lambda key: run(key, start, CONSTANTS, None, 4)))(keys)

    for i, key in enumerate(keys):
        single, _ = jax.jit(run)(key, start, CONSTANTS, None, 4)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i], together), single, rtol=1e-4, atol=1e-5
        )


def test_a_train_step_gives_the_loss_to_an_optimizer_that_needs_it():
    optimizer = optax.chain(
        optax.sgd(0.0),
        optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.0, atol=1e3),
    )
    run = jax.jit(steps.repeat_steps(small_problem.train_step(optimizer=optimizer), 6))

    end, _ = run(KEY, small_problem.initial_state(optimizer), CONSTANTS, None, 6)

    assert optax.tree.get(end.opt_state, "scale") < 1.0


def test_the_ramp_of_the_average_is_an_option_of_the_step():
    before = small_problem.initial_variables()["params"]

    after, _ = jax.jit(small_problem.train_step(ema_ramp=True))(
        KEY, small_problem.initial_state(), CONSTANTS
    )

    expected = jax.tree.map(lambda e, p: 0.1 * e + 0.9 * p, before, after.variables["params"])
    chex.assert_trees_all_close(after.ema_variables["params"], expected, rtol=1e-5)
