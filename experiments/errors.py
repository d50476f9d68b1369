"""Errors that the user can fix, reported in one line without a traceback."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import NoReturn


class UserError(Exception):
    """A mistake in a command, a config or a file; the message says what to do."""

    exit_code = 2  # Of the program.


class DataError(UserError):
    """Data that are missing or cannot be read. The message names the file."""


class DivergedError(UserError):
    """Training diverged; the last good checkpoint is kept."""

    exit_code = 3


class StoppedError(UserError):
    """The system or the user asked the run to stop; its state is saved. Rerun to resume."""

    exit_code = 4


@contextlib.contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Ends the program with one line for an error that the user can fix, and for Ctrl-C."""
    try:
        yield
    except UserError as error:
        leave(error.exit_code, f"{error}" if isinstance(error, StoppedError) else f"error: {error}")
    except KeyboardInterrupt:
        leave(130, "Interrupted; existing files are intact.")
    except OSError as error:
        if error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        leave(2, f"error: {where}{error.strerror}. Existing files are intact.")


def leave(code: int, message: str) -> NoReturn:
    """Ends the process, without cleanup that could wait for a disk or another process."""
    with contextlib.suppress(OSError):
        print(end="", flush=True)
        print(message, file=sys.stderr, flush=True)
    os._exit(code)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
