"""Data that need a package that is absent end with one line, before a run is created."""

import os
import subprocess
import sys
from pathlib import Path

# A name that is None in `sys.modules` cannot be imported or found.
WITHOUT_SKLEARN = """
import sys
sys.modules["sklearn"] = None
from experiments import main
main.main(sys.argv[1:])
"""


def test_data_that_need_an_absent_package_end_with_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SKLEARN, "--config=digits:tiny", f"--workdir={tmp_path}/r"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2
    expected = "error: this needs the package 'sklearn': pip install -e '.[experiments]'"
    assert done.stderr.strip().splitlines() == [expected]
    assert not (tmp_path / "r").exists()
