"""The benchmark of faults notices what did not hold."""

import signal
import time

import pytest

from benchmarks import faults
from benchmarks.faults import Program


def test_an_orderly_end_is_not_a_complaint_and_another_code_is_one():
    one, other = Program("--mode=trian"), Program("--mode=trian")
    assert one.complaint((0, 2)) == ""
    assert "did you mean" in one.text
    assert other.complaint().startswith("code 2: ")


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("raise RuntimeError('x')", "RuntimeError: x"),
        ("import subprocess, sys; subprocess.Popen(['sleep', '60']); sys.exit(0)", "left behind"),
        ("import time; time.sleep(60)", "no end"),
    ],
)
def test_tracebacks_and_processes_that_remain_are_complaints(first, expected, monkeypatch):
    monkeypatch.setattr(faults, "DEADLINE", 2.0)
    monkeypatch.setattr(faults, "GRACE", 0.2)
    program = Program("", first=first)
    assert expected in program.complaint((0, 2))
    assert program.process.wait(10) in (0, 1, -signal.SIGKILL)
    ends = time.monotonic() + 10.0  # A killed process may need a moment.
    while (left := faults._processes(program.process.pid)) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not left


def test_other_results_are_complaints(tmp_path):
    lab = object.__new__(faults.Lab)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step_200.npz").write_bytes(b"a")
    lab.expected = {"sample": faults.results(tmp_path)}
    assert lab.difference("sample", tmp_path) == ""
    (tmp_path / "samples" / "step_200.npz").write_bytes(b"b")
    assert lab.difference("sample", tmp_path) == "other results: step_200.npz"
