"""Writes the API reference: one page per module of `fdrl_jax`, from its public names."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import fdrl_jax

FOLDER = "api"


def modules() -> list[ModuleType]:
    """Returns the public modules of `fdrl_jax`, and those of `fdrl_jax.training`."""
    top = [importlib.import_module(f"fdrl_jax.{name}") for name in _public_modules(fdrl_jax)]
    inside = _public_modules(fdrl_jax.training)
    return top + [importlib.import_module(f"fdrl_jax.training.{name}") for name in inside]


def _public_modules(package: ModuleType) -> list[str]:
    found = (info.name for info in pkgutil.iter_modules(package.__path__))
    return [name for name in found if not name.startswith("_")]


def public_names(module: ModuleType) -> list[str]:
    """Returns the public names of a module in order; those of a package are its `__all__`."""
    if hasattr(module, "__path__"):
        return list(module.__all__)
    names = []
    for node in ast.parse(inspect.getsource(module)).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                names.append(name)
    # An overloaded function has several definitions.
    return [name for name in dict.fromkeys(names) if not name.startswith("_")]


def page(module: ModuleType) -> str:
    """Returns the page of a module in reStructuredText, the format of autodoc."""
    title = module.__name__
    lines = [title, "=" * len(title), "", f".. automodule:: {title}", "   :no-members:", ""]
    for name in public_names(module):
        lines += _directive(title, name, getattr(module, name))
    return "\n".join(lines)


def _directive(module: str, name: str, value: Any) -> list[str]:
    if inspect.ismodule(value):  # It has a page of its own.
        return []
    if inspect.isclass(value) and not value.__module__.startswith("fdrl_jax"):
        # An alias such as `Array`. Sphinx would describe the same class once per module.
        return [f".. py:data:: {name}", f"   :type: {value.__module__}.{value.__name__}", ""]
    if inspect.isclass(value):
        # The docstring describes the fields. As members they would be aliases for field numbers.
        fields = ", ".join(("count", "index", *getattr(value, "_fields", ())))
        return [
            f".. autoclass:: {module}.{name}",
            "   :members:",
            f"   :exclude-members: {fields}",
            "",
        ]
    if inspect.isfunction(value):
        return [f".. autofunction:: {module}.{name}", ""]
    return [f".. py:data:: {name}", f"   :type: {type(value).__name__}", ""]


def write_pages(docs: Path) -> None:
    """Writes a page for each module and removes those of modules that no longer exist."""
    folder = docs / FOLDER
    folder.mkdir(exist_ok=True)
    pages = {f"{module.__name__}.rst": page(module) for module in modules()}
    for old in folder.glob("fdrl_jax.*.rst"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text:  # Sphinx reads newer files again.
            path.write_text(text)


def missing(documented: set[str]) -> list[str]:
    """Returns the public symbols that are not among the documented full names.

    A symbol that a module imports from another one counts where it is defined.
    """
    wanted = {f"{m.__name__}.{name}" for m in modules() for name in public_names(m)}
    for name in (n for n in fdrl_jax.__all__ if n != "__version__"):
        value = getattr(fdrl_jax, name)
        if inspect.ismodule(value):
            wanted.add(value.__name__)
        else:
            # A function of a package is documented on the page of the package.
            page = ".".join(value.__module__.split(".")[:2])
            wanted.add(f"{page}.{value.__name__}")
    return sorted(wanted - documented)


def check(app: Any, environment: Any) -> None:
    """Warns about public symbols that are not in the reference, which fails the build."""
    from sphinx.util import logging

    documented = set(environment.domaindata["py"]["objects"])
    for name in missing(documented):
        logging.getLogger(__name__).warning("%s is not in the API reference", name)
