"""The fitted prior is part of the run: it is read back unchanged, or rejected."""

import math

import numpy as np
import pytest
from small_runs import start

from experiments import experiment, files, prior
from experiments.data import load
from experiments.errors import UserError
from fdrl_jax import priors

JITTER = 1e-4


def batches_of(num, shape, size=20):
    """Returns the batches of `num` examples."""
    data = np.random.default_rng(0).normal(size=(num, *shape)).astype(np.float32)
    return [data[i : i + size] for i in range(0, num, size)]


@pytest.fixture
def fitted():
    return prior.fit(batches_of(60, (2, 3)), 0, JITTER)


def test_the_factor_of_many_examples_is_that_of_cholesky_bit_for_bit(fitted):
    full = priors.moments(batches_of(60, (2, 3)))
    np.testing.assert_array_equal(fitted.mean, full.mean)
    np.testing.assert_array_equal(fitted.factor, priors.covariance_factor(full.covariance, JITTER))
    assert (fitted.num_examples, fitted.share_held, fitted.remainder_scale) == (60, 1.0, 0.0)
    assert "60 examples of 6 numbers, full covariance" in prior.describe(fitted)


@pytest.mark.parametrize("num", [1, 15, 47, 48])
def test_few_examples_have_a_small_factor_with_the_same_covariance(num):
    batches = batches_of(num, (4, 4, 3), size=7)
    few = prior.fit(batches, 0, JITTER)
    assert few.factor.shape == (48, num)
    assert few.factor.dtype == np.float32
    assert few.remainder_scale == (math.sqrt(JITTER) if num < 48 else 0.0)
    data = np.concatenate(batches).reshape(num, 48).astype(np.float64)
    covariance = np.cov(data.T, bias=True) + JITTER * np.eye(48) if num > 1 else JITTER * np.eye(48)
    found = few.factor @ few.factor.T + few.remainder_scale**2 * np.eye(48)
    np.testing.assert_allclose(found, covariance, atol=2e-6)
    np.testing.assert_allclose(few.mean, data.mean(axis=0), atol=1e-7)
    assert (few.num_examples, few.share_held) == (num, 1.0)
    assert f"{num} examples of 48 numbers, full covariance" in prior.describe(few)


def test_the_factor_of_few_examples_does_not_store_them():
    (data,) = batches_of(10, (30,))
    centred = data - data.mean(axis=0)
    columns = prior.fit([data], 0, JITTER).factor.T
    lengths = np.linalg.norm(columns, axis=1)[:, None] * np.linalg.norm(centred, axis=1)
    # The last column of ten has no length, because centred examples sum to 0.
    assert np.abs(columns @ centred.T / lengths)[:9].max() < 0.99


def test_data_that_have_no_covariance_are_refused():
    with pytest.raises(UserError, match="at least one training example, got none"):
        prior.fit([], 0, JITTER)
    # Fewer examples than dimensions, and more.
    for num, message in ((3, "must not contain infs or NaNs"), (9, "the examples are not finite")):
        with pytest.raises(ValueError, match=message):
            prior.fit([np.full((num, 8), np.nan)], 0, JITTER)


def test_a_low_rank_prior_and_a_placeholder_have_the_same_shapes(tiny):
    wanted = tiny("digits", {"prior.rank": 2})
    source = load(wanted.data)
    low = prior.fit_to(source, wanted.prior, None)
    like = prior.placeholder(wanted.prior, source, None)
    assert low.factor.shape == like.factor.shape == (64, 2)
    assert low.remainder_scale.shape == like.remainder_scale.shape == (8, 8, 1)
    assert "rank 2" in prior.describe(low)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_prior_is_read_back_bit_for_bit_and_another_or_a_damaged_one_is_named(rank, tmp_path):
    fitted = prior.fit(batches_of(60, (2, 3)), rank, JITTER)
    file = tmp_path / "prior.npz"
    prior.write(file, fitted._replace(mean=fitted.mean + 1e-3))
    other = file.read_bytes()
    prior.write(file, fitted)
    for one, same in zip(prior.read(file, fitted.sha256), fitted, strict=True):
        np.testing.assert_array_equal(one, same)
    for broken in (other, b"", file.read_bytes()[:-30]):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"prior\.npz(: not a readable| is not the file)"):
            prior.read(file, fitted.sha256)


def test_a_mixture_has_a_gaussian_for_each_cluster_or_each_class(tiny):
    wanted = tiny("digits", {"prior.num_components": 3, "prior.rank": 2})
    source = load(wanted.data)
    of_clusters = prior.fit_to(source, wanted.prior, None)
    assert of_clusters.mean.shape == (3, 64)
    assert of_clusters.factor.shape == (64, 6)
    assert "3 Gaussians of rank 2" in prior.describe(of_clusters)
    one_each = tiny("digits", {"prior.rank": 2})
    of_classes = prior.fit_to(source, one_each.prior, 10)
    images, labels = source.train(), source.labels.train
    for label, mean in enumerate(of_classes.mean):
        expected = images[labels == label].reshape(-1, 64).mean(axis=0)
        np.testing.assert_allclose(mean, expected, atol=1e-5)
    for of, fitted, num in ((wanted, of_clusters, None), (one_each, of_classes, 10)):
        like = prior.placeholder(of.prior, source, num)
        for one, other in zip(fitted, like, strict=True):
            assert np.shape(one) == np.shape(other)


