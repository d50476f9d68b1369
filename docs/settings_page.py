"""The reference of all settings: written from `experiments/settings.py`."""

from pathlib import Path

from experiments import settings

FILE = "settings.md"
_INTRODUCTION = """# Settings

Every setting of a run: its default, what it does and when it may change. Set one on the command
line with `--config.KEY=VALUE`, or in a config file. `python -m experiments.main --help=KEY`
prints the same.

- **fixed**: set when the run is created.
- **training**: set when the run is created; samples depend on it through the checkpoint only.
- **flow**: set when the run is created; a command that draws samples may use another value.
- **free**: may change with every command.
"""
_TITLES = {"": "General"}


def page() -> str:
    """Returns the page, in Markdown."""
    sections: dict[str, list[str]] = {}
    for key in settings.SETTINGS:
        sections.setdefault(key.rpartition(".")[0], []).append(key)
    parts = [_INTRODUCTION]
    for name, keys in sections.items():
        rows = "\n".join(_row(key) for key in keys)
        parts.append(
            f"## {_TITLES.get(name, name)}\n\n| key | default | may change | meaning |\n"
            f"|---|---|---|---|\n{rows}\n"
        )
    return "\n".join(parts)


def write(docs: Path) -> None:
    """Writes the page, unless it is up to date: Sphinx reads what is newer again."""
    path, text = docs / FILE, page()
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def _row(key: str) -> str:
    setting = settings.SETTINGS[key]
    default = repr(setting.default).replace("'", '"')
    meaning = f"{setting.about} Allowed: {setting.rule.allowed}."
    cells = (f"`{key}`", f"`{default}`", setting.scope, meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
