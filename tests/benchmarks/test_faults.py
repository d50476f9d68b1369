"""The benchmark of faults notices what did not hold, and its faults happen."""

import errno
import subprocess
import sys
import time

import pytest

from benchmarks import faults
from benchmarks.faults import Program


def test_an_orderly_end_is_not_a_complaint_and_another_code_is_one():
    one, other = Program("--mode=trian"), Program("--mode=trian", through="LC_ALL=C")
    assert one.complaint((0, 2)) == ""
    assert "did you mean" in one.text
    assert other.complaint().startswith("code 2")


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("raise RuntimeError('x')", "RuntimeError: x"),
        ("import subprocess, sys; subprocess.Popen(['sleep', '60']); sys.exit(0)", "code 0"),
        ("import time; time.sleep(60)", "code None"),
    ],
)
def test_tracebacks_and_processes_that_remain_are_complaints(first, expected, monkeypatch):
    monkeypatch.setattr(faults, "GRACE", 0.2)
    program = Program("", first=first)
    assert expected in program.complaint((0, 2), deadline=2.0)
    ends = time.monotonic() + 10.0  # A killed process may need a moment.
    while (left := faults.processes(program.pid)) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not left


def test_a_signal_ends_a_program_and_its_code_is_known():
    program = Program("", first="import time; time.sleep(60)")
    program.send(9)
    assert program.complaint(faults.SIGNALS["SIGKILL"]) == ""
    assert not faults.processes(program.pid)


@pytest.fixture
def lab(tmp_path):
    """A lab whose modes were not run, with the folder of one run."""
    found = object.__new__(faults.Lab)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step_60.npz").write_bytes(b"a")
    found.expected, found.rows = {"sample": faults.results(tmp_path)}, {}
    return found


def test_other_results_are_complaints(lab, tmp_path):
    assert lab.difference("sample", tmp_path) == ""
    (tmp_path / "samples" / "step_60.npz").write_bytes(b"b")
    assert lab.difference("sample", tmp_path) == "other results: samples/step_60.npz"


@pytest.mark.parametrize(
    ("again", "row"), [("", [("", 1.5)]), ("no", [("no", 1.5)])], ids=["held", "failed"]
)
def test_a_program_that_a_fault_ended_has_to_work_when_it_is_repaired(
    again, row, lab, tmp_path, monkeypatch, capsys
):
    class Fake:
        seconds, text = 1.5, ""

        def __init__(self, flags, first=""):
            self.code, self.complaint = 2 if first else 0, lambda codes=(0,): "" if first else again

    monkeypatch.setattr(faults, "Program", Fake)
    repaired = []
    lab.attack("a fault", "sample", tmp_path, lambda: repaired.append(True), first="fault")
    assert lab.rows == {"a fault": row}
    assert repaired == [True]
    assert ("a fault, sample: no" in capsys.readouterr().err) == bool(again)


def with_fault(fault: str, program: str) -> str:
    """Returns what a program prints under a fault."""
    command = [sys.executable, "-c", f"{fault}\n{program}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_chosen_call_fails_and_no_other(tmp_path):
    run = tmp_path / "run_0"
    run.mkdir()
    fault = faults.FAILING_CALLS.format(at=2, error="ESTALE")
    program = f"""
for name in "abc":
    try:
        open("{run}/" + name, "w").close()
    except OSError as error:
        print(name, error.errno)"""
    assert with_fault(fault, program) == f"b {errno.ESTALE}\n"
    assert {path.name for path in run.iterdir()} == {"a", "c"}


def test_old_listings_lack_the_newest_checkpoint(tmp_path):
    for name in ("40", "60"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mark").touch()
    program = f"""
import os, pathlib
print(os.listdir("{tmp_path}"), [p.parent.name for p in pathlib.Path("{tmp_path}").glob("*/mark")])
"""
    assert with_fault(faults.OLD_LISTING, program) == "['40'] ['40']\n"


def test_the_clock_runs_backwards_and_locks_do_not_exist():
    program = """
import fcntl, time
before = time.time(); time.sleep(0.01); print(time.time() < before)
try:
    fcntl.flock(0, fcntl.LOCK_EX)
except OSError as error:
    print(error.errno)"""
    printed = with_fault(f"{faults.BACKWARDS}\n{faults.NO_LOCKS}", program)
    assert printed == f"True\n{errno.ENOLCK}\n"
