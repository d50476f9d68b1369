"""Errors that the user can fix, reported in one line without a traceback."""

import argparse
import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

# Disk full, over quota, file too large, read-only, failing, gone, or another kind of file.
_OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR),
)

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # In the errors of JAX.
MEMORY_HINT = (
    "Try a smaller network.width or network.hidden_sizes, a smaller train.batch_size, a larger "
    "train.num_micro_batches, network.remat=True, or a smaller evaluate.batch_size"
)


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


@contextlib.contextmanager
def explained(workdir: Path | None = None) -> Iterator[None]:
    """Turns an error of the disk, or of memory that has run out, into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_DISK:
            raise
        where = error.filename or f"--workdir={workdir}"
        raise UserError(
            f"{where}: {error.strerror}; files that were complete are intact"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and OUT_OF_MEMORY not in str(error):
            raise
        raise UserError(f"out of memory: {first_line(error)[:200]}. {MEMORY_HINT}") from error


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Parser(argparse.ArgumentParser):
    """Reports a mistake on the command line as an error of the user's. Names must be complete."""

    def __init__(self, prog: str, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(prog, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")
