"""Warnings about settings that are valid but unlikely to give what the user wants."""

import logging
from collections.abc import Mapping
from typing import Any

from experiments import cost
from experiments.build import Experiment

_MAX_VARIANCE_RATIO = 4.0


def noise_balance(settings: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the noise variances of flowed samples and of data, on the scale [-1, 1].

    Flowed samples have the jitter of the data-dependent prior and the noise of K steps,
    `jitter + K nu^2`. Data have the dequantisation noise. The estimate ignores that the drift of
    the flow removes noise.
    """
    jitter = settings["prior.jitter"] if settings["prior.name"] == "data_dependent" else 0.0
    flowed = jitter + settings["flow.num_steps"] * settings["flow.noise_scale"] ** 2
    return flowed, settings["data.dequantisation"] ** 2


def describe_noise(settings: Mapping[str, Any]) -> str:
    """Returns a line about the balance of noise."""
    flowed, data = noise_balance(settings)
    return f"noise (standard deviation): flowed samples {flowed**0.5:.3f}, data {data**0.5:.3f}"


def noise_warning(settings: Mapping[str, Any]) -> str | None:
    """Returns a warning if the estimator could tell data from flowed images by their noise."""
    flowed, data = noise_balance(settings)
    if flowed <= _MAX_VARIANCE_RATIO * data:
        return None
    balanced = (data / settings["flow.num_steps"]) ** 0.5
    return (
        f"{describe_noise(settings)}: the network may tell them apart by their noise and learn "
        f"little else. Balanced at K = {settings['flow.num_steps']}: flow.noise_scale="
        f"{balanced:.2g}, or a larger data.dequantisation"
    )


def duration_warning(experiment: Experiment) -> str | None:
    """Returns a warning if the training would take more than a day on this CPU."""
    days = cost.days_on_cpu(experiment)
    if days is None or days < 1.0:
        return None
    return (
        f"this training takes about {days:,.0f} days on a CPU (a rough estimate from the number of "
        "operations). Smaller images (data.image_size) shorten it; configs/folder.py has a network "
        "and a flow for CPUs; --mode=dry_run measures the time"
    )


def warn(experiment: Experiment) -> None:
    """Logs the warnings about an experiment that is about to be trained."""
    found = [duration_warning(experiment)]
    if experiment.source.kind == "images":
        found.append(noise_warning(experiment.settings))
    for warning in filter(None, found):
        logging.getLogger("fdrl").warning("%s", warning)
