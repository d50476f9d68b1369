"""Checkpoints of the authors compute what PyTorch does."""

from pathlib import Path

import numpy as np
import pytest

from examples import authors_weights
from experiments.command import Command
from experiments.errors import UserError
from experiments.run import open_checkpoint

torch = pytest.importorskip("torch")

GOLDEN = Path(__file__).parents[1] / "golden"
FILE = GOLDEN / "original_mlp_ckpt.pt"


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("authors") / "run"
    return authors_weights.convert(FILE, None, ["--config=swissroll:tiny", f"--workdir={workdir}"])


def test_a_run_of_the_authors_checkpoint_has_their_outputs_settings_and_moments(converted):
    opened = open_checkpoint(Command(mode="sample", folder=converted.root))
    state, network = opened.state, opened.experiment.network
    expected = np.load(GOLDEN / "original_mlp_ckpt_expected.npz")
    for variables, name in ((state.variables, "y_model"), (state.ema_variables, "y_ema")):
        outputs = network.apply(variables, expected["x"])
        np.testing.assert_allclose(outputs, expected[name], rtol=1e-5, atol=1e-6)
    settings = converted.settings
    assert (settings.loss.name, settings.loss.divergence) == ("lsif", "pearson")
    assert settings.flow.num_steps == 200
    assert settings.optimizer.boundaries == (5_000, 10_000, 15_000)
    adam = state.opt_state.optimizer[0]
    assert int(state.step) == int(adam.count) == 3
    original = torch.load(FILE, weights_only=True)["optim"]["state"][0]
    np.testing.assert_allclose(adam.mu["mlp_0"]["kernel"], original["exp_avg"].T, rtol=1e-6)
    np.testing.assert_allclose(adam.nu["mlp_0"]["kernel"], original["exp_avg_sq"].T, rtol=1e-6)


def test_an_existing_run_is_kept_and_nothing_unfinished_remains(converted):
    argv = ["--config=swissroll:tiny", f"--workdir={converted.root}"]
    with pytest.raises(UserError, match="choose another folder"):
        authors_weights.convert(FILE, None, argv)
    assert [path.name for path in converted.root.parent.iterdir()] == ["run"]


def test_the_authors_prior_has_the_moments_of_its_data_in_our_order():
    expected = np.load(GOLDEN / "original_tiny_ddp_expected.npz")
    fitted = authors_weights.read_prior(GOLDEN / "original_tiny_ddp.pt", (2, 2, 3))
    order = np.arange(12).reshape(3, 2, 2).transpose(1, 2, 0).ravel()
    np.testing.assert_allclose(fitted.mean, expected["mean"][order], atol=1e-6)
    covariance = expected["covariance"][order][:, order]
    np.testing.assert_allclose(fitted.factor @ fitted.factor.T, covariance, atol=1e-5)
