"""A sweep checks its configs before running, can be resumed, and continues after a failed run."""

import csv
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from experiments import command_line, settings
from experiments import run as run_lib
from experiments.errors import UserError
from experiments.evaluation import metrics as metrics_lib
from experiments.evaluation.metrics import Estimate, Metric
from experiments.files import locked, write_json
from experiments.modes import creation
from experiments.sweep import __main__ as command
from experiments.sweep import picture, plan, runner, table
from fdrl_jax.training import parallel

CONFIG = "configs/25gaussians.py"
GROUPS = {
    "noise": {f"{scale}": {"flow.noise_scale": scale} for scale in (0.0, 0.1, 0.2)},
    "divergence": {name: {"loss.divergence": name} for name in ("kl", "js")},
}
GRID = ("--grid", "flow.num_steps=1,2")


def program(endings, calls):
    """Replaces the program: ends as the name of the run says, and writes its seed."""

    def run(config, run, folder):
        calls.append(run.folder)
        code = endings.get(run.name, 0)
        wanted = settings.checked({**command_line.load_config(config), **run.settings})
        if not run_lib.exists(folder):
            data = creation.load_data(wanted)
            run_lib.create(folder, "ratio", wanted, data, None, "the command")
        add_evaluation(folder, "step_4", 1.0 + run.seed)
        return code, "the reason" if code else ""

    return run


def add_evaluation(folder, name, quality, **changes):
    """Adds an evaluation of the last step with changed settings."""
    of_run = run_lib.open_run(folder).settings
    key = {
        "step": 4,
        "num_samples": of_run["evaluate.num_samples"],
        "settings": settings.of_scope({**of_run, **changes}, "flow"),
    }
    metric = Metric("quality", "energy_distance", Estimate(quality))
    record = folder / "evaluations" / name
    record.mkdir(parents=True, exist_ok=True)
    content = {"metrics": metrics_lib.to_json({"quality": metric}), "details": {}}
    write_json(record / "record.json", {"key": key, **content})


def sweep(root, endings=None, config=CONFIG, **options):
    todo = plan.make(config, GROUPS, **{"seeds": (0, 1, 2), **options})
    calls = []
    return todo, runner.run_all(todo, root, program(endings or {}, calls)), calls


def test_a_run_that_fails_or_diverges_is_reported_and_the_others_continue(tmp_path):
    todo, outcomes, calls = sweep(tmp_path, {"0.1": 3, "js": -9})

    assert len(calls) == len(todo.runs) == 15
    statuses = {run.name: outcome.status for run, outcome in zip(todo.runs, outcomes, strict=True)}
    assert statuses == {
        "0.0": "done",
        "0.1": "diverged",
        "0.2": "done",
        "kl": "done",
        "js": "failed",
    }


def test_the_same_sweep_again_runs_only_what_failed(tmp_path):
    sweep(tmp_path, {"0.1": 3, "js": 1})

    _, outcomes, calls = sweep(tmp_path)

    assert calls == [f"divergence/js/seed_{seed}" for seed in (0, 1, 2)]
    assert [o.status for o in outcomes].count("diverged") == 3


def test_the_table_has_the_runs_own_evaluation_and_not_a_newer_one_of_other_settings(
    tmp_path, monkeypatch
):
    _, before, _ = sweep(tmp_path, seeds=(0,))
    add_evaluation(tmp_path / "noise/0.1/seed_0", "step_4_other", 99.0, **{"flow.num_steps": 9})

    # A sweep must not occupy the accelerator that its runs need.
    monkeypatch.setattr(parallel, "same_on_all_processes", lambda _: pytest.fail("starts JAX"))
    _, outcomes, calls = sweep(tmp_path, config=f"./{CONFIG}", seeds=(0,))

    assert (outcomes, calls) == (before, [])


def test_two_sweeps_in_one_folder_do_not_run_at_the_same_time(tmp_path):
    arguments = [f"--config={CONFIG}", "--grid", "flow.num_steps=1,2", f"--workdir={tmp_path}"]
    with (
        locked(tmp_path / ".lock", "the folder", "wait"),
        pytest.raises(UserError, match=r"is in use by process .* or choose another --workdir"),
    ):
        command.main(arguments)


def test_a_name_that_is_too_long_for_a_folder_is_an_error_in_one_line(tmp_path):
    sizes = ",".join(f"({'8, ' * num})" for num in (199, 200))
    arguments = ["--grid", f"network.hidden_sizes={sizes}", f"--workdir={tmp_path}"]
    with pytest.raises(UserError, match="File name too long; files that were complete are intact"):
        command.main([f"--config={CONFIG}", *arguments])


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    sweep(tmp_path)
    with pytest.raises(UserError, match=r"contains a run with other settings.*another --workdir"):
        sweep(tmp_path, settings={"train.num_steps": 7})


