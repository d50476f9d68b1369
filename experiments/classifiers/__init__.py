"""Classifiers that guide the flow: of a workdir of ours, or of the library `robustness`."""

from experiments.classifiers.evaluate import accuracies
from experiments.classifiers.load import Classifier, load
from experiments.classifiers.robustness import TrainedElsewhere, read_robustness

__all__ = ["Classifier", "TrainedElsewhere", "accuracies", "load", "read_robustness"]
