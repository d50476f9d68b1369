"""Mode interpolate: a picture of samples along paths in the prior, with common noise."""

from experiments import pictures
from experiments.command_line import Command
from experiments.pictures import flow
from experiments.sampling.opened import open_checkpoint
from fdrl_jax.training import parallel


def run_mode(command: Command) -> None:
    """Writes the picture of spherical and linear interpolations (fig. 7)."""
    opened = open_checkpoint(command)
    if not parallel.is_first_process():
        return
    figure = flow.interpolations(opened.experiment, opened.checkpoint.state)
    print(f"picture: {pictures.save(figure, opened.run.pictures / 'interpolation.png')}")
