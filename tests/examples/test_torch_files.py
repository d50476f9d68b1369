"""A checkpoint of the authors computes what it does in PyTorch."""

from pathlib import Path

import jax
import numpy as np
import pytest

from examples import authors_weights

GOLDEN = Path(__file__).parents[1] / "golden"
FILE = GOLDEN / "original_mlp_ckpt.pt"


@pytest.fixture(autouse=True)
def _with_pytorch():
    pytest.importorskip("torch")  # Takes seconds: not where all tests are collected.


def test_a_checkpoint_has_the_authors_outputs_and_settings_and_draws_samples(tmp_path):
    method, estimator, event_shape = authors_weights.read(FILE)
    expected = np.load(GOLDEN / "original_mlp_ckpt_expected.npz")
    np.testing.assert_allclose(estimator(expected["x"]), expected["y_ema"], rtol=1e-5, atol=1e-6)
    assert (event_shape, method.num_steps, method.step_size) == ((2,), 200, 1.0)
    assert method.output == "ratio"
    out = tmp_path / "new" / "samples.npz"
    samples = authors_weights.main([str(FILE), "--num_samples=8", f"--out={out}"])
    np.testing.assert_array_equal(np.load(out)["arr_0"], samples)
    assert samples.shape == (8, 2)


def test_the_authors_prior_has_the_moments_of_its_data_in_our_order():
    expected = np.load(GOLDEN / "original_tiny_ddp_expected.npz")
    file = GOLDEN / "original_tiny_ddp.pt"
    x = authors_weights.draw_prior(jax.random.key(0), 50_000, (2, 2, 3), file).reshape(-1, 12)
    order = np.arange(12).reshape(3, 2, 2).transpose(1, 2, 0).ravel()
    np.testing.assert_allclose(x.mean(axis=0), expected["mean"][order], atol=0.1)
    covariance = expected["covariance"][order][:, order]
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.6)
    assert np.abs(covariance - expected["covariance"]).max() > 3.0  # So that the order counts.
