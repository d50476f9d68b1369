"""Figures of a trained estimator as in the paper: flow strips, and interpolations in the prior."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.build import Experiment
from experiments.errors import UserError
from experiments.pictures import images
from experiments.pictures.points import spread
from experiments.pictures.style import panels
from experiments.sampling.draw import batch_at
from fdrl_jax import interpolation
from fdrl_jax.training import samplers
from fdrl_jax.training.state import TrainState

_NUM_PATHS, _NUM_POINTS = 6, 11


def flow_strip(experiment: Experiment, train_state: TrainState, num_strips: int = 8) -> Figure:
    """Draws some samples along the flow, one per row, `x_0 ... x_{K+κ}` (fig. 6)."""
    _check_images(experiment)
    sampler = jax.jit(samplers.make_path_sampler(experiment.problem))
    batch = batch_at(experiment, np.arange(num_strips, dtype=np.int32))
    variables = experiment.sampling_variables(train_state)
    path = np.asarray(sampler(experiment.root_key, variables, experiment.constants, batch))
    picked = spread(len(path), 12)
    # Tiled row by row, so that each row shows one sample.
    strip = np.swapaxes(path[picked], 0, 1).reshape(-1, *path.shape[2:])
    figure, (ax,) = panels(1, size=5.6)
    images.show(ax, images.tile(strip, len(picked)))
    pitch = path.shape[3] + 1
    for place, step in enumerate(picked):
        ax.text((place + 0.5) * pitch, -0.1 * pitch, str(step), ha="center", va="bottom")
    start = "the prior" if experiment.source.starts is None else "the source"
    num_steps = experiment.problem.flow.num_steps
    ax.set_title(f"steps of the flow from {start} (K = {num_steps})", pad=16)
    return figure


def interpolations(experiment: Experiment, train_state: TrainState) -> Figure:
    """Draws interpolated points of the prior and their samples, with common noise (fig. 7).

    The ends of a path are samples of the prior. All points of a path use the same noise, so they
    differ only in their start.
    """
    _check_images(experiment)
    problem, key = experiment.problem, experiment.root_key
    num_steps = problem.flow.num_steps + problem.flow.num_refine_steps
    start = jax.jit(samplers.make_start_sampler(problem))
    advance = jax.jit(samplers.make_segment(problem, num_steps=num_steps))
    variables = experiment.sampling_variables(train_state)
    ends = batch_at(experiment, np.arange(2 * _NUM_PATHS, dtype=np.int32))
    x0 = start(key, variables, experiment.constants, ends)
    centre = experiment.constants.prior
    # The centre of a Gaussian is its mean, that of other priors is zero.
    mean = jnp.reshape(centre["mean"], x0.shape[1:]) if "mean" in centre else jnp.zeros(())
    weights = jnp.linspace(0.0, 1.0, _NUM_POINTS)

    def sheet(between: Callable[..., jax.Array]) -> tuple[np.ndarray, np.ndarray]:
        points = jax.vmap(lambda a, b: between(a, b, weights))(x0[::2] - mean, x0[1::2] - mean)
        flat = (points + mean).reshape(-1, *x0.shape[1:])
        batch = {"position": np.repeat(ends["position"][::2], _NUM_POINTS), "x": flat}
        samples = advance(key, variables, experiment.constants, batch, 0)
        shape = (_NUM_PATHS, _NUM_POINTS, *x0.shape[1:])
        return np.asarray(flat).reshape(shape), np.asarray(samples).reshape(shape)

    kinds = {"spherical": interpolation.spherical, "linear": interpolation.linear}
    return images.interpolations({kind: sheet(between) for kind, between in kinds.items()})


def _check_images(experiment: Experiment) -> None:
    if experiment.source.kind != "images":
        raise UserError(
            f"this figure is for images, but data {experiment.source.name!r} are points"
        )
