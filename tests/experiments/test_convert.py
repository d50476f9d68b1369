"""A checkpoint of the authors' program becomes a workdir that samples, evaluates and trains on."""

from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import build, modes, schema
from experiments.build import fitted_prior
from experiments.errors import UserError
from experiments.request import Request
from experiments.storage.checkpoints import Checkpoints
from experiments.storage.workdir import Workdir, read_json
from experiments.torch_files import TorchCheckpoint, convert, read_checkpoint, read_gaussian_prior
from experiments.training import loop
from fdrl_jax import networks

GOLDEN = Path(__file__).parents[1] / "golden"
FILE = GOLDEN / "original_mlp_ckpt.pt"


@pytest.fixture
def converted(tiny, tmp_path):
    changes = {"snapshot.num_samples": 16, "flow.num_refine_steps": 1}
    workdir = Workdir(tmp_path / "converted")
    assert convert.convert(tiny("swissroll", changes), FILE, workdir, "a command") == []
    settings = read_json(workdir.config)["settings"]
    return workdir, schema.unflatten(settings)


def restore(workdir, config):
    experiment = build.experiment(config)
    store = Checkpoints(workdir.checkpoints, 3)
    state = store.restore(jax.eval_shape(experiment.init_state), experiment.settings, free=())
    store.close()
    return experiment, state


def test_outputs_of_model_and_average_are_the_authors(converted):
    experiment, state = restore(*converted)
    expected = np.load(GOLDEN / "original_mlp_ckpt_expected.npz")
    for variables, name in ((state.variables, "y_model"), (state.ema_variables, "y_ema")):
        outputs = experiment.network.apply(variables, expected["x"])
        np.testing.assert_allclose(outputs, expected[name], rtol=1e-5, atol=1e-6)


def test_settings_step_and_optimizer_are_the_authors(converted):
    experiment, state = restore(*converted)
    assert experiment.settings["loss.name"] == "lsif"
    assert experiment.settings["loss.divergence"] == "pearson"
    assert experiment.settings["flow.num_steps"] == 200
    assert experiment.settings["optimizer.boundaries"] == [5000, 10000, 15000]
    assert int(state.step) == 3
    original = read_checkpoint(FILE)
    adam = state.opt_state[0]
    assert int(adam.count) == 3
    moment = original.optimizer["state"][0]["exp_avg"]
    np.testing.assert_allclose(adam.mu["mlp_0"]["kernel"], moment.T, rtol=1e-6)


def test_the_workdir_trains_on_and_samples(converted):
    workdir, config = converted
    config["train"]["num_steps"], config["flow"]["num_steps"] = 5, 200
    state = loop.train(build.experiment(config), workdir, "on")
    assert int(state.step) == 5
    modes.run(Request("sample", config, workdir.root, num_samples=8))
    assert (workdir.samples / "step_5.npz").exists()


def torch_tensors(name, **options):
    shapes = networks.torch_shapes(networks.resnet(name, **options), 3)
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", sorted(networks.SPECS))
@pytest.mark.parametrize("options", [{}, {"spectral_norm": True, "attention": True}])
def test_the_network_is_told_by_the_tensors(name, options, tiny):
    tensors = torch_tensors(name, width=16, **options)
    file = TorchCheckpoint(0, tensors, tensors, {}, {}, {"dataset": "digits"})
    settings, _ = convert.translate(file, schema.flatten(tiny("digits")))
    assert settings["network.name"] == name
    assert settings["network.width"] == 16
    assert settings["network.attention"] == settings["network.spectral_norm"] == bool(options)


def test_what_does_not_fit_is_named(tiny, tmp_path):
    flat = schema.flatten(tiny())
    model = read_checkpoint(FILE)
    strange = model._replace(model={"encoder.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"none of the networks mlp, resnet32.*encoder\.weight"):
        convert.translate(strange, flat)
    with pytest.raises(ValueError, match="trained on 'swissroll', but the config is for 'digits'"):
        convert.translate(model, schema.flatten(tiny("digits")))
    unknown = model._replace(config={**model.config, "loss_function": "GAN"})
    with pytest.raises(ValueError, match="unknown loss_function 'GAN'; known: LSIF, LR, KL"):
        convert.translate(unknown, flat)
    _, left_out = convert.translate(model._replace(config={**model.config, "colour": 3}), flat)
    assert left_out == ["colour=3"]
    with pytest.raises(UserError, match="does not exist"):
        convert.convert(tiny(), tmp_path / "no.pt", Workdir(tmp_path / "w"), "")
    assert not (tmp_path / "w").exists()


def test_the_authors_prior_becomes_ours_in_our_order_of_axes(tiny, tmp_path):
    given = read_gaussian_prior(GOLDEN / "original_tiny_ddp.pt")
    shape = (2, 2, 3)
    mean, covariance = convert.channels_last(given, shape)
    theirs = given.mean.reshape(3, 2, 2)
    assert mean.reshape(shape)[0, 1, 2] == theirs[2, 0, 1]
    source = build.experiment(tiny("digits")).source._replace(event_shape=shape)
    fitted_prior.adopt(source, 1e-4, tmp_path / "prior.npz", mean, covariance)
    kept = fitted_prior.load_or_fit(source, 0, 1e-4, tmp_path / "prior.npz")
    np.testing.assert_allclose(kept.factor @ kept.factor.T, covariance, atol=1e-5)
    np.testing.assert_allclose(kept.mean, mean)
    with pytest.raises(ValueError, match=r"12 dimensions, the data \(8, 8, 1\)"):
        convert.channels_last(given, (8, 8, 1))


def test_a_workdir_with_checkpoints_is_not_written_over(converted, tiny):
    with pytest.raises(UserError, match="has checkpoints already"):
        convert.convert(tiny(), FILE, converted[0], "again")
