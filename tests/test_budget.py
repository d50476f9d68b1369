"""The table [tool.budget] of pyproject.toml holds: what needs room takes it from elsewhere."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUDGET = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["budget"]
WORDS = BUDGET.pop("words")
# Without the pages that `make docs` writes.
PAGES = [p for p in (ROOT / "docs").rglob("*.md") if p.name not in ("settings.md", "metrics.md")]
PAGES += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


@pytest.mark.parametrize("folder", BUDGET)
def test_a_folder_has_no_more_lines_and_files_than_it_may(folder):
    files = [*(ROOT / folder).rglob("*.py")]
    assert sum(path.read_bytes().count(b"\n") for path in files) <= BUDGET[folder]["lines"]
    assert len(files) <= BUDGET[folder].get("files", len(files))


def test_the_pages_have_no_more_words_than_they_may():
    words = {path: len(path.read_text("utf-8").split()) for path in PAGES}
    assert sum(words.values()) <= WORDS["all"]
    assert words.pop(ROOT / "README.md") <= WORDS["readme"]
    words.pop(ROOT / "docs" / "results.md")  # docs.results writes it from data.
    assert max(words.values()) <= WORDS["page"]
