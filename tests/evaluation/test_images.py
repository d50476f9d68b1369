"""Metrics of images have values of the prior and of equally many real images next to them."""

import numpy as np
import pytest

from experiments.data.built_in import digits, gaussians8
from experiments.data.decode import to_unit
from experiments.data.source import Source
from experiments.evaluation import Samples, draws, references
from experiments.evaluation.cheap import cheap_metric, num_read
from experiments.evaluation.images import evaluate_images
from experiments.evaluation.references import ImageReference
from fdrl_jax.metrics import frechet_distance


def by_brightness(images):
    """Classifies images by the sign of their mean; the features are means of channels."""
    bright = 1.0 / (1.0 + np.exp(-20.0 * images.mean(axis=(1, 2, 3))))
    return np.stack([1.0 - bright, bright], axis=1), images.mean(axis=(1, 2))


@pytest.fixture(scope="module")
def found(stripes):
    reference = ImageReference("stripes", to_unit(stripes(120, 0)))
    samples = Samples(*(to_unit(stripes(300, seed)) for seed in (1, 2, 3)))
    noise = np.random.default_rng(0).uniform(-1, 1, samples.prior.shape).astype(np.float32)
    train = to_unit(stripes(200, 4))
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
    images = to_unit(stripes(8, 0))
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


def test_draws_have_disjoint_halves_and_disjoint_samples_while_there_are_enough():
    def draws_of(num_images, num_spare, num_samples):
        spare = np.full((num_spare, 1), 0.75) if num_spare else None
        reference = ImageReference("x", np.full((num_images, 1), 0.25), spare=spare)
        samples, prior = np.full((num_samples, 1), -0.25), np.full((num_samples, 1), -2.0)
        pool = draws.pool(reference, samples, prior)
        for draw in pool.draws:
            real = 0.75 if num_spare else 0.25
            for rows, value in zip(draw, (0.25, -0.25, -1.0, real), strict=True):
                assert set(pool.images[rows, 0]) == {value}
        return pool.draws

    halves = draws_of(100, 0, 250)
    for draw in halves:
        assert [len(rows) for rows in draw] == [50] * 4
        assert not set(draw.reference) & set(draw.real)
    assert len({i for draw in halves for i in draw.samples}) == 250
    with_spare = draws_of(100, 300, 120)
    assert len({i for draw in with_spare for i in draw.reference}) == 100
    assert with_spare[0].real.tolist() != with_spare[1].real.tolist()
    assert all(len(set(draw.samples)) == 100 for draw in with_spare)
    assert draws_of(3, 0, 50) == []


def test_few_images_have_no_metrics_by_neighbours():
    features = np.random.default_rng(0).normal(size=(8, 3))
    assert draws.feature_scores(features, features[:5]).keys() == {"frechet"}
    scores = draws.feature_scores(features, features)
    assert (scores["precision"], scores["coverage"]) == (1.0, 1.0)
    assert scores["frechet"] < 1e-9


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
