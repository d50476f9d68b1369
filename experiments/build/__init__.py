"""From settings to objects: networks, flows, train steps. Pure: no file, output or global."""

from experiments.build.classifier import classifier_training, make_attack
from experiments.build.network import make_network
from experiments.build.placement import on_devices, shapes_on_device
from experiments.build.ratio import Experiment, experiment, prior_arguments, ratio_training
from experiments.build.training import Training

__all__ = [
    "Experiment",
    "Training",
    "classifier_training",
    "experiment",
    "make_attack",
    "make_network",
    "on_devices",
    "prior_arguments",
    "ratio_training",
    "shapes_on_device",
]
