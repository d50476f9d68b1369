"""Several processes give the results of one and end together; checkpoints fit any number."""

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pytest

from benchmarks.faults import peers as faults
from benchmarks.faults import program
from experiments import build, run
from experiments.errors import PeerError, UserError
from experiments.machine import hosts, peers
from fdrl_jax.training import parallel

CHANGES = {
    "optimizer.schedule": "constant",
    "train.num_steps": 60,
    "train.steps_per_dispatch": 10,
    "log.every_steps": 50,
    "checkpoint.every_steps": 50,
    "snapshot.every_steps": 1_000,
}
JOINED = {
    "coordinator_address": None,
    "num_processes": None,
    "process_id": None,
    "heartbeat_seconds": 10,
}


def state(folder, step):
    opened = run.open_run(folder)
    experiment = build.experiment(opened.settings, opened.source(), opened.prior())
    with opened.saved_checkpoints() as store:
        return store.restore(experiment.state_shapes(), step).state


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_two_processes_of_two_devices_train_what_one_does_and_one_of_one_resumes(tmp_path):
    log = tmp_path / "log"
    program.train_to(tmp_path / "alone", 60, log, CHANGES)
    command = program.command(tmp_path / "4", CHANGES | {"train.num_steps": 50})
    processes = program.start_processes([command] * 2, log)
    with contextlib.ExitStack() as stack:
        stack.callback(program.kill, *processes)
        program.wait_for_step(processes[0], tmp_path / "4", 50)
    shutil.copytree(tmp_path / "4", tmp_path / "1")
    program.train_to(tmp_path / "1", 60, log, CHANGES)

    for name, step in (("4", 50), ("1", 60)):
        chex.assert_trees_all_close(
            state(tmp_path / name, step), state(tmp_path / "alone", step), rtol=1e-3, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
def test_two_processes_draw_and_judge_the_samples_that_one_draws(tmp_path):
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "log"
    program.train_to(one, 5, log)
    shutil.copytree(one, two)
    flags = ("--num_samples=30", "--config.evaluate.batch_size=8")
    for mode, more in (("sample", ()), ("curve", ("--config.curve.lengths=(0,3)",))):
        processes = program.start_processes(
            [program.command_of_mode(mode, two, *flags, *more)] * 2, log
        )
        codes = [process.wait(600) for process in processes]
        assert codes == [0, 0], log.with_suffix(".0").read_text()
        command = program.command_of_mode(mode, one, *flags, *more)
        assert program.start(command, log).wait() == 0, log.read_text()

    drawn = [np.load(folder / "samples" / "step_5.npz")["arr_0"] for folder in (one, two)]
    np.testing.assert_allclose(*drawn, rtol=1e-4, atol=1e-5)
    curves = [
        np.loadtxt(next((f / "curves").glob("*.csv")), delimiter=",", skiprows=1)
        for f in (one, two)
    ]
    np.testing.assert_allclose(*curves, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.usefixtures("fork_server")
@pytest.mark.parametrize(
    "scenario",
    [
        faults.terminate_one,
        faults.kill_while_sampling,
        faults.split_workdirs,
        faults.refuse_lock,
        faults.exhaust_memory,
    ],
)
def test_processes_end_together_with_one_line_each(scenario, tmp_path):
    assert not scenario(tmp_path).complaints


def test_missing_flags_are_an_error():
    with pytest.raises(UserError, match="must be given together"):
        hosts.join(distributed=False, **JOINED | {"coordinator_address": "127.0.0.1:1"})


def test_without_flags_nothing_is_joined():
    hosts.join(distributed=False, **JOINED)
    assert jax.process_count() == 1


def test_a_process_that_waits_for_the_first_one_says_so_and_listens_only_on_its_address(
    monkeypatch, capsys
):
    asked = {}

    def initialize(*arguments, **options):
        asked.update(options)
        time.sleep(0.3)
        raise RuntimeError("DEADLINE_EXCEEDED: no answer")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(hosts, "_QUIET_SECONDS", 0.05)
    for process_id, waits_for in ((1, "the first process"), (0, "the other 1 processes")):
        with pytest.raises(UserError, match="cannot be joined: DEADLINE_EXCEEDED: no answer"):
            hosts.join(
                distributed=False,
                coordinator_address="127.0.0.1:9",
                num_processes=2,
                process_id=process_id,
                heartbeat_seconds=10,
            )
        printed = capsys.readouterr().err
        assert printed.startswith(f"waiting for {waits_for}")
        assert "at 127.0.0.1:9" in printed
    assert asked["coordinator_bind_address"] == "127.0.0.1:9"


# Two processes, with no more of JAX than `peers` uses: what one prints and its exit code when the
# other ends.
PEER = """
import sys, time, types
index, ending = int(sys.argv[1]), sys.argv[2]
def from_first_process(offer):
    if index == 0:
        print(offer, flush=True)
        return offer
    return sys.stdin.readline()
parallel = types.SimpleNamespace(
    is_first_process=lambda: index == 0, from_first_process=from_first_process
)
sys.modules["jax"] = types.SimpleNamespace(process_count=lambda: 2)
sys.modules["fdrl_jax"] = types.SimpleNamespace(parallel=parallel)
from experiments.machine import peers
peers.watch("127.0.0.1:1")
print("ready", flush=True)
if ending != "wait":
    sys.stdin.readline()
    peers.announce_exit(int(ending))
    if ending == "0":
        time.sleep(30)
    peers.leave(int(ending), "its own")
time.sleep(30)
"""


@pytest.fixture
def pair():
    """Starts two connected processes; the argument of each says how it ends, or to wait."""
    with contextlib.ExitStack() as stack:

        def start(index, ending):
            process = subprocess.Popen(
                [sys.executable, "-c", PEER, str(index), ending],
                cwd=program.ROOT,
                env={**os.environ, "PYTHONPATH": str(program.ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        def started(*endings):
            first, second = (start(i, ending) for i, ending in enumerate(endings))
            second.stdin.write(first.stdout.readline())
            second.stdin.flush()
            assert first.stdout.readline() == second.stdout.readline() == "ready\n"
            return first, second

        yield started


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_other_ends_immediately_with_one_line(pair, victim):
    both = pair("wait", "wait")
    both[victim].kill()
    survivor = both[1 - victim]
    assert survivor.wait(10) == PeerError.exit_code
    (line,) = survivor.stderr.read().split("\n")[1:-1]  # After the line of a progress bar.
    assert line.startswith("error: another process of the run has ended")


def test_a_process_with_an_error_gives_its_exit_code_to_its_peers(pair):
    pairs = pair("2", "wait"), pair("wait", "2")  # At once, because each waits for seconds.
    for victim, both in enumerate(pairs):
        both[victim].stdin.write("\n")
        both[victim].stdin.flush()
    for victim, both in enumerate(pairs):
        assert [process.wait(15) for process in both] == [2, 2]
        printed = [process.stderr.read().strip() for process in both]
        assert printed[victim] == "error: its own"
        expected = "error: another process of the run has ended with an er"
        assert printed[1 - victim].startswith(expected)


def test_a_process_whose_work_is_done_may_end_before_its_peers(pair):
    first, second = pair("wait", "0")
    second.stdin.write("\n")
    second.stdin.flush()
    time.sleep(0.5)
    second.kill()
    time.sleep(0.5)
    assert first.poll() is None


@pytest.fixture
def listener(monkeypatch):
    monkeypatch.setattr(peers, "_GREETING_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def connection(listener, text):
    link = socket.create_connection(listener.getsockname())
    link.sendall(text)
    return link


def check_link(link, friend):
    """Checks that a peer is welcome, and that its exit code arrives."""
    with link:
        assert friend.recv(1) == peers._WELCOME
        friend.sendall(b"\3")
        assert link.recv(1) == b"\3"


def test_a_stranger_that_connects_is_not_a_peer(listener):
    at_once = struct.pack("ii", 1, 0)
    with (
        connection(listener, b"x" * 32),
        connection(listener, b""),  # Silent.
        connection(listener, b"xx") as gone,
        connection(listener, b"t" * 32) as friend,
    ):
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        gone.close()  # Resets the connection.
        (link,) = peers._accepted(listener, "t" * 32, 1)
        check_link(link, friend)


def test_a_process_that_cannot_connect_leaves_the_links_of_the_others_open(listener, monkeypatch):
    monkeypatch.setattr(peers, "_CONNECT_SECONDS", 0.5)
    with connection(listener, b"t" * 32) as friend:
        (link,) = peers._accepted(listener, "t" * 32, 2)
        check_link(link, friend)


def test_a_link_that_the_first_process_does_not_answer_is_not_trusted(listener, monkeypatch):
    monkeypatch.setattr(peers, "_CONNECT_SECONDS", 0.1)
    offer = json.dumps([*listener.getsockname(), "t" * 32])
    monkeypatch.setattr(parallel, "from_first_process", lambda text: offer)
    with pytest.raises(OSError, match="timed out"):  # It connects, but nobody accepts.
        peers._connect()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("UNKNOWN: Gloo all-reduce failed: [external/gloo/pair.cc] Connection closed", 5),
        ("INTERNAL: NCCL operation ncclGroupEnd() failed: remote process exited", 5),
        ("DEADLINE_EXCEEDED: Barrier timed out", 5),
        ("UNAVAILABLE: Socket closed", 5),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte", 2),
        ("INTERNAL: CUDA error: an illegal memory access was encountered", 1),
        ("FAILED_PRECONDITION: the device has been halted", 1),
    ],
)
def test_only_an_error_of_the_connection_is_one_of_a_peer(text, expected, monkeypatch, capsys):
    def leave(code, message=""):
        raise SystemExit(code)

    done = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(peers, "_links", [None])
    monkeypatch.setattr(peers, "time", SimpleNamespace(sleep=lambda _: done.append("waited")))
    monkeypatch.setattr(peers, "announce_exit", done.append)
    monkeypatch.setattr(hosts, "leave", leave)
    monkeypatch.setattr(hosts, "os", SimpleNamespace(_exit=leave))
    with pytest.raises(SystemExit) as ended, hosts.leaving_with_peers():
        raise jax.errors.JaxRuntimeError(text)
    assert ended.value.code == expected
    # The peer may have sent its own exit code, which then ends this process too.
    assert done == (["waited", 5] if expected == 5 else [expected])
    assert (text in capsys.readouterr().err) == (expected == 1)  # Its own, with a traceback.


def test_replicas_that_differ_in_a_bit_are_named():
    replicated = parallel.replicate({"a": jax.numpy.ones((3, 2)), "step": jax.numpy.int32(4)})
    hosts.check_agreement(replicated, 4)
    flipped = replicated["a"].at[2, 1, 1].set(1.0 + 2.0**-23)
    with pytest.raises(PeerError, match="at step 4 the replicas 2 of 4 differ from the others"):
        hosts.check_agreement({**replicated, "a": flipped}, 4)
