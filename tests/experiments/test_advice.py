"""Warnings about valid settings that are unlikely to give what the user wants."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from small_runs import command

from experiments import advice, build, settings
from experiments.command_line import load_config
from experiments.evaluation import references
from experiments.modes.creation import settings_and_data


def wanted(**changes):
    keys = {name.replace("__", "."): value for name, value in changes.items()}
    return settings.checked({**load_config("digits:tiny"), "prior.name": "normal", **keys})


def test_balanced_noise_is_described_and_no_warning():
    of = wanted(flow__num_steps=4, flow__noise_scale=0.01, data__dequantisation=0.02)
    assert advice.noise(of) == (
        "noise (standard deviation): flowed samples 0.020, data 0.020",
        False,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prior__name": "data_dependent", "prior__jitter": 2e-4},
        # The jitter is so large that no noise of the flow balances it.
        {"prior__name": "data_dependent", "prior__jitter": 1.2e-3},
    ],
)
def test_the_noise_scale_that_a_warning_advises_gives_no_warning(changes):
    changes |= {"flow__num_steps": 10, "data__dequantisation": 0.02}
    text, is_warning = advice.noise(wanted(flow__noise_scale=0.5, **changes))
    assert is_warning
    scale = float(re.search(r"flow.noise_scale=(\S+), or a larger data.dequant", text)[1])
    assert not advice.noise(wanted(flow__noise_scale=scale, **changes))[1]


def test_no_noise_scale_is_advised_where_the_jitter_alone_is_too_much():
    changes = {"prior__name": "data_dependent", "prior__jitter": 0.1, "data__dequantisation": 0.02}
    text, is_warning = advice.noise(wanted(**changes))
    assert is_warning
    assert "a smaller prior.jitter, or a larger data.dequantisation" in text


@pytest.fixture(scope="module")
def experiment():
    return build.experiment(*settings_and_data(command("dry_run", None, "digits:tiny")))


def test_few_held_out_images_of_ones_own_are_warned_about(experiment, caplog):
    few = references.of(experiment.source)
    few = few._replace(images=few.images[:6])
    advice.warn(experiment, few)
    assert "held-out" not in caplog.text
    own = dataclasses.replace(experiment, settings=experiment.settings | {"data.name": "folder"})
    advice.warn(own, few)
    assert "only 6 held-out images are stored: distances mean little below" in caplog.text
    caplog.clear()
    large = few._replace(images=np.zeros((6, 1400, 1400, 3), np.float32))
    advice.warn(own, large)  # As many as are stored of such a size.
    assert "held-out" not in caplog.text


def test_only_a_training_of_days_on_a_cpu_is_warned_about(experiment, caplog):
    reference = references.of(experiment.source)
    advice.warn(experiment, reference)
    assert "days" not in caplog.text
    endless = experiment.settings | {"train.num_steps": 10**12}
    advice.warn(dataclasses.replace(experiment, settings=endless), reference)
    assert re.search(r"takes about [\d,]+ days on a CPU", caplog.text)


def test_a_flow_step_does_not_prepare_the_variables(experiment):
    prepared = []

    def prepare(variables):
        prepared.append(variables)
        return jax.tree.map(lambda a: a.astype("bfloat16"), variables)

    estimator = experiment.problem.estimator._replace(prepare=prepare)
    problem = experiment.problem._replace(estimator=estimator)
    lowered, (variables, _) = advice.lower_flow_step(
        build.Experiment(**{**vars(experiment), "problem": problem})
    )
    assert len(prepared) == 1  # For the shapes.
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(variables)} == {"bfloat16"}
    lowered.compile()
