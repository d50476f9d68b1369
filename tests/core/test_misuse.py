"""Misuse that would give wrong numbers is an error that says what to do."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
import small_problem

import fdrl_jax as fdrl
from fdrl_jax import _keys, bregman, compose, divergences
from fdrl_jax.training import adversarial, rng, state, steps
from fdrl_jax.training.adversarial import Attack

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (3, 3))
HYPER = {"step_size": 0.1, "noise_scale": 0.3}


def column(x):
    return jnp.sum(x**2, axis=-1, keepdims=True)


def square(x):
    return jnp.sum(x**2, axis=-1)


def logits(x):
    return jnp.stack([x[:, 0], x[:, 1]], axis=-1)


@pytest.mark.parametrize("potential", [column, lambda x: square(x)[:, None] + square(x), jnp.mean])
def test_a_potential_of_another_shape_than_one_number_per_example_is_an_error(potential):
    for use in (
        lambda: fdrl.drift(X, potential),
        lambda: fdrl.flow(KEY, X, potential, num_steps=1, **HYPER),
    ):
        with pytest.raises(ValueError, match="must return one number per example"):
            use()


def test_a_single_point_may_have_a_scalar_potential():
    np.testing.assert_allclose(fdrl.drift(X[0], lambda x: jnp.sum(x**2)), -2.0 * X[0])


@pytest.mark.parametrize("output", ["log_ratio", "ratio"])
def test_compositions_of_unequal_shapes_are_an_error(output):
    with pytest.raises(ValueError, match=r"got shapes \(3, 1\), \(3,\)"):
        compose.condition(column, logits, 0, output=output)(X)
    with pytest.raises(ValueError, match=r"got shapes \(3,\), \(3, 1\)"):
        compose.product([square, column])(X)


@pytest.mark.parametrize("name", ["step_size", "noise_scale"])
def test_a_step_size_or_noise_scale_per_example_is_an_error(name):
    hyper = {**HYPER, name: jnp.ones(3)}
    with pytest.raises(ValueError, match=rf"{name} must be a scalar, got an array of shape \(3,\)"):
        fdrl.flow(KEY, X, square, num_steps=1, **hyper)


def test_a_seed_in_place_of_a_key_is_an_error_that_shows_how_to_make_one():
    with pytest.raises(TypeError, match=r"such as jax.random.key\(0\), got int 0"):
        fdrl.flow(0, X, square, num_steps=1, **HYPER)


def test_the_error_for_a_traced_or_array_number_of_steps_asks_for_a_static_int():
    for run in (
        lambda: fdrl.flow(KEY, X, square, num_steps=jnp.int32(5), **HYPER),
        lambda: jax.jit(lambda n: fdrl.flow(KEY, X, square, num_steps=n, **HYPER))(5),
    ):
        with pytest.raises(ValueError, match="num_steps must be a static Python int"):
            run()


def test_rbg_keys_per_example_are_an_error_and_one_rbg_key_for_the_batch_is_not():
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 3)
    with pytest.raises(ValueError, match="needs the generator 'threefry2x32', got 'rbg'"):
        fdrl.flow(keys, X, square, num_steps=1, **HYPER)
    with pytest.raises(ValueError, match="needs the generator 'threefry2x32', got 'rbg'"):
        rng.example_keys(keys[0], rng.Stream.FLOW, jnp.arange(3))
    assert np.all(np.isfinite(fdrl.flow(keys[0], X, square, num_steps=1, **HYPER)))


def test_raw_rbg_keys_per_example_are_an_error():
    with jax.default_prng_impl("rbg"):
        raw = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
        with pytest.raises(ValueError, match="needs the generator 'threefry2x32', got 'rbg'"):
            _keys.normal_like(raw, X)


def test_wrong_keys_are_an_error_also_where_no_noise_is_drawn():
    hyper = {"step_size": 0.1, "noise_scale": 0}
    keys = jax.random.split(KEY, 2)
    with pytest.raises(ValueError, match="one key per example, got 2 for 3"):
        fdrl.flow(keys, X, square, num_steps=1, **hyper)
    with pytest.raises(ValueError, match="one key per example, got 2 for 3"):
        fdrl.langevin_step(keys, X, square, **hyper)
    with pytest.raises(TypeError, match="key must be a JAX key"):
        fdrl.langevin_step(0, X, square, **hyper)


def test_root_keys_are_the_same_whatever_generator_is_the_default():
    expected = jax.random.key_data(jax.random.key(5, impl="threefry2x32"))
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(jax.random.key_data(rng.root_key(5)), expected)


def test_positions_do_not_become_negative_beyond_two_to_the_31_examples():
    positions = rng.batch_positions(jnp.int32(2**25), 64)
    np.testing.assert_array_equal(positions, 2**31 + np.arange(64))


@pytest.mark.parametrize("num", [8, 32])
def test_a_draw_that_does_not_return_one_row_per_position_is_an_error(num):
    def draw(data, host_batch, key, positions):
        return {"real": jnp.zeros((num, 2))}

    step = small_problem.train_step(draw=draw)
    with pytest.raises(ValueError, match=f"one example per position, 16, got {num}"):
        step(KEY, small_problem.initial_state(), small_problem.CONSTANTS)


@pytest.mark.parametrize("name", ["kl", "js"])
def test_the_generators_of_kl_and_js_are_finite_where_the_ratio_is_zero(name):
    limit = {"kl": 0.0, "js": np.log(2.0)}[name]
    np.testing.assert_allclose(divergences.get(name).f(jnp.zeros(1)), limit, rtol=1e-6)


def test_the_mean_ratio_stays_finite_where_the_loss_is():
    wrong = jnp.full(100_000, 200.0)
    _, metrics = bregman.loss("lr", -wrong, wrong)
    assert all(np.isfinite(value) for value in metrics.values())


def test_losses_and_divergences_may_be_names_everywhere():
    assert bregman.check_pair("lr", "js") == (bregman.LR, divergences.JS)
    assert divergences.combine([0.5, 2.0], ["kl", "js"]).name == "0.5*kl + 2*js"
    named = small_problem.problem()._replace(bregman="lr", divergence="kl")
    assert named.output == "log_ratio"
    by_name, by_object = (
        small_problem.train_step(problem)(
            KEY, small_problem.initial_state(), small_problem.CONSTANTS
        )[1]
        for problem in (named, small_problem.problem())
    )
    assert by_name == by_object


def test_an_uninformative_classifier_does_not_change_the_drift_under_any_divergence():
    log_ratio = functools.partial(jnp.sum, axis=-1)
    for name in divergences.REGISTRY:
        for probabilities in (None, [0.2, 0.3, 0.5]):
            constant = jnp.log(jnp.array(probabilities or [1.0, 1.0, 1.0]))
            conditioned = compose.condition(
                log_ratio,
                lambda x, constant=constant: 7.0 + jnp.zeros((len(x), 1)) + constant,
                2,
                2.0,
                output="log_ratio",
                class_probabilities=probabilities,
            )
            np.testing.assert_allclose(
                fdrl.drift(X, fdrl.first_variation(conditioned, name, output="log_ratio")),
                fdrl.drift(X, fdrl.first_variation(log_ratio, name, output="log_ratio")),
                rtol=1e-4,
            )


def test_the_wrong_number_of_class_probabilities_is_an_error():
    with pytest.raises(ValueError, match=r"one number per class, \[2\], got shape \(3,\)"):
        compose.condition(
            square, logits, 0, output="log_ratio", class_probabilities=[0.2, 0.3, 0.5]
        )(X)


@pytest.mark.parametrize(
    ("label", "probabilities", "message"),
    [
        (0, "unifrom", "class_probabilities must be 'uniform' .* got 'unifrom'; did you mean"),
        (0, [0.0, 1.0], r"class_probabilities must be positive, got \[0.0, 1.0\]"),
        (0, [-1.0, 2.0], "class_probabilities must be positive"),
        (0, [float("nan"), 1.0], "class_probabilities must be positive"),
        (0.5, None, "label must be an integer, got 0.5"),
    ],
)
def test_a_class_or_its_probability_that_makes_no_sense_is_an_error(label, probabilities, message):
    with pytest.raises(ValueError, match=message):
        compose.log_probability(logits, label, class_probabilities=probabilities)(X)


def test_a_classifier_is_exported_for_batches_of_any_size():
    of_class = compose.log_probability(logits, 1, class_probabilities="uniform")
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 3"), jnp.float32)
    exported = jax.export.export(jax.jit(of_class))(shape)
    np.testing.assert_allclose(exported.call(X), of_class(X), rtol=1e-6)


@pytest.mark.parametrize("count", [5, np.int64(5), jnp.int32(5)])
def test_more_repeated_steps_than_there_is_room_for_are_an_error(count):
    repeated = steps.repeat_steps(small_problem.train_step(), 2)
    with pytest.raises(ValueError, match="count must be at most 2, got 5"):
        repeated(KEY, small_problem.initial_state(), small_problem.CONSTANTS, None, count)


@pytest.mark.parametrize(
    ("points", "got"), [({"a": X}, "dict"), (X + 1j, "complex64"), ([1j, 2.0], "complex64")]
)
def test_points_that_are_not_one_real_array_are_an_error(points, got):
    message = rf"points must be one array of real numbers, \[B, ...\], got {got}"
    with pytest.raises(TypeError, match=message):
        fdrl.flow(KEY, points, square, num_steps=1, **HYPER)
    with pytest.raises(TypeError, match=message):
        fdrl.objective(KEY, X, points, square, num_steps=1, **HYPER)


@pytest.mark.parametrize(("real", "x0"), [(X, X[:0]), (X[:0], X)])
def test_a_loss_of_no_data_or_no_samples_is_an_error(real, x0):
    with pytest.raises(ValueError, match=r"not be empty, got shapes \(., 3\) and \(., 3\)"):
        fdrl.objective(KEY, real, x0, square, num_steps=1, **HYPER)


@pytest.mark.parametrize("first_step", [jnp.array([5, 7]), 0.5])
def test_a_first_step_that_is_not_one_whole_number_is_an_error(first_step):
    with pytest.raises(ValueError, match="first_step must be one whole number, got"):
        fdrl.flow(KEY, X, square, num_steps=2, first_step=first_step, **HYPER)


@pytest.mark.parametrize("penalty", [-1, np.float32(-1.0), jnp.float32(-1.0)])
def test_a_negative_gradient_penalty_of_any_type_is_an_error(penalty):
    with pytest.raises(ValueError, match="gradient_penalty must be >= 0"):
        fdrl.objective(KEY, X, X, square, gradient_penalty=penalty, num_steps=1, **HYPER)


def test_the_noise_scale_of_traced_numbers_is_an_error_that_says_what_to_write():
    with pytest.raises(TypeError, match=r"write jnp.sqrt\(2 \* step_size \* entropy_weight\)"):
        jax.jit(fdrl.noise_scale)(0.1, 0.01)


@pytest.mark.parametrize("label", [2, -1, 99])
def test_a_traced_label_that_is_out_of_range_gives_nan_and_not_another_class(label):
    @jax.jit
    def drift(label):
        conditioned = compose.condition(square, logits, label, output="log_ratio")
        return fdrl.drift(X, fdrl.first_variation(conditioned, "kl", output="log_ratio"))

    labels = jnp.array([0, 1, label])
    losses = jax.jit(adversarial.cross_entropy)(logits(X), labels)

    assert np.isnan(drift(label)).any(axis=1).all()
    np.testing.assert_array_equal(np.isnan(drift(labels)).any(axis=1), [False, False, True])
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True])


@pytest.mark.parametrize("label", [2, -1, 99])
def test_a_known_label_that_is_out_of_range_is_an_error(label):
    with pytest.raises(ValueError, match=f"label must be from 0 to 1, got {label}"):
        compose.log_probability(logits, label)(X)
    with pytest.raises(ValueError, match="label must be from 0 to 1, got"):
        adversarial.cross_entropy(logits(X), jnp.array([0, 1, label]))


def test_a_classifier_trains_on_integer_images_as_on_the_same_floats():
    def apply(variables, x):
        return jnp.stack([x[:, 0], x[:, 1]], axis=-1) * variables["params"]["w"]

    def metrics(dtype):
        def draw(data, host_batch, key, positions):
            real = jnp.array([[0, 1], [1, 0], [1, 1], [0, 0]], dtype)
            return {"real": real, "label": jnp.array([0, 1, 0, 1])}

        step = adversarial.make_train_step(
            apply,
            attack=Attack(0.5, 0.1, 3),
            optimizer=small_problem.OPTIMIZER,
            draw=draw,
            batch_size=4,
        )
        start = state.create({"params": {"w": jnp.float32(1.0)}}, small_problem.OPTIMIZER)
        return step(KEY, start, small_problem.CONSTANTS)[1]

    assert metrics(jnp.uint8) == metrics(jnp.float32)
