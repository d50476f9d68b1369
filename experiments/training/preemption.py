"""Stops training when the system asks for it (preemption)."""

import signal
import threading
from collections import deque
from typing import Any, Self

import jax

from fdrl_jax.training import parallel

# The result of a vote is read this many dispatches later, when it is ready without waiting.
_VOTES_UNDER_WAY = 2


class Preemption:
    """Handles SIGTERM, which clusters send some time, often 30 seconds, before they kill a process.

    After the first signal, the loop saves and stops at the next step boundary. A second signal ends
    the process immediately. If there are several processes, a signal to one of them suffices: they
    vote at each dispatch, so all stop at the same step.
    """

    def __init__(self) -> None:
        self._heard = False
        self._votes: deque[Any] = deque()
        self._before: Any = signal.SIG_DFL

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Others cannot handle signals.
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def is_due(self) -> bool:
        """Whether to stop now. Every process must call this once before each dispatch."""
        if jax.process_count() == 1:
            return self._heard
        self._votes.append(parallel.any_process(self._heard))
        return len(self._votes) > _VOTES_UNDER_WAY and bool(self._votes.popleft())

    def _hear(self, *_: object) -> None:
        self._heard = True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
