"""Guesses for mistyped names."""

import difflib
from collections.abc import Iterable


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the nearest allowed name, or nothing if none is near."""
    matches = difflib.get_close_matches(name.lower(), list(allowed), n=1, cutoff=0.4)
    return f"; did you mean {matches[0]!r}?" if matches else ""
