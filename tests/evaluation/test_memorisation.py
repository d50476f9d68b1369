"""Copies of training images are detected, and new images are not."""

import numpy as np
import pytest

from experiments.evaluation import memorisation
from experiments.pictures import save
from experiments.pictures.images import neighbours
from fdrl_jax.metrics import random_conv_features

SPACES = {"pixels": None, "random_conv": random_conv_features}


@pytest.fixture(scope="module")
def images(stripes):
    """Training and held-out images, in [-1, 1]."""
    pixels = stripes(300, 0, size=8) / np.float32(127.5) - np.float32(1.0)
    return pixels[:200], pixels[200:]


def values(metrics):
    return {metric.name: metric.value for metric in metrics}


def in_batches(train, size=64):
    return lambda: (train[first : first + size] for first in range(0, len(train), size))


@pytest.mark.parametrize("features", SPACES.values(), ids=SPACES)
def test_neighbours_are_those_of_a_brute_force_search_whatever_the_batches(images, features):
    train, held_out = images
    space = features or (lambda x: x.reshape(len(x), -1))
    gaps = space(held_out)[:, None].astype(float) - space(train)[None].astype(float)
    distances = np.linalg.norm(gaps, axis=-1)
    found = memorisation.nearest(held_out, in_batches(train)(), 3, features)
    np.testing.assert_array_equal(found.indices, np.argsort(distances, axis=1)[:, :3])
    np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :3], rtol=1e-4)


def test_copies_score_one_and_new_images_a_half(images, stripes):
    train, held_out = images
    copies = values(memorisation.search(train[:50], held_out, in_batches(train), SPACES)[0])
    new = stripes(100, 1, size=8) / np.float32(127.5) - np.float32(1.0)
    fresh = values(memorisation.search(new, held_out, in_batches(train), SPACES)[0])
    for space in SPACES:
        assert copies[f"memorisation_auc_{space}"] == pytest.approx(1.0)
        assert copies[f"memorisation_median_ratio_{space}"] == pytest.approx(0.0, abs=1e-3)
        assert copies[f"memorisation_p_value_{space}"] < 1e-9
        assert fresh[f"memorisation_auc_{space}"] == pytest.approx(0.5, abs=0.12)
        assert fresh[f"memorisation_median_ratio_{space}"] == pytest.approx(1.0, abs=0.2)


def test_mirror_images_of_training_images_are_found_where_they_are_searched(images):
    train, held_out = images
    arguments = train[:50, :, ::-1], held_out, in_batches(train), SPACES
    missed = values(memorisation.search(*arguments)[0])
    found = values(memorisation.search(*arguments, mirrored=True)[0])
    for space in SPACES:
        assert missed[f"memorisation_auc_{space}"] < 0.8
        assert found[f"memorisation_auc_{space}"] == pytest.approx(1.0)


def test_the_picture_shows_each_sample_next_to_its_nearest_training_images(images, tmp_path):
    train, held_out = images
    samples = np.concatenate([train[10:12], held_out[:3]])
    _, shown = memorisation.search(samples, held_out, in_batches(train), SPACES, num_neighbours=4)
    assert shown["pixels"].shape == (5, 4, 8, 8, 3)
    np.testing.assert_array_equal(shown["pixels"][:2, 0], train[10:12])
    for space in SPACES:
        queries = memorisation.nearest(samples, in_batches(train)(), 4, SPACES[space])
        np.testing.assert_array_equal(shown[space], train[queries.indices])
    path = save(neighbours(samples, shown), tmp_path / "neighbours.png")
    assert path.stat().st_size > 1_000


def test_the_training_set_is_read_once_per_space_and_only_what_is_shown_is_kept(images):
    train, held_out = images
    passes = []

    def counted():
        passes.append(1)
        return in_batches(train)()

    memorisation.search(train[:20], held_out, counted, SPACES, num_shown=2, num_neighbours=3)
    assert len(passes) == len(SPACES)
    near = memorisation.nearest(train[:20], in_batches(train)(), 3, num_shown=2)
    assert near.images.shape == (2, 3, 8, 8, 3)
    assert near.images.base is None or near.images.base.size == near.images.size
