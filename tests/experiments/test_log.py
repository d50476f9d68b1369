"""Metrics are JSON lines, and a resumed run has no duplicates."""

import math
import sys

import pytest

from experiments import log
from experiments.errors import UserError


def written(folder, resume_step, records, **options):
    with log.writer(folder, resume_step, tensorboard=False, **options) as write:
        for step, record in records:
            write(step, record)
    return log.read(folder / "metrics.jsonl")


def test_a_resumed_run_has_no_duplicates_and_nan_is_null(tmp_path):
    first = written(tmp_path, 0, [(1, {"loss": 0.5}), (2, {"loss": math.nan}), (3, {"loss": 2.0})])
    assert first == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
        {"step": 3, "loss": 2.0},
    ]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # A crash.
    assert written(tmp_path, 2, [(3, {"loss": 7.0})]) == [*first[:2], {"step": 3, "loss": 7.0}]


def test_damaged_lines_are_skipped_with_a_warning(tmp_path, caplog):
    whole = b'{"step": 1, "loss": 0.5}\n'
    for damaged in (b"{broken\n", b"[1]\n", b'{"stex": 2}\n', b"\xff\n"):
        (tmp_path / "metrics.jsonl").write_bytes(damaged + whole)
        assert written(tmp_path, 1, []) == [{"step": 1, "loss": 0.5}]
        assert caplog.messages.pop().endswith("skipped line 1, which is damaged")
        assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_tensorboard_gets_the_same_scalars_or_says_what_to_install(tmp_path, monkeypatch):
    with log.writer(tmp_path, 0, tensorboard=True) as write:
        write(1, {"loss": 0.5})
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in events.read_bytes()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with (
        pytest.raises(UserError, match=r"pip install -e '.\[tensorboard\]'"),
        log.writer(tmp_path, 0, tensorboard=True),
    ):
        pass
