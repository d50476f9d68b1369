"""Writes the reference pages when Sphinx starts: the API, the settings and the table of metrics."""

import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import fdrl_jax
from experiments import settings
from experiments.evaluation.metrics import DEFINITIONS

_LONG = {  # What Sphinx shows of some types, and of the private arguments of Flax.
    r"~[\w.]+\.Array \| ~numpy\.ndarray \| ~numpy\.bool \| ~numpy\.number \| bool \| int \| float "
    r"\| complex": "ArrayLike",
    r"str \| type\[~typing\.Any\] \| ~numpy\.dtype \| ~[\w.]+\.SupportsDType": "DTypeLike",
    r", parent: [^=]*= <flax[^>]*>, name: str \| None = None": "",
}


def modules() -> list[ModuleType]:
    """Returns the package, its public modules, and those of `fdrl_jax.training`."""
    found = [fdrl_jax]
    for package in (fdrl_jax, fdrl_jax.training):
        names = (info.name for info in pkgutil.iter_modules(package.__path__))
        values = (getattr(package, name, None) for name in names if not name.startswith("_"))
        found += filter(inspect.ismodule, values)  # `fdrl_jax.pretrained` is the function.
    return found


def public_names(module: ModuleType) -> list[str]:
    """Returns the public functions and classes that a module lists or defines."""

    def is_shown(name: str) -> bool:
        value = getattr(module, name)
        home = "fdrl_jax" if hasattr(module, "__all__") else module.__name__
        is_ours = str(getattr(value, "__module__", "")).startswith(home)
        return callable(value) and is_ours and not name.startswith("_")

    return list(filter(is_shown, getattr(module, "__all__", vars(module))))


def api_page(module: ModuleType) -> str:
    """Returns the page of a module in reStructuredText, the format of autodoc."""
    title = module.__name__
    lines = [title, "=" * len(title), "", f".. automodule:: {title}", "   :no-members:", ""]
    for name in public_names(module):
        kind = "class" if inspect.isclass(getattr(module, name)) else "function"
        lines.append(f".. auto{kind}:: {title}.{name}")
        lines += ["   :members:"] if kind == "class" else []
        lines += ["   :no-index:"] if module is fdrl_jax else []  # Each is on another page, too.
        lines.append("")
    return "\n".join(lines)


def settings_page() -> str:
    """Returns the page of all settings, in Markdown."""
    scopes = "".join(f"- **{scope}**: {text}\n" for scope, text in settings.MAY_CHANGE.items())
    rows = ["| setting | meaning | allowed | default | changes |", "|---|---|---|---|---|"]
    for key, setting in settings.DECLARED.items():
        default = repr(setting.default).replace("'", '"')
        cells = f"`{key}`", setting.about, setting.allowed, f"`{default}`", setting.scope
        rows.append(f"| {' | '.join(cells)} |")
    return (
        "# Settings\n\nChange a setting with `--config.KEY=VALUE`, or in a config file; "
        "`python -m experiments.main --help=KEY` prints its row. The last column says when a "
        f"setting may differ from that of an existing run:\n\n{scopes}\n" + "\n".join(rows) + "\n"
    )


def metrics_table() -> str:
    """Returns the definitions of all metrics as a table in Markdown."""
    rows = ["| metric | meaning | formula | unit | better | remarks |", "|---|---|---|---|---|---|"]
    for name, d in DEFINITIONS.items():
        cells = f"`{name}`", d.words, f"`{d.formula}`", d.unit, d.direction or "", d.protocol
        # A bar would end the cell, in code as well.
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def write(docs: Path) -> None:
    """Writes all pages that have changed, because Sphinx reads newer files again."""
    pages = {f"api/{module.__name__}.rst": api_page(module) for module in modules()}
    for old in set(docs.glob("api/fdrl_jax*.rst")) - {docs / name for name in pages}:
        old.unlink()
    pages |= {"settings.md": settings_page(), "metrics.md": metrics_table()}
    for name, text in pages.items():
        path = docs / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def shorten(app: Any, what: str, name: str, value: Any, options: Any, *texts: str | None) -> Any:
    """Returns a signature and its type with the names that a reader of JAX code knows."""
    found = []
    for text in texts:
        for pattern, short in _LONG.items():
            text = text and re.sub(pattern, short, text)
        found.append(text)
    return tuple(found)


def skip_fields(
    app: Any, what: str, name: str, value: Any, skip: bool, options: Any
) -> bool | None:
    """Leaves out the fields of named tuples, which the docstring of the class describes."""
    return True if (inspect.getdoc(value) or "").startswith("Alias for field number") else None
