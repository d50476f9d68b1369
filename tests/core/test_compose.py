"""Composed ratios against closed forms: Gaussians, exact classifiers, the factors of DGflow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdrl_jax as fdrl
from fdrl_jax import compose

X = jax.random.normal(jax.random.key(0), (16, 2))
condition = functools.partial(compose.condition, output="log_ratio")
MEANS = jnp.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -2.0]])


def log_normal(mean, variance=1.0):
    return lambda x: -jnp.sum((x - mean) ** 2, -1) / (2 * variance)


def log_mixture(x):
    return jax.nn.logsumexp(classifier(x), axis=-1)


def classifier(x):
    """The exact classifier of three Gaussians of equal weight."""
    return jnp.stack([log_normal(mean)(x) for mean in MEANS], axis=-1)


def log_ratio(x):
    """N(0, 4 I) over the mixture of the three."""
    return log_normal(0.0, 4.0)(x) - log_mixture(x)


def assert_equal_up_to_a_constant(actual, expected):
    np.testing.assert_allclose(actual - actual[0], expected - expected[0], atol=2e-5)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_an_exact_classifier_with_weight_one_gives_the_ratio_to_its_class(label):
    conditioned = condition(log_ratio, classifier, label, 1.0)

    expected = log_normal(0.0, 4.0)(X) - log_normal(MEANS[label])(X)
    assert_equal_up_to_a_constant(conditioned(X), expected)


def test_negation_gives_the_ratio_to_the_mixture_of_the_other_classes():
    conditioned = condition(log_ratio, classifier, 2, 1.0, negate=True)

    others = jax.nn.logsumexp(classifier(X)[:, :2], axis=-1)
    assert_equal_up_to_a_constant(conditioned(X), log_normal(0.0, 4.0)(X) - others)


def test_weight_zero_is_unconditional():
    np.testing.assert_array_equal(condition(log_ratio, classifier, 1, 0.0)(X), log_ratio(X))


def test_each_example_may_have_its_own_class_also_under_jit():
    labels = jnp.arange(len(X)) % 3

    @jax.jit
    def own(labels):
        return condition(log_ratio, classifier, labels, 0.5)(X)

    each = jnp.stack([condition(log_ratio, classifier, k, 0.5)(X) for k in range(3)])
    np.testing.assert_allclose(own(labels), each[labels, jnp.arange(len(X))], rtol=1e-5, atol=1e-6)


def test_the_flow_of_a_conditioned_ratio_is_equation_30():
    weight, eta = 0.3, 0.1
    potential = fdrl.first_variation(
        condition(log_ratio, classifier, 1, weight), "kl", output="log_ratio"
    )
    step = fdrl.langevin_step(jax.random.key(0), X, potential, step_size=eta, noise_scale=0.0)

    def log_p(x):
        return jnp.sum(jax.nn.log_softmax(classifier(x))[:, 1])

    gradient = jax.grad(lambda x: jnp.sum(log_ratio(x)))(X) - weight * jax.grad(log_p)(X)
    np.testing.assert_allclose(step, X - eta * gradient, rtol=1e-4, atol=1e-5)


def test_a_conditioned_ratio_is_the_exponential_of_the_conditioned_log_ratio():
    of_ratio = compose.condition(
        lambda x: jnp.exp(log_ratio(x)), classifier, 1, 0.5, output="ratio"
    )
    of_log = condition(log_ratio, classifier, 1, 0.5)

    np.testing.assert_allclose(of_ratio(X), jnp.exp(of_log(X)), rtol=1e-4)
    assert fdrl.first_variation(of_ratio, "pearson", output="ratio")(X).shape == (len(X),)


def test_the_classifier_gets_inputs_in_its_own_range():
    seen = []

    def zero_to_one(x):
        seen.append((float(x.min()), float(x.max())))
        return classifier(2.0 * x - 1.0)

    x = jnp.array([[-1.0, 1.0], [0.0, 0.5]])
    mapped = compose.log_probability(zero_to_one, 0, input_range=(0.0, 1.0))(x)

    np.testing.assert_allclose(mapped, compose.log_probability(classifier, 0)(x), rtol=1e-5)
    assert seen == [(0.0, 1.0)]


def test_a_class_and_its_negation_are_complementary():
    p = jnp.exp(compose.log_probability(classifier, 1)(X))
    rest = jnp.exp(compose.log_probability(classifier, 1, negate=True)(X))

    np.testing.assert_allclose(p + rest, 1.0, rtol=1e-5)


def test_a_product_of_gaussian_experts_is_the_gaussian_of_their_precisions():
    means, variances, weights = (MEANS[0], MEANS[1]), (0.5, 2.0), (1.0, 0.7)
    # Over a flat q, the log ratio to N(m, v) is -log N(m, v).
    experts = [
        lambda x, m=m, v=v: -log_normal(m, v)(x) for m, v in zip(means, variances, strict=True)
    ]
    precision = sum(w / v for w, v in zip(weights, variances, strict=True))
    mean = sum(w * m / v for w, m, v in zip(weights, means, variances, strict=True)) / precision

    composed = compose.product(experts, weights)(X)
    assert_equal_up_to_a_constant(composed, -log_normal(mean, 1 / precision)(X))


def test_a_flow_under_two_attributes_ends_where_both_hold():
    def right(x):
        return jnp.stack([jnp.zeros(len(x)), 8.0 * x[:, 0]], axis=-1)

    def upper(x):
        return jnp.stack([jnp.zeros(len(x)), 8.0 * x[:, 1]], axis=-1)

    # Towards N(0, I), to the right and, by the negative of "upper", below.
    potential = compose.product(
        [
            lambda x: -log_normal(0.0)(x),
            compose.log_probability(right, 1),
            compose.log_probability(upper, 1, negate=True),
        ],
        [1.0, -1.0, -1.0],
    )
    end = fdrl.flow(
        jax.random.key(2), X, potential, num_steps=200, step_size=0.02, noise_scale=0.02
    )
    assert np.all((end[:, 0] > 0) & (end[:, 1] < 0))


def test_errors_state_what_is_allowed():
    with pytest.raises(ValueError, match="label must be from 0 to 2, got 3"):
        condition(log_ratio, classifier, 3)(X)
    with pytest.raises(ValueError, match=r"logits \[B, C\]"):
        condition(log_ratio, log_ratio, 0)(X)
    with pytest.raises(ValueError, match="output must be one of ratio, log_ratio"):
        condition(log_ratio, classifier, 0, output="logits")
    with pytest.raises(ValueError, match="got 1 for 2 functions"):
        compose.product([log_ratio, log_ratio], [1.0])
