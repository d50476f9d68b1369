"""Metrics of an unpaired translation of digits."""

import numpy as np
import pytest

from experiments.data.built_in import digits
from experiments.evaluation import Samples, references
from experiments.evaluation.translation import evaluate_translation


@pytest.fixture(scope="module")
def pair():
    return digits("3", "8")


def evaluate(pair, translated, **others):
    reference = references.of(pair)
    sources = reference.starts[: len(translated)]
    return evaluate_translation(reference, Samples(sources, translated, translated), **others)


def test_unchanged_sources_are_kept_and_are_not_the_target(pair):
    found = evaluate(pair, pair.starts(np.arange(30)))
    share = found.metrics["target_share_svc_30"]
    assert share.value == share.prior.value < 0.1
    assert share.real.value > 0.9
    assert found.metrics["distance_to_own_source"].value == 0.0
    own = found.metrics["own_source_nearest_share_30"]
    assert (own.value, own.prior.value) == (1.0, 1.0)
    assert own.real.value == pytest.approx(1 / 30)


def test_random_images_of_the_target_are_the_target_and_keep_nothing(pair):
    for source in (pair, pair._replace(name="folder")):  # Ten classes, and the two domains.
        found = evaluate(source, pair.held_out(30, 0))
        assert found.metrics["target_share_svc_30"].value > 0.9
        assert found.metrics["target_share_svc_30"].prior.value < 0.1
        assert found.metrics["own_source_nearest_share_30"].value < 0.3


def test_the_fid_compares_translations_of_unseen_sources_with_unseen_targets(pair):
    seen = []

    def features(images):
        seen.append(images)
        return images.reshape(len(images), -1)[:, :3]

    reference = references.of(pair)
    translated = 0.5 * reference.starts[:50]
    few = evaluate(pair, translated, inception=features)
    assert few.record["skipped"] == ["only 35 held-out images: distances mean nothing below 100"]
    many = reference._replace(images=np.tile(reference.images, (3, 1, 1, 1)))
    samples = Samples(reference.starts[:50], translated, translated)
    assert "fid_37" in evaluate_translation(many, samples, inception=features).metrics
    np.testing.assert_array_equal(seen[0], translated[: reference.num_held_out])
    np.testing.assert_array_equal(seen[1], many.images)
