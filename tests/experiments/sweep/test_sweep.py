"""A sweep runs a list of configs: checked before, resumable, and no run ends it for the others."""

import csv
import json
import statistics
import subprocess
from pathlib import Path

import pytest
from experiments.storage.workdir import Workdir, write_json

from experiments.errors import UserError
from experiments.sweep import __main__ as command
from experiments.sweep import picture, plan, runner, table

CONFIG = "configs/25gaussians.py"
GROUPS = {
    "noise": {f"{scale}": {"flow.noise_scale": scale} for scale in (0.0, 0.1, 0.2)},
    "divergence": {name: {"loss.divergence": name} for name in ("kl", "js")},
}


def program(endings, calls):
    """Stands for the program: ends as told by (noise scale, divergence), writes the seed."""

    def run(config, run, folder):
        calls.append(run.folder)
        code = endings.get(run.name, 0)
        metrics = {"quality": 1.0 + run.seed, "shares": [0.5], "num_samples": 7}
        write_json(Workdir(folder).evaluation, {"step": 4, "metrics": metrics})
        return code, "the reason" if code else ""

    return run


def sweep(root, endings=None, **options):
    todo = plan.make(CONFIG, GROUPS, **{"seeds": (0, 1, 2), **options})
    calls = []
    return todo, runner.run_all(todo, root, program(endings or {}, calls)), calls


def test_a_run_that_fails_or_diverges_is_told_and_the_others_go_on(tmp_path):
    todo, outcomes, calls = sweep(tmp_path, {"0.1": 3, "js": -9})

    assert len(calls) == len(todo.runs) == 15
    told = {run.name: outcome.status for run, outcome in zip(todo.runs, outcomes, strict=True)}
    assert told == {"0.0": "done", "0.1": "diverged", "0.2": "done", "kl": "done", "js": "failed"}


def test_the_same_sweep_again_runs_only_what_failed(tmp_path):
    sweep(tmp_path, {"0.1": 3, "js": 1})

    _, outcomes, calls = sweep(tmp_path)

    assert calls == [f"divergence/js/seed_{seed}" for seed in (0, 1, 2)]
    assert [o.status for o in outcomes].count("diverged") == 3


def test_other_settings_in_the_same_folder_are_run_again(tmp_path):
    sweep(tmp_path)

    _, _, calls = sweep(tmp_path, settings={"train.num_steps": 7})

    assert len(calls) == 15


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
    assert f"| kl | 3 | 2 ± {statistics.stdev([1, 2, 3]):.2g} |  |" in text.splitlines()
    assert "| js | 3 | - | seed 0 diverged: the reason; seed 1 diverged" in text
    with (tmp_path / "table.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 15
    assert lines[1]["config.flow.noise_scale"] == "0.1"
    assert {line["quality"] for line in lines} == {"1.0", "2.0", "3.0", ""}


def test_the_picture_has_lines_along_numbers_and_bars_by_name(tmp_path):
    todo, outcomes, _ = sweep(tmp_path, {"js": 3})
    figure = picture.comparison(table.rows(todo, outcomes, ["quality"]), ["quality"])

    along, by_name = figure.axes
    assert along.get_xlabel() == "flow.noise_scale"
    assert list(along.lines[0].get_xdata()) == [0.0, 0.1, 0.2]
    assert not along.patches
    assert len(by_name.patches) == 1  # "js" came to no end.
    assert [label.get_text() for label in by_name.get_xticklabels()] == ["kl", "js"]


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--grid", "flow.num_step=1,2"], "did you mean 'flow.num_steps'"),
        (["--grid", "flow.num_steps=1,x"], "a whole number from 1 to 100000, got 'x'"),
        (["--grid", "flow.num_steps"], "must be KEY=VALUE,VALUE"),
        (["--grid", "seed=1,2", "--config.loss.divergence=kll"], "did you mean 'kl'"),
        (["--grid", "seed=1,2", "--seeds=a"], "must be whole numbers, got 'a'"),
        (["--grid", "seed=1,2", "--sweep=x.py"], "either --sweep=FILE.py, or"),
        (["--config.flow"], "needs a value"),
        ([], "either --sweep=FILE.py, or"),
    ],
)
def test_a_mistake_is_told_in_one_line_before_anything_runs(arguments, expected, tmp_path):
    with pytest.raises(UserError) as caught:
        command.main([f"--config={CONFIG}", f"--workdir={tmp_path / 'sweep'}", *arguments])
    assert expected in str(caught.value)
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
def test_a_sweep_file_that_is_wrong_is_told_with_its_name(text, expected, tmp_path):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=r"own\.py.*" + expected):
        plan.from_file(tmp_path / "own.py")


def test_every_sweep_file_is_one_that_can_run():
    files = sorted((Path(__file__).parents[2] / "configs" / "sweeps").glob("[!_]*.py"))
    assert files
    for path in files:
        assert plan.from_file(path, settings={"log.every_steps": 7}).runs[0].settings["seed"] == 0


@pytest.mark.slow
def test_the_command_runs_the_program_and_tells_how_each_run_ended(tmp_path, capsys):
    arguments = [f"--config={CONFIG}:tiny", "--grid", "loss.name=lr,lsif"]

    command.main([*arguments, f"--workdir={tmp_path}", "--metrics=energy_ratio"])

    told = capsys.readouterr().out
    assert "seed 0 failed: config: " in told
    assert "use 'lsif' with 'pearson'" in told
    figures = json.loads((tmp_path / "loss.name/loss.name=lr/seed_0/evaluation.json").read_text())
    assert f"| loss.name=lr | 1 | {figures['metrics']['energy_ratio']['value']:.4g} |" in told
    assert {"table.md", "table.csv", "picture.png"} <= {path.name for path in tmp_path.iterdir()}


def test_a_class_that_looks_like_a_number_stays_a_text():
    groups = plan.grid(["data.target_class=3,5"])
    assert [run.varied for run in plan.make(CONFIG, groups).runs] == [
        {"data.target_class": "3"},
        {"data.target_class": "5"},
    ]


def test_names_that_differ_in_signs_no_folder_has_get_folders_of_their_own():
    groups = {"a": {"x y": {"flow.num_steps": 3}, "x/y": {"flow.num_steps": 4}, "x_y": {}}}
    todo = plan.make(CONFIG, groups)
    assert [run.folder for run in todo.runs] == ["a/x_y/seed_0", "a/x_y_2/seed_0", "a/x_y_3/seed_0"]


def test_output_that_is_no_text_does_not_end_the_sweep(tmp_path, monkeypatch):
    def run(command, stdout, stderr):
        stdout.buffer.write(b"\xff\nerror: the reason \xe2\x82")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(runner.subprocess, "run", run)
    code, reason = runner.run_program(CONFIG, plan.make(CONFIG, GROUPS).runs[0], tmp_path)
    assert code == 1
    assert reason.startswith("the reason")
