"""The measurements of the device and of PyTorch run, and notice what a device computes wrongly."""

import sys
from importlib.util import find_spec

import pytest

from benchmarks import accelerator, estimators


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
