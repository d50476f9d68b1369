"""Lets Ctrl-C end the program immediately, even while XLA compiles."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

EXIT_CODE = 130
_state: dict[str, Callable[[], str]] = {"loss": lambda: "files that were complete are intact"}


def describe_loss(describe: Callable[[], str]) -> None:
    """Sets the message of an interrupted program about what has been saved and what is lost.

    It is composed by another thread when the program is interrupted.
    """
    _state["loss"] = describe


@contextlib.contextmanager
def exiting_at_once() -> Iterator[None]:
    """Lets Ctrl-C end the process from a separate thread.

    Python runs signal handlers only between bytecodes of the main thread, which may take minutes in
    compiled code, and an exception there would unwind through the compiler's threads. All files are
    written atomically, so exiting without cleanup loses nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # Others cannot set handlers.
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


def end_with(parent: int) -> None:
    """Ends this process within a second after its parent, the process of this id, has ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(EXIT_CODE)

    threading.Thread(target=watch, daemon=True).start()


def leave(code: int, message: str) -> NoReturn:
    """Prints an error in one line and ends the process without cleanup.

    Cleanup could wait for a disk or a peer that does not respond.
    """
    # If this is another thread, the main thread may have a progress bar; end its line.
    end = "" if threading.current_thread() is threading.main_thread() else "\n"
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{end}error: {message}\n")):
        with contextlib.suppress(OSError, ValueError):  # The stream may be closed.
            stream.write(text)
            stream.flush()
    os._exit(code)


def _leave_on_interrupt(reader: int) -> None:
    with os.fdopen(reader, "rb", buffering=0) as signals:
        while received := signals.read(1):
            if received[0] == signal.SIGINT:
                leave(EXIT_CODE, f"interrupted; {_state['loss']()}")
