"""The estimated log-ratio of a run as a function on the host."""

from collections.abc import Callable

import jax
import numpy as np

from experiments.build import Experiment
from fdrl_jax.state import TrainState

_SMALLEST_RATIO = 1e-6


def make_log_ratio(
    experiment: Experiment, train_state: TrainState
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns `x [B, ...] -> log r(x) [B]`, with the parameters that sampling uses."""
    problem = experiment.problem
    variables = experiment.sampling_variables(train_state)
    apply = jax.jit(problem.estimator.apply)

    def log_ratio(x: np.ndarray) -> np.ndarray:
        out = np.asarray(apply(variables, x))
        if problem.output == "log_ratio":
            return out
        # An unconstrained ratio may be negative, and then has no logarithm.
        return np.log(np.maximum(out, _SMALLEST_RATIO))

    return log_ratio
