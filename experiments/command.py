"""The command line: flags and settings, read into a `Command` that `main` passes to a verb."""

import dataclasses
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from absl import flags
from ml_collections import config_flags

from experiments import settings
from experiments.errors import UserError
from experiments.settings import Flat
from fdrl_jax._checks import nearest

_CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# By mode: its function, as MODULE.FUNCTION, and what it does.
MODES = {
    "train": ("train.train", "train and evaluate a density ratio, or resume"),
    "sample": ("sample.sample", "write samples"),
    "evaluate": ("evaluate.evaluate_run", "compute metrics, write a report"),
    "curve": ("curve.curve", "plot a metric over the length of the flow"),
    "classifier": ("train.train_classifier", "train a classifier"),
    "dry_run": ("dry_run.dry_run", "read the data and print what a run costs"),
    "export": ("export.export", "write a sampler to share"),
}
_CREATE_RUNS = ("train", "classifier", "dry_run")  # Other modes open an existing run.
_OF_PROCESSES = ("distributed", "coordinator_address", "num_processes", "process_id")
_HELP = """\
usage: python -m experiments.main --config=FILE.py --workdir=DIR [--mode=NAME]
           [--config.KEY=VALUE ...]

Start with --config=swissroll, which takes a minute on a CPU and writes a report. Rerun to resume.
Later commands need only --workdir: a run keeps its settings.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command. The file of its config was run, but values are not checked yet."""

    mode: str
    folder: Path  # Of the run; the working folder if none is given to a mode that needs none.
    config: Mapping[str, Any] | None = None  # That of the config file with the changes, if any.
    changes: Flat = dataclasses.field(default_factory=dict)  # Those on the command line.
    which: int | Literal["best"] | None = None  # The checkpoint: a step; `None` for the newest.
    num_samples: int | None = None
    label: str = ""  # Class of the samples, by name or number, or "all".
    classifier: str = ""  # Folder of a classifier that guides samples, or judges them.
    processes: tuple[Any, ...] = (False, None, None, None)  # The arguments of `devices.join`.
    text: str = ""  # The command as typed, for the record.


