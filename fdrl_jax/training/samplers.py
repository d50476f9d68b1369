"""Samplers: per-replica functions that map positions of samples to samples.

They are built once from functions and hyper-parameters and hold no arrays. `parallel` maps them
over devices, and you can call them in your own `jit`. Sample `i` depends only on (key, i) and is
the same from every sampler here. The key is an argument, so a new seed does not recompile.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fdrl_jax import refinement
from fdrl_jax.langevin import TwoStage, flow, two_stage
from fdrl_jax.priors import Batch
from fdrl_jax.training import rng
from fdrl_jax.training.problem import Constants, Problem
from fdrl_jax.training.state import Variables

Array = jax.Array
Sampler = Callable[[Array, Variables, Constants, Batch], TwoStage]
ArraySampler = Callable[[Array, Variables, Constants, Batch], Array]
CandidateSampler = Callable[[Array, Variables, Constants, Batch], "Candidates"]
Segment = Callable[[Array, Variables, Constants, Batch, int | Array], Array]


def make_sampler(problem: Problem) -> Sampler:
    """Builds the two-stage sampler (algorithm 2): `K` bridging and `κ` refinement steps.

    If the problem has a denoiser, it is applied to the refined samples, after the flow.

    Args:
      problem: estimator, divergence, flow, prior, condition and denoiser.

    Returns:
      `(key, variables, constants, batch) -> TwoStage`, each [B, ...]. The key is a root key, from
      `rng.root_key(seed)`. The batch has "position", the indices of the samples, [B], and the
      entries that a `batch` prior, a condition and an estimator that takes labels read. Sample `i`
      depends only on the key, `i` and its own entries.
    """

    def sample(key: Array, variables: Variables, constants: Constants, batch: Batch) -> TwoStage:
        return _denoised(problem, variables, _flowed(problem, key, variables, constants, batch))

    return sample


class Candidates(NamedTuple):
    """Samples before rejection.

    Attributes:
      stages: the samples, each [B, ...].
      output: of the estimator on the refined ones, [B].
      accepted: whether these are kept, [B].
    """

    stages: TwoStage
    output: Array
    accepted: Array


def make_candidate_sampler(problem: Problem) -> CandidateSampler:
    """Builds the sampler of `make_sampler` that also decides which samples are kept by their ratio.

    Args:
      problem: as for `make_sampler`, without a condition: the ratio is that of the whole data.

    Returns:
      `(key, variables, constants, batch) -> Candidates`. The batch has "position" and "bound", the
      bound of `refinement.accept` in the unit of the output, [B]. The decision on a sample depends
      only on the key, its position and its bound. The ratio is that of samples before denoising.
    """

    def sample(key: Array, variables: Variables, constants: Constants, batch: Batch) -> Candidates:
        stages = _flowed(problem, key, variables, constants, batch)
        output = problem.estimator.of(variables, batch)(stages.refined)
        keys = rng.example_keys(_root(key), rng.Stream.ACCEPT, batch["position"])
        accepted = refinement.accept(keys, output, batch["bound"], output=problem.output)
        return Candidates(_denoised(problem, variables, stages), output, accepted)

    return sample


def make_path_sampler(problem: Problem) -> ArraySampler:
    """Builds the sampler that returns whole paths, for plots.

    Args:
      problem: as for `make_sampler`.

    Returns:
      As for `make_sampler`, but returns `x_0 ... x_{K+κ}` of the same samples, before denoising,
      [K + κ + 1, B, ...].
    """

    def sample(key: Array, variables: Variables, constants: Constants, batch: Batch) -> Array:
        # One more step, so that the last point is observed too; appending it would copy the path.
        _, path = flow(
            _flow_keys(key, batch),
            _start(problem, key, constants, batch),
            problem.sampling_potential(variables, constants, batch),
            num_steps=problem.flow.num_steps + problem.flow.num_refine_steps + 1,
            **problem.method.schedules(),
            observe=lambda x, drift: x,
            unroll=problem.flow.unroll,
        )
        points: Array = path
        return points

    return sample


def make_start_sampler(problem: Problem) -> ArraySampler:
    """Builds the sampler that returns only the prior samples.

    Args:
      problem: as for `make_sampler`.

    Returns:
      As for `make_sampler`, but returns `x_0` of the same samples, [B, ...].
    """

    def sample(key: Array, variables: Variables, constants: Constants, batch: Batch) -> Array:
        return _start(problem, key, constants, batch)

    return sample


def make_segment(problem: Problem, *, num_steps: int) -> Segment:
    """Builds the function that advances samples along their flow by some steps.

    Consecutive segments give exactly the flow of `make_sampler`, because the noise depends only on
    the step; nothing is denoised. Samples at many lengths of the flow thus cost no more than
    those at its end.

    Args:
      problem: as for `make_sampler`.
      num_steps: steps per segment, >= 0.

    Returns:
      `(key, variables, constants, batch, first_step) -> x`, [B, ...]. The batch has "position" and
      "x", the samples after `first_step` steps.
    """

    def advance(
        key: Array,
        variables: Variables,
        constants: Constants,
        batch: Batch,
        first_step: int | Array,
    ) -> Array:
        moved: Array = flow(
            _flow_keys(key, batch),
            batch["x"],
            problem.sampling_potential(variables, constants, batch),
            num_steps=num_steps,
            **problem.method.schedules(),
            first_step=first_step,
            unroll=problem.flow.unroll,
        )
        return moved

    return advance


def _flowed(
    problem: Problem, key: Array, variables: Variables, constants: Constants, batch: Batch
) -> TwoStage:
    return two_stage(
        _flow_keys(key, batch),
        _start(problem, key, constants, batch),
        problem.sampling_potential(variables, constants, batch),
        num_steps=problem.flow.num_steps,
        num_refine_steps=problem.flow.num_refine_steps,
        **problem.method.schedules(),
        unroll=problem.flow.unroll,
    )


def _denoised(problem: Problem, variables: Variables, stages: TwoStage) -> TwoStage:
    if problem.denoise is None:
        return stages
    return stages._replace(refined=problem.denoise(variables, stages.refined))


def _start(problem: Problem, key: Array, constants: Constants, batch: Batch) -> Array:
    """Returns `x_0` of the samples at the batch's positions."""
    prior_keys = rng.example_keys(_root(key), rng.Stream.PRIOR, batch["position"])
    return problem.prior_sample(constants.prior, prior_keys, batch)


def _flow_keys(key: Array, batch: Batch) -> Array:
    return rng.example_keys(_root(key), rng.Stream.FLOW, batch["position"])


def _root(key: Array) -> Array:
    return rng.stream_key(key, rng.Stream.SAMPLE)
