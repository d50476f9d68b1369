"""Parses the command line to a `Command`. Errors say what to write instead."""

import argparse
import ast
import contextlib
import dataclasses
import functools
import inspect
import os
import re
import runpy
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from experiments import settings
from experiments.errors import Parser, UserError
from experiments.modes import FLAGS, MODES, Mode, at_least, example
from experiments.settings import Settings
from fdrl_jax._names import nearest

_CONFIGS = Path(__file__).resolve().parent.parent / "configs"
_PROGRAM = "python -m experiments.main"
_SHARED_FLAGS: dict[str, dict[str, Any]] = {
    "mode": {},
    "workdir": {"type": lambda text: Path(os.path.expanduser(text)), "help": "folder of the run"},
    "config": {"help": "config file, FILE.py or FILE.py:tiny"},
    "data_dir": {"default": "", "help": "where the data are; overrides data.dir"},
}
_HOST_FLAGS: dict[str, dict[str, Any]] = {
    "distributed": {
        "action": "store_true",
        "help": "join the other processes of the run, found on TPU pods, SLURM, Open MPI, "
        "Kubernetes or through JAX_COORDINATOR_ADDRESS; see docs/clusters.md",
    },
    "coordinator_address": {"help": "HOST:PORT of the first process"},
    "num_processes": {"type": at_least(1), "help": "number of processes of the run"},
    "process_id": {"type": at_least(0), "help": "number of this process"},
    "heartbeat_seconds": {
        "type": at_least(1),
        "default": 100,
        "help": "a process that is silent for this long counts as failed, and the others stop",
    },
}
_HELP = """\
usage: {program} --config=FILE.py --workdir=DIR [--mode=NAME] [--config.KEY=VALUE ...]

Start with
  {start}
which takes a minute on a CPU and writes a report. Run the same command again to resume
from the newest checkpoint. Later commands need only --workdir: a run keeps its settings.

Modes, each with an example:
{modes}

Settings: --config.KEY=VALUE for every key of configs/base.py, such as
--config.flow.step_size=0.1; --help=KEY or --help=config.SECTION explains them.
Variants follow a colon: --config=configs/digits.py:tiny runs everything in seconds.
Flags of a mode: {program} --mode=NAME --help
Many runs at once: python -m experiments.sweep --help
Evaluate images of any program: python -m experiments.evaluate --help"""

