"""Errors that are the user's to mend: told in one line, without a traceback."""


class UserError(Exception):
    """A mistake in a command, a config or a file. The message says what to do about it."""


class DataError(UserError):
    """Data that are missing or cannot be read. The message names the file."""


class DivergedError(UserError):
    """Training produced numbers that are of no use."""
