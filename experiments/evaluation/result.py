"""What an evaluation returns."""

from typing import Any, NamedTuple

import numpy as np

from experiments.evaluation.metrics import Metrics


class Evaluation(NamedTuple):
    """What is known of samples.

    Attributes:
      metrics: by name, in reading order.
      record: how they were computed, as JSON can hold it.
      nearest: training images nearest to the first samples, by the space in which they are near,
        [Q, k, H, W, C]; empty where they were not searched for.
    """

    metrics: Metrics
    record: dict[str, Any]
    nearest: dict[str, np.ndarray]