# The flat settings of a config file for a platform and the shape of an example.
SettingsFor: TypeAlias = Callable[[str, tuple[int, ...]], Settings]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A parsed command. Its settings are flat."""

    mode: str  # A name in `experiments.modes.MODES`.
    folder: Path  # Of the run; the working folder if none is given to a mode that needs none.
    config: Settings | None = None  # Those of the config file, if there is one, with the changes.
    # Those without the changes, of a config file that depends on device and data.
    config_for: SettingsFor | None = None
    changes: Settings = dataclasses.field(default_factory=dict)  # Those on the command line.
    data_dir: str = ""  # Where the data are, if given.
    flags: dict[str, Any] = dataclasses.field(default_factory=dict)  # Values of the mode's flags.
    text: str = ""  # The command as typed, for the record.

    @property
    def which(self) -> int | Literal["best"] | None:
        """The checkpoint that `--checkpoint` names: a step, "best", or `None` for the newest."""
        name = self.flags.get("checkpoint")
        if name is None or name == "best":
            return name
        if not name.isdecimal():
            raise UserError(
                f"--checkpoint={name}: mode {self.mode} needs the step of a checkpoint, or best"
            )
        return int(name)


def parse(argv: Sequence[str]) -> tuple[Command, dict[str, Any]]:
    """Reads the arguments of the program, without its name.

    Returns the command, and the flags for starting several processes.

    Raises:
      UserError: for an unknown flag, mode, file or key, a flag of another mode, an unexpected
        argument, or an invalid value.
    """
    changes, rest = split_changes(argv)
    mode = _mode_of(rest) or "train"
    known, unknown = _parser(mode).parse_known_args(
        [re.sub(r"^-(?=[a-z]\w)", "--", argument) for argument in rest]
    )
    if unknown:
        raise UserError(_explain_unknown(mode, unknown[0]))
    flags = vars(known)
    spec = flags.pop("config")
    if spec is not None and not MODES[mode].creates:
        raise UserError(
            f"--config: mode {mode} opens an existing run, which keeps its own settings; remove "
            f"--config and change single settings with --config.KEY=VALUE: {example(mode)}"
        )
    for flag, key in (("class", "condition.label"), ("classifier", "condition.classifier")):
        if flags.get(flag):
            changes[key] = flags[flag]
    changes = settings.with_home(changes)
    config, config_for = (None, None) if spec is None else read_config(spec)
    folder = flags.pop("workdir")
    if folder is None and MODES[mode].needs_workdir:
        raise UserError(f"--workdir=DIR, the folder of the run, is missing: {example(mode)}")
    hosts = {name: flags.pop(name) for name in _HOST_FLAGS}
    command = Command(
        mode=mode,
        folder=folder or Path(),
        config=None if config is None else {**config, **changes},
        config_for=config_for,
        changes=changes,
        data_dir=flags.pop("data_dir"),
        flags=flags,
        text=shlex.join(["python", "-m", "experiments.main", *argv]),
    )
    return command, hosts


def help_for(argv: Sequence[str]) -> str | None:
    """Returns the help for the program, a mode or a setting, if the arguments ask for it."""
    wanted = [a for a in argv if a in ("-h", "--help") or a.startswith("--help=")]
    if not wanted:
        return None
    topic = wanted[0].partition("=")[2] or _mode_of(argv)
    if topic is None:
        modes = [f"  {name:17s}{mode.summary}\n    {example(name)}" for name, mode in MODES.items()]
        return _HELP.format(program=_PROGRAM, start=example("train"), modes="\n".join(modes))
    if topic in MODES:
        return _parser(topic).format_help()
    return settings.explain(topic.removeprefix("config."))


def read_config(spec: str) -> tuple[Settings, SettingsFor | None]:
    """Runs a config file, once, and returns its flat settings, not yet checked.

    It is FILE.py or FILE.py:VARIANTS; a bare name is one of the project's own configs. The settings
    are used until the data and the device are known. Then the returned function, if the file has
    one, gives those for them.

    Raises:
      UserError: if the file does not exist, or raises an error.
    """
    name, _, variants = spec.partition(":")
    with _explaining(name):
        definitions = runpy.run_path(str(config_file(name)))

    def call(function: str, *arguments: Any) -> Settings:
        with _explaining(name):
            get_config = definitions.get(function)
            if get_config is None:
                raise UserError(f"config: {name}: it defines no {function}()")
            takes_variants = len(inspect.signature(get_config).parameters) > len(arguments)
            if variants and not takes_variants:
                raise UserError(f"--config={name} has no variants, so {variants!r} is not allowed")
            config = get_config(*arguments, *((variants,) if takes_variants else ()))
            return settings.flatten(config.to_dict())

    depends = "get_config_for" in definitions
    return call("get_config"), functools.partial(call, "get_config_for") if depends else None


def load_config(spec: str) -> Settings:
    """Returns the settings of a config file; see `read_config`."""
    return read_config(spec)[0]


@contextlib.contextmanager
def _explaining(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # A user's code may raise anything.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"config: {name}: {reason[-1]}") from error


def config_file(spec: str) -> Path:
    """Returns the path of a config file.

    Raises:
      UserError: if it does not exist; suggests the closest file and lists those in its folder.
    """
    name = spec.partition(":")[0]
    own, is_bare = _CONFIGS / f"{name}.py", bool(re.fullmatch(r"\w+", name))
    path = own if is_bare and own.is_file() else Path(name)
    if path.is_file():
        return path
    folder = path.parent if path.parent.is_dir() and not is_bare else _CONFIGS
    files = [p for p in sorted(folder.glob("*.py")) if p.stem != "__init__"]
    others = [p.stem if is_bare else str(p) for p in files]
    there = f"; available: {', '.join(others)}" if others else ""
    raise UserError(f"--config={name} does not exist{nearest(name, others)}{there}")


def parse_value(key: str, text: str) -> Any:
    """Parses the value of a setting: a Python literal, or otherwise text.

    For a setting whose values are text, it stays text even if it looks like a literal, such as the
    class 3.

    Raises:
      UserError: for an unknown setting or an invalid value.
    """
    text = text.strip()
    try:
        value = ast.literal_eval({"true": "True", "false": "False"}.get(text.lower(), text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if settings.error_of(key, value) and not settings.error_of(key, text):
        return text
    settings.check(key, value, prefix="--config.")
    return value


def split_changes(argv: Sequence[str]) -> tuple[Settings, list[str]]:
    """Splits `--config.KEY=VALUE` from the other arguments.

    Raises:
      UserError: for an unknown setting, or a value that is missing or invalid.
    """
    changes: Settings = {}
    rest = []
    arguments = iter(argv)
    for argument in arguments:
        match = re.match(r"--?config\.([^=]+)(?:=(.*))?$", argument, re.DOTALL)
        if match is None:
            rest.append(argument)
            continue
        value = match[2] if match[2] is not None else next(arguments, None)
        if value is None:
            raise UserError(f"{argument} needs a value: {argument}=VALUE")
        changes[match[1]] = parse_value(match[1], value)
    return changes, rest


def _mode_of(argv: Sequence[str]) -> str | None:
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag in ("--mode", "-mode"):
            mode = value if equals else (argv[i + 1] if i + 1 < len(argv) else "")
            if mode not in MODES:
                hint = nearest(mode, MODES) or "."
                raise UserError(f"--mode={mode} is unknown{hint} Allowed: {', '.join(MODES)}")
            return mode
    return None


def _parser(name: str) -> Parser:
    """Returns the parser of a mode, which also prints its help."""
    mode: Mode = MODES[name]
    has_settings = any(key.startswith(f"{name}.") for key in settings.SETTINGS)
    parser = Parser(
        f"{_PROGRAM} --mode={name}",
        add_help=False,
        formatter_class=argparse.HelpFormatter,
        usage=example(name),
        description=mode.summary,
        epilog=f"Settings for this mode: --help=config.{name}" if has_settings else None,
    )
    own = parser.add_argument_group(f"flags of mode {name}")
    for flag in mode.flags:
        own.add_argument(f"--{flag}", **{**FLAGS[flag], **_own_help(flag, mode)})
    for flag, options in {**_SHARED_FLAGS, **_HOST_FLAGS}.items():
        parser.add_argument(f"--{flag}", **{**options, **_own_help(flag, mode)})
    return parser


def _own_help(flag: str, mode: Mode) -> dict[str, str]:
    """Returns the help of a flag in a mode, if it is not that of all modes."""
    if flag == "config" and not mode.creates:  # Accepted only for a better error.
        return {"help": argparse.SUPPRESS}
    if flag == "workdir" and mode.creates and mode.needs_workdir:
        return {"help": "folder of the run; created if missing"}
    return {"help": mode.helps[flag]} if flag in mode.helps else {}


def _explain_unknown(mode: str, argument: str) -> str:
    name = argument.lstrip("-").partition("=")[0]
    if not argument.startswith("-"):
        hint = f"; did you mean --mode={argument}?" if argument in MODES else ""
        return f"unexpected argument {argument!r} on the command line{hint}"
    owners = [other for other, of in MODES.items() if name in of.flags]
    if owners:
        return f"--{name} is a flag of mode {', '.join(owners)}, not of mode {mode}"
    keys = [
        key
        for key in settings.SETTINGS
        if key == name or key.endswith(f".{name}") or key == name.partition(".")[2]
    ]
    if keys:
        return f"unknown flag --{name}; did you mean --config.{' or --config.'.join(keys)}?"
    allowed = [*MODES[mode].flags, *_SHARED_FLAGS, *_HOST_FLAGS]
    return f"unknown flag --{name}{nearest(name, allowed)}"
