"""Classifiers that guide the flow or evaluate samples, from a run or the library `robustness`."""

from experiments.classifiers.accuracy import accuracies
from experiments.classifiers.load import Classifier, FeatureClassifier, load, load_features
from experiments.classifiers.robustness import TrainedElsewhere, read_robustness

__all__ = [
    "Classifier",
    "FeatureClassifier",
    "TrainedElsewhere",
    "accuracies",
    "load",
    "load_features",
    "read_robustness",
]
