"""The packaged training: keys by position, state, step, samplers, classes and a denoiser."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problem

import fdrl_jax as fdrl
from fdrl_jax import networks, priors
from fdrl_jax.training import rng, samplers, state, steps
from fdrl_jax.training.problem import Estimator

CONSTANTS, KEY = small_problem.CONSTANTS, small_problem.KEY
VARIABLES = small_problem.initial_variables()


@functools.cache
def repeated():
    return jax.jit(steps.repeat_steps(small_problem.train_step(), 5))


# Keys and positions


def data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_positions_count_the_examples_of_a_run_without_gap_or_repeat():
    def positions(step):
        of_replica = jax.vmap(lambda _: rng.batch_positions(step, 5, "i"), axis_name="i")
        return of_replica(jnp.arange(4))

    run = np.concatenate([positions(jnp.int32(step)).ravel() for step in range(3)])
    np.testing.assert_array_equal(run, np.arange(60))
    beyond = rng.batch_positions(jnp.int32(2**25), 64)
    np.testing.assert_array_equal(beyond, 2**31 + np.arange(64))


def test_keys_differ_between_seeds_streams_positions_and_the_parts_of_the_root_key():
    found = [
        data(rng.example_keys(rng.root_key(seed), stream, jnp.arange(50)))
        for seed, stream in itertools.product(range(3), rng.Stream)
    ]
    found += [data(rng.stream_key(rng.root_key(0), stream))[None] for stream in rng.Stream]
    found += [data(jax.random.split(rng.root_key(seed), 50)) for seed in range(3)]
    rows = np.concatenate(found)
    assert len(np.unique(rows, axis=0)) == len(rows)


# State


def test_a_state_starts_at_zero_may_be_donated_and_follows_optimizer_ramp_and_rate():
    optimizer = optax.sgd(0.1, momentum=0.5)
    variables = {"params": {"w": jnp.array([1.0, 2.0])}, "vectors": {"u": jnp.array([5.0])}}
    now = state.create(variables, optimizer)
    assert (now.step, now.step.dtype) == (0, jnp.int32)
    jax.jit(lambda s: s, donate_argnums=0)(jax.tree.map(jnp.copy, now))
    grads, expected = {"w": jnp.array([10.0, -10.0])}, variables["params"]["w"]
    # (1 + t) / (10 + t): 0.1, 0.1818, 0.25, and then the rate itself.
    for ramp in (0.1, 2.0 / 11.0, 0.25, 0.25):
        now = state.apply_gradients(now, grads, optimizer, 0.25, ema_ramp=True)
        expected = ramp * expected + (1.0 - ramp) * now.variables["params"]["w"]
        np.testing.assert_allclose(now.ema_variables["params"]["w"], expected, rtol=1e-6)
    # Velocities 10, 15, 17.5 and 18.75.
    np.testing.assert_allclose(now.variables["params"]["w"], [1.0 - 6.125, 2.0 + 6.125])
    assert now.variables["vectors"] == now.ema_variables["vectors"] == variables["vectors"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_average_of_parameters_of_any_precision_reaches_them(dtype):
    optimizer, zero = optax.sgd(0.0), {"w": jnp.zeros((), dtype)}
    start = state.create({"params": {"w": jnp.ones((), dtype)}}, optimizer)
    start = start._replace(variables={"params": {"w": jnp.asarray(1.5, dtype)}})

    def step(_, now):
        return state.apply_gradients(now, zero, optimizer, 0.998)

    end = jax.lax.fori_loop(0, 3_000, step, start)
    assert end.ema_variables["params"]["w"].dtype == jnp.float32
    expected = 1.5 - 0.5 * 0.998**3_000
    np.testing.assert_allclose(end.ema_variables["params"]["w"], expected, rtol=1e-4)


# The step


def test_a_step_follows_the_gradient_of_the_objective():
    params, (real, source) = VARIABLES["params"], jax.random.normal(KEY, (2, 16, 2))
    problem = small_problem.problem(prior_sample=priors.batch().sample, noise_scale=0.0)
    optimizer = optax.sgd(0.1)
    batch = {"real": 0.5 + real, "source": source}
    options = {"draw": lambda *_: batch, "optimizer": optimizer, "ema_rate": 0.75}
    step = jax.jit(small_problem.train_step(problem, **options))
    after, metrics = step(KEY, small_problem.initial_state(optimizer), CONSTANTS)

    def loss(params):
        own = functools.partial(small_problem.apply, {"params": params})
        return problem.method.objective(KEY, own, real=batch["real"], x0=source)[0]

    value, gradient = jax.value_and_grad(loss)(params)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
    chex.assert_trees_all_close(after.variables["params"], expected, rtol=1e-5)
    average = jax.tree.map(lambda e, p: 0.75 * e + 0.25 * p, params, expected)
    chex.assert_trees_all_close(after.ema_variables["params"], average, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    assert {*metrics} == {
        *("loss", "output_real", "output_flowed", "ratio_real", "ratio_flowed"),
        *("grad_norm", "drift_norm"),
    }


def test_n_steps_and_then_m_equal_n_plus_m_steps_bit_for_bit_and_single_ones():
    start = small_problem.initial_state()
    whole, history = repeated()(KEY, start, CONSTANTS, None, 5)
    middle, first = repeated()(KEY, start, CONSTANTS, None, 2)
    end, second = repeated()(KEY, middle, CONSTANTS, None, 3)
    chex.assert_trees_all_equal(end, whole)
    for name, values in history.items():
        pieces = np.concatenate([first[name][:2], second[name][:3]])
        np.testing.assert_array_equal(pieces, values, err_msg=name)
    now, step = start, jax.jit(small_problem.train_step())
    for i in range(2):
        now, metrics = step(KEY, now, CONSTANTS, None)
        chex.assert_trees_all_close(jax.tree.map(lambda h, i=i: h[i], history), metrics, rtol=1e-5)
    chex.assert_trees_all_close(now, middle, rtol=1e-5)
    same, _ = repeated()(KEY, start, CONSTANTS, None, 0)
    chex.assert_trees_all_equal(same, start)


def test_data_are_drawn_with_one_key_at_consecutive_positions_and_get_their_noise():
    calls, num = [], 4_096

    def draw(*arguments):
        jax.debug.callback(lambda *values: calls.append(values), *arguments, ordered=True)
        return {"real": jnp.zeros((num, 2), jnp.int32), "source": jnp.zeros((num, 2))}

    squares = Estimator(lambda v, x: jnp.sum(x**2, -1) + 0.0 * v["params"]["offset"])
    problem = small_problem.problem(squares, prior_sample=priors.batch().sample, num_steps=0)
    step = small_problem.train_step(problem, draw=draw, batch_size=num, dequantisation=0.03)
    now = small_problem.initial_state()
    for i in range(2):
        now, metrics = step(KEY, now, CONSTANTS, jnp.full(4, i))
    jax.effects_barrier()
    for i, (arrays, batch, key, positions) in enumerate(calls):
        np.testing.assert_array_equal(arrays, CONSTANTS.data)
        np.testing.assert_array_equal(batch, jnp.full(4, i))
        np.testing.assert_array_equal(key, calls[0][2])
        np.testing.assert_array_equal(positions, num * i + np.arange(num))
    # The variance of a chi square of 2 is 2 x 2.
    error = 2.0 * 0.03**2 / np.sqrt(num)
    assert metrics["output_real"] == pytest.approx(2.0 * 0.03**2, abs=5.0 * error)
    assert metrics["output_flowed"] == 0.0


def test_untrained_variables_are_refreshed_once_per_step_and_constant_within_it():
    def apply(variables, x):  # The slope of the potential is the count of refreshes.
        return variables["vectors"] * x[:, 0] + 0.0 * variables["params"]["offset"]

    def refresh(variables):
        return {**variables, "vectors": variables["vectors"] + 1.0}

    variables = {**VARIABLES, "vectors": jnp.float32(0.0)}
    step = small_problem.train_step(small_problem.problem(Estimator(apply, refresh)))
    start = small_problem.initial_state(variables=variables)
    end, metrics = jax.jit(steps.repeat_steps(step, 3))(KEY, start, CONSTANTS, None, 3)
    np.testing.assert_allclose(metrics["drift_norm"], [1.0, 2.0, 3.0], rtol=1e-6)
    assert end.variables["vectors"] == end.ema_variables["vectors"] == 3.0


@pytest.mark.slow
def test_kernels_of_the_averaged_network_have_spectral_norm_one():
    net = networks.MLP((8, 8), spectral_norm=True)
    problem = small_problem.problem(Estimator.from_network(net))
    step = steps.repeat_steps(small_problem.train_step(problem, ema_rate=0.99), 50)
    start = state.create(net.init(KEY, jnp.ones((1, 2))), small_problem.OPTIMIZER)
    end, _ = jax.jit(step)(KEY, start, CONSTANTS, None, 50)

    def norms(variables):
        layers = networks.prepare(net, variables)["params"].values()
        return [np.linalg.norm(layer["kernel"], 2) for layer in layers]

    np.testing.assert_allclose(norms(end.ema_variables), 1.0, atol=2e-3)
    # Normalised first and averaged afterwards, they would differ from 1.
    stale = norms({**end.ema_variables, "spectral": end.variables["spectral"]})
    assert max(abs(norm - 1.0) for norm in stale) > 0.05


def test_a_dispatch_traces_a_prepared_flow_and_the_loss_once_and_penalises_the_first_examples():
    shapes = []

    def apply(variables, x):
        shapes.append((len(x), "prepared" in variables))
        return small_problem.apply(variables, x)

    estimator = Estimator(apply, prepare=lambda variables: {**variables, "prepared": True})
    problem = small_problem.problem(estimator, gradient_penalty=1.0)
    step = small_problem.train_step(problem, gradient_penalty_fraction=0.25)
    run = jax.jit(steps.repeat_steps(step, 3))
    for seed in (0, 1):  # Another seed compiles nothing.
        run(rng.root_key(seed), small_problem.initial_state(), CONSTANTS, None, 3)
    assert shapes == [(16, True), (8, False), (24, False)]


def test_the_loss_reaches_an_optimizer_that_needs_it():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.0, atol=1e3)
    optimizer = optax.chain(optax.sgd(0.0), plateau)
    run = jax.jit(steps.repeat_steps(small_problem.train_step(optimizer=optimizer), 6))
    end, _ = run(KEY, small_problem.initial_state(optimizer), CONSTANTS, None, 6)
    assert optax.tree.get(end.opt_state, "scale") < 1.0


MISUSE = {
    "rate": (lambda: run_one(ema_rate=1.0), "ema_rate must be at least 0 and below 1, got 1.0"),
    "rows": (
        lambda: run_one(draw=lambda *_: {"real": jnp.zeros((8, 2))}),
        "one example per position, 16, got 8",
    ),
    "fraction": (lambda: run_one(gradient_penalty_fraction=0.0), "gradient_penalty_fraction must"),
    "count": (
        lambda: repeated().__wrapped__(KEY, small_problem.initial_state(), CONSTANTS, None, 6),
        "count must be at most 5, got 6",
    ),
    "denoiser": (
        lambda: small_problem.train_step(small_problem.problem()._replace(denoise=denoise)),
        "a denoiser needs dequantisation above 0",
    ),
    "positions": (
        lambda: rng.example_keys(KEY, rng.Stream.FLOW, jnp.array([0.2, 0.7])),
        "positions must be integers, got float32",
    ),
    "classes": (
        lambda: Estimator(small_problem.apply, takes_labels=True).labels({"position": 0}),
        r"needs the classes of a batch under 'label', got \['position'",
    ),
    "stage": (
        lambda: samplers.make_sampler(small_problem.problem(), ("refined", "bridge")),
        r"unknown stages \['bridge'\]; allowed: prior, bridged, refined",
    ),
}


def run_one(**options):
    return small_problem.train_step(**options)(KEY, small_problem.initial_state(), CONSTANTS)


@pytest.mark.parametrize(("call", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_an_error_that_says_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Samplers


@functools.cache
def sampler(stages=samplers.STAGES, path=False):
    problem = small_problem.problem()
    made = samplers.make_path_sampler(problem) if path else samplers.make_sampler(problem, stages)
    return jax.jit(made)


def sample(positions, **options):
    batch = {"position": jnp.asarray(positions)}
    return sampler(**options)(rng.root_key(0), VARIABLES, CONSTANTS, batch)


def test_stages_paths_and_segments_pass_through_the_same_samples_of_the_flow():
    stages, path = sample(jnp.arange(6)), sample(jnp.arange(6), path=True)
    root = rng.stream_key(rng.root_key(0), rng.Stream.SAMPLE)
    keys = rng.example_keys(root, rng.Stream.FLOW, jnp.arange(6))
    potential = small_problem.problem().potential(VARIABLES)
    hyper = {"step_size": 0.1, "noise_scale": 0.2}
    for stage, num in (("prior", 0), ("bridged", 4), ("refined", 6)):
        expected = fdrl.flow(keys, stages["prior"], potential, num_steps=num, **hyper)
        np.testing.assert_allclose(stages[stage], expected, atol=1e-6)
        np.testing.assert_allclose(path[num], expected, atol=1e-6)
        alone = sample(jnp.arange(6), stages=(stage,))
        assert {*alone} == {stage}
        np.testing.assert_allclose(alone[stage], expected, atol=1e-6)
    advance = jax.jit(samplers.make_segment(small_problem.problem(), num_steps=2))
    x = stages["prior"]
    for first in (0, 2, 4):
        batch = {"position": jnp.arange(6), "x": x}
        x = advance(rng.root_key(0), VARIABLES, CONSTANTS, batch, first)
        np.testing.assert_allclose(x, path[first + 2], atol=1e-6)


def test_a_sample_does_not_depend_on_its_batch_nor_start_where_training_starts():
    whole, part = sample(jnp.arange(20)), sample([13, 4])
    for stage, of_whole in whole.items():
        expected = of_whole[jnp.array([13, 4])]
        np.testing.assert_allclose(part[stage], expected, rtol=1e-6, atol=1e-6)
    keys = rng.example_keys(rng.root_key(0), rng.Stream.PRIOR, jnp.arange(20))
    assert not np.any(np.isin(whole["prior"], small_problem.PRIOR(keys)))


# A ratio for each class, and a denoiser


def test_a_network_with_an_output_per_class_takes_labels():
    network = networks.resnet(networks.ResNetSpec(4, ((4, 2),)), num_outputs=3)
    x = jax.random.normal(KEY, (4, 8, 8, 1))
    variables, estimator = network.init(KEY, x), Estimator.from_network(network)
    assert estimator.takes_labels
    assert not Estimator.from_network(networks.MLP()).takes_labels
    labels = jnp.array([2, 0, 1, 2])
    found = estimator.apply(estimator.prepare(variables), x, labels)
    outputs = network.apply(variables, x)
    np.testing.assert_allclose(found, outputs[jnp.arange(4), labels], rtol=1e-6)
    with pytest.raises(ValueError, match="from 0 to 2"):
        estimator.apply(variables, x, jnp.array([0, 1, 2, 3]))
    traced = jax.jit(estimator.apply)(variables, x, jnp.array([0, 1, 2, 3]))
    np.testing.assert_array_equal(np.isnan(traced), [False, False, False, True])


def denoise(variables, x):
    """Shrinks towards a centre; for Gaussian data, the best denoiser is of this kind."""
    own = variables["params"]["denoiser"]
    return own["centre"] + own["factor"] * (x - own["centre"])


@pytest.mark.slow
def test_a_denoiser_becomes_the_posterior_mean():
    own = {"centre": jnp.zeros(2), "factor": jnp.float32(1.0)}
    variables = {"params": {**VARIABLES["params"], "denoiser": own}}
    problem, noise = small_problem.problem()._replace(denoise=denoise), 0.5
    options = {"dequantisation": noise, "batch_size": 1_024}
    step = steps.repeat_steps(small_problem.train_step(problem, **options), 2_000)
    start = small_problem.initial_state(variables=variables)
    end, metrics = jax.jit(step)(KEY, start, CONSTANTS, None, 2_000)
    # Data are N(centre, 0.3^2), so this is the factor of x + e - centre in E[x | x + e] - centre,
    # where e has twice the noise of data.
    found, shrinkage = end.ema_variables["params"]["denoiser"], 0.09 / (0.09 + (2 * noise) ** 2)
    np.testing.assert_allclose(found["centre"], CONSTANTS.data, atol=0.04)
    assert float(found["factor"]) == pytest.approx(shrinkage, abs=0.04)
    error = jnp.mean(metrics["denoising_loss"][-100:])
    assert float(error) == pytest.approx(0.09 * (1 - shrinkage), rel=0.1)


def test_a_denoiser_does_not_change_the_ratio_and_leaves_out_the_noise_of_the_flow_of_samples():
    own = {"centre": jnp.zeros(2), "factor": jnp.float32(1.0)}
    variables = {"params": {**VARIABLES["params"], "denoiser": own}}
    joint = small_problem.problem()._replace(denoise=denoise)
    found = []
    for problem, start in ((small_problem.problem(), VARIABLES), (joint, variables)):
        now = small_problem.initial_state(variables=start)
        step = jax.jit(small_problem.train_step(problem, dequantisation=0.5))
        for _ in range(3):
            now, metrics = step(KEY, now, CONSTANTS)
        found.append((now.variables["params"], metrics["loss"]))
    (plain, loss), (both, loss_of_both) = found
    for name, value in plain.items():
        np.testing.assert_allclose(both[name], value, rtol=1e-5)
    np.testing.assert_allclose(loss_of_both, loss, rtol=1e-5)
    assert float(both["denoiser"]["factor"]) != 1.0
    batch = {"position": jnp.arange(6)}
    noiseless = samplers.make_sampler(small_problem.problem(noise_scale=0.0), samplers.STAGES)
    undenoised = jax.jit(noiseless)(rng.root_key(0), VARIABLES, CONSTANTS, batch)
    draw = jax.jit(samplers.make_sampler(joint, samplers.STAGES))
    drawn = draw(rng.root_key(0), variables, CONSTANTS, batch)
    for stage in samplers.STAGES:  # A factor of 1 changes nothing.
        np.testing.assert_allclose(drawn[stage], undenoised[stage], atol=1e-6)
    variables["params"]["denoiser"]["factor"] = jnp.float32(0.0)
    drawn = draw(rng.root_key(0), variables, CONSTANTS, batch)
    np.testing.assert_allclose(drawn["bridged"], undenoised["bridged"], atol=1e-6)
    np.testing.assert_array_equal(drawn["refined"], jnp.zeros((6, 2)))
