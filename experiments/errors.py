"""Errors that the user can fix, reported in one line without a traceback."""

import argparse
from typing import NoReturn


class UserError(Exception):
    """A mistake in a command, a config or a file. The message says what to do about it.

    The program ends with the exit code.
    """

    exit_code = 2


class DataError(UserError):
    """Data that are missing or cannot be read. The message names the file."""


class DivergedError(UserError):
    """Training diverged, in the steps up to `last_step`."""

    exit_code = 3

    def __init__(self, message: str, last_step: int) -> None:
        super().__init__(message)
        self.last_step = last_step


class PreemptedError(UserError):
    """The system asked the run to stop; its state is saved, and the same command resumes it."""

    exit_code = 4


class PeerError(UserError):
    """Another process of the run has ended, or processes or devices do not agree."""

    exit_code = 5


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Parser(argparse.ArgumentParser):
    """Reports a mistake on the command line as an error of the user's."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
