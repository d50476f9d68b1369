"""Mode strips: a picture of samples along the flow, from the prior or the source to the end."""

from experiments import pictures
from experiments.command_line import Command
from experiments.pictures import flow
from experiments.sampling.opened import open_checkpoint
from fdrl_jax import parallel

_MAX_ROWS = 64  # A picture with more rows is too long to view.


def run_mode(command: Command) -> None:
    """Writes the picture of flow strips (fig. 6)."""
    opened = open_checkpoint(command)
    if not parallel.is_first_process():
        return
    num = min(command.flags["num_samples"] or 8, _MAX_ROWS)
    figure = flow.flow_strip(opened.experiment, opened.checkpoint.state, num)
    print(f"picture: {pictures.save(figure, opened.run.pictures / 'strips.png')}")
