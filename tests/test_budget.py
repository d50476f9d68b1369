"""The table [tool.budget] of pyproject.toml holds: what needs room takes it from elsewhere."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUDGET = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["budget"]


@pytest.mark.parametrize("folder", [name for name in BUDGET if name != "words"])
def test_a_folder_has_no_more_lines_and_files_than_it_may(folder):
    files = [*(ROOT / folder).rglob("*.py")]
    num_lines = sum(path.read_text("utf-8").count("\n") for path in files)
    assert num_lines <= BUDGET[folder]["lines"]
    assert len(files) <= BUDGET[folder].get("files", len(files))
