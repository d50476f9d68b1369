"""`fit`: one call for points, images, classes, and samples of another generator."""

import jax
import numpy as np
import pytest
from flax import linen as nn

import fdrl_jax as fdrl

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(400, 2)) * [100.0, 0.01] + [5.0, -3.0]
IMAGES = np.clip(RNG.normal(size=(40, 8, 8, 1), scale=0.3), -1, 1).astype(np.float32)
LABELS = RNG.integers(0, 2, 400)
TINY = fdrl.networks.ResNet(fdrl.networks.ResNetSpec(4, ((4, 2),)))
SHORT = fdrl.FDRL(num_steps=2, step_size=0.1, noise_scale=0.01)
ANGLES = 2 * np.pi * np.random.default_rng(0).integers(0, 8, 20_000) / 8
MODES = np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)
RING = MODES + 0.0141 * np.random.default_rng(1).normal(size=MODES.shape)
MLP = fdrl.networks.MLP((4,))
BRIEF = {"num_steps": 3, "batch_size": 8, "method": SHORT}


def test_points_of_any_unit_come_back_in_it_and_the_ratio_is_of_it():
    seen = []
    sampler = fdrl.fit(
        KEY, POINTS, num_steps=60, progress=lambda step, metrics: seen.append((step, metrics))
    )
    assert [step for step, _ in seen] == [50, 60]
    assert seen[0][1].keys() >= {"loss", "grad_norm", "ratio_real"}
    samples = np.asarray(sampler(jax.random.key(1), 1_000))
    errors = np.abs(samples.mean(axis=0) - POINTS.mean(axis=0)) / POINTS.std(axis=0)
    assert errors.max() < 0.2
    np.testing.assert_allclose(samples.std(axis=0), POINTS.std(axis=0), rtol=0.15)
    path = sampler.path(jax.random.key(1), 5)
    np.testing.assert_allclose(path[-1], samples[:5], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(path[0], sampler.prior(jax.random.key(1), 5), rtol=1e-4, atol=1e-3)
    assert np.all(np.abs(sampler.log_ratio(POINTS.astype(np.float32))) < 2.0)


@pytest.mark.slow
def test_a_class_has_its_own_ratio():
    points = np.where(LABELS[:, None] == 1, np.add(POINTS, [1_000.0, 0.0]), POINTS)
    sampler = fdrl.fit(KEY, points, labels=LABELS, num_steps=50)
    for label in (0, 1):
        x = np.asarray(sampler(KEY, 200, labels=np.full(200, label)))
        assert np.median(x[:, 0]) == pytest.approx(5.0 + 1_000.0 * label, abs=150)
    assert sampler.log_ratio(points[:4].astype(np.float32), LABELS[:4]).shape == (4,)


def test_samples_of_another_generator_are_the_start_in_the_unit_of_the_data():
    start = np.add(POINTS[:50], [0.0, 0.02])
    sampler = fdrl.fit(KEY, POINTS, prior=start, **BRIEF)
    x0 = np.asarray(sampler.prior(KEY, 100))
    nearest = np.abs(x0[:, None] - start[None]).max(axis=-1).min(axis=1)
    assert nearest.max() < 1e-3
    assert len(np.unique(x0[:, 0])) > 20


@pytest.mark.slow
def test_images_are_trained_by_the_recipe_and_drawn_in_their_range():
    sampler = fdrl.fit(KEY, IMAGES, network=TINY, num_steps=3, batch_size=8)
    assert (sampler.method.num_steps, sampler.method.gradient_penalty) == (12, 1.0)
    images = np.asarray(sampler(KEY, 5))
    assert images.shape == (5, 8, 8, 1)
    assert np.abs(images).max() <= 1.0


@pytest.mark.slow
def test_a_network_of_the_user_has_an_output_per_class_and_the_key_determines_everything():
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x)

    options = {"labels": LABELS, "network": Linear(), **BRIEF}
    first, same, other = (
        fdrl.fit(key, POINTS, **options)(KEY, 6) for key in (KEY, KEY, jax.random.key(1))
    )
    assert first.shape == (6, 2)
    np.testing.assert_array_equal(first, same)
    assert np.all(first != other)


@pytest.mark.slow
def test_a_generator_of_own_data_finds_all_modes_of_the_ring():
    sampler = fdrl.fit(KEY, 100.0 + 10.0 * RING)
    samples = (np.asarray(sampler(jax.random.key(1), 2_000)) - 100.0) / 10.0
    angle = np.round(np.arctan2(*samples.T[::-1]) / (2 * np.pi / 8)) % 8
    centres = np.stack([np.cos(2 * np.pi * angle / 8), np.sin(2 * np.pi * angle / 8)], axis=-1)
    near = np.linalg.norm(samples - centres, axis=-1) < 4 * 0.0141
    assert near.mean() >= 0.94
    assert np.bincount(angle[near].astype(int), minlength=8).min() > 150


MISUSE = {
    "shape": (
        {"data": POINTS[:, 0]},
        r"or images \[N, H, W, C\], got float64 \(400",
    ),
    "bytes": ({"data": np.zeros((9, 8, 8, 1), np.uint8)}, "x / 127.5 - 1 maps bytes to it"),
    "range": ({"data": 200 * np.sign(IMAGES)}, r"in \[-1, 1\], got values from -200 to 200"),
    "nan": ({"data": np.full((9, 2), np.nan)}, "the data are not finite"),
    "too large": ({"data": 1e200 * POINTS}, "the data are not finite in float32"),
    "labels": ({"labels": LABELS[:5]}, "labels must be one integer >= 0 per example"),
    "names": ({"labels": np.array(["a"] * 400)}, "labels must be one integer >= 0 per example"),
    "class": ({"labels": np.full(400, 10**9)}, "label 0 of 1000000001 has no examples"),
    "complex": ({"data": POINTS + 1j}, "data must be numbers, .* got complex128"),
    "network": ({"network": print}, "network must be a Flax module"),
    "one output": ({"labels": LABELS, "network": MLP}, r"an output per class, \[B, C\], got \("),
    "method": ({"method": "kl"}, "method must be an FDRL, got 'kl'"),
    "name": ({"prior": "normal"}, "a prior must be a Prior, or finite samples"),
    "prior": ({"prior": POINTS[:, :1]}, "finite samples with the shape of the data"),
    "steps": ({"num_steps": -1}, "num_steps must be a whole number >= 1"),
    "rate": ({"learning_rate": float("nan")}, "learning_rate must be above 0 and finite"),
    "key": ({"key": 0}, "key must be a JAX key"),
    "diverged": ({"learning_rate": 1e30}, "training diverged before step 3: use a smaller"),
}


@pytest.mark.parametrize(("change", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse_is_an_error_that_says_what_is_allowed(change, message):
    options = {"key": KEY, "data": POINTS, **BRIEF} | change
    with pytest.raises((ValueError, TypeError, FloatingPointError), match=message):
        fdrl.fit(options.pop("key"), options.pop("data"), **options)
