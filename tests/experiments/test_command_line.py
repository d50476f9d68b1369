"""Mistakes on the command line end with one line that says what to write instead."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import command_line, schema
from experiments.errors import UserError

ROOT = Path(__file__).parents[2]
SWISSROLL = f"--config={ROOT / 'configs' / 'swissroll.py'}"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.main", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.flow.step_sise=0.1", "did you mean 'flow.step_size'"),
        ("--config.flwo.step_size=0.1", "did you mean 'flow.step_size'"),
        ("--config.flow=3", "is a section; its keys are flow.num_steps"),
        ("--config=configs/swisroll.py", "did you mean 'configs/swissroll.py'"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest_right_one(argument, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = [] if argument.startswith("--config=") else [SWISSROLL]
    with pytest.raises(UserError, match=re.escape(expected)):
        command_line.parse(["main", *config, argument])


@pytest.mark.parametrize("flag", [["--config=swissroll:tiny"], ["--config", "swissroll:tiny"]])
def test_a_bare_name_is_a_config_of_the_project(flag, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    argv = ["main", "--workdir=runs/swissroll", *flag, "--mode=dry_run"]
    file = ROOT / "configs" / "swissroll.py"
    assert command_line._with_own_config(argv) == [
        *("main", "--workdir=runs/swissroll", f"--config={file}:tiny", "--mode=dry_run")
    ]


def test_a_wrong_mode_is_answered_with_the_nearest_and_the_allowed_ones():
    with pytest.raises(UserError, match=r"did you mean 'sample'.*Allowed: train, .*sample"):
        command_line.check_needed("smaple", {}, "runs/x", None)
    with pytest.raises(UserError, match=r"is unknown\. Allowed: train"):
        command_line.check_needed("0", {}, "runs/x", None)


def test_a_missing_workdir_is_named_but_a_dry_run_needs_none():
    with pytest.raises(UserError, match="--workdir=DIR"):
        command_line.check_needed("train", {}, None, None)
    command_line.check_needed("dry_run", {}, None, None)
    with pytest.raises(UserError, match=r"--checkpoint=FILE\.pt"):
        command_line.check_needed("convert", {}, "runs/x", None)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--config.flow.num_steps=many", "flow.num_steps must be a whole number from 1"),
        ("--config.flow.step_size=nan", "flow.step_size must be a finite number above 0"),
        ("--config.loss.divergence=kll", "did you mean 'kl'"),
        ("--config.network.hidden_sizes=(64,0)", "positive whole numbers such as"),
        ("--config=configs/swissroll.py:huge", "unknown variant 'huge'"),
        ("--config.loss.name=lsif", "use 'lsif' with 'pearson'"),
    ],
)
def test_a_wrong_value_ends_the_program_with_one_line(argument, expected, tmp_path):
    config = [] if argument.startswith("--config=") else [SWISSROLL]
    done = run(*config, f"--workdir={tmp_path / 'run'}", argument)
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "run").exists()


def test_every_key_of_the_config_has_a_rule_and_every_default_obeys_it():
    from configs import base

    defaults = base.get_config().to_dict()
    assert set(schema.flatten(defaults)) == set(schema.RULES)
    schema.check(defaults)


@pytest.mark.parametrize("value", [None, "x", float("nan"), float("inf"), -1, [], object()])
def test_every_rule_takes_any_value_and_answers_in_words(value):
    for key, rule in schema.RULES.items():
        answer = rule(value)
        assert answer is None or (isinstance(answer, str) and answer), key
