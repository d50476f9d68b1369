"""The program: `python -m experiments.main --config=FILE.py --workdir=DIR`; see `--help`."""

import logging
import sys
from typing import TYPE_CHECKING, Any

from experiments.machine import interrupts

# Other imports are inside functions: they take seconds, in which Ctrl-C should work.
if TYPE_CHECKING:
    from experiments.command_line import Command


def main(argv: list[str]) -> None:
    """Runs a mode; an error of the user is printed in one line and ends the process."""
    with interrupts.exiting_at_once():
        from experiments import command_line
        from experiments.errors import UserError

        _set_up_logging()
        try:
            text = command_line.help_for(argv)
            if text is None:
                _run(*command_line.parse(argv))
            else:
                print(text)
        except UserError as error:
            interrupts.leave(error.exit_code, str(error))


def _run(command: "Command", processes: dict[str, Any]) -> None:
    from experiments import modes
    from experiments.machine import hosts, peers, xla_flags

    if command.flags.get("target"):
        # Another process compiles, and nothing runs here: the devices of this machine may be busy.
        modes.run(command)
        return
    # Must come first, because XLA reads its flags when its backend starts.
    xla_flags.set_cpu_flags(bfloat16=_precision(command) in ("auto", "bfloat16"))
    hosts.join(**processes)
    with hosts.leaving_with_peers():
        peers.watch(processes["coordinator_address"])
        modes.run(command)


def _precision(command: "Command") -> str:
    """Returns the precision of a command's run, before the run is opened and checked."""
    from experiments.files import read_json

    if command.config is not None:
        return str(command.config.get("precision"))
    record = command.folder / "run.json"
    if not record.is_file():
        return "float32"
    return str(read_json(record, settings=dict)["settings"].get("precision"))


def _set_up_logging() -> None:
    import absl.logging

    # Some libraries log every file, and the stacks of errors that they also raise.
    sys.unraisablehook = _print_unraisable
    absl.logging.set_verbosity(absl.logging.FATAL)
    own = logging.getLogger("fdrl")
    own.setLevel(logging.WARNING)
    own.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    own.addHandler(handler)


def _print_unraisable(hooked: "sys.UnraisableHookArgs") -> None:
    # Orbax closes its event loop after the first failed write, and TensorStore then reports the
    # other failures to that loop.
    if str(hooked.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(hooked)


if __name__ == "__main__":
    main(sys.argv[1:])
