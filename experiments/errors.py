"""Errors that are the user's to mend: told in one line, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in a command, a config or a file. The message says what to do about it."""


class DataError(UserError):
    """Data that are missing or cannot be read. The message names the file."""


class DivergedError(UserError):
    """Training produced numbers that are of no use."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the nearest allowed name, or nothing if none is near."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
