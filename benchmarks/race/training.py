"""Training for a number of CPU seconds, and samples."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from benchmarks.race.methods import Contestant, Sampler
from experiments.data.decode import to_uint8
from experiments.experiment import Training
from fdrl_jax.training import parallel
from fdrl_jax.training.state import TrainState

_NUM_PILOT_STEPS, _BATCH = 20, 250


class Trained(NamedTuple):
    """A contestant after its training."""

    training: Training
    state: TrainState
    num_steps: int
    cpu_seconds: float  # They include the fit of the prior, but no compilation.


def train(contestant: Contestant, budget: float) -> Trained:
    """Trains for about `budget` CPU seconds, after a few steps that are timed for the schedule."""
    _, per_step = _run(contestant.make(_NUM_PILOT_STEPS))
    num_steps = int((budget - contestant.fit_seconds) / per_step)
    if num_steps < 1:
        raise ValueError(
            f"a budget of {budget:.0f} CPU s: the prior takes {contestant.fit_seconds:.1f} and a "
            f"step {per_step:.2f}"
        )
    training = contestant.make(num_steps)
    state, per_step = _run(training)
    seconds = contestant.fit_seconds + num_steps * per_step
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.ema_variables)):
        raise ValueError("the training diverged: its parameters are not finite")
    return Trained(training, state, num_steps, seconds)


def _run(training: Training) -> tuple[TrainState, float]:
    """Trains to the last step of the settings; also returns the CPU seconds per step."""
    run_steps = parallel.map_steps(training.repeated_step())
    total, most = training.settings.train.num_steps, training.settings.train.steps_per_dispatch
    key, constants = training.root_key, parallel.replicate(training.constants)
    state = parallel.replicate(training.init_state())
    state, _ = run_steps(key, state, constants, None, 0)  # Compiles.
    jax.block_until_ready(state)
    started = time.process_time()
    with tqdm(total=total, unit="step", mininterval=1.0) as bar:
        for first in range(0, total, most):
            count = min(most, total - first)
            state, metrics = run_steps(key, state, constants, None, count)
            loss = parallel.unreplicate(metrics)["loss"][count - 1]
            bar.set_description(f"loss {float(loss):.3f}", refresh=False)
            bar.update(count)
        jax.block_until_ready(state)
    return parallel.unreplicate(state), (time.process_time() - started) / total


def draw(trained: Trained, sampler: Sampler, num: int) -> tuple[np.ndarray, float]:
    """Draws samples, uint8 [num, H, W, C]; also returns the CPU milliseconds per sample."""
    sample: Callable[..., Any] = jax.jit(sampler)
    key, constants = trained.training.root_key, trained.training.constants
    variables = trained.state.ema_variables
    constants = jax.tree.map(jnp.asarray, constants._replace(data=()))

    def of(first: int) -> np.ndarray:
        positions = first + np.arange(_BATCH, dtype=np.int32)
        return np.asarray(sample(key, variables, constants, {"position": positions}))

    of(0)  # Compiles.
    started = time.process_time()
    parts = [of(first) for first in range(0, num, _BATCH)]
    milliseconds = 1e3 * (time.process_time() - started) / (len(parts) * _BATCH)
    return to_uint8(np.concatenate(parts)[:num]), milliseconds
