"""The fitted prior is part of the run: it is read back unchanged, or rejected."""

import chex
import jax
import numpy as np
import pytest

from experiments import build, prior
from experiments.build import placement
from experiments.errors import UserError
from experiments.modes import creation
from experiments.sampling import draw
from fdrl_jax.training import parallel, rng, steps


@pytest.fixture
def fitted():
    batches = [np.random.default_rng(i).normal(size=(20, 2, 3)) for i in range(3)]
    return prior.fit(batches, 0, 1e-4)


def test_the_fit_has_the_mean_and_the_covariance_of_the_data_with_the_jitter(fitted):
    data = np.concatenate([np.random.default_rng(i).normal(size=(20, 6)) for i in range(3)])
    np.testing.assert_allclose(fitted.mean, data.mean(0), atol=1e-6)
    covariance = fitted.factor @ fitted.factor.T
    np.testing.assert_allclose(covariance, np.cov(data.T) + 1e-4 * np.eye(6), atol=0.03)
    assert (fitted.num_examples, fitted.share_held) == (60, 1.0)
    assert "60 examples of 6 numbers, full covariance" in prior.describe(fitted)


def test_a_prior_that_was_written_is_read_back_bit_for_bit(fitted, tmp_path):
    prior.write(tmp_path / "prior.npz", fitted)
    again = prior.read(tmp_path / "prior.npz", fitted.sha256)
    for one, other in zip(again, fitted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.sha256 == fitted.sha256


def test_a_low_rank_prior_and_a_placeholder_have_the_same_shapes():
    batches = [np.random.default_rng(i).normal(size=(20, 2, 3)) for i in range(3)]
    low = prior.fit(batches, 2, 1e-4)
    blank = prior.blank(2, (2, 3))
    assert low.factor.shape == blank.factor.shape == (6, 2)
    assert low.remainder_scale > 0
    assert "rank 2" in prior.describe(low)


def test_another_prior_in_its_place_is_refused(fitted, tmp_path):
    prior.write(tmp_path / "prior.npz", fitted._replace(mean=fitted.mean + 1e-3))
    with pytest.raises(UserError, match="is not the prior the run was created with"):
        prior.read(tmp_path / "prior.npz", fitted.sha256)


def test_a_damaged_prior_is_named_and_never_replaced(fitted, tmp_path):
    file = tmp_path / "prior.npz"
    prior.write(file, fitted)
    whole = file.read_bytes()
    middle = len(whole) // 2
    for broken in (
        b"",
        whole[:-30],
        whole[:middle] + b"?" + whole[middle + 1 :],
        b"PK" + bytes(50),
    ):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"prior\.npz is (damaged|not the prior)"):
            prior.read(file, fitted.sha256)
        assert file.read_bytes() == broken


@pytest.mark.parametrize("field", ["remainder_scale", "num_examples"])
def test_a_prior_with_several_numbers_for_one_is_damaged(field, fitted, tmp_path):
    prior.write(tmp_path / "prior.npz", fitted._replace(**{field: np.ones(2)}))
    with pytest.raises(UserError, match=r"prior\.npz is damaged"):
        prior.read(tmp_path / "prior.npz", fitted.sha256)


@pytest.mark.parametrize("is_first", [True, False])
def test_the_first_process_shows_the_progress_of_the_fit(is_first, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "is_first_process", lambda: is_first)
    prior.fit([np.eye(2)], 0, 1e-4)
    assert ("fitting the prior" in capsys.readouterr().err) == is_first


def test_a_prior_that_was_fitted_elsewhere_has_its_covariance():
    covariance = np.array([[2.0, 0.5], [0.5, 1.0]])
    adopted = prior.from_covariance(np.array([1.0, 2.0]), covariance)
    np.testing.assert_allclose(adopted.factor @ adopted.factor.T, covariance, atol=1e-6)
    assert adopted.num_examples == 0


@pytest.mark.parametrize(("rank", "expected"), [(0, 0), (5, 5)])
def test_a_rank_of_zero_is_the_full_covariance_of_small_data(rank, expected):
    assert prior.choose_rank(rank, (8, 8, 1)) == expected
    assert prior.choose_rank(0, (128, 128, 3)) == prior.DEFAULT_RANK
    with pytest.raises(ValueError, match=r"prior\.rank must be at most 64"):
        prior.choose_rank(65, (8, 8, 1))


def test_a_large_factor_is_distributed_over_the_devices_and_gives_the_same_results(
    tiny, monkeypatch
):
    wanted = tiny("digits")
    source = creation.load_data(wanted)
    experiment = build.experiment(wanted, source, prior.fit(source.train_batches(), 0, 1e-4))
    training = build.ratio_training(experiment)

    def results():
        constants = build.on_devices(experiment.constants)
        shapes = build.shapes_on_device(experiment.constants, jax.device_count())
        assert jax.tree.map(lambda s: s.shape, shapes) == jax.tree.map(
            lambda a: a.shape[1:], constants
        )
        state, metrics = parallel.map_steps(steps.repeat_steps(training.train_step, 2))(
            rng.root_key(0), parallel.replicate(training.init_state()), constants, None, 2, 0
        )
        assert not parallel.divergent_replicas(state)
        after = parallel.unreplicate(state)
        variables = parallel.replicate(experiment.sampling_variables(after))
        samples = draw.Sampler(experiment)(variables, constants, {"refined": 16})["refined"]
        return constants.prior["factor"].shape, (parallel.unreplicate(metrics), samples)

    copied, expected = results()
    monkeypatch.setattr(placement, "MIN_DISTRIBUTED_BYTES", 0)
    distributed, actual = results()

    num = jax.device_count()
    assert copied == (num, 64, 64)
    assert distributed == (num, 64 // num, 64)
    chex.assert_trees_all_close(actual, expected, rtol=1e-3, atol=1e-4)
