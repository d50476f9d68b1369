"""The benchmark of accelerators runs on a CPU in a small form, and its page says what it found."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.accelerator import page
from benchmarks.accelerator.budget import Budget

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_small_form_measures_compares_and_trains(tmp_path):
    command = [sys.executable, "-m", "benchmarks.accelerator", "--small", f"--folder={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "accelerator.json").read_text())
    (speed,) = results["speed"]
    assert speed["network"] == "small"
    assert min(speed["flow_step_seconds"], speed["train_seconds"]) > 0
    assert speed["flow_flops"] < speed["train_flops"]
    (compared,) = results["agreement"]
    assert len(compared["errors"]) == 4
    assert max(compared["errors"].values()) < compared["bound"]
    assert results["training"]["steps"] == 4
    assert results["training"]["images_per_second"] > 0
    assert (tmp_path / results["training"]["picture"]).exists()
    text = (tmp_path / "accelerator.md").read_text()
    assert text == page.page(results)
    assert "| small | float32 |" in text
    assert "**outside**" not in text
    if importlib.util.find_spec("torch") is None:
        assert "PyTorch, which is not installed" in text
    else:
        assert [row["compiled"] for row in results["pytorch"]] == [False]


def test_a_budget_keeps_a_share_for_what_follows():
    budget = Budget(100.0)
    assert budget.allows(0.5)
    assert not budget.allows(1.0)
    assert not Budget(0.0).allows(0.0)
