"""The glossary of metrics in `evaluation.md`, from their definitions."""

from experiments.evaluation.definitions import DEFINITIONS


def glossary() -> str:
    """Returns the definitions as a list in Markdown."""
    return "\n".join(map(_entry, DEFINITIONS)) + "\n"


def _entry(name: str) -> str:
    d = DEFINITIONS[name]
    better = f", {d.direction} is better" if d.direction else ""
    unit = "no unit" if d.unit == "1" else d.unit
    return f"- **`{name}`**: {d.words} ({unit}{better}). `{d.formula}`. {d.protocol}"
