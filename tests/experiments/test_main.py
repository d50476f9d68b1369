"""Mistakes on the command line are reported in one line that says what to write instead."""

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from small_runs import command

from experiments import dry_run, errors, hosts, main
from experiments.errors import UserError
from experiments.main import MODES

ROOT = Path(__file__).parents[2]
SWISSROLL = f"--config={ROOT / 'configs' / 'swissroll.py'}"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "experiments.main", *arguments]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([SWISSROLL, "--config.flow.step_sise=0.1"], "did you mean 'flow.step_size'"),
        ([SWISSROLL, "--config.flow=3"], "is a section; its keys are flow.num_steps"),
        (["--config=configs/swisroll.py"], "did you mean 'configs/swissroll.py'"),
        (["--config=nowhere/swissroll.py"], "--config=nowhere/swissroll.py does not exist"),
        (["--config=digit"], "--config=digit does not exist; did you mean 'digits'?"),
        ([SWISSROLL, "--config.flow.num_steps"], "Missing value for flag --config.flow.num_steps"),
        ([SWISSROLL, "--config.flow.num_steps=many"], "must be a whole number at least 0"),
        ([SWISSROLL, "--config.flow.step_size=nan"], "must be a finite number above 0"),
        ([SWISSROLL, "--config.loss.divergence=kll"], "did you mean 'kl'"),
        ([SWISSROLL, "--config.network.hidden_sizes=(64,0)"], "positive whole numbers such as"),
        ([f"{SWISSROLL}:huge"], "unknown variant 'huge'"),
        (["--mode=smaple"], "--mode=smaple is unknown; did you mean 'sample'? Allowed: train, "),
        (["--mode=0"], "--mode=0 is unknown. Allowed: train, "),
        (["--mode=sample", SWISSROLL], "opens an existing run, which keeps its own"),
        (["--workdirs=w"], "unknown flag --workdirs; did you mean 'workdir'?"),
        (["--seed=3"], "unknown flag --seed; did you mean --config.seed?"),
        (["--learning_rate=1"], "did you mean --config.optimizer.learning_rate?"),
        (["--conifg.flow.step_size=1"], "did you mean --config.flow.step_size?"),
        (["--mode=sample", "--num_samples=0"], "flag --num_samples=0: 0 is not a positive integer"),
        (["--mode=sample", "--checkpoint=last"], "must be the step of a checkpoint, or best"),
        (["sample"], "unexpected argument 'sample' on the command line; did you mean --mode=sam"),
        (["--mode=curve", "--class=3"], "--class is a flag of mode sample, not of mode curve"),
        (["--num_samples=3"], "--num_samples is a flag of mode sample, evaluate, curve, not of"),
        ([SWISSROLL, "--workdir="], "--workdir=DIR, the folder of the run, is missing"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_write(arguments, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        main.parse(["--workdir=w", *arguments])
    assert "\n" not in str(caught.value)


def test_only_a_dry_run_needs_no_folder():
    with pytest.raises(UserError, match="--workdir=DIR, the folder of the run, is missing"):
        main.parse([SWISSROLL])
    assert main.parse([SWISSROLL, "--mode=dry_run"])[0].folder == Path()


def test_changes_override_the_config_and_are_kept_apart():
    typed = ["--config.flow.step_size=1", "--workdir=w", SWISSROLL, "--config.data.channels", "1"]
    asked, _ = main.parse(typed)
    assert asked.changes == {"flow.step_size": 1.0, "data.channels": 1}
    assert asked.config["flow"]["step_size"] == 1.0
    assert asked.text.endswith(" ".join(typed))
    # Without a config, they are changes to a run.
    asked, _ = main.parse(["--mode=sample", "--workdir=w", "--config.network.blocks=((4, 2),)"])
    assert (asked.config, asked.changes) == (None, {"network.blocks": ((4, 2),)})


@pytest.mark.parametrize("flag", [["--config=swissroll:tiny"], ["--config", "swissroll:tiny"]])
def test_a_bare_name_is_a_config_of_the_project(flag, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = main.parse(["--workdir=runs/swissroll", *flag])[0].config
    assert (config["data"]["name"], config["train"]["num_steps"]) == ("swissroll", 4)


def test_the_folder_of_a_classifier_may_be_in_the_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    asked = command("sample", "~/w", **{"class": 3, "classifier": "~/c"})
    assert (asked.label, asked.classifier) == ("3", "/home/ada/c")
    assert asked.folder == Path("/home/ada/w")


@pytest.mark.parametrize(
    ("given", "which"), [({"checkpoint": "best"}, "best"), ({"checkpoint": 4}, 4), ({}, None)]
)
def test_the_flag_checkpoint_is_a_step_or_best(given, which):
    assert command("sample", "w", **given).which == which


def test_help_explains_the_program_a_section_a_key_or_a_word():
    assert all(mode in main.help_for(["--help"]) for mode in MODES)
    key = main.help_for(["--help=flow.step_size"])
    assert key.startswith("--config.flow.step_size=3.0")
    assert "Allowed: a finite number above 0" in key
    assert main.help_for(["--help=config.flow.step_size"]) == key
    assert key in main.help_for(["--help=flow"])
    assert "--config.train.ema_rate" in main.help_for(["--help=moving average"])
    assert main.help_for(["--mode=train"]) is None
    with pytest.raises(UserError, match=r"did you mean 'flow\.step_size'"):
        main.help_for(["--help=flow.step_sise"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(name):\n  return 1 / 0\n", r"own\.py: division by zero"),
        ("1 / 0\n", r"own\.py: division by zero"),
        ("x = 1\n", r"own\.py: it defines no get_config\(\)"),
        ("def get_config():\n  return {}\n", r"own\.py: get_config\(\) takes 0 positional"),
        ("def get_config(name):\n  pass\n", r"must return a ConfigDict, got NoneType"),
    ],
)
def test_a_config_that_raises_is_named_with_the_reason(text, expected, tmp_path):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=expected):
        main.read_config(f"{tmp_path / 'own.py'}:tiny")


def test_flags_set_what_a_config_leaves_out(tmp_path):
    lines = ["import ml_collections", "def get_config():"]
    lines += ["  return ml_collections.ConfigDict({'data': {'name': '8gaussians'}})"]
    (tmp_path / "own.py").write_text("\n".join(lines))
    config = command("train", "w", tmp_path / "own.py", {"flow.step_size": 0.5}).config
    assert (config["data"]["name"], config["flow.step_size"]) == ("8gaussians", 0.5)


def test_a_mistake_ends_the_program_with_one_line_and_writes_nothing(tmp_path):
    done = run(SWISSROLL, f"--workdir={tmp_path / 'run'}", "--config.loss.name=lsif")
    assert done.returncode == 2
    assert "use 'lsif' with 'pearson'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "Interrupted; existing files are intact."),
        (OSError(errno.ENOSPC, "No space left", "f"), 2, "f: No space left. Existing files are"),
        (MemoryError(), 2, "out of memory: MemoryError. Try a smaller network.width"),
        (RuntimeError("RESOURCE_EXHAUSTED: 1 GB"), 2, "out of memory: RESOURCE_EXHAUSTED: 1 GB."),
        (RuntimeError("Unable to initialize backend 'x'"), 2, "Unable to initialize backend 'x'"),
        (RuntimeError("Could not determine home directory."), 2, "Could not determine home"),
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
    monkeypatch.setattr(main, "set_up_output", lambda: None)
    main.main(["--mode=dry_run", SWISSROLL])
    return ended


def test_a_defect_is_shown_with_its_traceback(monkeypatch):
    monkeypatch.setattr(dry_run, "dry_run", lambda _: {}["a defect"])
    with pytest.raises(KeyError, match="a defect"):
        ended_with(monkeypatch)


@pytest.mark.parametrize(
    ("error", "expected", "text", "is_defect"),
    [
        (jax.errors.JaxRuntimeError("Connection closed"), 1, "another process of the run", False),
        (ValueError("UNKNOWN: Gloo AllGather failed"), 1, "another process of the run", False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), 2, "out of memory: RESOURCE", False),
        (MemoryError(), 2, "out of memory: MemoryError. Try a smaller", False),
        (OSError(errno.ENOSPC, "No space left", "f"), 2, "f: No space left. Existing", False),
        (OSError("no number"), 1, "no number", True),
        (ValueError("wrong"), 1, "wrong", True),
    ],
)
def test_one_of_several_processes_ends_at_once_and_blames_another_for_a_lost_connection(
    error, expected, text, is_defect, monkeypatch, capsys
):
    monkeypatch.setattr(hosts, "num_processes", lambda: 2)
    monkeypatch.setattr(dry_run, "dry_run", Mock(side_effect=error))
    code, line = ended_with(monkeypatch)
    assert (code, line.startswith(text)) == (expected, True)
    assert ("Traceback" in capsys.readouterr().err) == is_defect


@pytest.fixture
def options():
    """JAX's options, which are put back after the test."""
    names = ("jax_disable_jit", "jax_numpy_dtype_promotion")
    before = {name: getattr(jax.config, name) for name in names}
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_program_does_not_run_without_compilation(options, monkeypatch):
    options.update("jax_disable_jit", True)
    assert ended_with(monkeypatch)[0] == 2
    assert "JAX_DISABLE_JIT is set" in ended_with(monkeypatch)[1]


def test_numbers_are_promoted_as_the_program_needs_it(options, monkeypatch):
    monkeypatch.setattr(dry_run, "dry_run", lambda _: np.arange(2) * jax.numpy.float32(1.5))
    options.update("jax_numpy_dtype_promotion", "strict")
    assert not ended_with(monkeypatch)
    assert options.jax_numpy_dtype_promotion == "standard"


@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-"])
def test_what_cannot_be_written_to_stderr_is_lost_and_ascii_is_enough(redirected):
    program = (
        "import logging, sys, tqdm; from experiments import main; main.set_up_output()\n"
        "logging.getLogger('fdrl').warning('lost'); list(tqdm.tqdm([1]))\n"
        "print('lost', file=sys.stderr, flush=True); print('1 \u00b1 2')"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stdout) == (0, b"1 ? 2\n")


def test_errors_that_threads_of_tensorstore_cannot_raise_are_not_printed():
    program = (
        "import threading; from experiments import main; main.set_up_output()\n"
        "class Lost:\n"
        "    def __del__(self): raise ValueError(threading.current_thread().name)\n"
        "thread = threading.Thread(target=Lost, name='of TensorStore'); thread.start()\n"
        "thread.join(); Lost()"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert "ValueError: MainThread" in done.stderr
    assert "ValueError: of TensorStore" not in done.stderr


def test_an_interrupt_in_a_destructor_is_not_lost():
    program = (
        "import signal, time; from experiments import main; main.set_up_output()\n"
        # A shell that starts the tests in the background lets them ignore this signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Lost:\n"
        "    def __del__(self): raise KeyboardInterrupt\n"
        "try:\n"
        "    Lost(); time.sleep(60); print('lost')\n"
        "except KeyboardInterrupt: print('interrupted')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("interrupted\n", "")


def test_help_does_not_wait_for_packages_that_draw_or_fit():
    program = (
        "import sys; from experiments import main; main.main(['--help']);"
        "assert not {'matplotlib', 'sklearn', 'tensorflow_datasets', 'orbax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


def test_data_that_need_an_absent_package_end_with_one_line(tmp_path):
    program = (  # A name that is None in `sys.modules` cannot be imported or found.
        "import sys; sys.modules['sklearn'] = None; from experiments import main\n"
        f"main.main(['--config=digits:tiny', '--workdir={tmp_path}/r'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    expected = "error: this needs the package 'sklearn': pip install -e '.[experiments]'"
    assert done.stderr.strip().splitlines() == [expected]
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_the_commands_of_the_readme_for_digits_run(of_digits, capsys):
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python -m experiments\.main (.*digits.*)$", text, re.M)
    done = []
    for line in commands:
        argv = [
            word.replace("digits.py", "digits.py:tiny").replace("runs/digits", str(of_digits.root))
            for word in shlex.split(line, comments=True)
        ]
        asked = main.parse(argv)[0]
        main.run(asked)
        done.append(asked.mode)
    assert done == ["train", "dry_run", "sample"]
    assert "whole run: about" in capsys.readouterr().out
    assert any(of_digits.samples.glob("*.npz"))
