"""Priors: where the flow starts. Moments are exact, samples follow the declared distribution."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft

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


def test_the_gaussian_prior_has_its_arrays_as_parameters():
    prior = priors.gaussian(np.zeros(2), np.zeros((2, 2)))
    other = {"mean": jnp.array([0.5, -0.5]), "factor": jnp.zeros((2, 2))}

    moved = prior.sample(other, keys(3), {})

    np.testing.assert_array_equal(moved, [[0.5, -0.5]] * 3)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(prior.params))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_normal_prior_has_mean_zero_and_variance_scale_squared(scale):
    x = sample(priors.normal((2, 2), scale), 5_000)

    assert x.shape == (5_000, 2, 2)
    assert x.mean() == pytest.approx(0.0, abs=SIGMAS * scale / np.sqrt(x.size))
    assert x.var() == pytest.approx(scale**2, rel=SIGMAS * np.sqrt(2.0 / x.size))


@pytest.mark.parametrize(("box", "low", "high"), [((), -1.0, 1.0), ((0.0, 3.0), 0.0, 3.0)])
def test_the_uniform_prior_fills_its_box_evenly(box, low, high):
    x = sample(priors.uniform((2, 2), *box), 5_000)

    assert x.min() >= low
    assert x.max() <= high
    counts, _ = np.histogram(x, bins=10, range=(low, high))
    expected = x.size / 10
    assert np.all(abs(counts - expected) < SIGMAS * np.sqrt(expected))


PRIORS = {
    "normal": priors.normal((3,)),
    "uniform": priors.uniform((3,)),
    "gaussian": priors.gaussian(np.zeros(3), 0.1 * np.tri(3)),
    "white": priors.gaussian(np.zeros(3), np.ones((3, 2)), remainder_scale=0.5),
    "smooth": priors.gaussian(np.zeros(3), np.ones((3, 2)), remainder_scale=np.arange(3.0)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_a_sample_depends_only_on_its_own_key_whatever_the_batch(name):
    prior = PRIORS[name]
    whole = np.asarray(prior.sample(prior.params, keys(8), {}))

    part = prior.sample(prior.params, keys(8)[jnp.array([5, 2])], {})

    atol = 1e-6 if name in ("white", "smooth") else 0.0  # Products with cosines round.
    np.testing.assert_allclose(part, whole[[5, 2]], rtol=1e-6, atol=atol)
    assert len(np.unique(whole.round(6))) == whole.size


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
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


# Moments and factors


def decaying(num=400, size=60, seed=0):
    """Examples whose variances decay like those of images, as a power of the frequency."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    scales = np.arange(1, size + 1) ** -1.5
    return (rng.standard_normal((num, size)) * scales) @ basis + 0.3


def batches(x, *sizes):
    return np.split(x, np.cumsum(sizes))


def covariance(x):
    return np.cov(x, rowvar=False, bias=True)


def test_moments_of_float64_examples_in_batches_of_any_size_do_not_cancel():
    x = 1e6 + decaying()
    found = priors.moments(batches(x, 3, 0, 150, 1))
    assert found.num_examples == len(x)
    np.testing.assert_allclose(found.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance(x), atol=1e-8)


def test_moments_of_more_dimensions_than_a_block_are_symmetric(monkeypatch):
    monkeypatch.setattr("fdrl_jax._covariance._BLOCK", 16)
    x = decaying()
    found = priors.moments([x])
    np.testing.assert_allclose(found.covariance, covariance(x), atol=1e-12)


def test_a_low_rank_sketch_of_full_width_is_exact():
    x = decaying()
    part = priors.low_rank(batches(x, 33, 150), rank=30)
    values = np.linalg.eigvalsh(covariance(x))[::-1]
    np.testing.assert_allclose(part.variances, values[:30], rtol=1e-6)
    np.testing.assert_allclose(part.directions.T @ part.directions, np.eye(30), atol=1e-8)
    assert part.spectrum.sum() == pytest.approx(values.sum(), rel=1e-10)
    assert part.share_held == pytest.approx(values[:30].sum() / values.sum(), rel=1e-6)


def test_a_narrow_sketch_explains_nearly_as_much_variance_as_the_best_directions():
    x = decaying()
    part = priors.low_rank([x], rank=8)
    values = np.linalg.eigvalsh(covariance(x))[::-1]
    assert part.share_held == pytest.approx(values[:8].sum() / values.sum(), abs=0.002)


