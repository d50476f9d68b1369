"""From settings to objects: networks, flows, train steps. Pure: no file, output or global."""

from experiments.build.classifier import classifier_training
from experiments.build.placement import on_devices, shapes_on_device
from experiments.build.ratio import Experiment, experiment, ratio_training
from experiments.build.training import Training

__all__ = [
    "Experiment",
    "Training",
    "classifier_training",
    "experiment",
    "on_devices",
    "ratio_training",
    "shapes_on_device",
]
