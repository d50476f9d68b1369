"""Metrics of images have values of the prior and of equally many real images next to them."""

import numpy as np
import pytest

from experiments.data.digits import digits
from experiments.data.source import Source
from experiments.evaluation import Samples, references
from experiments.evaluation.images import evaluate_images
from experiments.evaluation.references import ImageReference


def unit(pixels):
    return pixels / np.float32(127.5) - np.float32(1.0)


def by_brightness(images):
    """Classifies images by the sign of their mean; the features are means of channels."""
    bright = 1.0 / (1.0 + np.exp(-20.0 * images.mean(axis=(1, 2, 3))))
    return np.stack([1.0 - bright, bright], axis=1), images.mean(axis=(1, 2))


@pytest.fixture(scope="module")
def found(stripes):
    reference = ImageReference("stripes", unit(stripes(120, 0)))
    samples = Samples(*(unit(stripes(300, seed)) for seed in (1, 2, 3)))
    noise = np.random.default_rng(0).uniform(-1, 1, samples.prior.shape).astype(np.float32)
    train = unit(stripes(200, 4))
    return evaluate_images(
        reference,
        samples._replace(prior=noise),
        source=Source("x", (16, 16, 3), train_batches=lambda: iter([train[:150], train[150:]])),
        classifier=by_brightness,
    )


def test_samples_like_the_data_score_like_real_images_and_noise_does_not(found):
    for name in ("frechet_random_conv_60", "pixel_energy_distance_60"):
        metric = found.metrics[name]
        assert metric.samples.spread > 0
        assert metric.real.spread > 0
        assert abs(metric.relative_distance) < 0.3, name
        assert metric.prior.value > metric.real.value + 5 * metric.real.spread


def test_a_classifier_gives_features_confidence_and_classes_and_is_recorded(found):
    shares = found.record["class_shares_classifier"]
    assert set(shares) == {"samples", "prior", "real"}
    assert sum(shares["samples"]) == pytest.approx(1.0)
    sure = found.metrics["top_probability_classifier_60"]
    assert 0.5 < sure.value < 1.0
    assert sure.value == pytest.approx(sure.real.value, abs=0.05)
    smallest, largest = (
        found.metrics[f"{side}_class_share_classifier_60"].value for side in ("smallest", "largest")
    )
    assert smallest + largest == pytest.approx(1.0)
    assert found.metrics["frechet_classifier_60"].prior.value > 0


def test_the_nearest_training_images_are_found_as_well(found):
    assert found.record["skipped"] == []
    assert set(found.nearest) == {"pixels", "random_conv", "classifier"}  # Figures 10 and 11.
    assert {images.shape for images in found.nearest.values()} == {(8, 10, 16, 16, 3)}
    assert 0.3 < found.metrics["memorisation_auc_classifier"].value < 0.7
    assert 0.3 < found.metrics["memorisation_auc_pixels"].value < 0.7


def test_with_one_held_out_image_there_is_no_distance_and_the_record_says_so(stripes):
    images = unit(stripes(8, 0))
    found = evaluate_images(ImageReference("one", images[:1]), Samples(images, images, images))
    assert found.metrics == {}
    assert found.record["skipped"][0].startswith("distances: fewer than 4 held-out images")


def test_digits_are_compared_with_all_held_out_digits_by_a_classifier_that_is_new_to_them():
    source = digits()
    reference = references.of(source)
    train = source.train()
    mean = np.broadcast_to(train.mean(axis=0), train.shape)
    found = evaluate_images(reference, Samples(mean, train, train))
    metric = found.metrics["frechet_svc_360"]
    assert metric.real.value < 0.5 < metric.prior.value
    assert abs(metric.relative_distance) < 0.1
    assert found.metrics["top_probability_svc_360"].real.value > 0.8
    assert len(found.record["class_shares_svc"]["real"]) == 10
