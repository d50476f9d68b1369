"""The benchmark of density ratios: its rivals, its simulators and its output."""

import json

import numpy as np
import pytest

from benchmarks import ratios


@pytest.mark.parametrize("test", [ratios.t_test, ratios.mmd, ratios.classifier_test])
def test_a_rival_finds_a_shift_and_is_silent_about_equal_sets(test):
    rng = np.random.default_rng(0)
    top, bottom = rng.normal(1.0, 1.0, (100, 2)), rng.normal(0.0, 1.0, (100, 2))
    assert test(rng, top, bottom) < 0.01
    assert np.mean([test(rng, *rng.normal(size=(2, 40, 2))) for _ in range(20)]) > 0.3


@pytest.mark.parametrize("name", [name for name in ratios.POWER if "equal" not in name])
def test_the_true_log_ratio_of_a_case_moves_the_denominator_to_the_numerator(name):
    draw, truth = ratios.POWER[name]
    top, bottom = draw(np.random.default_rng(0), 100_000, 2)
    weights = np.exp(truth(bottom))
    assert weights.mean() == pytest.approx(1.0, abs=0.1)
    np.testing.assert_allclose(
        np.average(np.tanh(bottom), weights=weights, axis=0), np.tanh(top).mean(axis=0), atol=0.03
    )


@pytest.mark.parametrize("name", ratios.SIMULATORS)
def test_a_simulator_returns_data_that_depend_on_its_parameters(name):
    simulate, size, _, published = ratios.SIMULATORS[name]
    rng = np.random.default_rng(0)
    first, second = (simulate(rng, np.full((500, size), value)) for value in (0.2, 0.9))
    assert first.shape == second.shape
    assert not np.allclose(first.mean(axis=0), second.mean(axis=0), atol=0.1)
    assert 0.5 < published < 1.0


def test_the_score_of_equal_samples_is_a_half():
    same, other = np.random.default_rng(0).normal(size=(2, 300, 1))
    assert ratios.c2st(same, other) == pytest.approx(0.5, abs=0.1)
    assert ratios.c2st(same, other + 3.0) > 0.85


def test_a_table_is_printed_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ratios, "POWER", {"shift 0.5": ratios.POWER["shift 0.5"]})
    options = ["--sizes=50", "--columns=1", "--trials=5", f"--out={tmp_path}"]
    rows = ratios.main(["power", *options, f"--environment={tmp_path}"])
    assert [row["method"] for row in rows] == ["fit_ratio", "t-test", "MMD", "classifier test"]
    assert rows[0]["error of log r"] < rows[0]["error of the ratio 1"]
    written = (tmp_path / "power.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == rows
    assert capsys.readouterr().out.splitlines() == written
    assert ratios.main(["power", *options, f"--environment={tmp_path}"]) == rows
    assert capsys.readouterr().out == ""  # Known rows are not computed again.
