"""Mode interpolate: samples along paths in the prior, with common noise, as a picture."""

from experiments import pictures
from experiments.pictures import flow
from experiments.request import Request
from experiments.sampling import runs
from fdrl_jax import parallel


def run(request: Request) -> None:
    """Writes the picture of spherical and linear interpolations (fig. 7)."""
    experiment, workdir = runs.open_run(request)
    train_state = runs.restore(experiment, workdir, request.checkpoint_step)
    if not parallel.is_first_process():
        return
    figure = flow.interpolations(experiment, train_state)
    print(f"picture: {pictures.save(figure, workdir.pictures / 'interpolation.png')}")
