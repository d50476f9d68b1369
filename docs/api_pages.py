"""Writes the API reference: one page per module of `fdrl_jax`, from its public names."""

import ast
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import fdrl_jax

FOLDER = "api"
_NAME = re.compile(r"(?:fdrl|fdrl_jax)((?:\.\w+)+)(?:\(.*\))?")
_MODULES = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z])")
_DTYPE_LIKE = "str | type[Any] | dtype | SupportsDType"
_SHORT = {  # By pattern; Sphinx writes a tilde before names whose module it omits.
    r"~[\w.]+\.Array \| ~numpy\.ndarray \| ~numpy\.bool \| ~numpy\.number \| bool \| int \| float "
    r"\| complex": "ArrayLike",
    r"str \| type\[~typing\.Any\] \| ~numpy\.dtype \| ~[\w.]+\.SupportsDType": "DTypeLike",
    r"<class 'jax\.numpy\.(\w+)'>": r"\1",
    r", parent: [^=]*= <flax[^>]*>, name: str \| None = None": "",
}


def modules() -> list[ModuleType]:
    """Returns the public modules of `fdrl_jax`, and those of `fdrl_jax.training`."""
    top = [importlib.import_module(f"fdrl_jax.{name}") for name in _public_modules(fdrl_jax)]
    inside = _public_modules(fdrl_jax.training)
    return top + [importlib.import_module(f"fdrl_jax.training.{name}") for name in inside]


def _public_modules(package: ModuleType) -> list[str]:
    found = (info.name for info in pkgutil.iter_modules(package.__path__))
    return [name for name in found if not name.startswith("_")]


def public_names(module: ModuleType) -> list[str]:
    """Returns the public names of a module in order; those of a package are its `__all__`.

    Other names of classes of other packages, such as `Array` of `jax.Array`, are left out: each
    module has them.
    """
    if hasattr(module, "__path__"):
        return list(module.__all__)
    # An overloaded function has several definitions; the dictionary has each name once.
    found = [name for name in _definitions(module) if not name.startswith("_")]
    return [name for name in found if not _is_foreign(getattr(module, name))]


def _is_foreign(value: Any) -> bool:
    return inspect.isclass(value) and not value.__module__.startswith("fdrl_jax")


def _definitions(module: ModuleType) -> dict[str, ast.stmt]:
    """Returns the definitions at the top of a module's source, by name."""
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found[name] = node
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found[name] = node
    return found


def page(module: ModuleType) -> str:
    """Returns the page of a module in reStructuredText, the format of autodoc."""
    title = module.__name__
    lines = [title, "=" * len(title), "", f".. automodule:: {title}", "   :no-members:", ""]
    defined = _definitions(module)
    for name in public_names(module):
        lines += _directive(title, name, getattr(module, name), defined.get(name))
    return "\n".join(lines)


def _directive(module: str, name: str, value: Any, definition: ast.stmt | None) -> list[str]:
    if inspect.ismodule(value):  # It has a page of its own.
        return []
    if alias := _alias(value, definition):
        return [f".. py:type:: {name}", f"   :canonical: {alias}", ""]
    if inspect.isclass(value):
        # The docstring describes the fields. As members they would be aliases for field numbers.
        fields = ", ".join(("count", "index", "dtype", *getattr(value, "_fields", ())))
        return [
            f".. autoclass:: {module}.{name}",
            "   :members:",
            f"   :exclude-members: {fields}",
            "",
        ]
    if inspect.isfunction(value):
        return [f".. autofunction:: {module}.{name}", ""]
    annotated = isinstance(definition, ast.AnnAssign)
    kind = ast.unparse(definition.annotation) if annotated else type(value).__name__
    return [f".. py:data:: {name}", f"   :type: {kind}", ""]


def _alias(value: Any, definition: ast.stmt | None) -> str | None:
    """Returns the type that a name represents, as in the source, if it is another name of one."""
    match definition:
        case ast.AnnAssign(annotation=ast.Name(id="TypeAlias"), value=ast.expr() as source):
            return ast.unparse(source).strip("'")
        case ast.Assign(value=source) if inspect.isclass(value) or typing.get_origin(value):
            return ast.unparse(source)
    return None


def shorten_types(
    app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Shows types of attributes without the modules that define them."""
    for i, line in enumerate(lines):
        if line.startswith(":vartype"):
            lines[i] = _MODULES.sub("", line).replace(_DTYPE_LIKE, "DTypeLike")


def shorten_signature(
    app: Any,
    what: str,
    name: str,
    value: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Writes short names for long unions of types, and omits the private arguments of Flax."""
    return shorter(signature), shorter(returns)


def shorter(text: str | None) -> str | None:
    """Returns a signature or a type of one with the names that a reader of JAX code knows."""
    for pattern, short in _SHORT.items():
        text = text and re.sub(pattern, short, text)
    return text


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


def documented_name(text: str, documented: Collection[str]) -> str | None:
    """Returns the documented full name that a piece of code names, if it is one name.

    A name may be a shorter path than the documented one, as `fdrl.flow` of
    `fdrl_jax.langevin.flow`, and may have arguments after it.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    name = f"fdrl_jax{found[1]}"
    try:
        value = pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return None
    candidates = [name]
    if not inspect.ismodule(value) and hasattr(value, "__qualname__"):
        # A function of a package is documented on the page of the package.
        parts = value.__module__.split(".")
        candidates += [".".join([*parts[:n], value.__qualname__]) for n in range(len(parts), 1, -1)]
    return next((name for name in candidates if name in documented), None)


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
