"""Unpaired translation of digits: the pair of domains, and its metrics."""

import jax
import numpy as np
import pytest

from experiments.data import digits
from experiments.errors import DataError
from experiments.evaluation import translation


@pytest.fixture(scope="module")
def pair():
    return digits("3", "8")


def test_a_pair_of_digits_has_the_classes_and_starts_from_held_out_images_first(pair):
    whole = digits()
    positions = np.arange(64, dtype=np.int32)
    batch = pair.draw(pair.arrays, None, jax.random.key(0), positions)

    def labels_of(images):
        known = {x.tobytes(): y for x, y in zip(whole.arrays["real"], whole.labels[0], strict=True)}
        return {known[np.asarray(image).tobytes()] for image in images}

    assert labels_of(batch["real"]) == {8}
    assert labels_of(batch["source"]) == {3}
    num_held_out, total = pair.starts.num_held_out, pair.starts.num
    unseen = whole.held_out(360, 0)[whole.labels[1] == 3]
    np.testing.assert_array_equal(pair.starts(np.arange(num_held_out)), unseen)
    np.testing.assert_array_equal(pair.starts(np.array([total])), pair.starts(np.array([0])))


@pytest.mark.parametrize("classes", [("3", ""), ("3", "x")])
def test_a_class_that_is_no_digit_is_answered_with_the_digits(classes):
    with pytest.raises(DataError, match=r"must both be digits, 0, 1, 2"):
        digits(*classes)


def test_sources_left_as_they_are_are_kept_and_no_target(pair):
    told = translation.metrics(pair, pair.starts(np.arange(30)))
    assert told["target_share"] == told["target_share_of_source"] < 0.1
    assert told["target_share_of_data"] > 0.9
    assert told["distance_to_own_source"] == 0.0
    assert told["own_source_nearest_share"] == 1.0
    assert told["num_samples"] == 30


def test_random_images_of_the_target_are_the_target_and_keep_nothing(pair):
    told = translation.metrics(pair, pair.held_out(30, 0))
    assert told["target_share"] > 0.9
    assert told["own_source_nearest_share"] < 0.3
    assert told["distance_to_own_source"] == pytest.approx(
        told["distance_to_other_sources"], rel=0.2
    )


def test_domains_of_other_images_are_judged_by_a_classifier_of_the_two(pair):
    told = translation.metrics(pair._replace(name="folder"), pair.held_out(30, 0))
    assert told["target_share"] > 0.9
    assert told["target_share_of_source"] < 0.1
