"""The result of an evaluation."""

from typing import Any, NamedTuple

import numpy as np

from experiments.evaluation.metrics import Metrics


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
      metrics: metrics by name, in the order of the definitions.
      record: how they were computed, as values for JSON.
      nearest: training images nearest to the first samples, by feature space, [Q, k, H, W, C];
        empty if there was no search.
    """

    metrics: Metrics
    record: dict[str, Any]
    nearest: dict[str, np.ndarray]
