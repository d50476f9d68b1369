"""Runs of the program in the process of the tests, through its command line."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import main, run
from experiments import train as program
from experiments.command import Command, parse
from fdrl_jax.training.state import TrainState

# A network that compiles in a second.
SMALL_RESNET = {"network.name": "resnet", "network.width": 4, "network.blocks": ((4, 2),)}


def command(
    mode: str,
    workdir: Path | None = None,
    config: str | None = None,
    changes: Mapping[str, Any] | None = None,
    **flags: Any,
) -> Command:
    """Returns the command as a user would type it; all values pass through the parser as text."""
    argv = [f"--mode={mode}"]
    argv += [] if workdir is None else [f"--workdir={workdir}"]
    argv += [] if config is None else [f"--config={config}"]
    argv += [f"--config.{key}={value}" for key, value in (changes or {}).items()]
    argv += [f"--{name}={value}" for name, value in flags.items()]
    return parse(argv)


def start(*arguments: Any, **flags: Any) -> None:
    """Runs the program with the arguments of `command`."""
    main.run(command(*arguments, **flags))


def train(
    folder: Path, changes: Mapping[str, Any] | None = None, config: str | None = None
) -> TrainState:
    """Creates or resumes a run and trains it, without the evaluation at its end.

    Without a config, a new run is one on the swiss roll.
    """
    if config is None and not run.exists(folder):
        config = "swissroll:tiny"
    with run.locked_folder(folder):
        opened, model = program.open_or_create(command("train", folder, config, changes))
        return program.fit(model, opened).state


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the bytes of each file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