def test_results_of_a_config_file_that_was_edited_since_do_not_count_as_done(tmp_path):
    config = tmp_path / "own.py"
    text = "from configs import base\ndef get_config():\n  c = base.points()\n"
    config.write_text(f"{text}  return c\n")
    todo = plan.make(str(config), {"a": {"x": {"flow.num_steps": 3}}})
    runner.run_all(todo, tmp_path / "sweep", program({}, []))
    config.write_text(f"{text}  c.train.num_steps = 9\n  return c\n")
    with pytest.raises(UserError, match="the config file or the sweep has changed since"):
        runner.run_all(todo, tmp_path / "sweep", program({}, []))


def test_a_misspelt_metric_ends_the_sweep_after_its_first_run(tmp_path):
    todo, calls = plan.make(CONFIG, GROUPS, metrics=("qualty",)), []
    with pytest.raises(UserError, match="no metric 'qualty'; did you mean 'quality'"):
        runner.run_all(todo, tmp_path, program({}, calls))
    assert len(calls) == 1


def test_a_stopped_sweep_waits_until_its_run_has_saved(tmp_path, monkeypatch):
    """The run takes two seconds to save after SIGTERM."""
    program = (
        "import signal, sys, time, pathlib\n"
        "def save(*_):\n  time.sleep(2)\n  pathlib.Path('saved').touch()\n  sys.exit(4)\n"
        "signal.signal(signal.SIGTERM, save)\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    real = subprocess.Popen

    class Program(real):
        def __init__(self, arguments, **options):
            super().__init__([sys.executable, "-c", program], cwd=tmp_path, **options)

        def wait(self, timeout=None):
            if timeout is None:
                while "ready" not in (tmp_path / "output.txt").read_text():
                    time.sleep(0.01)
                raise KeyboardInterrupt  # Like SIGTERM and Ctrl-C.
            return super().wait(timeout)

    monkeypatch.setattr(runner.subprocess, "Popen", Program)
    with pytest.raises(KeyboardInterrupt):
        runner.run_program(CONFIG, plan.make(CONFIG, GROUPS).runs[0], tmp_path)
    assert (tmp_path / "saved").exists()


def test_runs_of_equal_settings_in_two_groups_are_one(tmp_path):
    groups = {"a": {"x": {"flow.num_steps": 3}}, "b": {"y": {}, "z": {"flow.num_steps": 4}}}
    todo = plan.make(CONFIG, groups, settings={"flow.num_steps": 3})
    calls = []

    runner.run_all(todo, tmp_path, program({}, calls))

    assert calls == ["a/x/seed_0", "b/z/seed_0"]
    assert [run.folder for run in todo.runs] == ["a/x/seed_0", "a/x/seed_0", "b/z/seed_0"]


def test_the_tables_have_means_over_seeds_and_remarks_for_people_and_every_run_for_programs(
    tmp_path,
):
    todo, outcomes, _ = sweep(tmp_path, {"js": 3})
    metrics = table.metrics_to_show(todo, outcomes)
    text = table.markdown(table.rows(todo, outcomes, metrics), metrics)
    table.write_csv(tmp_path / "table.csv", todo, outcomes)

    assert metrics == ("quality",)
    only_later = outcomes[-1]._replace(status="done", metrics={"quality": 1.0, "other": 2.0})
    names = table.metrics_to_show(todo, [*outcomes[:-1], only_later])
    assert names == ("quality", "other"), "a metric that only a later run has"
    assert f"| kl | 3 | 2 ± {statistics.stdev([1, 2, 3]):.2g} |  |" in text.splitlines()
    assert "| js | 3 | - | seed 0 diverged: the reason; seed 1 diverged" in text
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 15
    assert lines[1]["config.flow.noise_scale"] == "0.1"
    assert {line["quality"] for line in lines} == {"1.0", "2.0", "3.0", ""}


def test_the_picture_has_lines_over_numbers_and_bars_for_names(tmp_path):
    todo, outcomes, _ = sweep(tmp_path, {"js": 3})
    figure = picture.comparison(table.rows(todo, outcomes, ["quality"]), ["quality"])

    along, by_name = figure.axes
    assert along.get_xlabel() == "flow.noise_scale"
    assert list(along.lines[0].get_xdata()) == [0.0, 0.1, 0.2]
    assert not along.patches
    assert len(by_name.patches) == 1  # "js" did not finish.
    assert [label.get_text() for label in by_name.get_xticklabels()] == ["kl", "js"]


def test_numbers_of_numpy_in_a_sweep_file_are_numbers_in_the_picture():
    values = np.linspace(0.1, 0.3, 3)
    runs = [table.Row("g", str(v), {"flow.step_size": v}, {"quality": [v]}, 1, "") for v in values]
    (ax,) = picture.comparison(runs, ["quality"]).axes
    assert ax.get_xlabel() == "flow.step_size"
    assert not ax.patches


def test_grids_give_all_combinations_and_keep_commas_within_parentheses():
    groups = plan.grid(
        ["config.network.hidden_sizes=(8,),(8,8)", "loss.divergence=kl,0.5*kl + 0.5*js"]
    )

    ((name, points),) = groups.items()
    assert name == "network.hidden_sizes, loss.divergence"
    assert list(points.values()) == [
        {"network.hidden_sizes": sizes, "loss.divergence": divergence}
        for sizes in ((8,), (8, 8))
        for divergence in ("kl", "0.5*kl + 0.5*js")
    ]
    ((_, points),) = plan.grid(["network.blocks=((64,1),(128,2)),[[64,1]]"]).items()
    blocks = [point["network.blocks"] for point in points.values()]
    assert blocks == [((64, 1), (128, 2)), [[64, 1]]]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--grid", "flow.num_step=1,2"], "did you mean 'flow.num_steps'"),
        (["--grid", "flow.num_steps=1,x"], "a whole number from 1 to 100,000, got 'x'"),
        (["--grid", "flow.num_steps"], "must be KEY=VALUE,VALUE"),
        (["--grid", "seed=1,2"], "seed=1: a sweep repeats every run with each of its seeds"),
        ([*GRID, "--config.seed=3"], "seed=3: .* --seeds=0,1 or, in a sweep file, as seeds"),
        ([*GRID, "--grid", "flow.num_steps=3"], "another --grid has flow.num_steps"),
        ([*GRID, "--config.loss.divergence=kll"], "did you mean 'kl'"),
        ([*GRID, "--seeds=a"], "must be whole numbers, got 'a'"),
        ([*GRID, "--sweep=x.py"], "either --sweep=FILE.py, or"),
        (["--config.flow"], "needs a value"),
        ([], "either --sweep=FILE.py, or"),
    ],
)
def test_a_mistake_is_reported_in_one_line_before_anything_runs(arguments, expected, tmp_path):
    with pytest.raises(UserError) as caught:
        command.main([f"--config={CONFIG}", f"--workdir={tmp_path / 'sweep'}", *arguments])
    assert re.search(expected, str(caught.value))
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_sweep(): return {'config': 'x'}", "missing key 'groups'"),
        ("def get_sweep(): return {'seed': 1}", "did you mean 'seeds'"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_wrong_sweep_file_is_reported_with_its_name(text, expected, tmp_path):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=r"own\.py.*" + expected):
        plan.from_file(tmp_path / "own.py")


