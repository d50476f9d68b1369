"""Immediate exit: one line, an exit code, and no waiting."""

import os
import subprocess
import sys
import time

from benchmarks.faults import program

# A thread that is not a daemon would delay an ordinary exit.
LEAVING = """
import sys, threading
from experiments.machine import interrupts
print("before")
if sys.argv[1] == "thread":
    threading.Thread(target=interrupts.leave, args=(3, "why")).start()
    threading.Event().wait()
else:
    threading.Thread(target=threading.Event().wait).start()
    interrupts.leave(3, "why")
"""


def test_leaving_prints_one_line_and_waits_for_no_thread():
    for place, line in (("main", "error: why\n"), ("thread", "\nerror: why\n")):
        ended = subprocess.run(
            [sys.executable, "-c", LEAVING, place],
            cwd=program.ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 3
        assert (ended.stdout, ended.stderr) == ("before\n", line)


def test_leaving_works_when_the_output_is_closed():
    process = subprocess.Popen(
        [sys.executable, "-c", LEAVING, "main"],
        cwd=program.ROOT,
        env={
            k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"
        },  # Makes `print` buffer its output.
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 3


CHILD = """
import os, sys, time
from experiments.machine import interrupts
interrupts.end_with(int(sys.argv[1]))
print("started", flush=True)
time.sleep(60)
"""
PARENT = f"""
import os, subprocess, sys
subprocess.run([sys.executable, "-c", {CHILD!r}, str(os.getpid())])
"""


def test_a_process_ends_with_its_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=program.ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout.readline() == "started\n"
        parent.kill()
        before = time.monotonic()
        assert parent.stdout.read() == ""  # Until the child has closed it.
        assert time.monotonic() - before < 30
