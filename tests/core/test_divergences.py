"""f-divergences: all follow the contract of `FDivergence`, and `get` finds them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdrl_jax as fdrl
from fdrl_jax.divergences import REGISTRY, FDivergence, alpha, combine, get

ORDERS = (-1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
COMBINED = [
    combine([0.5, 0.5], ["kl", "reverse_kl"]),
    combine([2.0, 1e-3], ["pearson", "alpha(0.5)"]),
    combine([1.0, 1.0], ["js", "logd"]),
]
DIVERGENCES = [
    *REGISTRY.values(),
    *(alpha(order) for order in ORDERS),
    *COMBINED,
]
RATIOS = np.geomspace(0.02, 50.0, 61).astype(np.float32)

# d f'(e^l) / dl = r f''(r), by hand.
SLOPES = {
    "pearson": lambda r: 2.0 * r,
    "kl": lambda r: np.ones_like(r),
    "js": lambda r: 1.0 / (1.0 + r),
    "logd": lambda r: r / (1.0 + r),
    "reverse_kl": lambda r: 1.0 / r,
    "hellinger": lambda r: 0.5 / np.sqrt(r),
}
SLOPES |= {f"alpha({a:g})": lambda r, a=a: r ** (a - 1.0) for a in ORDERS}
SLOPES["0.5*kl + 0.5*reverse_kl"] = lambda r: 0.5 + 0.5 / r
SLOPES["2*pearson + 0.001*alpha(0.5)"] = lambda r: 4.0 * r + 1e-3 / np.sqrt(r)
SLOPES["1*js + 1*logd"] = lambda r: np.ones_like(r)

each_divergence = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.name)


def derivative(function):
    return jax.vmap(jax.grad(function))


@each_divergence
def test_the_generator_is_convex_and_zero_at_ratio_one(divergence):
    a, b = np.meshgrid(RATIOS, RATIOS)
    chord = 0.5 * (divergence.f(a) + divergence.f(b))

    assert np.all(divergence.f(0.5 * (a + b)) <= chord + 1e-5 * (1.0 + abs(chord)))
    assert np.all(derivative(jax.grad(divergence.f))(RATIOS) > 0)
    np.testing.assert_allclose(divergence.f(jnp.float32(1.0)), 0.0, atol=1e-6)


@each_divergence
def test_f_prime_is_the_derivative_of_f(divergence):
    np.testing.assert_allclose(
        divergence.f_prime(RATIOS), derivative(divergence.f)(RATIOS), rtol=1e-4, atol=1e-5
    )


@each_divergence
def test_the_potential_of_the_log_ratio_has_the_slope_of_f_prime(divergence):
    log_ratios = np.log(RATIOS)
    slope = derivative(divergence.potential_from_log_ratio)(log_ratios)

    np.testing.assert_allclose(slope, SLOPES[divergence.name](RATIOS), rtol=1e-4)
    by_chain_rule = derivative(lambda log_r: divergence.f_prime(jnp.exp(log_r)))(log_ratios)
    np.testing.assert_allclose(slope, by_chain_rule, rtol=1e-3, atol=1e-5)


@each_divergence
def test_the_potential_of_the_log_ratio_is_exact_wherever_float32_can_hold_its_slope(divergence):
    log_ratios = np.array([-60.0, -30.0, 30.0, 60.0])
    expected = SLOPES[divergence.name](np.exp(log_ratios))
    limits = np.finfo(np.float32)
    fits = (limits.tiny < expected) & (expected < limits.max)
    at = jnp.asarray(log_ratios[fits], jnp.float32)

    assert np.all(np.isfinite(divergence.potential_from_log_ratio(at)))
    slope = derivative(divergence.potential_from_log_ratio)(at)
    np.testing.assert_allclose(slope, expected[fits], rtol=2e-5)


@pytest.mark.parametrize(
    "spec", ["pearson", "alpha(2)", combine([0.5, 3.0], ["pearson", "alpha(2)"])]
)
def test_the_potential_of_the_ratio_has_the_slope_of_f_prime_also_below_zero(spec):
    divergence = get(spec)
    slope = derivative(divergence.potential_from_ratio)

    np.testing.assert_allclose(slope(RATIOS), derivative(divergence.f_prime)(RATIOS), rtol=1e-6)
    np.testing.assert_allclose(slope(-RATIOS), slope(RATIOS), rtol=1e-6)


def test_only_divergences_with_a_slope_at_every_real_ratio_have_a_potential_of_the_ratio():
    with_one = {d.name for d in DIVERGENCES if d.potential_from_ratio is not None}

    assert with_one == {"pearson", "alpha(2)"}


@pytest.mark.parametrize(("order", "limit"), [(1.0, "kl"), (0.0, "reverse_kl")])
def test_alpha_is_kl_at_order_one_and_reverse_kl_at_order_zero(order, limit):
    for function in ("f", "f_prime", "potential_from_log_ratio"):
        assert getattr(alpha(order), function) is getattr(get(limit), function)


@pytest.mark.parametrize(
    ("order", "multiple", "name"), [(2.0, 0.5, "pearson"), (0.5, 2.0, "hellinger")]
)
def test_alpha_is_half_of_pearson_at_order_two_and_twice_hellinger_at_one_half(
    order, multiple, name
):
    np.testing.assert_allclose(
        alpha(order).f(RATIOS), multiple * get(name).f(RATIOS), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("order", [1 + 1e-7, 1 - 1e-4, 0.995, 1e-7, -1e-7])
def test_alpha_has_all_its_digits_near_its_limits(order):
    near, wide = alpha(order), RATIOS.astype(np.float64)
    f = (np.expm1(order * np.log(wide)) - order * (wide - 1.0)) / (order * (order - 1.0))
    f_prime = np.expm1((order - 1.0) * np.log(wide)) / (order - 1.0)

    np.testing.assert_allclose(near.f(RATIOS), f, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(near.f_prime(RATIOS), f_prime, rtol=1e-5, atol=1e-6)
    potential = np.asarray(near.potential_from_log_ratio(jnp.log(RATIOS)))
    np.testing.assert_allclose(np.diff(potential), np.diff(f_prime), rtol=1e-3)
    assert np.isfinite(near.f(jnp.zeros(1))) or order < 0.0


@pytest.mark.parametrize("order", [np.nan, np.inf, -np.inf])
def test_alpha_refuses_an_order_that_is_not_finite(order):
    with pytest.raises(ValueError, match="order of an alpha-divergence must be finite"):
        alpha(order)


@pytest.mark.parametrize(
    ("name", "order"), [("alpha(0.5)", 0.5), ("alpha( 1.5e-1 )", 0.15), ("alpha(-1e+0)", -1.0)]
)
def test_get_reads_the_order_of_an_alpha_divergence(name, order):
    np.testing.assert_array_equal(get(name).f_prime(RATIOS), alpha(order).f_prime(RATIOS))


@pytest.mark.parametrize("divergence", [*REGISTRY.values(), *map(alpha, (*ORDERS, 0.12345678))])
def test_get_finds_a_divergence_by_its_own_name(divergence):
    again = get(divergence.name)

    assert get(divergence) is divergence
    assert again.name == divergence.name
    np.testing.assert_array_equal(again.f(RATIOS), divergence.f(RATIOS))


@pytest.mark.parametrize(
    ("spec", "nearest"),
    [
        ("pearsn", "pearson"),
        ("logD", "logd"),
        ("KL", "kl"),
        ("helinger", "hellinger"),
        ("reversekl", "reverse_kl"),
        ("alpha", r"alpha\(ORDER\)"),
    ],
)
def test_an_unknown_name_is_an_error_with_the_name_the_allowed_names_and_a_suggestion(
    spec, nearest
):
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'") as error:
        get(spec)

    assert repr(spec) in str(error.value)
    for name in (*REGISTRY, "alpha(ORDER)"):
        assert name in str(error.value)


def test_a_name_unlike_all_others_is_an_error_without_a_suggestion():
    with pytest.raises(ValueError, match=r"^unknown divergence 'w1'\. Allowed: pearson, "):
        get("w1")


@pytest.mark.parametrize("spec", ["", "0.5*kl", "kl + js", "kl(2)", "alpha()", "alpha(nan)"])
def test_a_spec_that_is_not_a_name_is_quoted_in_the_error(spec):
    with pytest.raises(ValueError, match="unknown divergence") as error:
        get(spec)

    assert repr(spec) in str(error.value)


def test_a_combination_needs_one_weight_per_divergence():
    with pytest.raises(ValueError, match="2 weights for 1 divergences"):
        combine([1.0, 2.0], [get("kl")])
    with pytest.raises(ValueError, match="0 weights for 0 divergences"):
        combine([], [])


@each_divergence
def test_first_variation_of_a_log_ratio_has_the_gradient_by_the_chain_rule(divergence):
    slope, offset = jnp.array([0.5, -1.5]), 0.25
    x = jax.random.normal(jax.random.key(0), (6, 2))
    log_ratio = x @ slope + offset

    potential = fdrl.first_variation(lambda x: x @ slope + offset, divergence, output="log_ratio")
    gradient = jax.grad(lambda x: jnp.sum(potential(x)))(x)

    assert potential(x).shape == (6,)
    expected = SLOPES[divergence.name](np.exp(np.float64(log_ratio)))[:, None] * slope
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_first_variation_is_the_same_whether_pearson_is_given_the_ratio_or_its_logarithm():
    x = jax.random.normal(jax.random.key(0), (6, 2))
    pearson = get("pearson")

    of_log = fdrl.first_variation(lambda x: jnp.sum(x, -1), pearson, output="log_ratio")
    of_ratio = fdrl.first_variation(lambda x: jnp.exp(jnp.sum(x, -1)), pearson, output="ratio")

    np.testing.assert_allclose(fdrl.drift(x, of_ratio), fdrl.drift(x, of_log), rtol=1e-5)
    np.testing.assert_allclose(fdrl.drift(x, of_log)[:, 0], -2 * np.exp(x.sum(-1)), rtol=1e-5)


def test_first_variation_accepts_an_estimator_with_negative_ratios():
    potential = fdrl.first_variation(lambda x: 3.0 * x[:, 0], get("pearson"), output="ratio")

    np.testing.assert_allclose(fdrl.drift(-jnp.ones((2, 1)), potential), -6.0)


def test_first_variation_refuses_a_ratio_that_the_divergence_needs_positive():
    with pytest.raises(ValueError, match=r"'kl' needs a positive ratio.*output='log_ratio'"):
        fdrl.first_variation(jnp.ravel, get("kl"), output="ratio")


def test_first_variation_refuses_an_unknown_output_and_names_the_allowed():
    with pytest.raises(ValueError, match="one of ratio, log_ratio, got 'log'"):
        fdrl.first_variation(jnp.ravel, get("kl"), output="log")


def test_a_custom_divergence_needs_no_registration():
    own = FDivergence("own", lambda r: r**2 - 1, lambda r: 2 * r, lambda log_r: 2 * jnp.exp(log_r))

    assert get(own) is own
    assert get("pearson") is not own
    assert combine([2.0], [own]).name == "2*own"
