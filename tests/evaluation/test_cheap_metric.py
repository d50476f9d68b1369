"""The metric during training: quick, repeatable, and better for better samples."""

import numpy as np
import pytest

from experiments.data.digits import digits
from experiments.data.toy import gaussians8
from experiments.evaluation import references
from experiments.evaluation.cheap import cheap_metric, num_read
from fdrl_jax.metrics import random_conv_features


@pytest.mark.parametrize("source", [gaussians8(), digits()], ids=lambda source: source.name)
def test_the_cheap_metric_grows_with_noise_and_names_its_number_of_samples(source):
    clean, reference = source.train()[:300], references.of(source)
    noise = np.random.default_rng(0).normal(size=clean.shape).astype(np.float32)
    judged = [cheap_metric(reference, clean + scale * noise) for scale in (0.0, 0.2, 0.4, 0.8)]
    assert all(m.defined.direction == "lower" and m.name.endswith("_300") for m in judged)
    assert [m.value for m in judged] == sorted(m.value for m in judged)
    assert judged[-1].value > 5 * abs(judged[0].value)
    assert cheap_metric(reference, clean) == judged[0]
    noise[0] = np.nan
    assert np.isnan(cheap_metric(reference, noise).value)


@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (300, 9, 7, 3)])
def test_random_filters_give_each_image_64_features_independently_of_the_others(shape):
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    features = random_conv_features(images)
    assert features.shape == (shape[0], 64)
    np.testing.assert_allclose(features[2:], random_conv_features(images[2:]), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"got \(2, 2, 1\)"):
        random_conv_features(np.zeros((2, 2, 1)))
    with pytest.raises(ValueError, match=r"got uint8; convert bytes with images / 127.5 - 1"):
        random_conv_features(np.zeros(shape, np.uint8))


def test_digits_use_the_metric_of_their_evaluation_and_other_images_random_filters():
    reference = references.of(digits())
    samples = digits().train()[:400]
    assert [num_read(reference, num) for num in (100, 400)] == [100, 360]
    assert cheap_metric(reference, samples).name == "frechet_svc_360"
    plain = reference._replace(fit_images=None)
    assert num_read(plain, 400) == 400
    assert cheap_metric(plain, samples).name == "frechet_random_conv_400"
    samples[0] = np.nan  # The filters' features of such an image are finite.
    assert np.isnan(cheap_metric(plain, samples).value)
