"""Mode strips: samples on their way from the prior, or the source, to the end, as a picture."""

from experiments import pictures
from experiments.pictures import flow
from experiments.request import Request
from experiments.sampling import runs
from fdrl_jax import parallel

_MOST = 64  # More rows than this make a picture that nobody can look at.


def run(request: Request) -> None:
    """Writes the picture of flow strips (fig. 6)."""
    experiment, workdir = runs.open_run(request)
    train_state = runs.restore(experiment, workdir, request.checkpoint_step)
    if not parallel.is_first_process():
        return
    figure = flow.flow_strip(experiment, train_state, min(request.num_samples or 8, _MOST))
    print(f"picture: {pictures.save(figure, workdir.pictures / 'strips.png')}")
