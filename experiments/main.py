"""The program: `python -m experiments.main --config=FILE.py --workdir=DIR`; see `--help`."""

import contextlib
import importlib
import logging
import os
import re
import runpy
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from experiments import errors
from experiments.errors import UserError, first_line

# Other imports are inside functions: they take seconds, in which Ctrl-C should print one line.
if TYPE_CHECKING:
    from absl import flags
    from ml_collections import ConfigDict

    from experiments.command import Command

_CONFIGS = Path(__file__).resolve().parent.parent / "configs"


class Mode(NamedTuple):
    """A mode of the program."""

    verb: str  # The function that runs it, as MODULE.FUNCTION.
    summary: str
    flags: tuple[str, ...] = ()  # Of those that only some modes use.
    creates: bool = False  # Can create a run from a config; others open an existing run.


_OF_SAMPLES = ("checkpoint", "num_samples")
MODES = {
    "train": Mode("train.train", "train and evaluate a density ratio, or resume", creates=True),
    "sample": Mode("sample.sample", "write samples", (*_OF_SAMPLES, "class", "classifier")),
    "evaluate": Mode(
        "evaluate.evaluate_run", "compute metrics, write a report", (*_OF_SAMPLES, "classifier")
    ),
    "curve": Mode("curve.curve", "plot a metric over the length of the flow", _OF_SAMPLES),
    "classifier": Mode("train.train_classifier", "train a classifier", creates=True),
    "dry_run": Mode("dry_run.dry_run", "read the data and print what a run costs", creates=True),
    "export": Mode("export.export", "write a sampler to share", ("checkpoint",)),
}
_HELP = """\
usage: python -m experiments.main --config=FILE.py --workdir=DIR [--mode=NAME]
           [--config.KEY=VALUE ...]

Start with --config=swissroll, which takes a minute on a CPU and writes a report. Rerun to resume.
Later commands need only --workdir: a run keeps its settings.

Modes:
{modes}

Flags:
{flags}

Settings: --config.KEY=VALUE for every key of configs/base.py, such as --config.flow.step_size=0.1.
--help=KEY, --help=SECTION or --help=WORD explains them. Variants follow a colon:
--config=configs/digits.py:tiny runs everything in seconds."""
_LESS_MEMORY = (
    "Try a smaller network.width, train.batch_size or evaluate.batch_size, or network.remat=True"
)
# RuntimeErrors whose cause is the environment.
_OF_ENVIRONMENT = ("Unable to initialize backend", "Could not determine home directory")


def main(argv: Sequence[str]) -> None:
    """Runs a command. An error that the user can fix is printed in one line."""
    set_up_output()
    with errors.ending_in_one_line():
        if text := help_for(argv):
            print(text)
            return
        try:
            _run(*parse(argv))
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            if name in ("", "experiments", "fdrl_jax"):
                raise
            raise UserError(
                f"this needs the package {name!r}: pip install -e '.[experiments]'"
            ) from error
        except (MemoryError, RuntimeError) as error:
            text = first_line(error)[:200]
            if _is_out_of_memory(error):
                text = f"out of memory: {text}. {_LESS_MEMORY}"
            elif not text.startswith(_OF_ENVIRONMENT):
                raise
            raise UserError(text) from error


def _run(command: "Command", processes: dict[str, Any]) -> None:
    import jax

    from experiments import files, hosts, precision

    options: Any = jax.config  # Its attributes are created at run time.
    if options.jax_disable_jit:
        raise UserError("JAX_DISABLE_JIT is set, and training would take for ever; unset it")
    options.update("jax_numpy_dtype_promotion", "standard")
    wanted, record = command.config, command.folder / "run.json"
    if wanted is None:
        wanted = files.read_json(record, settings=dict)["settings"] if record.is_file() else {}
    # Must come first, because XLA reads its flags when its backend starts.
    precision.set_cpu_flags(bfloat16=wanted.get("precision") in ("auto", "bfloat16"))
    hosts.join(**processes)
    try:
        if hosts.num_processes() > 1:
            hosts.check_devices()
        run(command)
    except UserError:
        raise
    except Exception as error:
        of_disk = isinstance(error, OSError) and error.errno is not None
        if hosts.num_processes() == 1 or of_disk or _is_out_of_memory(error):
            raise  # Ends in one line, at once.
        text = first_line(error)
        # On CPUs, a lost connection may be a ValueError.
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in text:
            text = f"another process of the run has failed, see its output: {text}"
        else:
            traceback.print_exc()
        errors.leave(1, text)  # An orderly exit would wait for the other processes.


