"""The fitted prior is part of the run: it is read back unchanged, or rejected."""

import chex
import numpy as np
import pytest
from small_runs import start

from experiments import prior, run
from experiments.data import load
from experiments.errors import UserError
from fdrl_jax import _prior_fit


@pytest.mark.parametrize("changes", [{}, {"prior.rank": 2}, {"prior.num_components": 3}])
def test_a_run_reads_its_prior_back_bit_for_bit(changes, tiny, tmp_path):
    wanted = tiny("digits", changes)
    source = load(wanted.data)
    fitted = prior.fit_to(source, wanted.prior, None)
    with run.locked_folder(tmp_path / "run"):
        run.create(tmp_path / "run", "ratio", wanted, source, fitted, "a command")
    chex.assert_trees_all_equal(run.open_run(tmp_path / "run").prior(), fitted)


def test_a_mixture_has_a_gaussian_for_each_cluster_or_each_class(tiny):
    wanted = tiny("digits", {"prior.num_components": 3, "prior.rank": 2})
    source = load(wanted.data)
    of_clusters = prior.fit_to(source, wanted.prior, None)
    assert of_clusters["mean"].shape == (3, 64)
    assert of_clusters["factor"].shape == (64, 6)
    one_each = tiny("digits", {"prior.rank": 2})
    of_classes = prior.fit_to(source, one_each.prior, 10)
    images, labels = source.train(), source.labels.train
    for label, mean in enumerate(of_classes["mean"]):
        expected = images[labels == label].reshape(-1, 64).mean(axis=0)
        np.testing.assert_allclose(mean, expected, atol=1e-5)
    for of, fitted, num in ((wanted, of_clusters, None), (one_each, of_classes, 10)):
        like = prior.placeholder(of.prior, source, num)
        for array_name, array in fitted.items():
            assert np.shape(array) == np.shape(like[array_name])


def test_a_large_training_set_is_represented_by_examples_spread_over_it(tiny, monkeypatch):
    monkeypatch.setattr(prior, "_MAX_NUMBERS", 64 * 500)
    wanted = tiny("digits", {"prior.num_components": 2})
    fitted = prior.fit_to(load(wanted.data), wanted.prior, 10)
    assert len(fitted["mean"]) == 20  # Two for each class.


def test_every_class_needs_images(tiny):
    wanted = tiny("digits")
    source = load(wanted.data)
    labels = source.labels._replace(train=np.maximum(source.labels.train, 2))
    with pytest.raises(UserError, match="no training images of the classes 0, 1"):
        prior.fit_to(source._replace(labels=labels), wanted.prior, 10)


def test_more_gaussians_than_images_are_an_error_of_the_config(tmp_path):
    changes = {"prior.num_components": 2_000}
    with pytest.raises(UserError, match="config: the number of components must be from 1"):
        start("train", tmp_path / "run", "digits:tiny", changes)


@pytest.mark.slow
@pytest.mark.parametrize(("by_class", "shape"), [(False, (3,)), (True, (10, 20))])
def test_a_run_with_as_many_components_as_fit_is_resumed(tmp_path, monkeypatch, by_class, shape):
    monkeypatch.setattr(_prior_fit, "_MIN_CLUSTERS", 2)
    monkeypatch.setattr(_prior_fit, "_EXAMPLES_PER_CLUSTER", 60 if by_class else 400)
    changes = {"prior.num_components": 0, "network.by_class": by_class}
    start("train", tmp_path / "run", "digits:tiny", changes)
    assert np.load(tmp_path / "run" / "prior.npz")["weights"].shape == shape
    start("sample", tmp_path / "run")
