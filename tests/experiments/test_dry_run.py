"""A dry run prints the data, cost, memory, disk and time of the whole run; it writes nothing."""

import jax
import pytest
from small_runs import SMALL_RESNET, start

from experiments import dry_run, settings
from experiments.errors import DataError, UserError
from fdrl_jax.training import parallel


def test_a_dry_run_prints_the_data_the_cost_and_the_settings_that_differ(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parallel, "num_devices", lambda: 1)  # The others are another process's.
    start("dry_run", None, "digits:tiny", {"flow.step_size": 0.25})
    printed = capsys.readouterr()
    assert "compiling and timing one step" in printed.err
    lines = printed.out.splitlines()
    assert lines[0] == "data: digits, grey images of 8 x 8 pixels"
    answer = "\n".join(lines[: lines.index("settings that differ from the defaults:")])
    for word in ("1,437 training images, 10 classes", "whole run: about", "compilation", "MiB"):
        assert word in answer
    for word in ("evaluation", "first checkpoint", "disk: ", "and prior", "devices:", "noise"):
        assert word in answer
    assert "parameters, input (8, 8, 1)" in answer
    assert f"batch: 16, {16 // jax.device_count()} per device" in answer
    shown = [line.split()[0] for line in lines if line.startswith("  ") and "." in line.split()[0]]
    assert "flow.step_size" in shown
    assert "data.num_held_out" not in shown  # As by default.
    assert not any(tmp_path.iterdir())


def test_a_dry_run_compiles_the_training_step_once_and_no_initialisation(monkeypatch, capsys):
    compiled = []
    compile_ = jax.stages.Lowered.compile
    monkeypatch.setattr(
        jax.stages.Lowered, "compile", lambda *a, **k: compiled.append(a) or compile_(*a, **k)
    )
    monkeypatch.setattr(parallel, "is_first_process", lambda: False)
    start("dry_run", None, "swissroll:tiny")
    assert len(compiled) == 1
    assert not capsys.readouterr().out  # Of several processes only the first prints.


def test_a_dry_run_refuses_an_image_that_training_would_refuse(image_folder, tmp_path):
    (tmp_path / "images").mkdir()
    for i, path in enumerate(sorted(image_folder.rglob("*.png"))):
        (tmp_path / "images" / f"{i}.png").write_bytes(path.read_bytes()[: 60 if i == 7 else None])
    changes = {"data.dir": tmp_path / "images", "data.image_size": 8, **SMALL_RESNET}
    with pytest.raises(DataError, match=r"7\.png"):
        start("dry_run", None, "folder:tiny", changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"attack.epsilon": 2.0}, "attack.epsilon: for classifiers only"),
        ({"evaluate.inception_weights": "nowhere.pth"}, "nowhere.pth does not exist"),
    ],
)
def test_a_dry_run_refuses_settings_that_training_would_refuse(changes, expected):
    with pytest.raises(UserError, match=expected):
        start("dry_run", None, "digits:tiny", changes)


def test_few_held_out_images_are_named(image_folder, capsys):
    changes = {"data.dir": image_folder, "data.image_size": 8, **SMALL_RESNET}
    start("dry_run", None, "folder:tiny", changes)
    out = capsys.readouterr().out
    assert "36 training images, 2 classes\n  4 held-out images\n  only 4 held-out images" in out


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(3, "3 s"), (300, "5.0 min"), (10_800, "3.0 h"), (1_000_000, "11.6 days")],
)
def test_durations_are_given_in_a_natural_unit(seconds, expected):
    assert dry_run.duration(seconds) == expected


def test_noise_that_differs_is_named_with_what_to_change(tiny):
    changes = {"flow.num_steps": 9, "data.dequantisation": 0.4, "prior.name": "data_dependent"}
    wanted = tiny("digits", changes | {"prior.jitter": 0.07, "flow.noise_scale": 0.1})
    balanced = "noise (standard deviation): flowed samples 0.400, data 0.400"
    assert dry_run.noise_balance(wanted) == balanced
    advice = dry_run.noise_balance(settings.replace(wanted, {"data.dequantisation": 0.1}))
    assert "a smaller flow.noise_scale or prior.jitter, or a larger data.dequant" in advice
