"""Mistakes on the command line are reported in one line that says what to write instead."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import command_line
from experiments.errors import UserError
from experiments.modes import FLAGS, MODES

ROOT = Path(__file__).parents[2]
SWISSROLL = f"--config={ROOT / 'configs' / 'swissroll.py'}"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "experiments.main", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([SWISSROLL, "--config.flow.step_sise=0.1"], "did you mean 'flow.step_size'"),
        ([SWISSROLL, "--config.flwo.step_size=0.1"], "did you mean 'flow.step_size'"),
        ([SWISSROLL, "--config.flow=3"], "is a section; its keys are flow.num_steps"),
        (["--config=configs/swisroll.py"], "did you mean 'configs/swissroll.py'"),
        (["--config=nowhere/swissroll.py"], "--config=nowhere/swissroll.py does not exist"),
        ([SWISSROLL, "--config.flow.num_steps"], "needs a value: --config.flow.num_steps=VALUE"),
        ([SWISSROLL, "--config.flow.num_steps=many"], "must be a whole number from 1"),
        ([SWISSROLL, "--config.flow.step_size=nan"], "must be a finite number above 0"),
        ([SWISSROLL, "--config.loss.divergence=kll"], "did you mean 'kl'"),
        ([SWISSROLL, "--config.network.hidden_sizes=(64,0)"], "positive whole numbers such as"),
        ([f"{SWISSROLL}:huge"], "unknown variant 'huge'"),
        (["--mode=smaple"], "did you mean 'sample'? Allowed: train, "),
        (["--mode=0"], "--mode=0 is unknown. Allowed: train, "),
        (["--mode"], "--mode= is unknown. Allowed: train, "),
        (["--mode=sample"], "--workdir=DIR, the folder of the run, is missing"),
        (["--mode=sample", "--workdir=w", SWISSROLL], "opens an existing run, which keeps its own"),
        (["--workdir=w", "--workdirs=w"], "unknown flag --workdirs; did you mean 'workdir'?"),
        (["--seed=3"], "unknown flag --seed; did you mean --config.seed?"),
        (["--learning_rate=1"], "did you mean --config.optimizer.learning_rate?"),
        (["--num_steps=1"], "--config.flow.num_steps or --config.train.num_steps or --config.atta"),
        (["--conifg.seed=1"], "unknown flag --conifg.seed; did you mean --config.seed?"),
        (["--conifg.flow.step_size=1"], "did you mean --config.flow.step_size?"),
        (["--config=digit"], "--config=digit does not exist; did you mean 'digits'?"),
        (["--mode=sample", "--workdir=w", "--num_samples=t"], "experiments.main --mode=sample --h"),
        (["--mode=sample", "--workdir=w", "--num_samples=0"], "must be a whole number >= 1, got"),
        (["--mode=sample", "--workdir=w", "--num_samples=x"], "argument --num_samples: must be a"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_write(arguments, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        command_line.parse(
            ["--workdir=w", *arguments] if "--mode=sample" not in arguments else arguments
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["sample", "--workdir=w"],
            "unexpected argument 'sample' on the command line; did you mean --mode=",
        ),
        (["--workdir=w", "runs"], "unexpected argument 'runs' on the command line"),
        (
            ["--mode=interpolate", "--workdir=w", "--class=3"],
            "--class is a flag of mode sample, not",
        ),
        (["--mode=interpolate", "--workdir=w", "--classifier=c"], "flag of mode sample, evaluate,"),
        (
            ["--mode=strips", "--workdir=w", "--platforms=banana"],
            "--platforms is a flag of mode exp",
        ),
        (["--workdir=w", "--num_samples=3"], "--num_samples is a flag of mode"),
        (["--mode=report", "--workdir=w", "--checkpoint=3"], "--checkpoint is a flag of mode"),
    ],
)
def test_an_unexpected_argument_or_a_flag_of_another_mode_is_refused(arguments, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        command_line.parse(arguments)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_help_and_an_example_that_parses(mode, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, _ = command_line.parse([f"--mode={mode}", *MODES[mode].example.split()])
    assert command.mode == mode
    text = command_line.help_for([f"--mode={mode}", "--help"])
    assert MODES[mode].summary.split(",")[0].split()[0] in text
    assert all(f"--{flag}" in text for flag in MODES[mode].flags)
    assert f"--mode={mode}" in text or mode == "train"
    assert command_line.help_for([f"--help={mode}"]) == text


def test_the_help_of_a_mode_lists_what_the_mode_accepts_and_does():
    texts = {mode: " ".join(command_line.help_for([f"--help={mode}"]).split()) for mode in MODES}
    assert {mode for mode, text in texts.items() if "--config CONFIG" in text} == {
        mode for mode in MODES if MODES[mode].creates
    }
    assert "created if missing" in texts["train"]
    assert "created if missing" not in texts["sample"]
    assert "by default 8, at most 64" in texts["strips"]
    assert "by default evaluate.num_samples" in texts["sample"]
    assert [mode for mode, text in texts.items() if "authors' program" in text] == ["convert"]


def test_every_flag_belongs_to_a_mode():
    assert set(FLAGS) == {flag for mode in MODES.values() for flag in mode.flags}


def test_help_explains_the_program_a_section_or_a_key():
    assert all(mode in command_line.help_for(["--help"]) for mode in MODES)
    key = command_line.help_for(["--help=flow.step_size"])
    assert "--config.flow.step_size=3.0" in key
    assert "Allowed: a finite number above 0" in key
    assert command_line.help_for(["--help=config.flow.step_size"]) == key
    assert key in command_line.help_for(["--help=flow"])
    # A section with the name of a mode.
    assert "--help=config.sample" in command_line.help_for(["--help=sample"])
    assert "--config.sample.format=npz" in command_line.help_for(["--help=config.sample"])
    with pytest.raises(UserError, match=r"nothing: unknown key$"):
        command_line.help_for(["--help=nothing"])
    with pytest.raises(UserError, match=r"did you mean 'flow\.step_size'"):
        command_line.help_for(["--help=flow.step_sise"])
    assert command_line.help_for(["--mode=train"]) is None
    # Next to a mode, an explicit topic comes first.
    assert command_line.help_for(["--mode=sample", "--help=flow.step_size"]) == key
    of_mode = command_line.help_for(["--help=sample"])
    assert command_line.help_for(["--mode", "sample", "--help"]) == of_mode
    with pytest.raises(UserError, match="--mode=smaple is unknown; did you mean 'sample'"):
        command_line.help_for(["--mode=smaple", "--help"])


@pytest.mark.parametrize("flag", [["--config=swissroll:tiny"], ["--config", "swissroll:tiny"]])
def test_a_bare_name_is_a_config_of_the_project(flag, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    command, _ = command_line.parse(["--workdir=runs/swissroll", *flag, "--mode=dry_run"])
    assert command.config["data.name"] == "swissroll"
    assert command.config["train.num_steps"] == 4


def test_changes_override_the_config_and_are_kept_apart():
    command, _ = command_line.parse(
        [SWISSROLL, "--workdir=w", "--config.flow.step_size=0.7", "--config.data.channels", "1"]
    )
    assert command.changes == {"flow.step_size": 0.7, "data.channels": 1}
    assert command.config["flow.step_size"] == 0.7
    assert command.text.endswith("--workdir=w --config.flow.step_size=0.7 --config.data.channels 1")


def test_class_and_classifier_are_settings_too():
    command, _ = command_line.parse(["--mode=sample", "--workdir=w", "--class=3", "--classifier=c"])
    assert command.changes == {"condition.label": "3", "condition.classifier": "c"}
    command, _ = command_line.parse(["--mode=evaluate", "--workdir=w", "--classifier=~/c"])
    assert command.changes == {"condition.classifier": str(Path.home() / "c")}


def test_a_class_that_looks_like_a_number_stays_a_text():
    assert command_line.parse_value("data.target_class", "3") == "3"
    assert command_line.parse_value("flow.num_steps", "3") == 3
    assert command_line.parse_value("network.attention", "true") is True


@pytest.mark.parametrize("which", ["best", "4", None])
def test_the_flag_checkpoint_is_a_step_or_best(which):
    flags = [] if which is None else [f"--checkpoint={which}"]
    command, _ = command_line.parse(["--mode=sample", "--workdir=w", *flags])
    assert command.which == (4 if which == "4" else which)
    wrong, _ = command_line.parse(["--mode=sample", "--workdir=w", "--checkpoint=last"])
    with pytest.raises(UserError, match="mode sample needs the step of a checkpoint"):
        _ = wrong.which


def test_a_config_that_raises_is_named_with_the_reason(tmp_path):
    (tmp_path / "own.py").write_text("def get_config():\n  return 1 / 0\n")
    with pytest.raises(UserError, match=r"own\.py: division by zero"):
        command_line.load_config(str(tmp_path / "own.py"))
    (tmp_path / "own.py").write_text("x = 1")
    with pytest.raises(UserError, match=r"own\.py: .*get_config"):
        command_line.load_config(str(tmp_path / "own.py"))


def test_a_mistake_ends_the_program_with_one_line_and_writes_nothing(tmp_path):
    done = run(SWISSROLL, f"--workdir={tmp_path / 'run'}", "--config.loss.name=lsif")
    assert done.returncode == 2
    assert "use 'lsif' with 'pearson'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert [path.name for path in tmp_path.rglob("*")] in ([], ["run", "lock"])


def test_help_does_not_wait_for_packages_that_draw_or_fit():
    program = (
        "import sys; from experiments import main; main.main(['--help']);"
        "assert not {'matplotlib', 'sklearn', 'tensorflow_datasets'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout
