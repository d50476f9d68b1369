"""The benchmark of density ratios: its truths, its peers and its output."""

import json

import numpy as np
import pytest

from benchmarks import ratios


def test_correlated_pairs_have_the_stated_information():
    x, y = ratios.correlated(0, 200_000, 2, 0.6)
    np.testing.assert_allclose(
        [np.corrcoef(x[:, i], y[:, i])[0, 1] for i in (0, 1)], 0.6, atol=0.01
    )
    assert abs(np.corrcoef(x[:, 0], y[:, 1])[0, 1]) < 0.01


def test_nearest_neighbours_find_the_information_of_one_pair():
    x, y = ratios.correlated(0, 4_000, 1, 0.8)
    assert ratios.nearest_neighbours(x, y) == pytest.approx(-0.5 * np.log(1 - 0.64), abs=0.05)


@pytest.mark.parametrize("mixture", [*ratios.MIXTURES, ratios.MODES])
def test_a_mixture_has_the_density_of_its_samples(mixture):
    axis = np.linspace(-8.0, 8.0, 321)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    mass = np.exp(mixture.log_density(grid)) * (axis[1] - axis[0]) ** 2
    assert mass.sum() == pytest.approx(1.0, abs=1e-3)
    samples = mixture.sample(np.random.default_rng(0), 50_000)
    np.testing.assert_allclose(samples.mean(axis=0), mass @ grid, atol=0.03)


def test_scikit_learns_regression_finds_a_ratio_of_gaussians():
    rng = np.random.default_rng(0)
    top, bottom = rng.normal(0.5, 1.0, (4_000, 1)), rng.normal(0.0, 1.0, (2_000, 1))
    x = np.linspace(-1.0, 1.5, 20)[:, None]
    log_ratio = ratios.quadratic_logistic(top, bottom)(x)
    np.testing.assert_allclose(log_ratio, 0.5 * x[:, 0] - 0.125, atol=0.2)


def test_a_table_is_printed_and_written(tmp_path, capsys):
    method = "nearest neighbours (KSG)"
    rows = ratios.main(
        ["small", "--num=300", "--seeds=2", "--methods", method, f"--out={tmp_path}"]
    )
    assert [row["seed"] for row in rows] == [0, 1]
    record = json.loads((tmp_path / "small.json").read_text())
    assert record["rows"] == rows
    assert record["options"]["num"] == 300
    assert f"| {method} | 0 |" in capsys.readouterr().out
