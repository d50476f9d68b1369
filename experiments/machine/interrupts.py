"""Ctrl-C ends the program at once, also while XLA compiles."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

EXIT_CODE = 130
_state = {"message": "nothing was saved yet"}


def note(message: str) -> None:
    """Sets what an interrupted program says about what is on disk."""
    _state["message"] = message


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


def _leave_on_interrupt(reader: int) -> None:
    with os.fdopen(reader, "rb", buffering=0) as signals:
        while received := signals.read(1):
            if received[0] == signal.SIGINT:
                print(f"\nerror: interrupted; {_state['message']}", file=sys.stderr, flush=True)
                os._exit(EXIT_CODE)
