"""Errors and suggestions for mistyped names."""

import difflib
from collections.abc import Iterable


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the closest allowed name, or "" if none is similar."""
    matches = difflib.get_close_matches(str(name).lower(), list(allowed), n=1, cutoff=0.55)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def check(kind: str, name: str, allowed: Iterable[str]) -> None:
    """Raises a ValueError unless the name of a kind of thing is one of the allowed ones."""
    if name not in (names := list(allowed)):
        raise ValueError(
            f"unknown {kind} {name!r}; allowed: {', '.join(names)}{nearest(name, names)}"
        )
