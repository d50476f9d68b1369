"""A dry run first prints cost, memory, disk and time of the whole run; it writes nothing."""

from types import SimpleNamespace

import jax
import pytest
from small_runs import SMALL_RESNET, start

from experiments.data import decoded
from experiments.modes import dry_run
from fdrl_jax.training import parallel


def test_a_dry_run_prints_the_answer_first_and_then_the_settings_that_differ(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel, "num_devices", lambda: 1)  # The others are another process's.
    start("dry_run", None, "digits:tiny", {"flow.step_size": 0.25})
    printed = capsys.readouterr()
    assert "compiling and timing one step" in printed.err
    lines = printed.out.splitlines()
    assert lines[0].startswith("whole run: about ")
    answer = "\n".join(lines[: lines.index("settings that differ from the defaults:")])
    for word in ("compilation", "evaluation", "first checkpoint", "MiB", "disk", "devices:"):
        assert word in answer, word
    assert "parameters, input (8, 8, 1)" in answer
    assert f"batch: 16, {16 // jax.device_count()} per device" in answer
    shown = [line.split()[0] for line in lines if line.startswith("  ") and "." in line.split()[0]]
    assert "flow.step_size" in shown
    assert "data.num_threads" not in shown  # As by default.
    assert not any(tmp_path.iterdir())


def test_a_dry_run_compiles_the_train_step_once_and_no_initialisation(monkeypatch, capsys):
    compiled = []
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", _counting(jax.stages.Lowered.compile, compiled)
    )
    monkeypatch.setattr(parallel, "is_first_process", lambda: False)
    start("dry_run", None, "swissroll:tiny")
    assert len(compiled) == 2  # The train step, and a step of the flow to time it.
    assert not capsys.readouterr().out  # Of several processes only the first prints.


def _counting(compile_, calls):
    def counted(lowered, *args, **kwargs):
        calls.append(lowered)
        return compile_(lowered, *args, **kwargs)

    return counted


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(3, "3 s"), (300, "5 min"), (10_800, "3.0 h"), (1_000_000, "12 days")],
)
def test_durations_are_given_in_a_natural_unit(seconds, expected):
    assert dry_run.duration(seconds) == expected


def test_a_dry_run_on_a_folder_reads_no_more_images_than_it_needs_for_their_shape(
    image_folder, monkeypatch, capsys
):
    read, decode = [], decoded.decode
    monkeypatch.setattr(decoded, "decode", lambda *image: read.append(image) or decode(*image))
    changes = {"data.dir": image_folder, "data.image_size": 8, **SMALL_RESNET}
    start("dry_run", None, "folder:tiny", changes)
    assert "input (8, 8, 3)" in capsys.readouterr().out
    assert len(read) == 2  # One to see whether it is grey, and one for its size.


@pytest.mark.parametrize(("seconds", "expected"), [(3.0, 1), (0.1, 3)])
def test_a_slow_train_step_is_timed_once_and_a_fast_one_three_times(seconds, expected, monkeypatch):
    times = [0.0]
    monkeypatch.setattr(dry_run, "time", SimpleNamespace(perf_counter=lambda: times[-1]))
    measured = dry_run.timed(lambda s: times.append(times[-1] + s), lambda: (seconds,), 3, 2.0)
    assert measured == pytest.approx([seconds] * expected)
