"""Ctrl-C ends the program at once, also while XLA compiles."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

EXIT_CODE = 130
_state: dict[str, Callable[[], str]] = {"loss": lambda: "files that were complete are intact"}


def describe_loss(describe: Callable[[], str]) -> None:
    """Sets what an interrupted program says about what is on disk.

    Args:
      describe: called from another thread when the program is interrupted.
    """
    _state["loss"] = describe


@contextlib.contextmanager
def exiting_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process from a thread of its own.

    Python runs signal handlers between bytecodes of the main thread, which may be minutes away in
    compiled code, and an exception there unwinds through the compiler's threads. All files are
    written atomically, so leaving without cleaning up loses nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # Only it may set handlers.
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGINT, lambda *_: None)
    before_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_leave_on_interrupt, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before_fd)
        signal.signal(signal.SIGINT, before)
        os.close(writer)  # Ends the thread.


def leave(code: int, message: str) -> NoReturn:
    """Prints the one line of an error and ends the process, without cleaning up.

    What cleans up when a process ends may wait for a disk or a peer that does not answer.
    """
    # From another thread, the main one has perhaps a progress bar, whose line ends here.
    end = "" if threading.current_thread() is threading.main_thread() else "\n"
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{end}error: {message}\n")):
        with contextlib.suppress(OSError, ValueError):  # Nobody may be reading any more.
            stream.write(text)
            stream.flush()
    os._exit(code)


def _leave_on_interrupt(reader: int) -> None:
    with os.fdopen(reader, "rb", buffering=0) as signals:
        while received := signals.read(1):
            if received[0] == signal.SIGINT:
                leave(EXIT_CODE, f"interrupted; {_state['loss']()}")
