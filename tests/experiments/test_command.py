"""Mistakes on the command line are reported in one line that says what to write instead."""

import errno
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from small_runs import command

from experiments import dry_run, errors, main
from experiments.command import MODES, help_for, parse
from experiments.errors import DivergedError, StoppedError, UserError

ROOT = Path(__file__).parents[2]
SWISSROLL = f"--config={ROOT / 'configs' / 'swissroll.py'}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([SWISSROLL, "--config.flow.step_sise=0.1"], "unknown key; did you mean 'flow.step_size'"),
        ([SWISSROLL, "--config.flow=3"], "--config.flow: unknown key"),
        (["--config=nowhere/swisroll.py"], "--config=nowhere/swisroll.py does not exist"),
        (["--config=digit"], "--config=digit does not exist; did you mean 'digits'?"),
        ([SWISSROLL, "--config.flow.num_steps"], "Missing value for flag --config.flow.num_steps"),
        ([SWISSROLL, "--config.flow.num_steps=many"], "must be a whole number, at least 0"),
        ([f"{SWISSROLL}:huge"], "unknown variant 'huge'"),
        (["--mode=smaple"], "--mode=smaple is unknown; did you mean 'sample'? Allowed: train, "),
        (["--mode=0"], "--mode=0 is unknown. Allowed: train, "),
        (["--mode=sample", SWISSROLL], "opens a run, which keeps its settings"),
        (["--workdirs=w"], "unknown flag --workdirs; did you mean 'workdir'?"),
        (["--mode=sample", "--num_samples=0"], "flag --num_samples=0: 0 is not a positive integer"),
        (["--mode=sample", "--checkpoint=last"], "must be the step of a checkpoint, or best"),
        (["sample"], "unexpected argument 'sample' on the command line"),
        ([SWISSROLL, "--workdir="], "--workdir=DIR, the folder of the run, is missing"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_write(arguments, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        parse(["--workdir=w", *arguments])
    assert "\n" not in str(caught.value)


def test_a_config_that_raises_is_an_error_with_the_reason(tmp_path):
    for text, expected in (
        ("def get_config(name):\n  return 1 / 0\n", "division by zero"),
        ("x = 1\n", "get_config"),
    ):
        (tmp_path / "own.py").write_text(text)
        with pytest.raises(UserError, match=expected):
            parse(["--workdir=w", f"--config={tmp_path / 'own.py'}:tiny"])


def test_changes_override_the_config_and_are_kept_apart():
    typed = ["--config.flow.step_size=1", "--workdir=w", SWISSROLL, "--config.data.channels", "1"]
    asked = parse(typed)
    assert asked.changes == {"flow.step_size": 1.0, "data.channels": 1}
    assert asked.config["flow"]["step_size"] == 1.0
    assert asked.text.endswith(" ".join(typed))
    # Without a config, they are changes to a run.
    asked = parse(["--mode=sample", "--workdir=w", "--config.network.blocks=((4, 2),)"])
    assert (asked.config, asked.changes) == (None, {"network.blocks": ((4, 2),)})
    assert parse([SWISSROLL, "--mode=dry_run"]).folder == Path()


def test_a_bare_name_is_a_config_of_the_project(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for flag in (["--config=swissroll:tiny"], ["--config", "swissroll:tiny"]):
        config = parse(["--workdir=runs/swissroll", *flag]).config
        assert (config["data"]["name"], config["train"]["num_steps"]) == ("swissroll", 4)


def test_paths_are_absolute_and_the_folder_of_the_data_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.chdir(tmp_path)
    asked = command("sample", "~/w", **{"class": 3, "classifier": "~/c", "data_dir": "images"})
    assert (asked.folder, asked.classifier, asked.label) == (
        Path("/home/ada/w"),
        "/home/ada/c",
        "3",
    )
    assert asked.changes == {"data.dir": str(tmp_path / "images")}
    for given, which in ({"checkpoint": "best"}, "best"), ({"checkpoint": 4}, 4), ({}, None):
        assert command("sample", "w", **given).which == which


def test_help_explains_the_program_a_section_a_key_or_a_word():
    assert all(mode in help_for(["--help"]) for mode in MODES)
    assert "Configs: 25gaussians, 8gaussians, cat2dog" in help_for([])
    key = help_for(["--help=flow.step_size"])
    assert key.startswith("--config.flow.step_size=3.0")
    assert "Allowed: a finite number, at least 0" in key
    assert help_for(["--help=config.flow.step_size"]) == key
    assert key in help_for(["--help=flow"])
    assert "--config.train.ema_rate" in help_for(["--help=moving average"])
    assert help_for(["--mode=train"]) is None
    with pytest.raises(UserError, match=r"did you mean 'flow\.step_size'"):
        help_for(["--help=flow.step_sise"])


def program(*arguments):
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300}
    return subprocess.run([sys.executable, *arguments], **options)


def test_a_mistake_ends_the_program_with_one_line_and_writes_nothing(tmp_path):
    arguments = (SWISSROLL, f"--workdir={tmp_path / 'run'}", "--config.loss.name=lsif")
    done = program("-m", "experiments.main", *arguments)
    assert done.returncode == 2
    assert "needs a positive ratio" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "Interrupted; existing files are intact."),
        (StoppedError("step 3 is saved"), 4, "step 3 is saved"),
        (DivergedError("loss is nan"), 3, "error: loss is nan"),
        (OSError(errno.ENOSPC, "No space left", "f"), 2, "error: f: No space left. Existing file"),
        (MemoryError(), 2, "error: MemoryError. If memory is short, try a smaller network.width"),
        (RuntimeError("RESOURCE_EXHAUSTED: 1 GB"), 2, "error: RESOURCE_EXHAUSTED: 1 GB."),
    ],
)
def test_known_errors_end_with_a_line_and_a_code(error, code, text, monkeypatch):
    monkeypatch.setattr(dry_run, "dry_run", Mock(side_effect=error))
    assert ended_with(monkeypatch)[0] == code
    assert ended_with(monkeypatch)[1].startswith(text)


