"""Writes the reference of all settings from `experiments/settings.py`."""

from pathlib import Path

from experiments import settings

FILE = "settings.md"
_INTRODUCTION = """# Settings

This page lists all settings of a run with their meaning, allowed values and default. Change a
setting on the command line with `--config.KEY=VALUE`, or in a config file.
`python -m experiments.main --help=KEY` prints the same text.

The last column says when a setting may differ from that of an existing run:

"""
_TITLES = {"": "General"}
_HEADER = "| setting | meaning | allowed | default | changes |\n|---|---|---|---|---|"


def page() -> str:
    """Returns the page, in Markdown."""
    sections: dict[str, list[str]] = {}
    for key in settings.DECLARED:
        sections.setdefault(key.rpartition(".")[0], []).append(key)
    scopes = (f"- **{scope}**: {text}\n" for scope, text in settings.MAY_CHANGE.items())
    parts = [_INTRODUCTION + "".join(scopes)]
    for name, keys in sections.items():
        rows = "\n".join(map(_row, keys))
        parts.append(f"## {_TITLES.get(name, name)}\n\n{_HEADER}\n{rows}\n")
    return "\n".join(parts)


def write(docs: Path) -> None:
    """Writes the page if it has changed, because Sphinx reads newer files again."""
    path, text = docs / FILE, page()
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _row(key: str) -> str:
    setting = settings.DECLARED[key]
    default = repr(setting.default).replace("'", '"')
    cells = (f"`{key}`", setting.about, setting.allowed, f"`{default}`", setting.scope)
    return f"| {' | '.join(cells)} |"
