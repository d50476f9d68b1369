"""The metric taken during training: quick, repeatable, and better for better samples."""

import numpy as np
import pytest
from experiments.evaluation.naming import with_count

from experiments.data import digits
from experiments.data.toy import gaussians8
from experiments.evaluation.cheap import cheap_metric
from fdrl_jax.metrics import random_conv_features


@pytest.mark.parametrize("source", [gaussians8(), digits()], ids=lambda source: source.name)
def test_the_cheap_metric_grows_with_noise_and_names_its_number_of_samples(source):
    clean = source.train()[:300]
    noise = np.random.default_rng(0).normal(size=clean.shape).astype(np.float32)
    judged = [cheap_metric(source, clean + scale * noise) for scale in (0.0, 0.2, 0.4, 0.8)]
    assert all(m.lower_is_better and m.name.endswith("_300") for m in judged)
    assert [m.value for m in judged] == sorted(m.value for m in judged)
    assert judged[-1].value > 5 * abs(judged[0].value)
    assert cheap_metric(source, clean) == judged[0]


@pytest.mark.parametrize(
    ("num", "name"), [(50_000, "fid_50k"), (5_000, "fid_5k"), (360, "fid_360"), (1_500, "fid_1500")]
)
def test_names_of_metrics_tell_the_number_of_samples(num, name):
    assert with_count("fid", num) == name


@pytest.mark.parametrize("shape", [(3, 8, 8, 1), (300, 9, 7, 3)])
def test_random_filters_give_64_features_to_each_image_by_itself(shape):
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    features = random_conv_features(images)
    assert features.shape == (shape[0], 64)
    np.testing.assert_allclose(features[2:], random_conv_features(images[2:]), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"got \(2, 2, 1\)"):
        random_conv_features(np.zeros((2, 2, 1)))
