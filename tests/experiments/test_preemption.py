"""SIGTERM asks for an end in good order once, and is obeyed at once the second time."""

import os
import signal

from experiments.training.preemption import Preemption


def test_the_first_sigterm_is_heard_and_a_second_would_end_the_process():
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.is_due()
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.is_due()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before
