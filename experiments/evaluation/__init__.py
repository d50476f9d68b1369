"""How good samples are: each kind of data has its own judges."""

from experiments.evaluation.evaluate import evaluate

__all__ = ["evaluate"]