def test_every_sweep_file_is_one_that_can_run():
    files = sorted((Path(__file__).parents[3] / "configs" / "sweeps").glob("[!_]*.py"))
    assert files
    for path in files:
        assert plan.from_file(path, settings={"log.every_steps": 7}).runs[0].settings["seed"] == 0


@pytest.mark.slow
def test_the_command_runs_the_program_and_reports_how_each_run_ended(tmp_path, capsys):
    arguments = [f"--config={CONFIG}:tiny", "--grid", "loss.name=lr,lsif"]

    command.main([*arguments, f"--workdir={tmp_path}", "--metrics=energy_ratio"])

    out = capsys.readouterr().out
    assert "seed 0 failed: config: " in out
    assert "use 'lsif' with 'pearson'" in out
    (record,) = (tmp_path / "loss.name/loss.name=lr/seed_0/evaluations").glob("*/record.json")
    value = json.loads(record.read_text())["metrics"]["energy_ratio"]["value"]
    assert f"| loss.name=lr | 1 | {metrics_lib.format_value(value)} |" in out
    assert {"table.md", "table.csv", "picture.png"} <= {path.name for path in tmp_path.iterdir()}


def test_a_class_that_looks_like_a_number_stays_a_text():
    groups = plan.grid(["data.target_class=3,5"])
    assert [run.varied for run in plan.make(CONFIG, groups).runs] == [
        {"data.target_class": "3"},
        {"data.target_class": "5"},
    ]


def test_names_that_differ_only_in_forbidden_characters_get_separate_folders():
    groups = {"a": {"x y": {"flow.num_steps": 3}, "x/y": {"flow.num_steps": 4}, "x_y": {}}}
    todo = plan.make(CONFIG, groups)
    assert [run.folder for run in todo.runs] == ["a/x_y/seed_0", "a/x_y_2/seed_0", "a/x_y_3/seed_0"]


def test_output_that_is_not_text_does_not_end_the_sweep(tmp_path, monkeypatch):
    content = "import os; os.write(1, b'\\xff\\nerror: the reason \\xe2\\x82'); raise SystemExit(1)"
    real = subprocess.Popen
    monkeypatch.setattr(
        runner.subprocess,
        "Popen",
        lambda _, **options: real([sys.executable, "-c", content], **options),
    )
    code, reason = runner.run_program(CONFIG, plan.make(CONFIG, GROUPS).runs[0], tmp_path)
    assert code == 1
    assert reason.startswith("the reason")
