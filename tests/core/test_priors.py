"""Priors: samples follow the declared distribution, and fits are exact where they say so."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft

from fdrl_jax import _prior_fit, priors

GOLDEN = Path(__file__).parents[1] / "golden"
SIGMAS = 5.0  # Allowed sampling error, in standard deviations.
CENTRES = np.array([[-4.0, 0.0, 1.0], [4.0, 4.0, 0.0], [0.0, -4.0, -2.0]])


def keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def decaying(num=400, size=60, seed=0):
    """Examples whose variances decay like those of images, as a power of the frequency."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    return (rng.standard_normal((num, size)) * np.arange(1, size + 1) ** -1.5) @ basis + 0.3


def blobs():
    """Examples [200, 1, 3] around three centres, and the number of their centre."""
    rng = np.random.default_rng(0)
    numbers = rng.permutation(np.repeat(np.arange(3), (60, 120, 20)))
    mixing = rng.normal(size=(3, 3, 3)) / 4
    noise = np.einsum("nij,nj->ni", mixing[numbers], rng.normal(size=(200, 3)))
    return (CENTRES[numbers] + noise)[:, None].astype(np.float32), numbers


def covariance(x):
    x = x.reshape(len(x), -1).astype(np.float64)
    return np.cov(x, rowvar=False, bias=True)


def of_model(prior, number=0):
    """The covariance that `priors.mixture` documents, of one of its Gaussians."""
    params = prior.params
    size, num = params["factor"].shape[0], len(params["mean"])
    factor = np.float64(np.split(params["factor"], num, axis=1)[number])
    found = factor @ factor.T
    if "remainder_scale" in params:
        scale = np.float64(params["remainder_scale"][number])
        axes = range(1, scale.ndim + 1)
        rows = fft.idctn(np.eye(size).reshape(-1, *scale.shape), axes=axes, norm="ortho")
        rows = rows.reshape(size, -1)  # A cosine per row.
        found = found + (rows.T * scale.reshape(-1) ** 2) @ rows
    return found


# The contract of all priors

EXAMPLES = blobs()
PRIORS = {
    "normal": priors.normal((1, 3)),
    "uniform": priors.uniform((1, 3)),
    "full": priors.fit(EXAMPLES[0]),
    "few": priors.fit(EXAMPLES[0][:2]),
    "low_rank": priors.fit(EXAMPLES[0], rank=2, clip=(-1.0, 1.0)),
    "mixture": priors.fit(EXAMPLES[0], num_components=3, rank=2),
    "by_class": priors.fit(EXAMPLES[0], rank=2, labels=EXAMPLES[1]),
}


def drawn(name, num, seed=0):
    labels = np.arange(num) % 3 if name == "by_class" else None
    return np.asarray(jax.jit(PRIORS[name])(keys(num, seed), labels))


@pytest.mark.parametrize("name", PRIORS)
def test_a_sample_depends_only_on_its_own_key_in_any_batch_and_in_float64(name):
    whole = drawn(name, 70)  # More than a block of a mixture.
    labels = np.array([5, 2]) % 3 if name == "by_class" else None
    part = PRIORS[name](keys(70)[jnp.array([5, 2])], labels)
    np.testing.assert_allclose(part, whole[[5, 2]], rtol=1e-5, atol=1e-5)
    with jax.enable_x64(True):
        wide = drawn(name, 70)
    assert wide.dtype == whole.dtype == np.float32
    np.testing.assert_allclose(wide, whole, rtol=1e-5, atol=1e-5)
    before = jax.vmap(lambda key: jax.random.normal(key, (1, 3)))(keys(70))
    assert not np.any(np.isclose(whole, before, atol=1e-6)), "what was drawn with the same keys"
    if name != "low_rank":  # Which is clipped.
        assert len(np.unique(whole.round(6))) > 0.99 * whole.size


def test_normal_and_uniform_samples_have_their_moments():
    x = np.asarray(priors.normal((2, 2), 2.5)(keys(5_000)))
    assert x.mean() == pytest.approx(0.0, abs=SIGMAS * 2.5 / np.sqrt(x.size))
    assert x.var() == pytest.approx(2.5**2, rel=SIGMAS * np.sqrt(2.0 / x.size))
    x = np.asarray(priors.uniform((2, 2), 0.0, 3.0)(keys(5_000)))
    counts, _ = np.histogram(x, bins=10, range=(0.0, 3.0))
    assert counts.sum() == x.size
    assert np.all(abs(counts - x.size / 10) < SIGMAS * np.sqrt(x.size / 10))


