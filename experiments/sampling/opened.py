"""Opens an existing run for drawing samples. Only its folder is read."""

from typing import NamedTuple

from experiments import build, run
from experiments.build import Experiment
from experiments.checkpoints import Restored
from experiments.command_line import Command
from experiments.machine import hardware
from experiments.run import Run


class Opened(NamedTuple):
    """A run with the checkpoint that a command selects."""

    run: Run
    experiment: Experiment
    checkpoint: Restored

    @property
    def step(self) -> int:
        return int(self.checkpoint.state.step)


def open_checkpoint(command: Command) -> Opened:
    """Opens the run and the checkpoint of a command.

    Raises:
      UserError: if there is no run or no such checkpoint, or the command changes a setting that was
        fixed when the run was created.
    """
    opened = run.open_run(command.folder, "ratio")
    settings = hardware.prepare(opened.overridden(command.changes))
    experiment = build.experiment(settings, opened.source(), opened.prior())
    restored = opened.restored(experiment.state_shapes(), command.which)
    return Opened(opened, experiment, restored)
