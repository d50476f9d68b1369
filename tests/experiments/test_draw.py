"""Samples are drawn in batches; only the stages and the numbers that are asked for are kept."""

import dataclasses

import jax
import numpy as np
import pytest
from small_runs import command, start

from experiments import experiment, pictures, prior
from experiments.data import load
from experiments.draw import (
    Sampler,
    batch_size,
    interpolations,
    on_devices,
    sample_starts,
    sample_state,
)
from experiments.errors import UserError
from experiments.run import open_checkpoint
from fdrl_jax import refinement
from fdrl_jax.training import parallel, samplers
from fdrl_jax.training.problem import Estimator

NUM, NUM_PRIOR = 50, 10


def test_other_stages_and_samples_never_leave_the_device(trained, monkeypatch):
    opened = open_checkpoint(command("sample", trained.root))
    experiment, state = opened.experiment, opened.state
    whole = sample_state(experiment, state, NUM, num_prior=NUM, num_bridged=NUM)
    fetched, gather = [], parallel.gather
    monkeypatch.setattr(parallel, "gather", lambda part: fetched.append(part.size) or gather(part))

    some = sample_state(experiment, state, NUM, num_prior=NUM_PRIOR)

    assert [len(stage) for stage in some] == [NUM_PRIOR, 0, NUM]
    np.testing.assert_array_equal(some.prior, whole.prior[:NUM_PRIOR])
    np.testing.assert_allclose(some.refined, whole.refined, rtol=1e-5, atol=1e-6)
    size = batch_size(experiment, NUM)
    assert NUM_PRIOR < size < NUM
    assert fetched == [2 * size] * (1 + -(-NUM // size)), "all refined ones, one batch of the prior"
    np.testing.assert_array_equal(sample_starts(experiment, state, NUM), whole.prior)


def test_a_last_batch_that_is_not_full_needs_no_image_beyond_the_last_sample(trained):
    opened, asked = open_checkpoint(command("sample", trained.root)), []
    source = opened.experiment.source._replace(
        starts=lambda positions: asked.extend(positions) or np.zeros((len(positions), 2))
    )
    experiment = dataclasses.replace(opened.experiment, source=source)
    arrays = on_devices(experiment, opened.state)
    Sampler(experiment, ("prior",))(*arrays, {"prior": 5}, first=3)
    assert batch_size(experiment, 5) > 5
    assert {*asked} == {3, 4, 5, 6, 7}


def test_a_picture_reads_only_the_held_out_images_that_it_shows(of_digits):
    source, asked = of_digits.source(), []
    watched = source._replace(
        held_out=lambda num, seed: asked.append(num) or source.held_out(num, seed)
    )
    images = source.held_out(4, 0)
    pictures.samples_and_data(watched, images, images)
    assert asked == [100]


def test_the_points_of_a_path_share_their_noise_and_its_ends_are_samples_of_the_prior(tiny):
    # Without a drift, only the noise moves the points.
    wanted = tiny("digits", {"flow.step_size": 1e-12, "flow.noise_scale": 0.5})
    model = experiment.build(wanted, load(wanted.data))
    sheets = interpolations(model, model.init_state())
    for first, last in sheets.values():
        noise = last - first
        np.testing.assert_allclose(noise, np.broadcast_to(noise[:, :1], noise.shape), atol=1e-5)
        assert not np.allclose(noise[0], noise[1], atol=0.1)
    (spherical, _), (linear, _) = sheets["spherical"], sheets["linear"]
    np.testing.assert_allclose(spherical[:, [0, -1]], linear[:, [0, -1]], atol=1e-5)


@pytest.mark.parametrize("by_class", [False, True])
def test_a_path_stays_within_a_gaussian_of_a_mixture(tiny, by_class):
    changes = {"flow.step_size": 1e-12, "flow.noise_scale": 0.0, "network.by_class": by_class}
    wanted = tiny("digits", {**changes, "network.denoiser_width": 0, "prior.num_components": 2})
    source = load(wanted.data)
    fitted = prior.fit_to(source, wanted.prior, 10 if by_class else None)
    model = experiment.build(wanted, source, fitted)
    starts, samples = interpolations(model, model.init_state())["spherical"]
    np.testing.assert_allclose(samples, starts, atol=1e-5)
    means = np.asarray(model.constants.prior["mean"])
    assert len(means) == (20 if by_class else 2)
    points = starts[:, [0, -1]].reshape(4, 2, 1, 64)
    nearest = np.square(points - means).sum(axis=-1).argmin(axis=-1)
    np.testing.assert_array_equal(nearest[:, 0], nearest[:, 1])
    assert len(set(nearest[:, 0])) > 1


def test_interpolations_are_denoised_as_samples_are(tiny):
    wanted = tiny("digits")
    model = experiment.build(wanted, load(wanted.data))
    problem = model.problem._replace(denoise=lambda variables, x: 0.0 * x + 7.0)
    sheets = interpolations(dataclasses.replace(model, problem=problem), model.init_state())
    for first, moved in sheets.values():
        assert not np.any(first == 7.0)
        np.testing.assert_array_equal(moved, np.full_like(first, 7.0))


@pytest.fixture
def uneven(trained):
    """A run whose ratio is large on the right side, drawn with rejection, and its state."""
    opened = open_checkpoint(command("sample", trained.root, None, {"sample.rejection": True}))
    estimator = Estimator(lambda variables, x: 3.0 * x[:, 0])
    problem = opened.experiment.problem._replace(estimator=estimator)
    return dataclasses.replace(opened.experiment, problem=problem), opened.state


def test_a_rejected_sample_is_replaced_by_its_next_attempt_that_is_accepted(uneven):
    model, state = uneven
    sampler, arrays = Sampler(model), on_devices(model, state)
    assert sampler.share_accepted is None
    kept = sampler(*arrays, {"refined": NUM})["refined"]
    _, bound = sampler._bound
    batch = {"position": np.arange(NUM), "bound": np.full(NUM, bound, np.float32)}
    candidates = jax.jit(samplers.make_candidate_sampler(model.problem))
    found = candidates(model.root_key, state.ema_variables, model.constants, batch)
    assert sampler.share_accepted == pytest.approx(float(found.accepted.mean()), abs=2 / NUM)
    assert 0.0 < sampler.share_accepted < 0.5

    replaced = 0
    for i in range(0, NUM, 7):
        positions = i + np.arange(200, dtype=np.int32) * 2**20
        batch = {"position": positions, "bound": np.full(200, bound, np.float32)}
        found = candidates(model.root_key, state.ema_variables, model.constants, batch)
        first = int(np.argmax(found.accepted))
        assert found.accepted[first]
        replaced += first > 0
        np.testing.assert_allclose(kept[i], found.stages.refined[first], rtol=1e-5, atol=1e-6)
    assert replaced > 0
    again = sampler(*arrays, {"refined": 10}, first=NUM - 10, full=NUM)["refined"]
    np.testing.assert_allclose(kept[-10:], again, rtol=1e-5, atol=1e-6)


def test_one_ratio_that_is_not_finite_rejects_one_sample_only(uneven, monkeypatch):
    model, state = uneven
    sampler, arrays = Sampler(model), on_devices(model, state)
    draw_batch, ratios = sampler._draw, []

    def with_a_nan(*arguments):
        drawn = draw_batch(*arguments)
        if "output" in drawn and not ratios:
            ratios.append(drawn["output"].copy())
            drawn["output"] = np.where(np.arange(len(ratios[0])) == 3, np.nan, ratios[0])
        return drawn

    monkeypatch.setattr(sampler, "_draw", with_a_nan)
    sampler(*arrays, {"refined": 10})
    assert np.isfinite(sampler._bound[1])


def test_rejection_changes_the_distribution_but_no_other_stage(uneven):
    model, state = uneven
    plain = dataclasses.replace(
        model,
        settings=dataclasses.replace(
            model.settings, sample=dataclasses.replace(model.settings.sample, rejection=False)
        ),
    )
    before, after = (sample_state(m, state, NUM, num_prior=NUM) for m in (plain, model))
    np.testing.assert_allclose(before.prior, after.prior, rtol=1e-5, atol=1e-6)
    assert after.refined[:, 0].mean() < before.refined[:, 0].mean() - 0.1


def test_rejection_by_ratios_that_may_be_negative_is_refused(uneven):
    model, _ = uneven
    problem = model.problem._replace(bregman="lsif", divergence="pearson")
    with pytest.raises(UserError, match=r"needs positive ratios, as of loss\.name=lr or ukl"):
        Sampler(dataclasses.replace(model, problem=problem))


def test_samples_that_cannot_be_drawn_again_are_refused(trained, uneven, monkeypatch):
    model, state = uneven
    with pytest.raises(UserError, match="at most 1,048,576 samples, got --num_samples=2,000,000"):
        start("sample", trained.root, None, {"sample.rejection": True}, num_samples=2_000_000)
    problem = model.problem._replace(condition=lambda estimator, arrays, batch: estimator)
    with pytest.raises(UserError, match="is not for a classifier"):
        Sampler(dataclasses.replace(model, problem=problem))
    from_images = model.source._replace(starts=object())
    with pytest.raises(UserError, match="is not for flows that start from images"):
        Sampler(dataclasses.replace(model, source=from_images))
    monkeypatch.setattr(refinement, "accept", lambda keys, outputs, *_, **__: outputs < -1e9)
    with pytest.raises(UserError, match="1,000 attempts at a sample were rejected"):
        Sampler(model)(*on_devices(model, state), {"refined": 4})
