"""The data-dependent prior as a mixture: clusters, a Gaussian for each, and samples of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdrl_jax import priors

SIGMAS = 5.0  # Allowed sampling error, in standard deviations.
CENTRES = np.array([[-4.0, 0.0, 1.0], [4.0, 4.0, 0.0], [0.0, -4.0, -2.0]])
SHARES = (60, 120, 20)


def blobs():
    """Examples [200, 1, 3] around three centres, and the number of their centre."""
    rng = np.random.default_rng(0)
    numbers = rng.permutation(np.repeat(np.arange(3), SHARES))
    mixing = rng.normal(size=(3, 3, 3)) / 4
    noise = np.einsum("nij,nj->ni", mixing[numbers], rng.normal(size=(200, 3)))
    return (CENTRES[numbers] + noise)[:, None].astype(np.float32), numbers


def drawn(prior, num, batch=None):
    keys = jax.random.split(jax.random.key(1), num)
    return np.asarray(jax.jit(prior.sample)(prior.params, keys, batch or {}))


def test_clusters_that_are_far_apart_are_found():
    x, numbers = blobs()
    found = priors.clusters(x, 3)
    pairs = {*zip(found.tolist(), numbers.tolist(), strict=True)}
    assert len(pairs) == 3
    assert {found for found, _ in pairs} == {0, 1, 2}
    np.testing.assert_array_equal(found, priors.clusters(x, 3))


@pytest.mark.parametrize("num", [1, 3])
def test_examples_of_clusters_must_be_finite(num):
    x = blobs()[0]
    x[7, 0, 1] = np.nan
    with pytest.raises(ValueError, match="the examples are not finite"):
        priors.clusters(x, num)


def test_clusters_without_examples_are_left_out():
    x = np.repeat([[0.0, 1.0], [1.0, 0.0]], 10, axis=0).astype(np.float32)
    assert set(priors.clusters(x, 5).tolist()) == {0, 1}


@pytest.mark.parametrize("num", [0, 201])
def test_the_number_of_clusters_is_that_of_the_examples_at_most(num):
    with pytest.raises(ValueError, match=f"from 1 to that of the examples, 200, got {num}"):
        priors.clusters(blobs()[0], num)


def test_a_component_has_the_mean_and_the_covariance_of_its_examples():
    x, numbers = blobs()
    fitted = priors.fit_mixture(x, numbers, rank=3, jitter=0.01)
    np.testing.assert_allclose(fitted.weights, np.array(SHARES) / 200)
    assert fitted.share_held == pytest.approx(1.0)
    for number, factor in enumerate(np.split(fitted.factor, 3, axis=1)):
        own = x[numbers == number, 0].astype(np.float64)
        np.testing.assert_allclose(fitted.means[number, 0], own.mean(axis=0), rtol=1e-6)
        covariance = np.cov(own, rowvar=False, bias=True)
        np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-5)
    np.testing.assert_allclose(fitted.remainder_scale, 0.1, rtol=1e-3)


def test_every_component_needs_examples():
    x, numbers = blobs()
    with pytest.raises(ValueError, match="component 1 of 4 has no examples"):
        priors.fit_mixture(x, np.where(numbers == 1, 3, numbers), 2)
    with pytest.raises(ValueError, match=r"one component is needed per example, \(200,\)"):
        priors.fit_mixture(x, numbers[:-1], 2)


@pytest.mark.parametrize("rank", [1, 3])
def test_samples_have_the_weights_means_and_variances_of_the_components(rank):
    x, numbers = blobs()
    num = 20_000
    samples = drawn(priors.mixture(priors.fit_mixture(x, numbers, rank, 1e-4)), num)[:, 0]
    nearest = np.linalg.norm(samples[:, None] - CENTRES, axis=-1).argmin(axis=1)
    for number, share in enumerate(np.array(SHARES) / 200):
        own, data = samples[nearest == number], x[numbers == number, 0]
        assert len(own) == pytest.approx(share * num, abs=SIGMAS * np.sqrt(num * share))
        error = SIGMAS * data.std(axis=0) / np.sqrt(len(own))
        np.testing.assert_array_less(np.abs(own.mean(axis=0) - data.mean(axis=0)), error + 0.01)
        # A factor of rank 1 leaves the rest to the remainder, which keeps the total.
        total = np.trace(np.cov(data, rowvar=False, bias=True))
        assert np.trace(np.cov(own, rowvar=False)) == pytest.approx(total, rel=0.1)


def test_the_label_of_an_example_chooses_its_component():
    x, numbers = blobs()
    prior = priors.mixture(priors.fit_mixture(x, numbers, 2, labels=numbers))
    labels = np.arange(90) % 3
    samples = drawn(prior, 90, {"label": labels})[:, 0]
    nearest = np.linalg.norm(samples[:, None] - CENTRES, axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(nearest, labels)
    wrong = drawn(prior, 90, {"label": np.where(labels == 2, 3, labels)})
    np.testing.assert_array_equal(np.isnan(wrong).all(axis=(1, 2)), labels == 2)
    # Another example's label and position do not matter.
    np.testing.assert_allclose(wrong[labels == 1, 0], samples[labels == 1], rtol=1e-6)


def test_each_class_has_clusters_of_its_own_and_samples_from_their_shares():
    x, numbers = blobs()
    labels = np.minimum(numbers, 1)  # Two blobs are one class.
    found = priors.clusters(x, 2, labels=labels)
    assert sorted(set(found[labels == 0])) == [0, 1]
    assert sorted(set(found[labels == 1])) == [2, 3]
    np.testing.assert_array_equal(found, priors.clusters(x, 2, labels=labels))
    # The clusters of the second class are its blobs.
    in_blobs = [set(found[numbers == number]) for number in (1, 2)]
    assert in_blobs in ([{2}, {3}], [{3}, {2}])
    # A class of 60 examples has no more clusters than these, and that of 140 has up to 100.
    many = priors.clusters(x, 100, labels=labels)
    assert many[labels == 0].max() < 60 <= many[labels == 1].max() < 60 + 100

    fitted = priors.fit_mixture(x, found, 2, labels=labels)
    assert fitted.weights.shape == (2, 4)
    np.testing.assert_allclose(fitted.weights.sum(axis=1), 1.0)
    np.testing.assert_array_equal(fitted.weights[0, 2:], 0.0)
    np.testing.assert_array_equal(fitted.weights[1, :2], 0.0)
    num = 10_000
    samples = drawn(priors.mixture(fitted), num, {"label": np.arange(num) % 2})[:, 0]
    nearest = np.linalg.norm(samples[:, None] - CENTRES, axis=-1).argmin(axis=1)
    np.testing.assert_array_equal(nearest[::2], 0)
    share = SHARES[1] / (SHARES[1] + SHARES[2])
    assert np.mean(nearest[1::2] == 1) == pytest.approx(share, abs=SIGMAS * 0.5 / np.sqrt(num / 2))
    with pytest.raises(ValueError, match="label 1 of 3 has no examples"):
        priors.fit_mixture(x, found, 2, labels=2 * labels)


def test_a_mixture_of_one_component_is_the_gaussian_of_its_factor():
    x = blobs()[0]
    fitted = priors.fit_mixture(x, np.zeros(200, int), 2, 1e-3)
    part = priors.low_rank([x], 2)
    factor, scale = priors.low_rank_factor(part, 1e-3)
    gaussian = priors.gaussian(part.mean.reshape(1, 3), factor, remainder_scale=scale)
    clipped = priors.mixture(fitted, clip=(-1.0, 1.0))
    np.testing.assert_allclose(drawn(priors.mixture(fitted), 50), drawn(gaussian, 50), atol=1e-5)
    np.testing.assert_allclose(
        drawn(clipped, 50), np.clip(drawn(gaussian, 50), -1.0, 1.0), atol=1e-5
    )


@pytest.mark.parametrize("change", [{"weights": np.ones(2)}, {"remainder_scale": np.ones((3, 3))}])
def test_arrays_of_a_mixture_must_fit_each_other(change):
    fitted = priors.fit_mixture(*blobs(), 2)._replace(**change)
    with pytest.raises(ValueError, match=r"3 means of shape \(1, 3\) need as many weights"):
        priors.mixture(fitted)


def test_weights_of_a_class_are_those_of_bayes():
    means, factor = np.array([[-3.0], [3.0], [4.0]]), 0.1 * np.ones((1, 3))
    fitted = priors.Mixture(
        np.array([0.5, 0.3, 0.2]), means, factor, np.zeros((3, 1)), share_held=1.0
    )

    def classifier(x):  # Class 0 below zero; above it, class 1 with a probability of 3/4.
        below = jnp.array([50.0, 0.0, 0.0])
        above = jnp.log(jnp.array([1e-20, 3.0, 1.0]))
        return jnp.where(x < 0.0, below, above)

    found = priors.class_weights(priors.mixture(fitted), classifier, jax.random.key(0))
    np.testing.assert_allclose(found, [[1, 0, 0], [0, 0.6, 0.4], [0, 0.6, 0.4]], atol=1e-6)
    by_class = fitted._replace(weights=found)
    x = drawn(priors.mixture(by_class), 4, {"label": np.array([0, 1, 2, 0])})
    assert (np.sign(x[:, 0]) == [-1, 1, 1, -1]).all()
    with pytest.raises(ValueError, match=r"weights for each class already, \(3, 3\)"):
        priors.class_weights(priors.mixture(by_class), classifier, jax.random.key(0))


def test_weights_of_a_class_that_is_nowhere_are_those_of_the_mixture():
    prior = priors.mixture(priors.fit_mixture(*blobs(), 2))

    def classifier(x):
        return jnp.stack([x[:, 0, 0], jnp.full(len(x), -1e4)], axis=-1)

    found = priors.class_weights(prior, classifier, jax.random.key(0), num_samples=5)
    np.testing.assert_allclose(found[1], prior.params["weights"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"must return logits \[B, C\], .* got \(5,\)"):
        priors.class_weights(prior, lambda x: x[:, 0, 0], jax.random.key(0), num_samples=5)
    with pytest.raises(ValueError, match="needs a mixture"):
        priors.class_weights(priors.normal((2,)), classifier, jax.random.key(0))


def test_clusters_need_a_label_for_each_example():
    x, numbers = blobs()
    with pytest.raises(
        ValueError, match=r"one label is needed per example, \(200,\), got \(199,\)"
    ):
        priors.clusters(x, 2, labels=numbers[:-1])
