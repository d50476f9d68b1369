"""The measurements of the device and of PyTorch run, and that of faults notices what failed."""

import sys
import time
from importlib.util import find_spec

import pytest

from benchmarks import accelerator, estimators, faults


@pytest.mark.slow
def test_the_device_is_measured_and_agrees_with_float64(monkeypatch, capsys):
    options = ["accelerator", "--small", "--rounds=1", "--precisions=float32"]
    monkeypatch.setattr(sys, "argv", options)
    with pytest.raises(SystemExit) as ended:
        accelerator.main()
    assert ended.value.code == 0
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[:2] == ["| small", "float32"]
    assert all(float(cell) > 0 for cell in row[2:4])


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch")
def test_pytorch_takes_turns_with_the_library(monkeypatch):
    monkeypatch.setitem(estimators.NETWORKS, "small", accelerator.SMALL)
    found = estimators.measure("small", 4, "float32", sys.executable, 1)
    assert found["pytorch_flow_over_ours"] > 0
    assert found["pytorch_train_over_ours"] > 0


def fail() -> None:
    raise RuntimeError("x")


@pytest.mark.parametrize(
    ("ended", "found", "expected"),
    [
        ((0, ""), {"a": b"1"}, "same results"),
        ((0, ""), {"a": b"2"}, "other results: a"),
        ((0, ""), {}, "other results: a"),
        ((0, ""), {"a": b"damaged"}, "same results"),
        ((2, "error: it is damaged"), {}, "refused"),
        ((2, "Traceback"), {}, "failed: code 2: Traceback"),
        ((-9, ""), {}, "failed: code -9: "),
    ],
)
def test_only_equal_results_and_errors_for_the_user_hold(ended, found, expected):
    assert faults.verdict(ended, {"a": b"1"}, found, b"damaged") == expected


def test_processes_end_with_their_code_and_text_or_are_killed():
    assert faults.run(sys.exit, 2) == (2, "")
    code, text = faults.run(fail)
    assert code == 1
    assert "RuntimeError: x" in text
    assert faults.run(time.sleep, 60, limit=0.5) == (-9, "")
