"""Without the packages for pictures, images and optimal transport, points train as before."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import start

ABSENT = "grain", "matplotlib", "ott", "PIL", "pydantic", "safetensors", "sklearn"
# A name that is None in `sys.modules` cannot be imported or found.
WITHOUT = f"""
import sys
sys.modules.update(dict.fromkeys({ABSENT}))
from experiments import main
main.main(sys.argv[1:])
"""


def run_without(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_points_train_and_are_evaluated_and_a_line_says_what_is_left_out(tmp_path):
    done = run_without("--config=swissroll:tiny", f"--workdir={tmp_path}/run")

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("energy_ratio") for line in lines)
    assert [line for line in lines if line.startswith("skipped: ")] == [
        "skipped: sliced_wasserstein, sinkhorn_divergence: OTT-JAX is not installed (pip install "
        "ott-jax)",
        "skipped: pictures: matplotlib is not installed; run --mode=evaluate again once it is",
    ]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<table" in page
    assert "<img" not in page

    start("evaluate", tmp_path / "run")  # With all packages, it is another evaluation.
    page = (tmp_path / "run" / "report.html").read_text()
    assert "sinkhorn_divergence" in page
    assert "<img" in page


def test_data_that_need_an_absent_package_end_with_one_line(tmp_path):
    done = run_without("--config=digits:tiny", f"--workdir={tmp_path}/run")
    assert done.returncode == 2
    expected = "error: this needs the package 'sklearn': pip install -e '.[experiments]'"
    assert done.stderr.strip().splitlines() == [expected]
    assert not (tmp_path / "run").exists()
