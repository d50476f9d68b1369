"""Samplers: per-replica functions, from positions of samples to samples.

They are built once from functions and hyper-parameters and hold no arrays, so `parallel` may map
them over devices by whatever means, and a user may call them in a jit of their own. Sample `i`
follows from (seed, i) alone, and every sampler here draws the same one.
"""

from collections.abc import Callable

import jax

from fdrl_jax import rng
from fdrl_jax.flow import TwoStage, flow, two_stage
from fdrl_jax.priors import Batch
from fdrl_jax.problem import Constants, Problem
from fdrl_jax.state import Variables

Array = jax.Array
Sampler = Callable[[Variables, Constants, Batch], TwoStage]
StartSampler = Callable[[Variables, Constants, Batch], Array]
Segment = Callable[[Variables, Constants, Batch, Array], Array]


def make_sampler(problem: Problem, *, seed: int) -> Sampler:
    """Builds the two-stage sampler (algorithm 2): `K` bridging and `κ` refinement steps.

    Args:
      problem: estimator, divergence, flow, prior and condition.
      seed: seed of the samples.

    Returns:
      `(variables, constants, batch) -> TwoStage`, each [B, ...], where the batch holds "position"
      [B], the indices of the samples, and what a `batch` prior and a condition read. Sample `i`
      follows from (seed, i) and these alone.
    """

    def sample(variables: Variables, constants: Constants, batch: Batch) -> TwoStage:
        keys, x0 = _start(problem, seed, constants, batch)
        return two_stage(
            keys,
            x0,
            problem.sampling_potential(variables, constants, batch),
            num_steps=problem.flow.num_steps,
            num_refine_steps=problem.flow.num_refine_steps,
            **problem.flow.schedules(),
        )

    return sample


def make_path_sampler(problem: Problem, *, seed: int) -> Callable[..., Array]:
    """Builds the sampler that returns whole paths, for pictures.

    Args:
      problem: as for `make_sampler`.
      seed: as for `make_sampler`.

    Returns:
      As `make_sampler`, but for `x_0 ... x_{K+κ}` of the same samples, [K + κ + 1, B, ...].
    """

    def sample(variables: Variables, constants: Constants, batch: Batch) -> Array:
        keys, x0 = _start(problem, seed, constants, batch)
        _, path = flow(
            keys,
            x0,
            problem.sampling_potential(variables, constants, batch),
            num_steps=problem.flow.num_steps + problem.flow.num_refine_steps,
            **problem.flow.schedules(),
            with_trajectory=True,
        )
        return path

    return sample


def make_start_sampler(problem: Problem, *, seed: int) -> StartSampler:
    """Builds the sampler of the prior alone.

    Args:
      problem: as for `make_sampler`.
      seed: as for `make_sampler`.

    Returns:
      As `make_sampler`, but for `x_0` of the same samples, [B, ...].
    """

    def sample(variables: Variables, constants: Constants, batch: Batch) -> Array:
        _, x0 = _start(problem, seed, constants, batch)
        return x0

    return sample


def make_segment(problem: Problem, *, seed: int, num_steps: int) -> Segment:
    """Builds the function that takes samples some steps further on their flow.

    Segments one after the other make up the one flow of `make_sampler`, as noise follows from the
    step: samples at many lengths of the flow cost no more than those at its end.

    Args:
      problem: as for `make_sampler`.
      seed: as for `make_sampler`.
      num_steps: steps of a segment, >= 0.

    Returns:
      `(variables, constants, batch, first_step) -> x`, [B, ...], where the batch holds "position"
      and "x", the samples after `first_step` steps.
    """

    def advance(
        variables: Variables, constants: Constants, batch: Batch, first_step: Array
    ) -> Array:
        return flow(
            _flow_keys(seed, batch),
            batch["x"],
            problem.sampling_potential(variables, constants, batch),
            num_steps=num_steps,
            **problem.flow.schedules(),
            first_step=first_step,
        )

    return advance


def _start(problem: Problem, seed: int, constants: Constants, batch: Batch) -> tuple[Array, Array]:
    """Returns the keys of the flow and `x_0` of the samples at the batch's positions."""
    prior_keys = rng.example_keys(_root(seed), rng.Stream.PRIOR, batch["position"])
    return _flow_keys(seed, batch), problem.prior_sample(constants.prior, prior_keys, batch)


def _flow_keys(seed: int, batch: Batch) -> Array:
    return rng.example_keys(_root(seed), rng.Stream.FLOW, batch["position"])


def _root(seed: int) -> Array:
    return rng.stream_key(jax.random.key(seed), rng.Stream.SAMPLE)
