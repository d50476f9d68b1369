"""Ending in good order when the system asks for it."""

import signal
import threading
from collections import deque
from typing import Any, Self

import jax

from fdrl_jax import parallel

# The answer of a vote is read so many dispatches later, when it is there: nothing waits for it.
_VOTES_UNDER_WAY = 2


class Preemption:
    """Hears SIGTERM: clusters send it some time, often 30 seconds, before they kill a process.

    The first one asks the loop to save and stop at the next step boundary; a second one ends the
    process at once. With several processes it is enough that one hears it: they vote beside each
    dispatch, and so all stop at the same step.
    """

    def __init__(self) -> None:
        self._heard = False
        self._votes: deque[Any] = deque()
        self._before: Any = signal.SIG_DFL

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Others cannot hear signals.
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def is_due(self) -> bool:
        """Tells whether to stop now. To be asked once before each dispatch, by every process."""
        if jax.process_count() == 1:
            return self._heard
        self._votes.append(parallel.any_process(self._heard))
        return len(self._votes) > _VOTES_UNDER_WAY and bool(self._votes.popleft())

    def _hear(self, *_: object) -> None:
        self._heard = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
