"""Metrics of images have values of the prior and of equally many real images next to them."""

import numpy as np
import pytest

from experiments.data.built_in import digits, gaussians8
from experiments.data.decode import to_unit
from experiments.evaluation import Samples, draws, references
from experiments.evaluation.draws import cheap_metric
from experiments.evaluation.images import evaluate_images, nearest, search
from experiments.evaluation.references import ImageReference, Seen, spaces_of


def by_brightness(images):
    """Classifies images by the sign of their mean; the features are means of channels."""
    bright = 1.0 / (1.0 + np.exp(-20.0 * images.mean(axis=(1, 2, 3))))
    return np.stack([1.0 - bright, bright], axis=1), images.mean(axis=(1, 2))


@pytest.fixture(scope="module")
def found(stripes):
    reference = ImageReference("stripes", to_unit(stripes(120, 0)), np.ones(120, int))
    samples = Samples(*(to_unit(stripes(300, seed)) for seed in (1, 2, 3)))
    noise = np.random.default_rng(0).uniform(-1, 1, samples.prior.shape).astype(np.float32)
    train = to_unit(stripes(200, 4))
    return evaluate_images(
        reference,
        samples._replace(prior=noise),
        labels=np.ones(300, int),
        train_batches=lambda: iter([train[:150], train[150:]]),
        classifier=by_brightness,
        inception=lambda images: images.mean(axis=(1, 2)),
    )


def test_samples_like_the_data_score_like_real_images_and_noise_does_not(found):
    metric = found.metrics["frechet_random_conv_60"]
    assert metric.samples.spread > 0
    assert metric.prior.value > metric.real.value + 5 * metric.real.spread
    assert metric.value - metric.real.value < 0.3 * (metric.prior.value - metric.real.value)
    assert found.metrics["recall_random_conv_60"].prior.value < 0.1
    assert found.metrics["fid_300"].value < 0.1


def test_a_classifier_gives_features_confidence_and_classes(found):
    shares = found.record["class_shares"]["classifier"]["samples"]
    sure = found.metrics["top_probability_classifier_60"]
    assert 0.5 < sure.value == pytest.approx(sure.real.value, abs=0.05)
    assert found.metrics["smallest_class_share_classifier_60"].value < 0.5
    accuracy = found.metrics["class_accuracy_classifier"].value
    assert (accuracy, sum(shares)) == pytest.approx((shares[1], 1.0), abs=1e-4)


def test_the_nearest_training_images_are_found_as_well(found):
    assert found.record["skipped"] == []
    assert set(found.nearest) == {"pixels", "random_conv", "classifier"}  # Figures 10 and 11.
    assert 0.3 < found.metrics["memorisation_auc_classifier"].value < 0.7


def test_below_100_held_out_images_there_is_no_metric_but_nearest_images(stripes):
    images = to_unit(stripes(99, 0))
    few, samples = ImageReference("few", images), Samples(images, images, images)
    found = evaluate_images(few, samples, train_batches=lambda: [images])
    assert found.metrics == {}
    assert found.record["skipped"] == [references.too_few(99)]
    np.testing.assert_array_equal(found.nearest["pixels"][:, 0], images[:8])


def test_digits_are_compared_with_all_held_out_digits_by_a_classifier_that_is_new_to_them():
    reference, train = references.of(digits()), digits().train()
    mean = np.broadcast_to(train.mean(axis=0), train.shape)
    found = evaluate_images(reference, Samples(mean, train, train))
    metric = found.metrics["frechet_svc_360"]
    assert metric.value == pytest.approx(metric.real.value, abs=2 * metric.real.spread)
    assert metric.real.value < 0.5 < metric.prior.value
    assert len(found.record["class_shares"]["svc"]["held_out"]) == 10
    assert found.nearest == {}, "without the training images"


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

    halves, with_spare = draws_of(100, 0, 250), draws_of(100, 300, 120)
    for draw in halves:
        assert [len(rows) for rows in draw] == [50] * 4
        assert not set(draw.reference) & set(draw.real)
    assert len({i for draw in halves for i in draw.samples}) == 250
    assert with_spare[0].real.tolist() != with_spare[1].real.tolist()
    assert all(len(set(draw.samples)) == len({*draw.reference}) == 100 for draw in with_spare)


def test_precision_and_recall_follow_their_definition_also_for_equal_distances():
    rng = np.random.default_rng(0)
    discrete = rng.integers(0, 2, (2, 300, 8)).astype(float)
    for x, y in ((0.7 * rng.normal(size=(150, 4)) + 0.5, rng.normal(size=(200, 4))), discrete):
        near = np.linalg.norm(x[:, None] - y[None], axis=-1)
        radius_x, radius_y = (
            np.sort(np.linalg.norm(z[:, None] - z[None], axis=-1), axis=1)[:, 3] for z in (x, y)
        )
        expected = (near <= radius_y).any(1).mean(), (near <= radius_x[:, None]).any(0).mean()
        assert draws.precision_and_recall(x, y) == pytest.approx(expected)
    assert draws.precision_and_recall(x, x) == (1.0, 1.0)
    assert draws.precision_and_recall(x + 100.0, y) == (0.0, 0.0)
    x[0, 1] = np.nan
    assert np.isnan(draws.precision_and_recall(x, y)).all()


@pytest.mark.parametrize("source", [gaussians8(), digits()], ids=lambda source: source.name)
def test_the_cheap_metric_grows_with_noise_and_names_its_number_of_samples(source):
    clean, metric_of = source.train()[:300], cheap_metric(references.of(source))
    noise = np.random.default_rng(0).normal(size=clean.shape).astype(np.float32)
    judged = [metric_of(clean + scale * noise) for scale in (0.0, 0.2, 0.4, 0.8)]
    assert all(m.defined.direction == "lower" and m.name.endswith("_300") for m in judged)
    assert [m.value for m in judged] == sorted(m.value for m in judged)
    assert judged[-1].value > 5 * abs(judged[0].value)
    assert metric_of(clean) == judged[0]
    noise[0] = np.nan
    assert np.isnan(metric_of(noise).value)


@pytest.fixture(scope="module")
def small(stripes):
    """Training, held-out and new images, in [-1, 1]."""
    return np.split(to_unit(stripes(400, 0, size=8)), (200, 300))


def in_batches(train, size=64):
    return lambda: (train[first : first + size] for first in range(0, len(train), size))


def test_neighbours_are_those_of_a_brute_force_search_whatever_the_batches(small):
    train, held_out, _ = small
    ours, theirs = (x.reshape(len(x), -1).astype(float) for x in (held_out, train))
    distances = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    found, indices, images = nearest(held_out, in_batches(train)(), 3, Seen, num_shown=2)
    np.testing.assert_array_equal(indices, np.argsort(distances, axis=1)[:, :3])
    np.testing.assert_allclose(found, np.sort(distances, axis=1)[:, :3], rtol=1e-4)
    np.testing.assert_array_equal(images, train[indices[:2]])


def test_copies_score_one_and_new_images_a_half(small):
    train, held_out, new = small
    spaces = spaces_of(ImageReference("stripes", held_out))
    for samples, score, error in ((train[:50], 1.0, 1e-6), (new, 0.5, 0.12)):
        metrics, shown = search(samples, held_out, in_batches(train), spaces)
        names = ["memorisation_auc_pixels", "memorisation_auc_random_conv"]
        assert [metric.name for metric in metrics] == names
        assert [metric.value for metric in metrics] == pytest.approx([score] * 2, abs=error)
        assert shown["pixels"].shape == (8, 10, 8, 8, 3)
