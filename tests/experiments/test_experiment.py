"""Settings and data become a network and a training step, or an error before anything starts."""

import jax
import numpy as np
import pytest

from experiments import experiment, settings
from experiments.data import load
from experiments.errors import UserError
from fdrl_jax import networks

DIGITS = {"data.name": "digits", "network.name": "resnet32"}


def of(changes):
    return settings.from_config(changes)


def built(changes):
    wanted = of(changes)
    return experiment.build(wanted, load(wanted.data))


def test_the_network_of_the_paper_follows_the_size_of_the_images():
    auto = of({"network.name": "auto"})
    assert isinstance(experiment.make_network(auto, (2,)), networks.MLP)
    for shape, name in (((48, 40), "resnet32"), ((64, 64), "resnet64"), ((97, 64), "resnet128")):
        assert experiment.make_network(auto, (*shape, 3)).spec == networks.SPECS[name]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.name": "digits"}, "network.name='mlp' does not fit images; use a residual network"),
        ({"network.name": "resnet"}, "'resnet' does not fit points; use 'mlp'"),
        ({"data.name": "digits", "network.name": "resnet"}, "needs network.width and images"),
        ({"loss.name": "lr", "loss.divergence": "log_d(0.5)"}, "log_d"),
        ({"prior.name": "source"}, "needs images to start from"),
        ({"network.denoiser_width": 4}, "network.denoiser_width needs images and a"),
        ({**DIGITS, "network.denoiser_width": 4}, "a data.dequantisation above 0"),
        ({"prior.name": "data_dependent", "prior.rank": 3}, "the rank must be from 1 to 2"),
        (
            {**DIGITS, "data.source_class": "3", "data.target_class": "8"},
            "a translation starts from images, with prior.name='source', not 'normal'",
        ),
    ],
)
def test_settings_that_do_not_fit_together_are_named(changes, message):
    with pytest.raises(UserError, match=r"config: |must be") as caught:
        built(changes)
    assert message in str(caught.value)


def test_the_state_before_training_depends_on_the_seed_only():
    one, other = built({"seed": 3}), built({"seed": 3, "train.batch_size": 8, "flow.num_steps": 1})
    jax.tree.map(np.testing.assert_array_equal, one.init_state(), other.init_state())
    shapes = jax.tree.map(lambda s: (s.shape, s.dtype), one.state_shapes())
    assert shapes == jax.tree.map(lambda a: (a.shape, a.dtype), one.init_state())
    kernel = jax.tree.leaves(one.init_state().variables)[-1]
    assert not np.array_equal(
        kernel, jax.tree.leaves(built({"seed": 4}).init_state().variables)[-1]
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "constant"}, {0: 1.0, 99: 1.0}),
        ({"schedule": "piecewise", "boundaries": (10, 20)}, {9: 1.0, 11: 0.1, 21: 0.01}),
        ({"schedule": "cosine"}, {0: 1.0, 50: 0.5, 100: 0.0}),
        ({"schedule": "constant", "warmup_steps": 4}, {0: 0.25, 1: 0.5, 3: 1.0, 9: 1.0}),
    ],
)
def test_the_learning_rate_follows_its_schedule(changes, expected):
    flat = {f"optimizer.{key}": value for key, value in changes.items()}
    rate = experiment.learning_rate(
        of({**flat, "optimizer.learning_rate": 1.0, "train.num_steps": 100})
    )
    for step, value in expected.items():
        np.testing.assert_allclose(rate(step), value, atol=1e-6)
