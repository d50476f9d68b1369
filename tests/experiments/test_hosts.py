"""Several processes give the results of one, and signals stop a run at a step boundary."""

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import pytest

from experiments import hosts
from experiments.errors import UserError
from experiments.hosts import StopSignals
from fdrl_jax.training import parallel

JOINED = {
    "distributed": False,
    "coordinator_address": None,
    "num_processes": None,
    "process_id": None,
    "heartbeat_seconds": 10,
}


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


def test_sigterm_ends_one_of_several_processes_that_does_not_train():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    joined = JOINED | {"coordinator_address": address, "num_processes": 1, "process_id": 0}
    program = (
        "import os, signal, time\n"
        "from experiments import hosts\n"
        f"hosts.join(**{joined})\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(10)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM, done.stderr


def test_missing_flags_are_an_error():
    with pytest.raises(UserError, match="must be given together"):
        hosts.join(**JOINED | {"coordinator_address": "127.0.0.1:1"})


def test_processes_with_different_numbers_of_devices_are_refused(monkeypatch):
    hosts.check_devices()
    owners = [SimpleNamespace(process_index=index) for index in (0, 0, 1)]
    monkeypatch.setattr(jax, "devices", lambda: owners)
    with pytest.raises(UserError, match="the processes of the run have 2, 1 devices, but each"):
        hosts.check_devices()


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


@pytest.mark.parametrize(
    ("environ", "owns"),
    [
        ({}, False),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "2"}, True),  # One task per host.
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_NODES": "2"}, False),  # All see all GPUs.
        ({"SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0"}, True),
        ({"SLURM_GPUS_PER_TASK": "a100:2", "CUDA_VISIBLE_DEVICES": "0,1"}, True),
        ({"SLURM_GPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}, False),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, False),
        (  # mpirun in a SLURM job, whose daemons are one task per host.
            {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_NODES": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
            False,
        ),
        ({"SLURM_JOB_ID": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, True),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "JAX_LOCAL_DEVICE_IDS": "0"}, False),
    ],
)
def test_a_process_uses_all_gpus_that_it_sees_if_they_are_its_own(environ, owns):
    assert hosts._has_own_gpus(environ) == owns


def test_under_slurm_the_only_task_of_a_host_uses_all_its_gpus(monkeypatch):
    def initialize(*_, **__):
        jax.config.update("jax_cuda_visible_devices", "0")  # As JAX does for SLURM_LOCALID=0.

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "2")
    try:
        hosts.join(**JOINED | {"distributed": True})
        assert jax.config.read("jax_cuda_visible_devices") == "all"
    finally:
        jax.config.update("jax_cuda_visible_devices", "all")