def test_the_batch_prior_starts_at_images_of_the_batch_with_noise_on_request():
    batch = {"source": jnp.ones((400, 8)), "other": jnp.zeros((400, 8))}
    for field in batch:
        prior = priors.batch(field)
        np.testing.assert_array_equal(prior.sample((), keys(400), batch), batch[field])
    noisy = priors.batch("other", dequantisation=0.03).sample((), keys(400), batch)
    assert np.std(noisy) == pytest.approx(0.03, rel=0.1)


@pytest.mark.parametrize("name", ["full", "few", "mixture", "by_class"])
def test_samples_of_a_fit_have_its_mean_and_covariance(name):
    num, params = 20_000, PRIORS[name].params
    x = drawn(name, num).reshape(num, -1)
    labels = np.arange(num) % 3
    weights = params["weights"] if name != "by_class" else params["weights"].mean(axis=0)
    mean = weights @ params["mean"]
    spread = params["mean"] - mean
    expected = sum(
        w * (of_model(PRIORS[name], i) + np.outer(spread[i], spread[i]))
        for i, w in enumerate(weights)
    )
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=SIGMAS * 4 / np.sqrt(num))
    np.testing.assert_allclose(covariance(x), expected, atol=0.5 if len(weights) > 1 else 0.1)
    if name == "by_class":
        for label in range(3):
            own = x[labels == label].mean(axis=0)
            np.testing.assert_allclose(own, CENTRES[label], atol=0.5)


# Fits


@pytest.mark.parametrize("num", [1, 15, 59, 60, 400])
def test_without_a_rank_the_covariance_is_exact_in_one_pass_of_batches_of_any_size(
    num, monkeypatch
):
    monkeypatch.setattr(_prior_fit, "_BLOCK", 16)  # Rows of the covariance.
    x = 1e4 + decaying(num)  # Far from zero, so that squares would cancel.
    prior = priors.fit(np.split(x, [3, 3, 40]))
    expected = (covariance(x) if num > 1 else np.zeros((60, 60))) + 1e-4 * np.eye(60)
    np.testing.assert_allclose(of_model(prior), expected, atol=2e-6)
    np.testing.assert_allclose(prior.params["mean"][0], x.mean(axis=0), rtol=1e-6)
    assert prior.params["factor"].shape == (60, min(num, 60))


