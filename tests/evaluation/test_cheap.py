"""The metric during training: quick, repeatable, and better for better samples."""

import numpy as np
import pytest

from experiments.data.digits import digits
from experiments.data.points import gaussians8
from experiments.evaluation import references
from experiments.evaluation.cheap import cheap_metric, num_read
from fdrl_jax.metrics import frechet_distance


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


def test_digits_use_the_metric_of_their_evaluation_and_other_images_random_filters():
    reference = references.of(digits())
    samples = digits().train()[:400]
    assert [num_read(reference, num) for num in (100, 400)] == [100, 360]
    assert cheap_metric(reference, samples).name == "frechet_svc_360"
    plain = reference._replace(fit_images=None)
    assert num_read(plain, 400) == 400
    assert cheap_metric(plain, samples).name == "frechet_random_conv_400"

    def by_means(images):
        return np.full((len(images), 2), 0.5), images.reshape(-1, 16, 4).mean(axis=2)

    judged = cheap_metric(reference, samples, by_means)
    assert judged.name == "frechet_classifier_360"
    means = by_means(samples[:360])[1], by_means(reference.images)[1]
    assert judged.value == pytest.approx(frechet_distance(*means))
    samples[0] = np.nan  # The filters' features of such an image are finite.
    assert np.isnan(cheap_metric(plain, samples).value)
