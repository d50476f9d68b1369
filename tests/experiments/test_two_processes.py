"""A run of two processes goes through the whole program to its end."""

import contextlib
import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

_LIMIT_SECONDS = 180  # Far more than any command needs, also on a busy machine.


def run_with_two_processes(log, *flags):
    """Runs a command of the program in two processes, and checks that both end without an error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.main", *flags]
    command += [f"--coordinator_address={address}", "--num_processes=2"]
    one_device = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    with contextlib.ExitStack() as stack:
        processes = []
        for i in range(2):
            output = stack.enter_context(log.with_suffix(f".{i}").open("wb"))
            process = subprocess.Popen(
                [*command, f"--process_id={i}"],
                env=os.environ | one_device,
                stdout=output,
                stderr=output,
            )
            stack.callback(process.kill)
            processes.append(process)
        codes = [process.wait(_LIMIT_SECONDS) for process in processes]
    printed = [log.with_suffix(f".{i}").read_text() for i in range(2)]
    assert codes == [0, 0], printed
    return printed


@pytest.mark.slow
def test_two_processes_train_sample_and_evaluate_to_the_end(tmp_path):
    folder, log = tmp_path / "run", tmp_path / "log"
    workdir = f"--workdir={folder}"

    first, other = run_with_two_processes(log, "--config=configs/swissroll.py:tiny", workdir)
    assert "report: " in first
    assert "report: " not in other
    assert "<figure" in (folder / "report.html").read_text()

    run_with_two_processes(log, "--mode=sample", workdir, "--num_samples=6")
    samples = np.load(next((folder / "samples").glob("*.npz")))["arr_0"]
    assert samples.shape == (6, 2)
    assert np.isfinite(samples).all()

    run_with_two_processes(log, "--mode=evaluate", workdir, "--num_samples=40")
    records = [json.loads(path.read_text()) for path in folder.glob("evaluations/*/record.json")]
    assert sorted(record["key"]["num_samples"] for record in records) == [40, 64]
    assert all(record["metrics"] for record in records)
