"""Samplers: per-replica functions that map positions of samples to samples.

They hold no arrays. `parallel` maps them over devices, and you can call them in your own `jit`.
Sample `i` depends only on the key, `i` and its own entries, and is the same from every sampler
here. With a denoiser, their flow adds no noise: in training it matches the noise of data, here it
would only be removed again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from fdrl_jax.langevin import Observe, flow
from fdrl_jax.priors import Batch
from fdrl_jax.training import rng
from fdrl_jax.training.problem import Constants, Problem
from fdrl_jax.training.state import Variables

__all__ = ["STAGES", "make_path_sampler", "make_sampler", "make_segment"]
__dir__ = __all__.copy

Array = jax.Array
Sampler = Callable[[Array, Variables, Constants, Batch], dict[str, Array]]
STAGES = ("prior", "bridged", "refined")


def make_sampler(problem: Problem, stages: Sequence[str] = ("refined",)) -> Sampler:
    """Builds the sampler of two stages (algorithm 2): `K` bridging and `κ` refinement steps.

    Args:
      problem: method, estimator, prior, condition and denoiser.
      stages: what to return, of `STAGES`: samples where they start, after `K` steps, and after
        `K + κ` steps and the denoiser, if there is one. Nothing later is computed.

    Returns:
      `(root key, variables, constants, batch) -> {stage: samples [B, ...]}`. The batch has
      "position", the indices of the samples, [B], and the entries that a `batch` prior, a condition
      and an estimator that takes labels read.
    """
    if unknown := set(stages) - set(STAGES):
        raise ValueError(f"unknown stages {sorted(unknown)}; allowed: {', '.join(STAGES)}")
    num_steps, num_refine_steps = problem.method.num_steps, problem.method.num_refine_steps

    def sample(
        key: Array, variables: Variables, constants: Constants, batch: Batch
    ) -> dict[str, Array]:
        keys = _keys(key, rng.Stream.PRIOR, batch)
        x0 = problem.prior_sample(constants.prior, keys, batch)
        drawn, done, x = {"prior": x0}, 0, x0
        for stage, end in (("bridged", num_steps), ("refined", num_steps + num_refine_steps)):
            if stage in stages:
                advance = make_segment(problem, num_steps=end - done)
                x = drawn[stage] = advance(key, variables, constants, {**batch, "x": x}, done)
                done = end
        if problem.denoise and "refined" in stages:
            drawn["refined"] = problem.denoise(variables, x)
        return {stage: drawn[stage] for stage in stages}

    return sample


def make_path_sampler(problem: Problem) -> Callable[[Array, Variables, Constants, Batch], Array]:
    """Builds the sampler of whole paths, `x_0 ... x_{K+κ}` before denoising, [K + κ + 1, B, ...].

    Its arguments are those of `make_sampler`, and its samples are the same.
    """
    # One more step, so that the last point is observed too; appending it would copy the path.
    num_steps = problem.method.num_steps + problem.method.num_refine_steps + 1
    advance = make_segment(problem, num_steps=num_steps, observe=lambda x, drift: x)

    def sample(key: Array, variables: Variables, constants: Constants, batch: Batch) -> Array:
        x0 = make_sampler(problem, ("prior",))(key, variables, constants, batch)["prior"]
        points: Array = advance(key, variables, constants, {**batch, "x": x0}, 0)[1]
        return points

    return sample


def make_segment(
    problem: Problem, *, num_steps: int, observe: Observe | None = None
) -> Callable[[Array, Variables, Constants, Batch, int | Array], Any]:
    """Builds `(key, variables, constants, batch, first_step) -> x`, [B, ...], a part of the flow.

    The batch has "position" and "x", the samples after `first_step` steps. Consecutive segments
    give exactly the flow of `make_sampler`, before denoising. `observe` is that of `flow`.
    """
    without_noise = {} if problem.denoise is None else {"noise_scale": 0.0}
    schedules = problem.method.schedules() | without_noise

    def advance(
        key: Array, variables: Variables, constants: Constants, batch: Batch, first: int | Array
    ) -> Any:
        return flow(
            _keys(key, rng.Stream.FLOW, batch),
            batch["x"],
            problem.potential(variables, batch, constants),
            num_steps=num_steps,
            **schedules,
            first_step=first,
            observe=observe,
        )

    return advance


def _keys(key: Array, stream: rng.Stream, batch: Batch) -> Array:
    """Returns the keys of samples, [B], by the root key and their positions."""
    return rng.example_keys(rng.stream_key(key, rng.Stream.SAMPLE), stream, batch["position"])
