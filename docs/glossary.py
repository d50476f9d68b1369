"""The glossary of metrics in `evaluation.md`, from their definitions."""

from experiments.evaluation.metrics import DEFINITIONS

_HEADER = "| metric | meaning | formula | unit | better | remarks |\n|---|---|---|---|---|---|\n"


def glossary() -> str:
    """Returns the definitions as a table in Markdown."""
    return _HEADER + "\n".join(map(_row, DEFINITIONS)) + "\n"


def _row(name: str) -> str:
    d = DEFINITIONS[name]
    cells = (f"`{name}`", d.words, f"`{d.formula}`", d.unit, d.direction or "", d.protocol)
    # A bar would end the cell, in code as well.
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
