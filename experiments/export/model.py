"""Exports parameters as safetensors, and the arguments that rebuild the sampler as JSON."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from experiments import divergence_formula
from experiments.build import Experiment
from experiments.prior import FittedPrior
from experiments.settings import PATHS


def to_bytes(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns named arrays in the format of safetensors."""
    # safetensors writes the buffer of an array as it is, so the array must be contiguous.
    ordered = {name: np.array(array, order="C") for name, array in arrays.items()}
    return bytes(save(ordered, {"format": "flax"}))


def describe(experiment: Experiment, fitted: FittedPrior | None) -> dict[str, Any]:
    """Returns the arguments of library functions that rebuild the sampler, as values for JSON."""
    network = experiment.network
    fields = [f.name for f in dataclasses.fields(network) if f.name not in ("parent", "name")]
    return {
        "kind": experiment.source.kind,
        "event_shape": list(experiment.source.event_shape),
        "network": {name: getattr(network, name) for name in fields},
        "prior": _prior_arguments(experiment, fitted),
        "loss": experiment.settings["loss.name"],
        "divergence": divergence_formula.describe(experiment.settings["loss.divergence"]),
        "flow": experiment.problem.flow._asdict(),
        "seed": experiment.settings["seed"],
        "settings": shareable(experiment.settings),
    }


def shareable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings without the paths of this machine."""
    return {key: value for key, value in settings.items() if key not in PATHS}


def _prior_arguments(experiment: Experiment, fitted: FittedPrior | None) -> dict[str, Any]:
    settings, shape = experiment.settings, list(experiment.source.event_shape)
    if settings["prior.name"] == "normal":
        return {"event_shape": shape, "scale": settings["prior.scale"]}
    if settings["prior.name"] == "uniform":
        return {"event_shape": shape}
    if settings["prior.name"] == "source":
        return {"field": "source", "dequantisation": settings["data.dequantisation"]}
    return {
        "remainder_scale": 0.0 if fitted is None else fitted.remainder_scale,
        "clip": [-1.0, 1.0] if experiment.source.kind == "images" else None,
    }
