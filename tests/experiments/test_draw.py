"""Samples are drawn in batches; only the stages and the numbers that are asked for are kept."""

import dataclasses

import jax
import numpy as np
from small_runs import command

from experiments import draw
from experiments.run import open_checkpoint
from fdrl_jax.training import parallel

NUM, NUM_PRIOR = 50, 10


def test_other_stages_and_samples_never_leave_the_device(trained, monkeypatch):
    opened = open_checkpoint(command("sample", trained.root))
    model, state = opened.experiment, opened.state
    whole = draw.sample_state(model, state, NUM, num_prior=NUM, num_bridged=NUM)
    fetched, gather = [], parallel.gather
    monkeypatch.setattr(parallel, "gather", lambda part: fetched.append(part.size) or gather(part))

    some = draw.sample_state(model, state, NUM, num_prior=NUM_PRIOR)

    assert [len(stage) for stage in some] == [NUM_PRIOR, 0, NUM]
    np.testing.assert_array_equal(some.prior, whole.prior[:NUM_PRIOR])
    np.testing.assert_allclose(some.refined, whole.refined, rtol=1e-5, atol=1e-6)
    size = draw.batch_size(model, NUM)
    assert NUM_PRIOR < size < NUM
    assert fetched == [2 * size] * (1 + -(-NUM // size)), "all refined ones, one batch of the prior"
    only = draw.sample_state(model, state, 0, num_prior=NUM)
    np.testing.assert_array_equal(only.prior, whole.prior)
    path = draw.paths(model, state, 4)
    np.testing.assert_allclose(path[0], whole.prior[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(path[3], whole.bridged[:4], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(path[4], whole.refined[:4], rtol=1e-5, atol=1e-6)


def test_a_last_batch_that_is_not_full_needs_no_image_beyond_the_last_sample(trained):
    opened, asked = open_checkpoint(command("sample", trained.root)), []
    source = opened.experiment.source._replace(
        starts=lambda positions: asked.extend(positions) or np.zeros((len(positions), 2))
    )
    model = dataclasses.replace(opened.experiment, source=source)
    draw.make(model, ["prior"])(*draw.on_devices(model, opened.state), {"prior": 5})
    assert draw.batch_size(model, 5) > 5 or jax.device_count() == 1
    assert {*asked} == {0, 1, 2, 3, 4}
