"""Composed ratios against closed forms: Gaussians and their exact classifier."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fdrl_jax as fdrl

X = jax.random.normal(jax.random.key(0), (16, 2))
MEANS = jnp.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -2.0]])
condition = functools.partial(fdrl.condition, output="log_ratio")


def log_normal(mean, variance=1.0):
    return lambda x: -jnp.sum((x - mean) ** 2, -1) / (2 * variance)


def classifier(x):
    """The exact classifier of three Gaussians of equal weight."""
    return jnp.stack([log_normal(mean)(x) for mean in MEANS], axis=-1)


def log_ratio(x):
    """N(0, 4 I) over the mixture of the three."""
    return log_normal(0.0, 4.0)(x) - jax.nn.logsumexp(classifier(x), axis=-1)


def assert_equal_up_to_a_constant(actual, expected):
    np.testing.assert_allclose(actual - actual[0], expected - expected[0], atol=2e-5)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_an_exact_classifier_with_weight_one_gives_the_ratio_to_its_class(label):
    of_class = condition(log_ratio, classifier, label, 1.0)
    expected = log_normal(0.0, 4.0)(X) - log_normal(MEANS[label])(X)
    assert_equal_up_to_a_constant(of_class(X), expected)


def test_weight_zero_is_unconditional_and_each_example_may_have_its_own_class():
    np.testing.assert_array_equal(condition(log_ratio, classifier, 1, 0.0)(X), log_ratio(X))
    labels = jnp.arange(len(X)) % 3
    own = jax.jit(lambda labels: condition(log_ratio, classifier, labels, 0.5)(X))
    each = jnp.stack([condition(log_ratio, classifier, k, 0.5)(X) for k in range(3)])
    np.testing.assert_allclose(own(labels), each[labels, jnp.arange(len(X))], rtol=1e-5, atol=1e-6)


def test_the_flow_of_a_conditioned_ratio_is_equation_30():
    potential = fdrl.first_variation(
        condition(log_ratio, classifier, 1, 0.3), "kl", output="log_ratio"
    )

    def log_p(x):
        return jnp.sum(jax.nn.log_softmax(classifier(x))[:, 1])

    gradient = jax.grad(lambda x: jnp.sum(log_ratio(x)))(X) - 0.3 * jax.grad(log_p)(X)
    np.testing.assert_allclose(fdrl.drift(X, potential), -gradient, rtol=1e-4, atol=1e-5)


def test_a_conditioned_ratio_is_the_exponential_of_the_conditioned_log_ratio():
    of_ratio = fdrl.condition(lambda x: jnp.exp(log_ratio(x)), classifier, 1, 0.5, output="ratio")
    of_log = condition(log_ratio, classifier, 1, 0.5)
    np.testing.assert_allclose(of_ratio(X), jnp.exp(of_log(X)), rtol=1e-4)


def test_the_classifier_gets_inputs_in_its_own_range():
    def of_unit_range(x):
        return classifier(2.0 * x - 1.0)

    mapped = condition(log_ratio, of_unit_range, 0, input_range=(0.0, 1.0))(X)
    np.testing.assert_allclose(mapped, condition(log_ratio, classifier, 0)(X), rtol=1e-4)


def test_a_traced_label_that_is_out_of_range_gives_nan_and_not_another_class():
    @jax.jit
    def drift(labels):
        conditioned = condition(log_ratio, classifier, labels)
        return fdrl.drift(X[:5], fdrl.first_variation(conditioned, "kl", output="log_ratio"))

    found = np.isnan(drift(jnp.array([0, 3, 1, -1, 99]))).any(axis=1)
    np.testing.assert_array_equal(found, [False, True, False, True, True])
    assert np.isnan(drift(3)).any(axis=1).all()


def column(x):
    return log_ratio(x)[:, None]


MISUSE = {
    "label": (lambda: condition(log_ratio, classifier, 3)(X), "label must be from 0 to 2, got 3"),
    "half a label": (lambda: condition(log_ratio, classifier, 0.5)(X), "must be an integer"),
    "logit": (lambda: condition(log_ratio, log_ratio, 0)(X), r"logits \[B, C\] of C >= 2"),
    "binary": (lambda: condition(log_ratio, column, 0)(X), r"got \(16, 1\)\. From one logit z"),
    "output": (
        lambda: fdrl.condition(log_ratio, classifier, 0, output="logits"),
        "unknown output 'logits'; allowed: ratio, log_ratio",
    ),
    "shapes": (lambda: condition(column, classifier, 0)(X), r"got \(16, 1\); from \[B, 1\]"),
}


@pytest.mark.parametrize(("call", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_an_error_that_says_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