def of_model(factor, scale):
    """The covariance that `priors.gaussian` documents."""
    axes = range(1, scale.ndim + 1)
    cosines = fft.idctn(np.eye(scale.size).reshape(-1, *scale.shape), axes=axes, norm="ortho")
    cosines = cosines.reshape(scale.size, -1)  # One per row.
    return factor @ factor.T + (cosines.T * scale.reshape(-1) ** 2) @ cosines


@pytest.mark.parametrize("shape", [(60,), (5, 4, 3)])
def test_the_low_rank_factor_keeps_the_variance_of_every_frequency(shape):
    x = decaying()
    part = priors.low_rank([x.reshape(-1, *shape)], rank=10)
    factor, scale = priors.low_rank_factor(part, jitter=1e-4)
    assert scale.shape == part.spectrum.shape == shape

    def spectrum(covariance):
        rows = fft.dctn(
            np.linalg.cholesky(covariance).T.reshape(-1, *shape),
            axes=range(1, len(shape) + 1),
            norm="ortho",
        )
        return np.square(rows).sum(axis=0)

    wanted = spectrum(covariance(x) + 1e-4 * np.eye(60))
    np.testing.assert_allclose(spectrum(of_model(factor, scale)), wanted, rtol=1e-4)


def test_the_remainder_of_a_smooth_signal_is_nearly_that_of_the_full_covariance():
    # A Markov chain, whose covariance the cosines nearly diagonalise.
    distances = np.abs(np.subtract.outer(np.arange(60), np.arange(60)))
    x = np.random.default_rng(0).multivariate_normal(np.zeros(60), 0.9**distances, 2_000)
    full = covariance(x)

    def kl(model):
        ratio = np.linalg.solve(model, full)
        return 0.5 * (np.trace(ratio) - 60 - np.linalg.slogdet(ratio)[1])

    part = priors.low_rank([x], rank=5)
    factor, scale = priors.low_rank_factor(part, jitter=0.0)
    white = np.sqrt(np.mean(scale**2))
    assert kl(of_model(factor, scale)) < 0.15 * kl(factor @ factor.T + white**2 * np.eye(60))


@pytest.mark.parametrize("num", [1, 5])
def test_fewer_examples_than_directions_are_allowed(num):
    x = decaying(num=num)
    part = priors.low_rank([x], rank=20)
    factor, scale = priors.low_rank_factor(part)
    np.testing.assert_allclose(
        of_model(factor, scale),
        covariance(x.repeat(2, 0)) + 1e-4 * np.eye(60),
        atol=1e-5,
    )


def test_samples_of_the_low_rank_prior_have_its_mean_and_covariance():
    x = decaying()
    part = priors.low_rank([x.reshape(-1, 5, 4, 3)], rank=10)
    factor, scale = priors.low_rank_factor(part)
    mean = part.mean.reshape(5, 4, 3)
    prior = priors.gaussian(mean, factor, remainder_scale=scale, clip=None)
    keys = jax.random.split(jax.random.key(0), 20_000)
    samples = np.asarray(jax.jit(prior.sample)(prior.params, keys, {}))
    assert samples.shape == (20_000, 5, 4, 3)
    samples = samples.reshape(-1, 60)
    np.testing.assert_allclose(samples.mean(axis=0), part.mean, atol=0.03)
    np.testing.assert_allclose(covariance(samples), of_model(factor, scale), atol=0.03)


def test_source_images_are_dequantised_on_request():
    images = np.zeros((4, 8, 8, 3), np.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    noisy = priors.batch("source", dequantisation=0.03)
    assert np.std(noisy.sample((), keys, {"source": images})) == pytest.approx(0.03, rel=0.1)


@pytest.mark.parametrize("fit", [priors.moments, lambda x: priors.low_rank(x, 2)])
def test_no_examples_are_an_error(fit):
    for batches in ([], [np.zeros((0, 4))]):
        with pytest.raises(ValueError, match="at least one example"):
            fit(batches)


@pytest.mark.parametrize("rank", [0, 61])
def test_an_impossible_rank_is_refused(rank):
    with pytest.raises(ValueError, match="from 1 to 60"):
        priors.low_rank([decaying()], rank)


def test_a_factor_that_does_not_fit_the_mean_is_refused():
    with pytest.raises(ValueError, match="a factor of 6 rows"):
        priors.gaussian(np.zeros(6), np.ones((5, 2)))
    with pytest.raises(
        ValueError, match=r"remainder_scale must be .* \(6,\), as the mean, got \(5,"
    ):
        priors.gaussian(np.zeros(6), np.ones((6, 2)), remainder_scale=np.ones(5))
