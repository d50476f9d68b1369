"""A lock on disk, so that two programs do not write the same files at the same time."""

import contextlib
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import UserError


@contextlib.contextmanager
def exclusive(file: Path, guarded: str, otherwise: str) -> Iterator[None]:
    """Holds a lock on a file; the system frees it however this process ends.

    Of several processes of one run, let the first alone take it.

    Args:
      file: made if missing; it stays, and names the process that held it last.
      guarded: what it keeps others out of, for messages.
      otherwise: what a program that comes second may do instead of waiting, for messages.

    Raises:
      UserError: if another process holds it, naming that process, or the file cannot be written.
    """
    try:
        stream = file.open("a+")
    except OSError as error:
        raise UserError(f"{guarded} cannot be written: {error.strerror}") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise UserError(
                f"{guarded} is in use by {stream.read().strip()}; wait for it, stop it, or "
                f"{otherwise}"
            ) from None
        except OSError as error:  # Some file systems of clusters have no locks.
            logging.getLogger("fdrl").warning(
                "%s cannot be locked (%s): see to it that no other program uses it",
                guarded,
                error.strerror,
            )
        stream.truncate(0)
        stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        stream.flush()
        yield
