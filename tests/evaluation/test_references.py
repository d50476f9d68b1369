"""References are stored with a run, and evaluations need no other data."""

import jax
import numpy as np
import pytest

from experiments.data.built_in import digits
from experiments.data.source import Source
from experiments.errors import DataError, UserError
from experiments.evaluation import Samples, references
from experiments.evaluation.draws import cheap_metric
from experiments.evaluation.translation import evaluate_translation


@pytest.mark.parametrize("classes", [("", ""), ("3", "8")])
def test_a_stored_reference_equals_what_was_stored(classes, tmp_path):
    reference = references.of(digits(*classes))
    references.save(reference, tmp_path / "reference.npz")
    restored = references.load(tmp_path / "reference.npz")
    jax.tree.map(np.testing.assert_array_equal, restored, reference)
    assert jax.tree.structure(restored) == jax.tree.structure(reference)
    if reference.starts is not None:
        images = restored.images[:20]
        found = evaluate_translation(restored, Samples(images, images, images))
        assert "target_share_svc_20" in found.metrics


def test_ten_thousand_held_out_images_are_stored_and_the_cheap_metric_reads_the_first_of_them():
    images = np.random.default_rng(0).random((12_000, 4, 4, 1), np.float32)
    source = Source("noise", (4, 4, 1), held_out=lambda num, seed: images[:num])
    reference = references.of(source)
    np.testing.assert_array_equal(reference.images, images[:10_000])
    few = reference._replace(images=images[:2_000])
    assert cheap_metric(reference)(images[:100]) == cheap_metric(few)(images[:100])
    wide = source._replace(event_shape=(256, 256, 3), held_out=lambda num, seed: np.zeros((num, 1)))
    assert len(references.of(wide).images) == 170, "32 MiB of pixels"


def test_a_run_without_its_data_has_their_held_out_images_and_refuses_to_train():
    kept = references.of(digits("3", "8"))
    described = {"name": "digits", "event_shape": [8, 8, 1], "classes": ["3"], "identity": "a"}
    source = references.frozen_source(kept, described)
    np.testing.assert_array_equal(source.held_out(5, 0), kept.images[:5])
    np.testing.assert_array_equal(source.starts(np.arange(3)), kept.starts[:3])
    with pytest.raises(UserError, match=f"stores only {len(kept.starts)} images"):
        source.starts(np.array([len(kept.starts)]))
    with pytest.raises(DataError, match="needs the training data"):
        source.train()