def test_a_mixture_is_read_back_bit_for_bit(tiny, tmp_path):
    wanted = tiny("digits", {"prior.num_components": 3})
    fitted = prior.fit_to(load(wanted.data), wanted.prior, None)
    assert fitted.rank == 50
    prior.write(tmp_path / "prior.npz", fitted)
    for one, same in zip(prior.read(tmp_path / "prior.npz", fitted.sha256), fitted, strict=True):
        np.testing.assert_array_equal(one, same)
    other = fitted._replace(weights=fitted.weights[::-1])
    with pytest.raises(UserError, match="is not the file"):
        prior.read(tmp_path / "prior.npz", other.sha256)


def test_several_gaussians_are_for_the_data_dependent_prior(tiny):
    wanted = tiny("digits", {"prior.num_components": 3, "prior.name": "normal"})
    with pytest.raises(UserError, match=r"num_components is for prior\.name='data_dependent'"):
        experiment.build(wanted, load(wanted.data))


def test_a_large_training_set_is_represented_by_examples_spread_over_it(tiny, monkeypatch):
    monkeypatch.setattr(prior, "_MAX_NUMBERS", 64 * 500)
    wanted = tiny("digits", {"prior.num_components": 2})
    fitted = prior.fit_to(load(wanted.data), wanted.prior, 10)
    assert fitted.num_examples == 500
    assert fitted.num_components == 20  # Two for each class.


def test_every_class_needs_images(tiny):
    wanted = tiny("digits")
    source = load(wanted.data)
    labels = source.labels._replace(train=np.maximum(source.labels.train, 2))
    with pytest.raises(UserError, match="no training images of the classes 0, 1"):
        prior.fit_to(source._replace(labels=labels), wanted.prior, 10)


def test_more_gaussians_than_images_are_an_error_of_the_config(tmp_path):
    changes = {"prior.num_components": 2_000}
    with pytest.raises(UserError, match="config: the number of clusters must be from 1"):
        start("train", tmp_path / "run", "digits:tiny", changes)


@pytest.mark.parametrize(
    ("shape", "num_train", "rank", "num_components", "num_classes", "expected"),
    [
        ((8, 8, 1), 10_000, 0, 1, None, (1, 0)),  # The full covariance.
        ((8, 8, 1), 10_000, 5, 1, None, (1, 5)),
        ((128, 128, 3), 10_000, 0, 1, None, (1, 512)),
        ((8, 8, 1), 10_000, 0, 3, None, (3, 50)),
        ((8, 8, 1), 10_000, 5, 3, None, (3, 5)),
        ((5, 5, 1), 10_000, 0, 3, None, (3, 25)),
        ((8, 8, 1), 10_000, 0, 3, 10, (3, 50)),  # For each class.
        ((8, 8, 1), 10_000, 0, 1, 10, (1, 64)),
        ((32, 32, 3), 10_000, 0, 1, 10, (1, 100)),
        # As many as fit the training data.
        ((8, 8, 1), 2_099, 0, 0, None, (1, 0)),
        ((8, 8, 1), 2_100, 0, 0, None, (30, 35)),  # Half of the 70 examples of each.
        ((8, 8, 1), 10_000, 0, 0, 10, (10, 50)),
        ((8, 8, 1), 2_100, 0, 0, 10, (3, 35)),
        ((8, 8, 1), 2_099, 0, 0, 3, (1, 64)),
        ((8, 8, 1), 3, 0, 3, None, (3, 1)),
        ((8, 8, 1), 20, 0, 3, 10, (3, 1)),  # Classes with fewer examples have fewer clusters.
        ((32, 32, 3), 10**6, 0, 0, None, (100, 50)),
        ((128, 128, 3), 10**6, 100, 0, None, (30, 100)),  # A factor of 100 would have 2 GB.
        ((2,), 0, 0, 0, None, (1, 0)),  # Generated points.
        ((2,), 0, 0, 3, None, (3, 2)),
    ],
)
def test_the_number_of_gaussians_and_their_rank(
    tiny, shape, num_train, rank, num_components, num_classes, expected
):
    changes = {"prior.num_components": num_components, "prior.rank": rank}
    source = load(tiny("digits").data)._replace(num_train=num_train, event_shape=shape)
    assert prior.choose(tiny("digits", changes).prior, source, num_classes) == expected


def test_a_rank_above_the_size_of_an_example_is_rejected(tiny):
    wanted = tiny("digits", {"prior.rank": 65})
    with pytest.raises(ValueError, match=r"prior\.rank must be at most 64"):
        prior.choose(wanted.prior, load(wanted.data), None)


@pytest.mark.parametrize(("by_class", "shape"), [(False, (3,)), (True, (10, 20))])
def test_a_run_with_as_many_components_as_fit_is_resumed(tmp_path, monkeypatch, by_class, shape):
    monkeypatch.setattr(prior, "_MIN_CLUSTERS", 2)
    monkeypatch.setattr(prior, "_EXAMPLES_PER_CLUSTER", 60 if by_class else 400)
    changes = {"prior.num_components": 0, "network.by_class": by_class}
    start("train", tmp_path / "run", "digits:tiny", changes)
    assert files.read_npz(tmp_path / "run" / "prior.npz")["weights"].shape == shape
    start("sample", tmp_path / "run")
