"""The program: `python -m experiments.main --config=FILE.py --workdir=DIR`; see `--help`."""

import errno
import logging
import sys
from pathlib import Path
from typing import Any, NoReturn

import absl.logging

from experiments import command_line, modes
from experiments.command_line import Command
from experiments.errors import UserError
from experiments.files import read_json
from experiments.machine import hosts, interrupts, xla_flags

# Full, over quota, larger than the system allows, or read-only.
_OF_THE_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
)


def main(argv: list[str]) -> None:
    """Runs the mode that is asked for; a mistake of the user's ends the program with one line."""
    _set_up_logging()
    try:
        text = command_line.help_for(argv)
        if text is not None:
            print(text)
            return
        command, processes = command_line.parse(argv)
        _run(command, processes)
    except UserError as error:
        _exit(error, error.exit_code)


def _run(command: Command, processes: dict[str, Any]) -> None:
    # Before anything runs on a device: XLA reads its flags when its backend starts.
    xla_flags.set_cpu_flags(bfloat16=_precision(command) in ("auto", "bfloat16"))
    hosts.join(**processes)
    with interrupts.exiting_at_once(), hosts.leaving_with_peers():
        try:
            modes.run(command)
        except OSError as error:
            if error.errno not in _OF_THE_DISK:
                raise
            where = error.filename or f"--workdir={command.workdir}"
            raise UserError(
                f"{where}: {error.strerror}; files that were complete are intact"
            ) from error


def _precision(command: Command) -> str:
    """Returns the precision of a command's run, which is opened and checked only later."""
    record = (command.workdir or Path()) / "run.json"
    if command.config is not None:
        return str(command.config.get("precision"))
    if command.workdir is None or not record.is_file():
        return "float32"
    return str(read_json(record, settings=dict)["settings"].get("precision"))


def _set_up_logging() -> None:
    # Libraries report every file they touch, and print the stacks of errors that they raise.
    absl.logging.set_verbosity(absl.logging.FATAL)
    own = logging.getLogger("fdrl")
    own.setLevel(logging.WARNING)
    own.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    own.addHandler(handler)


def _exit(message: object, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