def ended_with(monkeypatch):
    """Returns the code and the line with which a dry run ends, if it does not end in order."""
    ended = []
    monkeypatch.setattr(errors, "leave", lambda *arguments: ended.extend(arguments))
    main.main(["--mode=dry_run", SWISSROLL])
    return ended


def test_help_waits_for_no_package_and_two_commands_print_a_warning_once():
    done = program(
        "-c",
        "import logging, sys; from experiments import main; main.main(['--help']);"
        "assert not {'matplotlib', 'sklearn', 'tensorflow_datasets', 'orbax'} & set(sys.modules);"
        "main.main(['--help=seed']); logging.getLogger('fdrl').warning('once')",
    )
    assert (done.returncode, done.stderr) == (0, "warning: once\n")
    assert "usage: " in done.stdout


def test_data_that_need_an_absent_package_end_with_one_line(tmp_path):
    done = program(  # A name that is None in `sys.modules` cannot be imported or found.
        "-c",
        "import sys; sys.modules['sklearn'] = None; from experiments import main\n"
        f"main.main(['--config=digits:tiny', '--workdir={tmp_path}/r'])",
    )
    assert done.returncode == 2
    expected = "error: this needs the package 'sklearn': pip install -e '.[experiments]'"
    assert done.stderr.strip().splitlines()[-1] == expected
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_the_first_commands_of_the_first_run_run(of_digits, capsys):
    text = (ROOT / "docs/getting_started.md").read_text()
    commands = re.findall(r"^python -m experiments\.main (.*digits.*)$", text, re.M)[:3]
    done = []
    for line in commands:
        argv = [
            word.replace("digits.py", "digits.py:tiny").replace("runs/digits", str(of_digits.root))
            for word in shlex.split(line, comments=True)
        ]
        asked = parse(argv)
        main.run(asked)
        done.append(asked.mode)
    assert done == ["dry_run", "train", "sample"]
    assert "whole run: about" in capsys.readouterr().out
    assert any(of_digits.samples.glob("*.npz"))
