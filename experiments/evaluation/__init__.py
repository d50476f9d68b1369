"""How good samples are: each kind of data has its own judges."""

from experiments.evaluation.cheap import CheapMetric, cheap_metric
from experiments.evaluation.evaluate import evaluate

__all__ = ["CheapMetric", "cheap_metric", "evaluate"]
