"""Metrics of samples, each next to the values of the prior and of real data."""

from typing import Any, NamedTuple

import numpy as np

from experiments.evaluation.metrics import Metrics


class Samples(NamedTuple):
    """Samples of the prior `x_0`, bridged `x_K` and refined `x_{K+κ}`, [N, ...] with any N."""

    prior: np.ndarray
    bridged: np.ndarray
    refined: np.ndarray


class Evaluation(NamedTuple):
    """The result of an evaluation."""

    metrics: Metrics
    record: dict[str, Any]  # How they were computed, as values for JSON.
    # The training images nearest to the first samples, by feature space, [Q, k, H, W, C].
    nearest: dict[str, np.ndarray]
