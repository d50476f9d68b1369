"""Priors: where the flow starts. Moments are exact, samples follow the declared distribution."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdrl_jax import priors

GOLDEN = Path(__file__).parents[1] / "golden"
SIGMAS = 5.0  # Allowed sampling error, in standard deviations.


def keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def sample(prior, num, seed=0):
    return np.asarray(jax.jit(prior.sample)(prior.params, keys(num, seed), {}))


def examples(num=200):
    mixing = np.random.default_rng(1).normal(size=(6, 6))
    return (0.1 * np.random.default_rng(0).normal(size=(num, 6)) @ mixing).reshape(num, 2, 3)


def test_moments_in_one_pass_are_those_of_all_examples_at_once():
    x = examples()

    moments = priors.moments(x[i : i + 64] for i in range(0, 200, 64))

    assert moments.num_examples == 200
    np.testing.assert_allclose(moments.mean, x.reshape(200, -1).mean(axis=0), rtol=1e-12)
    expected = np.cov(x.reshape(200, -1), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.covariance, expected, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_moments_do_not_depend_on_the_size_or_the_order_of_batches(batch_size):
    whole = priors.moments([examples()])
    shuffled = np.random.default_rng(2).permutation(examples())

    batched = priors.moments(shuffled[i : i + batch_size] for i in range(0, 200, batch_size))

    assert batched.num_examples == whole.num_examples
    np.testing.assert_allclose(batched.mean, whole.mean, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(batched.covariance, whole.covariance, rtol=1e-10, atol=1e-14)


def test_moments_of_float32_examples_far_from_zero_do_not_cancel():
    x = np.float32(1e4 + examples())

    moments = priors.moments([x[:50], x[50:]])

    expected = np.cov(np.float64(x).reshape(200, -1), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.covariance, expected, rtol=1e-7, atol=1e-9)


def test_empty_batches_change_nothing_and_no_examples_are_an_error():
    x = examples()

    with_empty = priors.moments([x[:0], x, x[:0]])

    assert with_empty.num_examples == 200
    np.testing.assert_array_equal(with_empty.covariance, priors.moments([x]).covariance)
    for nothing in ([], [x[:0]]):
        with pytest.raises(ValueError, match="needs at least one example, got none"):
            priors.moments(nothing)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    "statistics", [priors.moments, lambda batches: priors.low_rank(batches, 2)]
)
def test_an_example_that_is_not_finite_is_an_error(statistics, value):
    x = examples()
    x[150, 1, 2] = value

    with pytest.raises(ValueError, match="the examples are not finite"):
        statistics([x[:100], x[100:]])


def test_the_moments_are_those_of_the_reference_implementation():
    golden = np.load(GOLDEN / "original_tiny_ddp_expected.npz")

    moments = priors.moments(np.array_split(golden["X"], 7))
    factor = np.float64(priors.covariance_factor(moments.covariance))

    np.testing.assert_allclose(moments.mean, golden["mean"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(factor @ factor.T, golden["covariance"], rtol=1e-5, atol=1e-6)


def test_the_covariance_factor_is_the_lower_triangular_root_of_the_covariance_plus_jitter():
    covariance = priors.moments([examples()]).covariance

    factor = priors.covariance_factor(covariance, jitter=1e-2)

    assert factor.dtype == np.float32
    np.testing.assert_array_equal(factor, np.tril(factor))
    np.testing.assert_allclose(factor @ factor.T, covariance + 1e-2 * np.eye(6), atol=1e-6)


def test_the_jitter_makes_a_singular_covariance_usable_and_without_it_there_is_an_error():
    singular = np.zeros((3, 3))

    np.testing.assert_allclose(priors.covariance_factor(singular), 1e-2 * np.eye(3), rtol=1e-6)
    with pytest.raises(ValueError, match=r"plus 0 I is not positive definite; raise the jitter"):
        priors.covariance_factor(singular, jitter=0.0)


def test_samples_of_the_gaussian_prior_have_its_mean_and_covariance():
    moments = priors.moments([examples()])
    factor = priors.covariance_factor(moments.covariance)
    prior = priors.gaussian(moments.mean.reshape(2, 3), factor, clip=None)
    num = 20_000

    x = sample(prior, num)

    assert x.shape == (num, 2, 3)
    covariance = moments.covariance + 1e-4 * np.eye(6)
    variance = np.diag(covariance)
    flat = x.reshape(num, -1)
    assert np.all(abs(flat.mean(0) - moments.mean) < SIGMAS * np.sqrt(variance / num))
    # Of an entry of a Gaussian's sample covariance.
    error = np.sqrt((covariance**2 + np.outer(variance, variance)) / num)
    assert np.all(abs(np.cov(flat, rowvar=False) - covariance) < SIGMAS * error)


def test_the_gaussian_prior_clips_only_to_a_range_that_is_given():
    mean, factor = np.array([0.9, 0.0]), np.eye(2)

    raw = sample(priors.gaussian(mean, factor), 100)

    assert raw.max() > 1.0
    assert raw.min() < -1.0
    image = priors.gaussian(mean, factor, clip=(-1.0, 1.0))
    np.testing.assert_array_equal(sample(image, 100), raw.clip(-1.0, 1.0))
    half = priors.gaussian(mean, factor, clip=(-0.5, 0.5))
    np.testing.assert_array_equal(sample(half, 100), raw.clip(-0.5, 0.5))


def test_the_gaussian_prior_keeps_a_mean_outside_the_range_of_images():
    x = sample(priors.gaussian(np.array([5.0, -3.0]), np.eye(2)), 4_000)

    np.testing.assert_allclose(x.mean(0), [5.0, -3.0], atol=SIGMAS / np.sqrt(4_000))


def test_the_gaussian_prior_has_its_arrays_as_parameters():
    prior = priors.gaussian(np.zeros(2), np.zeros((2, 2)))
    other = {"mean": jnp.array([0.5, -0.5]), "factor": jnp.zeros((2, 2))}

    moved = prior.sample(other, keys(3), {})

    np.testing.assert_array_equal(moved, [[0.5, -0.5]] * 3)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(prior.params))


def test_a_factor_that_does_not_fit_the_mean_is_an_error():
    with pytest.raises(ValueError, match="a mean of 6 entries needs a factor of 6 rows, got"):
        priors.gaussian(np.zeros((2, 3)), np.eye(3))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_normal_prior_has_mean_zero_and_variance_scale_squared(scale):
    x = sample(priors.normal((2, 2), scale), 5_000)

    assert x.shape == (5_000, 2, 2)
    assert x.mean() == pytest.approx(0.0, abs=SIGMAS * scale / np.sqrt(x.size))
    assert x.var() == pytest.approx(scale**2, rel=SIGMAS * np.sqrt(2.0 / x.size))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 3.0)])
def test_the_uniform_prior_fills_its_box_evenly(low, high):
    x = sample(priors.uniform((2, 2), low, high), 5_000)

    assert x.min() >= low
    assert x.max() <= high
    counts, _ = np.histogram(x, bins=10, range=(low, high))
    expected = x.size / 10
    assert np.all(abs(counts - expected) < SIGMAS * np.sqrt(expected))


def test_the_uniform_prior_covers_the_range_of_images_by_default():
    np.testing.assert_array_equal(
        sample(priors.uniform((3,)), 10), sample(priors.uniform((3,), -1.0, 1.0), 10)
    )


PRIORS = {
    "normal": priors.normal((3,)),
    "uniform": priors.uniform((3,)),
    "gaussian": priors.gaussian(np.zeros(3), 0.1 * np.tri(3)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_a_sample_depends_only_on_its_own_key_whatever_the_batch(name):
    prior = PRIORS[name]
    whole = np.asarray(prior.sample(prior.params, keys(8), {}))

    part = prior.sample(prior.params, keys(8)[jnp.array([5, 2])], {})

    np.testing.assert_allclose(part, whole[[5, 2]], rtol=1e-6)
    assert len(np.unique(whole.round(6))) == whole.size


@pytest.mark.parametrize(
    "prior", [priors.normal((3,)), priors.uniform((3,)), priors.gaussian(np.zeros(3), np.eye(3))]
)
def test_samples_are_the_same_where_jax_computes_in_float64(prior):
    with jax.enable_x64(True):
        wide = prior.sample(prior.params, keys(4), {})
    assert wide.dtype == jnp.float32
    np.testing.assert_array_equal(wide, prior.sample(prior.params, keys(4), {}))


def test_the_batch_prior_starts_at_the_source_images_of_the_batch():
    batch = {"source": jnp.ones((2, 3)), "other": jnp.zeros((2, 3))}

    for field, prior in {"source": priors.batch(), "other": priors.batch("other")}.items():
        np.testing.assert_array_equal(prior.sample(prior.params, keys(2), batch), batch[field])


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_a_normal_prior_needs_a_positive_scale(scale):
    with pytest.raises(ValueError, match=f"must be positive, got {scale}"):
        priors.normal((2,), scale)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (1.0, -1.0)])
def test_a_uniform_prior_needs_low_below_high(low, high):
    with pytest.raises(ValueError, match=f"needs low < high, got {low} and {high}"):
        priors.uniform((2,), low, high)
