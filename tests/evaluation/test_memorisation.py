"""Copies of training images are detected, and new images are not."""

import numpy as np
import pytest

from experiments.evaluation.images import nearest, search
from experiments.evaluation.references import ImageReference, Seen, spaces_of


@pytest.fixture(scope="module")
def images(stripes):
    """Training and held-out images, in [-1, 1]."""
    pixels = stripes(300, 0, size=8) / np.float32(127.5) - np.float32(1.0)
    return pixels[:200], pixels[200:]


def in_batches(train, size=64):
    return lambda: (train[first : first + size] for first in range(0, len(train), size))


def test_neighbours_are_those_of_a_brute_force_search_whatever_the_batches(images):
    train, held_out = images
    ours, theirs = (x.reshape(len(x), -1).astype(float) for x in (held_out, train))
    distances = np.linalg.norm(ours[:, None] - theirs[None], axis=-1)
    found = nearest(held_out, in_batches(train)(), 3, Seen, num_shown=2)
    np.testing.assert_array_equal(found.indices, np.argsort(distances, axis=1)[:, :3])
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :3], rtol=1e-4)
    np.testing.assert_array_equal(found.images, train[found.indices[:2]])


def test_copies_score_one_and_new_images_a_half(images, stripes):
    train, held_out = images
    spaces = spaces_of(ImageReference("stripes", held_out))
    new = stripes(100, 1, size=8) / np.float32(127.5) - np.float32(1.0)
    copies, shown = search(train[:50], held_out, in_batches(train), spaces)
    fresh, _ = search(new, held_out, in_batches(train), spaces)
    names = ["memorisation_auc_pixels", "memorisation_auc_random_conv"]
    assert [metric.name for metric in copies] == names
    assert [metric.value for metric in copies] == pytest.approx([1.0, 1.0])
    assert [metric.value for metric in fresh] == pytest.approx([0.5, 0.5], abs=0.12)
    assert shown["pixels"].shape == (8, 10, 8, 8, 3)
    np.testing.assert_array_equal(shown["pixels"][:, 0], train[:8])
