"""The objective for a training loop of any kind: its gradient, its penalty, its cost."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_problem

import fdrl_jax as fdrl
from fdrl_jax import bregman, networks, priors
from fdrl_jax.training import rng, steps
from fdrl_jax.training.problem import Estimator

KEY = jax.random.key(1)
REAL, START = jax.random.normal(jax.random.key(0), (2, 12, 2))
FLOW = {"num_steps": 4, "step_size": 0.1, "noise_scale": 0.2}
PARAMS = small_problem.initial_variables()["params"]


def estimator(params):
    return lambda x: small_problem.apply({"params": params}, x)


def cubic(params):
    """An output whose gradient differs from example to example."""
    return lambda x: params["curvature"] * jnp.sum(x**3, axis=-1) + x @ params["slope"]


def objective(params, of=estimator, real=REAL, x0=START, **options):
    return fdrl.objective(KEY, real, x0, of(params), **(FLOW | options))


def compiled(*args, **options):
    """The same as one program, which is faster than compiling its operations one by one."""
    return jax.jit(lambda params: objective(params, *args, **options))(PARAMS)


def by_definition(params, of, penalty, pair, num_penalised):
    loss, divergence = bregman.get(pair[0]), pair[1]
    potential = fdrl.first_variation(of(PARAMS), divergence, output=loss.output)  # Constant.
    flowed = fdrl.flow(KEY, START, potential, **FLOW)
    value, _ = bregman.loss(loss, of(params)(REAL), of(params)(flowed))

    def mean_square(x):
        one_by_one = jax.vmap(jax.grad(lambda x: of(params)(x[None])[0]))(x)
        return jnp.mean(jnp.sum(one_by_one**2, axis=-1))

    penalised = [x[:num_penalised] for x in (REAL, flowed)]
    return value + 0.5 * penalty * sum(map(mean_square, penalised))


@pytest.mark.parametrize(("penalty", "num"), [(0.0, 12), (0.7, 12), (0.7, 3)])
@pytest.mark.parametrize("pair", [("lr", "kl"), ("lsif", "pearson"), ("ukl", "logd")])
def test_loss_and_gradient_follow_the_definition_without_a_gradient_through_the_flow(
    pair, penalty, num
):
    options = {"bregman": pair[0], "divergence": pair[1], "gradient_penalty": penalty}
    options["gradient_penalty_fraction"] = num / 12  # Of the first examples of the batch.

    @jax.jit
    def both(params):
        actual = jax.value_and_grad(lambda p: objective(p, cubic, **options)[0])(params)
        expected = jax.value_and_grad(lambda p: by_definition(p, cubic, penalty, pair, num))(params)
        return actual, expected

    actual, expected = both(PARAMS)

    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_the_smallest_part_of_the_batch_is_one_example_and_one_example_may_be_all():
    for real, x0 in ((REAL, START), (REAL[:1], START[:1])):
        _, metrics = compiled(cubic, real, x0, gradient_penalty=0.7, gradient_penalty_fraction=1e-3)
        assert metrics["gradient_penalty"] > 0


def test_the_metric_of_the_penalty_is_its_part_of_the_loss():
    without, metrics_without = compiled()
    loss, metrics = compiled(gradient_penalty=0.7)

    assert "gradient_penalty" not in metrics_without
    assert metrics["loss"] == loss
    np.testing.assert_allclose(loss, without + metrics["gradient_penalty"], rtol=1e-6)
    assert metrics["gradient_penalty"] > 0.01


def test_without_a_penalty_there_is_no_cost():
    def program(**options):
        return str(jax.make_jaxpr(jax.grad(lambda p: objective(p, **options)[0]))(PARAMS))

    plain = program()
    assert program(gradient_penalty=0.0) == plain
    assert len(program(gradient_penalty=0.1)) > len(plain)


def test_the_flow_stores_nothing_for_a_backward_pass():
    def temporary_bytes(num_steps):
        gradient = jax.grad(lambda p: objective(p, num_steps=num_steps)[0])
        return jax.jit(gradient).lower(PARAMS).compile().memory_analysis().temp_size_in_bytes

    size = 4 * (len(START) + 2)  # The norm of a drift per example, and the counter of steps.
    assert temporary_bytes(500) - temporary_bytes(10) <= 490 * size


def test_the_estimator_is_traced_once_for_the_flow_and_once_for_the_loss():
    shapes = []

    def counted(params):
        def apply(x):
            shapes.append(x.shape)
            return estimator(params)(x)

        return apply

    jax.jit(jax.value_and_grad(lambda p: objective(p, counted, gradient_penalty=1.0)[0]))(PARAMS)

    assert shapes == [(12, 2), (24, 2)]


@pytest.mark.parametrize("num_micro_batches", [1, 2])
def test_a_dispatch_of_train_steps_traces_the_estimator_once_for_flow_and_loss(num_micro_batches):
    shapes = []

    def apply(variables, x):
        shapes.append(x.shape)
        return small_problem.apply(variables, x)

    step = small_problem.train_step(
        small_problem.problem(Estimator(apply)), num_micro_batches=num_micro_batches
    )
    run = jax.jit(steps.repeat_steps(step, 3))
    arguments = (small_problem.initial_state(), small_problem.CONSTANTS, None, 3)
    run(rng.root_key(0), *arguments)
    run(rng.root_key(1), *arguments)  # Another seed compiles nothing.

    size = 16 // num_micro_batches
    assert shapes == [(size, 2), (2 * size, 2)]


def test_data_and_prior_samples_may_differ_in_number():
    _, metrics = compiled(real=REAL[:5])
    _, of_all = compiled()

    np.testing.assert_allclose(
        metrics["output_real"], np.mean(estimator(PARAMS)(REAL[:5])), rtol=1e-5
    )
    np.testing.assert_allclose(metrics["output_flowed"], of_all["output_flowed"], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"real": REAL[:, :1]}, "same features"),
        (
            {"of": lambda params: lambda x: x[:, :1]},
            r"got \(12, 1\); drop the last axis",
        ),
        ({"of": lambda params: lambda x: x[:, :1], "num_steps": 0}, "one number per example"),
        ({"gradient_penalty_fraction": 0.0}, "gradient_penalty_fraction must be above 0"),
        ({"gradient_penalty_fraction": 1.5}, "gradient_penalty_fraction must be above 0"),
        ({"bregman": "lsif"}, "unconstrained ratio"),
        ({"bregman": "lrr"}, "did you mean 'lr'"),
    ],
)
def test_inputs_that_would_give_wrong_numbers_are_errors(change, message):
    with pytest.raises(ValueError, match=message):
        objective(PARAMS, **change)


def image_problem(remat):
    """A convolutional network with spectral norm."""
    spec = networks.ResNetSpec(4, ((8, 2),))
    net = networks.resnet(spec, spectral_norm=True, remat=remat)
    problem = small_problem.problem(
        Estimator.from_network(net), prior_sample=priors.uniform((6, 6, 1)).sample, step_size=5.0
    )
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 6, 6, 1)))
    return problem, dict(variables)


def draw_images(data, host_batch, key, positions):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    return {"real": 0.5 * jax.vmap(lambda key: jax.random.normal(key, (6, 6, 1)))(keys)}


def image_step(remat=False, num_micro_batches=1, num_replicas=1):
    """The state and metrics after one step of 8 images."""
    problem, variables = image_problem(remat)
    optimizer = optax.sgd(0.1)
    step = steps.make_train_step(
        problem,
        optimizer=optimizer,
        draw=draw_images,
        batch_size=8 // num_replicas,
        gradient_penalty=2.0,
        num_micro_batches=num_micro_batches,
        axis_name="i" if num_replicas > 1 else None,
    )
    start = fdrl.training.state.create(variables, optimizer)
    constants = small_problem.Constants((), ())
    if num_replicas == 1:
        return jax.jit(step)(KEY, start, constants)
    mapped = jax.vmap(lambda _, start: step(KEY, start, constants), (0, None), axis_name="i")
    return jax.tree.map(lambda a: a[0], jax.jit(mapped)(jnp.arange(num_replicas), start))


def test_the_penalty_is_the_same_in_parts_rematerialised_and_over_replicas():
    expected, expected_metrics = image_step()

    # All at once: second derivatives of a network take seconds to compile.
    actual, metrics = image_step(num_micro_batches=2, remat=True, num_replicas=2)

    assert expected_metrics["gradient_penalty"] > 0.0
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(actual.variables, expected.variables, rtol=1e-4, atol=1e-6)
