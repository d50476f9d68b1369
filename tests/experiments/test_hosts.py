"""Several processes give the results of one, and signals stop a run at a step boundary."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from small_runs import train

from experiments import hosts, log
from experiments.errors import ReplicaError, UserError
from experiments.hosts import StopSignals
from fdrl_jax.training import parallel

JOINED = {
    "distributed": False,
    "coordinator_address": None,
    "num_processes": None,
    "process_id": None,
    "heartbeat_seconds": 10,
}
_LIMIT_SECONDS = 180  # Far more than any command needs, also on a busy machine.


def heard(signals):
    """Waits until the thread of the signals has run."""
    end = time.monotonic() + 30.0
    while not signals.heard and time.monotonic() < end:
        time.sleep(0.01)
    return signals.heard


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")]
)
def test_the_first_signal_is_heard_and_the_handlers_are_put_back(number, name, capsys):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert not signals.is_due()
        os.kill(os.getpid(), number)
        assert heard(signals) == name
        assert signals.is_due()
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_the_process_at_once_even_in_compiled_code():
    program = (
        "import hashlib, os, signal, threading\n"
        "from experiments.hosts import StopSignals\n"
        "for seconds, number in ((1, signal.SIGTERM), (2, signal.SIGINT)):\n"
        "    threading.Timer(seconds, os.kill, (os.getpid(), number)).start()\n"
        "with StopSignals():\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"  # Minutes outside of Python.
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT
    assert "SIGTERM: saving and stopping" in done.stderr


def test_processes_vote_and_stop_after_the_same_number_of_dispatches(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    others = iter([False, False, True, False, False])  # One that another process has heard.
    monkeypatch.setattr(parallel, "any_process", lambda mine: mine or next(others))
    signals = StopSignals()
    assert [signals.is_due() for _ in range(5)] == [False, False, False, False, True]


def test_missing_flags_are_an_error():
    with pytest.raises(UserError, match="must be given together"):
        hosts.join(**JOINED | {"coordinator_address": "127.0.0.1:1"})


def test_without_flags_nothing_is_joined():
    hosts.join(**JOINED)
    assert hosts.num_processes() == 1


def test_a_process_that_waits_says_so_and_listens_only_on_its_address(monkeypatch, capsys):
    asked = {}

    def initialize(*arguments, **options):
        asked.update(options)
        time.sleep(0.3)
        raise RuntimeError("DEADLINE_EXCEEDED: no answer")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(hosts, "_QUIET_SECONDS", 0.05)
    given = {"coordinator_address": "127.0.0.1:9", "num_processes": 2, "process_id": 1}
    with pytest.raises(UserError, match="cannot join: DEADLINE_EXCEEDED: no answer"):
        hosts.join(**JOINED | given)
    waiting = "waiting for the other processes of the run at 127.0.0.1:9"
    assert waiting in capsys.readouterr().err
    assert asked["coordinator_bind_address"] == "127.0.0.1:9"
    assert asked["heartbeat_timeout_seconds"] == 10


def test_replicas_that_differ_in_a_bit_are_named():
    replicated = parallel.replicate({"a": jax.numpy.ones((3, 2)), "step": jax.numpy.int32(4)})
    hosts.check_agreement(replicated, 4)
    flipped = replicated["a"].at[2, 1, 1].set(1.0 + 2.0**-23)
    with pytest.raises(ReplicaError, match="at step 4 the replicas 2 of 4 differ from the others"):
        hosts.check_agreement({**replicated, "a": flipped}, 4)


def run_with_two_processes(output, *flags):
    """Runs a command of the program in two processes, and checks that both end without an error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.main", *flags]
    command += [f"--coordinator_address={address}", "--num_processes=2"]
    with contextlib.ExitStack() as stack:
        processes = []
        for i in range(2):
            file = stack.enter_context(output.with_suffix(f".{i}").open("wb"))
            process = subprocess.Popen(
                [*command, f"--process_id={i}"],
                env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},  # One device each.
                stdout=file,
                stderr=file,
            )
            stack.callback(process.kill)
            processes.append(process)
        codes = [process.wait(_LIMIT_SECONDS) for process in processes]
    printed = [output.with_suffix(f".{i}").read_text() for i in range(2)]
    assert codes == [0, 0], printed
    return printed


@pytest.mark.slow
def test_two_processes_train_and_sample_what_one_does(trained, tmp_path):
    folder, output = tmp_path / "run", tmp_path / "output"
    workdir = f"--workdir={folder}"

    first, other = run_with_two_processes(output, "--config=swissroll:tiny", workdir)
    assert "report: " in first
    assert "report: " not in other
    losses = [[r["loss"] for r in log.read(f / "metrics.jsonl")] for f in (folder, trained.root)]
    np.testing.assert_allclose(*losses, rtol=1e-4)

    run_with_two_processes(output, "--mode=sample", workdir, "--num_samples=6")
    samples = np.load(next((folder / "samples").glob("*.npz")))["arr_0"]
    assert samples.shape == (6, 2)
    assert np.isfinite(samples).all()

    # One process continues what two have begun.
    shutil.rmtree(folder / "checkpoints" / "4")
    assert int(train(folder).step) == 4
