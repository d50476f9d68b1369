"""Errors that the user can fix, reported in one line without a traceback."""

import argparse
from typing import NoReturn


class UserError(Exception):
    """A mistake in a command, a config or a file. The message says what to do about it.

    Attributes:
      exit_code: exit status of the program.
    """

    exit_code = 2


class DataError(UserError):
    """Data that are missing or cannot be read. The message names the file."""


class DivergedError(UserError):
    """Training diverged.

    Attributes:
      last_step: the last completed step.
    """

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


class Parser(argparse.ArgumentParser):
    """Reports a mistake on the command line as an error of the user's."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
