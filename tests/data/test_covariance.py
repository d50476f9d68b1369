"""Moments in one pass, exact and low-rank, and the priors from them."""

from pathlib import Path

import jax
import numpy as np
import pytest
from scipy import fft

from fdrl_jax import priors

EXPECTED = np.load(Path(__file__).parents[1] / "golden" / "original_tiny_ddp_expected.npz")


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


def test_the_authors_prior_is_matched():
    x = EXPECTED["X"]
    found = priors.moments(batches(x, 7, 100, 1))
    factor = priors.covariance_factor(found.covariance, 1e-4)
    np.testing.assert_allclose(found.mean, EXPECTED["mean"], atol=1e-5)
    np.testing.assert_allclose(factor @ factor.T, EXPECTED["covariance"], atol=1e-5)


def test_moments_do_not_depend_on_the_batches_and_do_not_cancel():
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


@pytest.mark.parametrize("scale", [0.5, np.arange(6.0)])
def test_a_sample_is_the_same_whatever_is_drawn_with_it(scale):
    prior = priors.gaussian(np.zeros(6), np.ones((6, 2)), remainder_scale=scale, clip=None)
    keys = jax.random.split(jax.random.key(0), 5)
    whole = prior.sample(prior.params, keys, {})
    np.testing.assert_allclose(prior.sample(prior.params, keys[3:4], {})[0], whole[3], atol=1e-6)


def test_source_images_are_dequantised_on_request():
    images = np.zeros((4, 8, 8, 3), np.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    plain, noisy = priors.batch("source"), priors.batch("source", dequantisation=0.03)
    np.testing.assert_array_equal(plain.sample((), keys, {"source": images}), images)
    assert np.std(noisy.sample((), keys, {"source": images})) == pytest.approx(0.03, rel=0.1)


@pytest.mark.parametrize("fit", [priors.moments, lambda x: priors.low_rank(x, 2)])
def test_no_examples_are_an_error(fit):
    with pytest.raises(ValueError, match="at least one example"):
        fit([np.zeros((0, 4))])


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
