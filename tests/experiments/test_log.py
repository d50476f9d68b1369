"""Metrics as JSON lines, for TensorBoard and for Weights & Biases."""

import json
import struct

import pytest
from small_runs import train
from tensorboardX.proto import event_pb2

from experiments import log
from experiments.errors import UserError


def test_metrics_are_json_lines_and_a_resumed_run_has_no_duplicates(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with log.json_lines(path, resume_step=0) as write:
        for step in (1, 2, 3):
            write(step, {"loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # Cut by a crash.
    with log.json_lines(path, resume_step=2) as write:
        write(3, {"loss": float("nan")})
    lines = log.read(path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["loss"] is None


def test_a_crash_while_a_run_resumes_does_not_damage_the_metrics_log(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n{"step": 2}\n{"step": 3}\n')
    left = [json.dumps({"step": 1})]  # The first line; then the process ends.
    with monkeypatch.context() as patched:
        patched.setattr(log.json, "dumps", lambda _: left.pop())
        with pytest.raises(IndexError), log.json_lines(path, 2):
            pass
    assert [line["step"] for line in log.read(path)] == [1, 2, 3]


@pytest.mark.parametrize("line", [b"{", b"[]", b"{}", b'{"step": "1"}', b"\xff\xfe", b"null"])
def test_a_damaged_line_of_metrics_is_named_by_its_number(line, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: not a line of metrics"):
        log.read(path)


def scalars(file):
    """Reads (step, name, value) from an event file: records of a length, a checksum and bytes."""
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        yield from ((event.step, of.tag, of.simple_value) for of in event.summary.value)
        data = data[16 + length :]


def test_tensorboard_gets_the_same_scalars(tmp_path):
    train(tmp_path, {"log.tensorboard": True})
    (file,) = (tmp_path / "tensorboard").glob("events.*")
    lines = log.read(tmp_path / "metrics.jsonl")
    expected = [(line["step"], k, v) for line in lines for k, v in line.items() if k != "step"]
    found = list(scalars(file))
    assert [key for *key, _ in found] == [key for *key, _ in expected]
    assert [value for *_, value in found] == pytest.approx([v for *_, v in expected], rel=1e-6)