def parse(argv: Sequence[str]) -> Command:
    """Reads the arguments of the program."""
    config_file, rest = _split(argv)
    words = ["main", *config_file, *rest]
    found = _define_flags(words)
    # The name that ml_collections loads a config as; names of an earlier one would remain in it.
    sys.modules.pop("config_config", None)
    try:
        stray = found(words)[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        raise UserError(f"unknown flag --{name}{nearest(name, found)}") from None
    except Exception as error:  # The code of a config file may raise anything.
        raise UserError(_explained(error)) from error
    given: dict[str, Any] = found.flag_values_dict()
    mode, which = given["mode"], given["checkpoint"]
    if stray:
        raise UserError(f"unexpected argument {stray[0]!r} on the command line")
    if mode not in MODES:
        hint = f"{nearest(mode, MODES) or '.'} Allowed: {', '.join(MODES)}"
        raise UserError(f"--mode={mode} is unknown{hint}")
    if config_file and mode not in _CREATE_RUNS:
        raise UserError(f"--config: mode {mode} opens a run, which keeps its settings; remove it")
    if not given["workdir"] and mode != "dry_run":
        raise UserError("--workdir=DIR, the folder of the run, is missing")
    if which not in (None, "best") and not which.isdecimal():
        raise UserError(f"--checkpoint={which}: must be the step of a checkpoint, or best")
    config: Any = found["config"]
    changes = dict(config.override_values)
    if given["data_dir"]:
        changes["data.dir"] = given["data_dir"]
    changes |= {key: _absolute(changes[key]) for key in changes.keys() & set(settings.PATHS)}
    settings.replace(settings.Settings(), changes)  # Checks them.
    return Command(
        mode=mode,
        folder=Path(os.path.expanduser(given["workdir"] or ".")),
        config={**config.value.to_dict(), **changes} if config_file else None,
        changes=changes,
        which=int(which) if which and which != "best" else which,
        num_samples=given["num_samples"],
        label=given["class"],
        classifier=_absolute(given["classifier"]),
        processes=tuple(given[name] for name in _OF_PROCESSES),
        text=shlex.join(["python", "-m", "experiments.main", *argv]),
    )


def help_for(argv: Sequence[str]) -> str | None:
    """Returns the help for the program or a setting, if the arguments ask for it or are none."""
    configs = ", ".join(sorted(p.stem for p in _CONFIGS.glob("[!_]*.py") if p.stem != "base"))
    if not argv:
        return f"{_HELP}\nConfigs: {configs}\n--help lists modes, flags and settings."
    wanted = [word for word in argv if re.match(r"(-h|--?help)(=|$)", word)]
    if not wanted:
        return None
    if topic := wanted[0].partition("=")[2]:
        return settings.explain(topic.removeprefix("config."))
    found = _define_flags([])
    modes = [f"  {name:13s}{about}" for name, (_, about) in MODES.items()]
    shown = [f"  --{name:21s}{found[name].help}" for name in found if name != "config"]
    about = (
        "\nSettings: --config.KEY=VALUE, such as --config.flow.step_size=0.1. --help=KEY, "
        "--help=SECTION or\n--help=WORD explains them. Variants follow a colon: "
        "--config=configs/digits.py:tiny runs\neverything in seconds.\n"
    )
    parts = [f"{_HELP}\nModes:", *modes, "\nFlags:", *shown, about, f"Configs: {configs}"]
    return "\n".join(parts)


def _define_flags(words: list[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # Stray words do not hide the flags after them.
    of: dict[str, Any] = {"flag_values": values}
    usual = str(_CONFIGS / "base.py")
    config_flags.DEFINE_config_file("config", usual, lock_config=False, sys_argv=words, **of)
    flags.DEFINE_string("workdir", None, "folder of the run; created if missing", **of)
    flags.DEFINE_string("mode", "train", "what to do", **of)
    flags.DEFINE_string("data_dir", "", "where the data are; sets data.dir", **of)
    flags.DEFINE_string("checkpoint", None, "step of a checkpoint, or best; default: newest", **of)
    flags.DEFINE_integer("num_samples", None, "number of samples", lower_bound=1, **of)
    flags.DEFINE_string("class", "", "class to draw, by name or number, or all", **of)
    flags.DEFINE_string("classifier", "", "folder of a classifier, from --mode=classifier", **of)
    flags.DEFINE_bool("distributed", False, "join the processes that the cluster started", **of)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process", **of)
    flags.DEFINE_integer("num_processes", None, "number of processes", lower_bound=1, **of)
    flags.DEFINE_integer("process_id", None, "number of this process", lower_bound=0, **of)
    return values


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the flag of the config file, which may be a bare name, and the other words."""
    chosen, rest, words = list[str](), list[str](), iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if re.fullmatch(r"--?config", flag):
            value = value if equals else next(words, "")
            name, colon, variants = value.partition(":")
            path = _CONFIGS / f"{name}.py" if re.fullmatch(r"\w+", name) else Path(name)
            if not path.is_file():
                hint = nearest(path.stem, [file.stem for file in path.parent.glob("*.py")])
                raise UserError(f"--config={value} does not exist{hint}")
            chosen = [f"--config={path}{colon}{variants}"]
            continue
        key = re.fullmatch(r"--?config\.(.*)", flag)
        if key and key[1] not in settings.DECLARED:
            raise UserError(f"--config.{key[1]}: unknown key{nearest(key[1], settings.DECLARED)}")
        rest.append(word)
    return chosen, rest


def _absolute(path: str) -> str:
    return path and os.path.abspath(os.path.expanduser(path))


def _explained(error: Exception) -> str:
    """Returns a message about an error of a flag, with what a setting allows."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # The error of a config file is the last line of a traceback.
    text = f"config: {lines[-1].strip()}" if "config file" in lines[0] else lines[0]
    key = re.match(r"flag --config\.([^=]+)=", text)
    return f"{text}; must be {settings.DECLARED[key[1]].allowed}" if key else text
