"""Mode strips: a picture of samples along the flow, from the prior or the source to the end."""

from experiments import pictures
from experiments.command_line import Command
from experiments.errors import UserError
from experiments.modes import MAX_STRIPS
from experiments.pictures import flow
from experiments.sampling.opened import open_checkpoint
from fdrl_jax.training import parallel


def run_mode(command: Command) -> None:
    """Writes the picture of flow strips (fig. 6)."""
    num = command.flags["num_samples"] or 8
    if num > MAX_STRIPS:
        raise UserError(f"--num_samples={num}: a picture of strips has at most {MAX_STRIPS} rows")
    opened = open_checkpoint(command)
    if not parallel.is_first_process():
        return
    figure = flow.flow_strip(opened.experiment, opened.checkpoint.state, num)
    print(f"picture: {pictures.save(figure, opened.run.pictures / 'strips.png')}")