def test_the_moments_are_those_of_the_reference_implementation():
    golden = np.load(GOLDEN / "original_tiny_ddp_expected.npz")
    prior = priors.fit(np.array_split(golden["X"], 7))
    np.testing.assert_allclose(prior.params["mean"][0], golden["mean"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(of_model(prior), golden["covariance"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("shape", [(60,), (5, 4, 3)])
def test_a_rank_keeps_the_leading_directions_and_the_variance_of_every_frequency(shape):
    x = decaying()
    prior = priors.fit(x.reshape(-1, *shape), rank=10)
    values = np.linalg.eigvalsh(covariance(x))[::-1]
    held = np.sum(np.square(prior.params["factor"]))
    assert held == pytest.approx(values[:10].sum(), abs=2e-3 * values.sum())

    def spectrum(covariance):
        rows = np.linalg.cholesky(covariance).T.reshape(-1, *shape)
        axes = range(1, len(shape) + 1)
        return np.square(fft.dctn(rows, axes=axes, norm="ortho")).sum(axis=0)

    wanted = spectrum(covariance(x) + 1e-4 * np.eye(60))
    np.testing.assert_allclose(spectrum(of_model(prior)), wanted, rtol=1e-4)
    full = priors.fit(x, rank=60)
    np.testing.assert_allclose(of_model(full), covariance(x) + 1e-4 * np.eye(60), atol=1e-5)


def test_clusters_that_are_far_apart_are_found_and_have_their_shares():
    x, numbers = blobs()
    prior = priors.fit(x, num_components=3, rank=3)
    order = np.argmin(
        np.linalg.norm(prior.params["mean"][:, None] - CENTRES[None], axis=-1), axis=1
    )
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(prior.params["weights"], np.array([0.3, 0.6, 0.1])[order], rtol=1e-6)
    for i, number in enumerate(order):
        expected = covariance(x[numbers == number]) + 1e-4 * np.eye(3)
        np.testing.assert_allclose(of_model(prior, i), expected, atol=1e-4)


def test_clusters_without_examples_are_left_out_and_classes_have_their_own():
    same = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    assert len(priors.fit(same, num_components=9, rank=1).params["mean"]) == 3
    x, labels = blobs()
    params = priors.fit(x, num_components=2, rank=1, labels=labels).params
    assert params["weights"].shape == (3, 6)
    np.testing.assert_allclose(params["weights"].sum(axis=1), 1.0, rtol=1e-6)
    assert [int((row > 0).sum()) for row in params["weights"]] == [2, 2, 2]


def test_stored_arrays_give_the_same_prior_and_jax_sees_them_as_arguments():
    fitted = PRIORS["mixture"]
    again = priors.mixture(jax.tree.map(jnp.asarray, fitted.params), (1, 3))
    np.testing.assert_array_equal(again(keys(9)), fitted(keys(9)))
    moved = {**fitted.params, "mean": fitted.params["mean"] + 1.0}
    x = fitted.sample(moved, keys(9), {})
    np.testing.assert_allclose(x, fitted(keys(9)) + 1.0, atol=1e-5)


def test_a_label_out_of_range_is_nan_where_it_is_traced():
    x = jax.jit(PRIORS["by_class"])(keys(3), jnp.array([0, 3, -1]))
    np.testing.assert_array_equal(np.isnan(x[:, 0, 0]), [False, True, True])


@pytest.mark.parametrize(
    ("num", "shape", "rank", "num_components", "num_classes", "expected"),
    [
        (10_000, (8, 8, 1), None, 1, None, (1, 0)),  # The full covariance.
        (10_000, (128, 128, 3), None, 1, None, (1, 512)),
        # As many as fit the training data.
        (2_099, (8, 8, 1), None, None, None, (1, 0)),
        (2_100, (8, 8, 1), None, None, None, (30, 35)),  # Half of the 70 examples of each.
        (10_000, (8, 8, 1), None, None, 10, (10, 50)),
        (10**6, (32, 32, 3), None, None, None, (100, 50)),
        (10**6, (128, 128, 3), 100, None, None, (30, 100)),  # A factor of 100 would have 2 GB.
        (0, (2,), None, None, None, (1, 0)),  # Generated points.
    ],
)
def test_the_number_of_gaussians_and_their_rank(
    num, shape, rank, num_components, num_classes, expected
):
    options = {"rank": rank, "num_components": num_components, "num_classes": num_classes}
    assert priors.choose(num, int(np.prod(shape)), **options) == expected


X = EXAMPLES[0]
NAN = np.where(np.arange(200)[:, None, None] == 7, np.nan, X)
MISUSE = {
    "scale": (lambda: priors.normal((2,), 0.0), "must be positive, got 0.0"),
    "box": (lambda: priors.uniform((2,), 1.0, 1.0), "needs low < high, got 1.0 and 1.0"),
    "no batches": (lambda: priors.fit([]), "at least one example"),
    "nan": (lambda: priors.fit(NAN), "the examples are not finite"),
    "rank": (lambda: priors.fit(X, rank=4), "the rank must be from 1 to 3"),
    "components": (lambda: priors.fit(X, num_components=201), "from 1 to 200, got 201"),
    "none": (lambda: priors.fit(X, num_components=0), "at least 1, got 0"),
    "batches": (lambda: priors.fit([X], num_components=2), "all examples in one array"),
    "labels": (lambda: priors.fit(X, labels=np.zeros(3, int)), "one integer >= 0 per example"),
    "class": (lambda: priors.fit(X, labels=np.full(200, 1)), "label 0 of 2 has no examples"),
    "singular": (lambda: priors.fit(np.zeros((9, 2)), jitter=0.0), "raise the jitter"),
    "no label": (lambda: PRIORS["by_class"](keys(3)), "it needs labels"),
    "shape": (
        lambda: priors.mixture({**PRIORS["mixture"].params, "mean": np.zeros((3, 2))}, (3,)),
        r"mean of 3 Gaussians must have shape \(3, 3\), got \(3, 2\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_an_error_that_says_what_is_needed(call, message):
    with pytest.raises(ValueError, match=message):
        call()