def _is_out_of_memory(error: Exception) -> bool:
    of_device = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return of_device or isinstance(error, MemoryError)


def run(command: "Command") -> None:
    """Runs the mode of a command."""
    module, _, name = MODES[command.mode].verb.rpartition(".")
    getattr(importlib.import_module(f"experiments.{module}"), name)(command)


def parse(argv: Sequence[str]) -> tuple["Command", dict[str, Any]]:
    """Reads the arguments of the program: the command, and the arguments of `hosts.join`."""
    from absl.flags import Error, UnrecognizedFlagError

    from experiments import hosts, settings
    from experiments.command import Command
    from fdrl_jax._names import nearest

    for argument in argv:
        if key := re.match(r"--?config\.([^=]+)", argument):
            settings.check_key(key[1])
    spec, rest = _split_config(argv)
    config = None if spec is None else read_config(spec)
    flags = _define_flags(config, rest)
    try:
        stray = flags(["main", *rest])[1:]
    except UnrecognizedFlagError as error:
        raise UserError(_explain_unknown(error.flagname, flags)) from None
    except Error as error:
        raise UserError(_explain_value(first_line(error))) from None
    given: dict[str, Any] = flags.flag_values_dict()
    name = given["mode"]
    if stray:
        hint = f"; did you mean --mode={stray[0]}?" if stray[0] in MODES else ""
        raise UserError(f"unexpected argument {stray[0]!r} on the command line{hint}")
    if name not in MODES:
        hint = nearest(name, MODES) or "."
        raise UserError(f"--mode={name} is unknown{hint} Allowed: {', '.join(MODES)}")
    for flag in sorted({flag for mode in MODES.values() for flag in mode.flags}):
        if flags[flag].present and flag not in MODES[name].flags:
            owners = ", ".join(other for other, of in MODES.items() if flag in of.flags)
            raise UserError(f"--{flag} is a flag of mode {owners}, not of mode {name}")
    if config is not None and not MODES[name].creates:
        raise UserError(
            f"--config: mode {name} opens an existing run, which keeps its own settings; remove "
            "--config and change single settings with --config.KEY=VALUE"
        )
    if not given["workdir"] and name != "dry_run":
        raise UserError("--workdir=DIR, the folder of the run, is missing")
    config_flag: Any = flags["config"]
    changes = dict(config_flag.override_values)
    for setting in set(changes) & set(settings.PATHS):
        if changes[setting]:
            changes[setting] = os.path.abspath(os.path.expanduser(changes[setting]))
    settings.replace(settings.Settings(), changes)  # Checks them.
    which = given["checkpoint"]
    if which not in (None, "best"):
        if not which.isdecimal():
            raise UserError(f"--checkpoint={which}: must be the step of a checkpoint, or best")
        which = int(which)
    command = Command(
        mode=name,
        folder=Path(os.path.expanduser(given["workdir"] or ".")),
        config=None if config is None else {**config.to_dict(), **changes},
        changes=changes,
        data_dir=os.path.expanduser(given["data_dir"]),
        which=which,
        num_samples=given["num_samples"],
        label=given["class"],
        classifier=given["classifier"] and os.path.abspath(os.path.expanduser(given["classifier"])),
        text=shlex.join(["python", "-m", "experiments.main", *argv]),
    )
    return command, {flag: given[flag] for flag in signature(hosts.join).parameters}


def help_for(argv: Sequence[str]) -> str | None:
    """Returns the help for the program or a setting, if the arguments ask for it."""
    wanted = [argument for argument in argv if re.match(r"(-h|--?help)(=|$)", argument)]
    if not wanted:
        return None
    if topic := wanted[0].partition("=")[2]:
        from experiments import settings

        return settings.explain(topic.removeprefix("config."))
    flags = _define_flags(None, [])
    modes = [f"  {name:13s}{mode.summary}" for name, mode in MODES.items()]
    shown = [f"  --{flag:21s}{flags[flag].help}" for flag in flags if flag != "config"]
    return _HELP.format(modes="\n".join(modes), flags="\n".join(shown))


def read_config(spec: str) -> "ConfigDict":
    """Runs a config file, once, and returns its config, not yet checked.

    It is FILE.py or FILE.py:VARIANTS; a bare name is one of the project's own configs.
    """
    from ml_collections import ConfigDict

    from experiments import settings

    name, _, variants = spec.partition(":")
    path = _config_file(name)
    chosen = (variants,) if variants else ()  # A file without variants takes no argument.
    try:
        definitions = runpy.run_path(str(path))
        if "get_config" not in definitions:
            raise ValueError("it defines no get_config()")
        found = definitions["get_config"](*chosen)
        if not isinstance(found, ConfigDict):
            raise TypeError(f"get_config() must return a ConfigDict, got {type(found).__name__}")
        # With the defaults, flags can set keys that the file leaves out.
        config = ConfigDict(settings.defaults(), type_safe=False)
        config.update(found)
        return config
    except Exception as error:  # A user's code may raise anything.
        raise UserError(f"config: {name}: {first_line(error)}") from error


