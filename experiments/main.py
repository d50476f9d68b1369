"""The program: `python -m experiments.main --config=FILE.py --workdir=DIR`; see `--help`."""

import importlib
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments import errors
from experiments.errors import DivergedError, StoppedError, UserError, first_line

# Other imports are inside functions: they take seconds, in which Ctrl-C should print one line.
if TYPE_CHECKING:
    from experiments.command import Command

# Errors of JAX whose cause is the environment.
_OF_ENVIRONMENT = ("RESOURCE_EXHAUSTED", "Unable to initialize backend")


def main(argv: Sequence[str]) -> None:
    """Runs a command. An error that the user can fix is printed in one line."""
    with errors.ending_in_one_line():
        set_up_output()
        try:
            from experiments.command import help_for, parse

            if text := help_for(argv):
                print(text)
            else:
                _start(parse(argv))
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            if name in ("", "experiments", "fdrl_jax"):
                raise
            needed = f"this needs the package {name!r}: pip install -e '.[experiments]'"
            raise UserError(needed) from error
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not str(error).startswith(_OF_ENVIRONMENT):
                raise
            advice = "try a smaller network.width or batch_size, or network.remat=True"
            text = f"{first_line(error)[:200]}. If memory is short, {advice}"
            raise UserError(text) from error


def _start(command: "Command") -> None:
    from experiments import devices, files

    wanted, record = command.config, command.folder / "run.json"
    if wanted is None:
        wanted = files.read_json(record).get("settings", {}) if record.is_file() else {}
    devices.set_options()
    # Must come first, because XLA reads its flags when its backend starts.
    devices.set_cpu_flags(bfloat16=wanted.get("precision") in ("auto", "bfloat16"))
    devices.join(*command.processes)
    try:
        run(command)
    except BaseException as error:
        devices.part(failed=not isinstance(error, (StoppedError, DivergedError)))
        raise
    devices.part(failed=False)


def run(command: "Command") -> None:
    """Runs the verb of a command."""
    from experiments.command import MODES

    module, _, name = MODES[command.mode][0].rpartition(".")
    getattr(importlib.import_module(f"experiments.{module}"), name)(command)


def set_up_output() -> None:
    """Shows warnings of the program, and replacements for what a terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # It may be closed.
            stream.reconfigure(errors="replace")
    import absl.logging

    absl.logging.set_verbosity(absl.logging.FATAL)  # Orbax logs each file.
    own = logging.getLogger("fdrl")
    own.propagate = False
    if not own.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("warning: %(message)s"))
        own.addHandler(handler)


if __name__ == "__main__":
    main(sys.argv[1:])
