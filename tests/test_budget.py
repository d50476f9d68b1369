"""The table [tool.budget] of pyproject.toml holds: what needs room takes it from elsewhere."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUDGET = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["budget"]
# The pages, without those that `make docs` writes.
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [p for p in (ROOT / "docs").rglob("*.md") if p.name not in ("settings.md", "metrics.md")]


@pytest.mark.parametrize("folder", [name for name in BUDGET if name != "words"])
def test_a_folder_has_no_more_lines_and_files_than_it_may(folder):
    files = [*(ROOT / folder).rglob("*.py")]
    num_lines = sum(path.read_text("utf-8").count("\n") for path in files)
    assert num_lines <= BUDGET[folder]["lines"]
    assert len(files) <= BUDGET[folder].get("files", len(files))


def test_the_pages_have_no_more_words_than_they_may():
    words = {path.name: len(re.findall(r"\S+", path.read_text("utf-8"))) for path in PAGES}
    assert sum(words.values()) <= BUDGET["words"]["all"]
    assert words["README.md"] <= BUDGET["words"]["readme"]
    assert max(words.values()) <= BUDGET["words"]["page"]