def _config_file(name: str) -> Path:
    from fdrl_jax._names import nearest

    is_bare = re.fullmatch(r"\w+", name)
    path = _CONFIGS / f"{name}.py" if is_bare else Path(name)
    if path.is_file():
        return path
    files = sorted(path.parent.glob("*.py"))
    hint = nearest(name, [file.stem if is_bare else str(file) for file in files])
    raise UserError(f"--config={name} does not exist{hint}")


def _split_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Returns the value of `--config`, whose types decide how others are read, and the others."""
    spec, rest, arguments = None, [], iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-config"):
            spec = value if equals else next(arguments, "")
        else:
            rest.append(argument)
    return spec, rest


def _define_flags(config: "ConfigDict | None", argv: list[str]) -> "flags.FlagValues":
    """Returns the flags of the program, and those of the values of a config."""
    from absl import flags
    from ml_collections import ConfigDict, config_flags

    from experiments import settings

    values = flags.FlagValues()
    values.set_gnu_getopt(True)  # Stray words do not hide the flags after them.
    of: dict[str, Any] = {"flag_values": values}
    usual = ConfigDict(settings.defaults()) if config is None else config
    config_flags.DEFINE_config_dict("config", usual, sys_argv=["main", *argv], **of)
    flags.DEFINE_string("workdir", None, "folder of the run; created if missing", **of)
    flags.DEFINE_string("mode", "train", "what to do", **of)
    flags.DEFINE_string("data_dir", "", "where the data are; overrides data.dir", **of)
    flags.DEFINE_string("checkpoint", None, "step of a checkpoint, or best; default: newest", **of)
    flags.DEFINE_integer("num_samples", None, "number of samples", lower_bound=1, **of)
    flags.DEFINE_string("class", "", "class to draw, by name or number, or all", **of)
    flags.DEFINE_string("classifier", "", "folder of a classifier, from --mode=classifier", **of)
    flags.DEFINE_bool("distributed", False, "join the processes that the cluster started", **of)
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of the first process", **of)
    flags.DEFINE_integer("num_processes", None, "number of processes", lower_bound=1, **of)
    flags.DEFINE_integer("process_id", None, "number of this process", lower_bound=0, **of)
    silence = "a process that is silent for this long counts as failed"
    flags.DEFINE_integer("heartbeat_seconds", 100, silence, lower_bound=1, **of)
    return values


def _explain_unknown(name: str, known: "flags.FlagValues") -> str:
    from experiments.settings import DECLARED
    from fdrl_jax._names import nearest

    last = name.partition(".")[2]
    keys = [key for key in DECLARED if key in (name, last) or key.endswith(f".{name}")]
    if keys:
        return f"unknown flag --{name}; did you mean --config.{' or --config.'.join(keys)}?"
    return f"unknown flag --{name}{nearest(name, known)}"


def _explain_value(message: str) -> str:
    """Adds to an error of absl what a setting allows."""
    from experiments.settings import DECLARED

    key = re.match(r"flag --config\.([^=]+)=", message)
    return f"{message}; must be {DECLARED[key[1]].allowed}" if key else message


class _Lossy:
    """A stream in which text that cannot be written is lost: it must not end training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def set_up_output() -> None:
    """Makes output possible in every terminal: at worst, some of it is lost."""
    import absl.logging

    errors.accept_any_text()
    lossy: Any = _Lossy(sys.stderr or open(os.devnull, "w"))  # noqa: SIM115
    sys.stderr = lossy
    sys.unraisablehook = _handle_unraisable
    # Some libraries log every file, and the stacks of errors that they also raise.
    absl.logging.set_verbosity(absl.logging.FATAL)
    own = logging.getLogger("fdrl")
    own.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    own.addHandler(handler)


def _handle_unraisable(unraisable: Any) -> None:
    """Handles an error where none can be raised, such as in a destructor.

    Ctrl-C is raised again a moment later. Other errors are printed, except those of the threads of
    TensorStore: if a write fails, all others print that they were cancelled. The main thread learns
    the cause and reports it.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
    elif threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


if __name__ == "__main__":
    main(sys.argv[1:])
