"""A run of two processes goes through the whole program to its end."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from small_runs import train

from experiments import log

_LIMIT_SECONDS = 180  # Far more than any command needs, also on a busy machine.


@contextlib.contextmanager
def two_processes(output, *flags):
    """Starts a command of the program in two processes, which write what they print to files."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.main", *flags]
    command += [f"--coordinator_address={address}", "--num_processes=2"]
    one_device = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with contextlib.ExitStack() as stack:
        processes = []
        for i in range(2):
            file = stack.enter_context(output.with_suffix(f".{i}").open("wb"))
            argv, environ = [*command, f"--process_id={i}"], os.environ | one_device
            process = subprocess.Popen(argv, env=environ, stdout=file, stderr=file)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def wait_for(file):
    end = time.monotonic() + _LIMIT_SECONDS
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.2)


def run_with_two_processes(output, *flags):
    """Runs a command in two processes, which must end without an error."""
    with two_processes(output, *flags) as processes:
        codes = [process.wait(_LIMIT_SECONDS) for process in processes]
    printed = [output.with_suffix(f".{i}").read_text() for i in range(2)]
    assert codes == [0, 0], printed
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_if_one_process_is_killed_the_other_one_ends_and_says_why(killed, tmp_path):
    output, folder = tmp_path / "output", tmp_path / "run"
    flags = ("--config=swissroll:tiny", f"--workdir={folder}", "--config.train.num_steps=1000000")
    with two_processes(output, *flags) as processes:
        wait_for(folder / "metrics.jsonl")
        processes[killed].kill()
        code = processes[1 - killed].wait(_LIMIT_SECONDS)
    printed = output.with_suffix(f".{1 - killed}").read_text()
    if killed == 0 and code == -signal.SIGABRT:  # JAX aborts it if it is faster.
        assert "Terminating process because the JAX distributed service detected" in printed
    else:
        assert code == 1
        last = printed.strip().splitlines()[-1]
        assert last.endswith("error: another process of the run has ended, see its output")


@pytest.mark.slow
def test_an_error_of_both_and_a_stop_are_no_error_of_another_process(tmp_path):
    output, folder = tmp_path / "output", tmp_path / "run"
    flags = ("--config=swissroll:tiny", f"--workdir={folder}")
    with two_processes(output, *flags, "--config.train.batch_size=15") as processes:
        assert [process.wait(_LIMIT_SECONDS) for process in processes] == [2, 2]
    assert not folder.exists()
    with two_processes(output, *flags, "--config.train.num_steps=1000000") as processes:
        wait_for(folder / "metrics.jsonl")
        time.sleep(1.0)
        processes[1].terminate()
        assert [process.wait(_LIMIT_SECONDS) for process in processes] == [4, 4]
    for i in range(2):
        assert "is saved. Rerun to resume." in output.with_suffix(f".{i}").read_text()


@pytest.mark.slow
def test_two_processes_train_sample_and_evaluate_what_one_does(trained, tmp_path):
    folder, output = tmp_path / "run", tmp_path / "output"
    workdir = f"--workdir={folder}"

    first, other = run_with_two_processes(output, "--config=swissroll:tiny", workdir)
    assert "report: " in first
    assert "report: " not in other
    losses = [[r["loss"] for r in log.read(f / "metrics.jsonl")] for f in (folder, trained.root)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert "<figure" in (folder / "report.html").read_text()

    run_with_two_processes(output, "--mode=sample", workdir, "--num_samples=6")
    samples = np.load(next((folder / "samples").glob("*.npz")))["arr_0"]
    assert samples.shape == (6, 2)
    assert np.isfinite(samples).all()

    run_with_two_processes(output, "--mode=evaluate", workdir, "--num_samples=40")
    records = [json.loads(path.read_text()) for path in folder.glob("evaluations/*/record.json")]
    assert sorted(record["key"]["num_samples"] for record in records) == [40, 64]
    assert all(record["metrics"] for record in records)

    # One process continues what two have begun.
    shutil.rmtree(folder / "checkpoints" / "4")
    assert int(train(folder).step) == 4
