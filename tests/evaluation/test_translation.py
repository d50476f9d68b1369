"""Unpaired translation of digits: the pair of domains, and its metrics."""

import jax
import numpy as np
import pytest

from experiments import pictures
from experiments.data.built_in import digits
from experiments.errors import DataError
from experiments.evaluation import Samples, inception, references, translation
from experiments.evaluation.inception import Inception
from experiments.evaluation.metrics import Estimate, Metric
from experiments.evaluation.translation import evaluate_translation


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
def test_the_error_for_a_class_that_is_not_a_digit_lists_the_digits(classes):
    with pytest.raises(DataError, match=r"must both be digits, 0, 1, 2"):
        digits(*classes)


def evaluate(pair, translated):
    reference = references.of(pair)
    sources = reference.starts[: len(translated)]
    return evaluate_translation(reference, Samples(sources, translated, translated))


def test_unchanged_sources_are_kept_and_are_not_the_target(pair):
    found = evaluate(pair, pair.starts(np.arange(30)))
    share = found.metrics["target_share_svc_30"]
    assert share.value == share.prior.value < 0.1
    assert share.real.value > 0.9
    assert found.metrics["distance_to_own_source"].value == 0.0
    own = found.metrics["own_source_nearest_share_30"]
    assert (own.value, own.prior.value) == (1.0, 1.0)
    assert own.real.value == pytest.approx(1 / 30)
    assert found.record["num_images"] == 30


def test_random_images_of_the_target_are_the_target_and_keep_nothing(pair):
    found = evaluate(pair, pair.held_out(30, 0))
    assert found.metrics["target_share_svc_30"].value > 0.9
    assert found.metrics["own_source_nearest_share_30"].value < 0.3
    own, others = (found.metrics[f"distance_to_{x}"].value for x in ("own_source", "other_sources"))
    assert own == pytest.approx(others, rel=0.2)


def test_domains_of_other_images_are_distinguished_by_a_classifier_of_the_two(pair):
    found = evaluate(pair._replace(name="folder"), pair.held_out(30, 0))
    share = found.metrics["target_share_svc_30"]
    assert share.value > 0.9
    assert share.prior.value < 0.1


def test_the_picture_names_both_domains_and_says_what_is_kept_and_what_is_the_target(pair):
    found = evaluate(pair, pair.starts(np.arange(30)))
    caption = translation.caption(found.metrics)
    assert caption.startswith("classified as the target: 0% (sources 0%, targets 9")
    assert caption.endswith("nearest to their own source: 100% (by chance 3.3%)")
    images = pair.held_out(4, 0)
    figure = pictures.samples_and_data(pair, images, images, ("3", "8"), caption)
    assert [ax.get_title() for ax in figure.axes][::2] == ["source: 3", "target: 8"]
    assert figure.get_supxlabel() == caption


def test_inception_metrics_compare_translations_of_unseen_sources_with_unseen_targets(
    pair, monkeypatch
):
    seen = {}

    def by_inception(samples, real, networks):
        for name, images in (("samples", samples), ("real", real)):
            seen[name] = np.concatenate(list(images.batches()))
        assert not samples.is_rounded
        return [Metric("fid_legacy_fdrl_36", "fid", Estimate(108.1))], [{"protocol": "legacy"}]

    monkeypatch.setattr(inception, "by_inception", by_inception)
    reference = references.of(pair)
    translated = 0.5 * reference.starts[:50]
    networks = Inception({"fid_legacy_fdrl": "weights.pth"}, ("fid",))

    def evaluated():
        samples = Samples(reference.starts[:50], translated, translated)
        return evaluate_translation(reference, samples, inception=networks)

    found = evaluated()
    assert found.metrics["fid_legacy_fdrl_36"].value == 108.1
    assert found.record["protocols"] == [{"protocol": "legacy"}]
    np.testing.assert_array_equal(seen["samples"], translated[: reference.num_held_out])
    np.testing.assert_array_equal(seen["real"], reference.images)
    assert reference.num_held_out < 50

    def fails(*_):
        raise RuntimeError("no memory\nsecond line")

    monkeypatch.setattr(inception, "by_inception", fails)
    found = evaluated()
    assert found.record["skipped"] == ["Inception metrics: no memory"]
    assert "target_share_svc_50" in found.metrics
