"""Several processes train what one does; a checkpoint does not depend on how many there were."""

import contextlib
import os
import shutil

import chex
import jax
import numpy as np
import pytest
from small_runs import command, start, train

from benchmarks.faults import program
from experiments import build, run
from experiments.errors import PeerError, UserError
from experiments.machine import hosts
from experiments.modes import creation
from fdrl_jax import parallel

CHANGES = {
    "optimizer.schedule": "constant",
    "train.num_steps": 60,
    "train.steps_per_dispatch": 10,
    "log.every_steps": 50,
    "checkpoint.every_steps": 50,
    "snapshot.every_steps": 1_000,
}


@pytest.mark.slow
def test_two_processes_train_what_one_does_and_one_resumes_with_any_number_of_devices(
    tiny, tmp_path
):
    train(tmp_path / "one", CHANGES)

    log = tmp_path / "log"
    processes = program.start_processes(tmp_path / "4", CHANGES | {"train.num_steps": 50}, log)
    with contextlib.ExitStack() as stack:
        stack.callback(program.kill, *processes)
        program.wait_for_step(processes[0], tmp_path / "4", 50)
    shutil.copytree(tmp_path / "4", tmp_path / "1")
    for num_devices in (4, 1):
        program.train_to(tmp_path / str(num_devices), 60, log, CHANGES, num_devices)
    wanted = tiny(changes=CHANGES)
    experiment = build.experiment(wanted, creation.load_data(wanted))

    def state(name, step):
        with run.open_run(tmp_path / name).checkpoints() as store:
            return store.restore(experiment.state_shapes(), step).state

    for name, step in (("4", 50), ("4", 60), ("1", 60)):
        chex.assert_trees_all_close(state(name, step), state("one", step), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_two_processes_draw_and_evaluate_the_samples_that_one_draws(trained, tmp_path):
    shutil.copytree(trained.root, tmp_path / "together")
    together = run.open_run(tmp_path / "together")
    changes = {"sample.name": "drawn", "evaluate.batch_size": 8, "curve.lengths": "(0,3,5)"}
    for mode in ("sample", "curve"):
        argv = [f"--mode={mode}", "--num_samples=30", f"--workdir={together.root}"]
        argv += [f"--config.{key}={value}" for key, value in changes.items()]
        codes, output = start_two(argv, tmp_path / mode)
        assert codes == [0, 0], output
        start(mode, trained.root, None, changes, num_samples=30)

    drawn = [np.load(r.samples / "drawn.npz")["arr_0"] for r in (trained, together)]
    np.testing.assert_allclose(*drawn, rtol=1e-4, atol=1e-5)
    curves = [
        np.loadtxt(r.curves / "length_step_4.csv", delimiter=",", skiprows=1)
        for r in (trained, together)
    ]
    np.testing.assert_allclose(*curves, rtol=1e-2)


def start_two(argv, log):
    """Runs the program in two processes that work together."""
    import socket
    import subprocess
    import sys

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    environment["JAX_CPU_COLLECTIVES_IMPLEMENTATION"] = "gloo"
    processes = []
    for i in range(2):
        own = (f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}")
        with log.with_suffix(f".{i}").open("wb") as stream:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "experiments.main", *argv, *own],
                    cwd=program.ROOT,
                    env=environment,
                    stdout=stream,
                    stderr=stream,
                )
            )
    codes = [process.wait(600) for process in processes]
    return codes, "\n".join(log.with_suffix(f".{i}").read_text() for i in range(2))


@pytest.mark.slow
def test_two_processes_without_a_run_both_end_with_the_reason(tmp_path):
    codes, output = start_two(
        [f"--workdir={tmp_path / 'nowhere'}", "--mode=sample"], tmp_path / "x"
    )
    assert codes == [2, 2], output
    assert "holds no run" in output
    assert "Traceback" not in output


def test_flags_that_do_not_suffice_are_named():
    asked = command("train", "w", "swissroll:tiny")
    assert asked.mode == "train"
    with pytest.raises(UserError, match="go together"):
        hosts.join(
            distributed=False,
            coordinator_address="127.0.0.1:1",
            num_processes=None,
            process_id=None,
            heartbeat_seconds=10,
        )


def test_a_process_says_what_it_waits_for_and_the_first_binds_only_the_given_address(
    monkeypatch, capsys
):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **options: given.update(options))
    monkeypatch.setattr(hosts.faulthandler, "disable", lambda: None)
    hosts.join(
        distributed=False,
        coordinator_address="127.0.0.1:5",
        num_processes=2,
        process_id=1,
        heartbeat_seconds=10,
    )
    assert given["coordinator_bind_address"] == "127.0.0.1:5"
    assert "waiting for the first process of the run at 127.0.0.1:5" in capsys.readouterr().err


def test_without_flags_nothing_is_joined():
    hosts.join(
        distributed=False,
        coordinator_address=None,
        num_processes=None,
        process_id=None,
        heartbeat_seconds=10,
    )
    assert jax.process_count() == 1


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (MemoryError("full"), 2, "out of memory: full"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GB"), 2, "out of memory: RESOURCE_EXH"),
        (jax.errors.JaxRuntimeError("Connection reset"), 5, "another process of the run has ended"),
        (UserError("wrong"), 2, "error: wrong"),
        (PeerError("they differ"), 5, "error: they differ"),
    ],
)
def test_of_several_processes_each_leaves_with_the_code_of_the_cause(
    error, code, message, monkeypatch, capsys
):
    """Memory that ran out would run out again: its code asks for no restart."""

    class Left(BaseException):
        pass

    def leave(status):
        raise Left(status)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Left, match=str(code)), hosts.leaving_with_peers():
        raise error
    assert message in capsys.readouterr().err


def test_replicas_that_differ_in_a_bit_are_named():
    replicated = parallel.replicate({"a": jax.numpy.ones((3, 2)), "step": jax.numpy.int32(4)})
    hosts.check_agreement(replicated, 4)
    flipped = replicated["a"].at[2, 1, 1].set(1.0 + 2.0**-23)
    with pytest.raises(PeerError, match="at step 4 the replicas 2 of 8 do not hold"):
        hosts.check_agreement({**replicated, "a": flipped}, 4)
