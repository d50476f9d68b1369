"""Writes a page for each program and notebook in `examples/`, with its source and outputs."""

import ast
import base64
import json
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
FOLDER = "examples"


def pages() -> dict[str, str | bytes]:
    """Returns the content of all files of the folder by name: pages, and pictures of notebooks."""
    programs = (p for p in sorted(EXAMPLES.glob("*.py")) if p.name != "__init__.py")
    found: dict[str, str | bytes] = {f"{p.stem}.md": program(p) for p in programs}
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        text, pictures = notebook(path)
        found |= {f"{path.stem}.md": text, **pictures}
    return found


def program(path: Path) -> str:
    """Returns the page of a program, in Markdown."""
    summary = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or path.stem).splitlines()[0]
    return (
        f"# {summary.rstrip('.')}\n\n`python -m examples.{path.stem}` runs this program.\n\n"
        f"```{{literalinclude}} ../../examples/{path.name}\n:language: python\n```\n"
    )


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """Returns the page of a notebook, in Markdown, and its pictures by file name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if (picture := output.get("data", {}).get("image/png")) is not None:
                name = f"{path.stem}_{len(pictures)}.png"
                pictures[name] = base64.b64decode(picture)
                parts.append(f"![Output of the code above]({name})")
            elif text := _text(output):
                parts.append(f"```text\n{text}\n```")
    parts.append(f"This page is the notebook `examples/{path.name}`.")
    return "\n\n".join(parts) + "\n", pictures


def _text(output: dict[str, Any]) -> str:
    lines = output.get("text") or output.get("data", {}).get("text/plain", "")
    return "".join(lines).rstrip()


def write(docs: Path) -> None:
    """Writes all files that have changed, because Sphinx reads newer files again."""
    folder = docs / FOLDER
    folder.mkdir(exist_ok=True)
    wanted = {n: c.encode() if isinstance(c, str) else c for n, c in pages().items()}
    for old in folder.iterdir():
        if old.name not in wanted:
            old.unlink()
    for name, content in wanted.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
