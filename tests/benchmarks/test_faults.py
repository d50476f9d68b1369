"""The benchmark of faults notices what did not hold."""

import sys
import time

import pytest

from benchmarks import faults


def fail() -> None:
    raise RuntimeError("x")


@pytest.mark.parametrize(
    ("ended", "found", "expected"),
    [
        ((0, ""), {"a": b"1"}, ("same results", "")),
        ((0, ""), {"a": b"2"}, ("other results", "a")),
        ((0, ""), {}, ("other results", "a")),
        ((0, ""), {"a": b"damaged"}, ("same results", "")),
        ((2, "error: it is damaged"), {}, ("refused", "")),
        ((2, "Traceback"), {}, ("failed", "code 2: Traceback")),
        ((-9, ""), {}, ("failed", "code -9: ")),
    ],
)
def test_only_equal_results_and_errors_for_the_user_hold(ended, found, expected):
    assert faults.verdict(ended, {"a": b"1"}, found, b"damaged") == expected


def test_processes_end_with_their_code_and_text_or_are_killed():
    assert faults.run(sys.exit, 2) == (2, "")
    code, text = faults.run(fail)
    assert code == 1
    assert "RuntimeError: x" in text
    assert faults.run(time.sleep, 60, kill_after=0.5) == (-9, "")
