"""The benchmark of density ratios: its rivals, its simulators and its output."""

import json

import numpy as np
import pytest

from benchmarks import ratios

SEEDED = np.random.default_rng


@pytest.mark.parametrize("test", ratios.TESTS.values())
def test_a_rival_finds_a_shift_and_is_silent_about_equal_sets(test):
    rng = SEEDED(0)
    assert test(rng, rng.normal(1.0, 1.0, (100, 2)), rng.normal(0.0, 1.0, (100, 2))) < 0.01
    assert np.mean([test(rng, *rng.normal(size=(2, 40, 2))) for _ in range(20)]) > 0.3


@pytest.mark.parametrize("name", [name for name in ratios.CASES if "equal" not in name])
def test_the_true_log_ratio_of_a_case_moves_the_denominator_to_the_numerator(name):
    top, bottom = (part.rvs((100_000, 2), SEEDED(0)) for part in ratios.CASES[name])
    weights = np.exp(ratios.true_log_ratio(name, bottom))
    assert weights.mean() == pytest.approx(1.0, abs=0.1)
    mean = np.average(np.tanh(bottom), weights=weights, axis=0)
    np.testing.assert_allclose(mean, np.tanh(top).mean(axis=0), atol=0.03)


@pytest.mark.parametrize("name", ratios.SIMULATORS)
def test_a_simulator_returns_data_that_depend_on_its_parameters(name):
    simulate, size, prior, _ = ratios.SIMULATORS[name]
    means = [simulate(SEEDED(0), np.full((500, size), v)).mean(axis=0) for v in (0.2, 0.9)]
    assert not np.allclose(*means, atol=0.1)
    assert np.isfinite(prior.logpdf(0.9))


def test_the_score_of_equal_samples_is_a_half():
    same, other = SEEDED(0).normal(size=(2, 300, 1))
    assert ratios.c2st(same, other) == pytest.approx(0.5, abs=0.1)
    assert ratios.c2st(same, other + 3.0) > 0.85


def test_a_table_is_printed_and_written_and_resumed(tmp_path, capsys):
    options = ["--sizes=50", "--columns=1", "--trials=5", f"--environment={tmp_path}"]
    command = ["power", *options, f"--out={tmp_path}", "--tasks", "shift 0.5"]
    rows = ratios.main(command)
    assert [row["method"] for row in rows] == ["fit_ratio", *ratios.TESTS]
    assert rows[0]["error of log r"] < rows[0]["error of the ratio 1"]
    written = (tmp_path / "power.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == rows
    assert capsys.readouterr().out.splitlines() == written
    assert ratios.main(command) == rows
    assert capsys.readouterr().out == ""  # Known rows are not computed again.
