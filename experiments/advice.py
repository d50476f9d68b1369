"""Warnings about settings that are valid but unlikely to give what the user wants."""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.build import Experiment
from experiments.data import BUILT_IN, Source
from experiments.evaluation.references import ImageReference, max_stored, too_few
from fdrl_jax import drift
from fdrl_jax.training import parallel
from fdrl_jax.training.problem import Estimator

_MAX_VARIANCE_RATIO = 4.0
_CPU_FLOPS_PER_SECOND = 2e11  # Two cores in float32; rough, only to warn of days of work.
# The loss and its gradient process data and flowed samples, which is twice the batch of a flow
# step, and differentiate with respect to the parameters as well as the input.
GRADIENT_IN_FLOW_STEPS = 3.0


def noise(settings: Mapping[str, Any]) -> tuple[str, bool]:
    """Returns a line about the balance of noise, and whether it is a warning.

    It is one if the estimator could distinguish data from flowed images by their noise. The
    variances are on the scale [-1, 1]: flowed samples have the jitter of the data-dependent prior
    and the noise of K steps, `jitter + K nu^2`, and data have the dequantisation noise. The
    estimate ignores that the drift of the flow removes noise.
    """
    jitter = settings["prior.jitter"] if settings["prior.name"] == "data_dependent" else 0.0
    num_steps, data = settings["flow.num_steps"], settings["data.dequantisation"] ** 2
    flowed = jitter + num_steps * settings["flow.noise_scale"] ** 2
    line = f"noise (standard deviation): flowed samples {flowed**0.5:.3f}, data {data**0.5:.3f}"
    if flowed <= _MAX_VARIANCE_RATIO * data:
        return line, False
    balanced = (max(data - jitter, 0.0) / num_steps) ** 0.5
    is_jitter = jitter > _MAX_VARIANCE_RATIO * data
    less = "a smaller prior.jitter" if is_jitter else f"flow.noise_scale={balanced:.2g}"
    return (
        f"{line}: the network may distinguish them by their noise and learn little else. Balanced "
        f"at K = {num_steps}: {less}, or a larger data.dequantisation"
    ), True


def lower_flow_step(experiment: Experiment) -> tuple[jax.stages.Lowered, tuple[Any, ...]]:
    """Lowers a flow step of a device's part of the train batch; returns it and its shapes.

    The variables are those that the flow prepares once, before its first step.
    """
    settings, estimator = experiment.settings, experiment.problem.estimator
    size = parallel.local_batch_size(settings["train.batch_size"])
    x = jax.ShapeDtypeStruct((size, *experiment.source.event_shape), jnp.float32)
    prepared = jax.eval_shape(estimator.prepare, experiment.state_shapes().variables)
    once = experiment.problem._replace(estimator=Estimator(estimator.apply))
    step = jax.jit(lambda variables, x: drift(x, once.potential(variables)))
    return step.lower(prepared, x), (prepared, x)


def duration_warning(experiment: Experiment) -> str | None:
    """Returns a warning if the training would take more than about a day on this CPU."""
    if jax.default_backend() != "cpu":
        return None
    settings, lowered = experiment.settings, lower_flow_step(experiment)[0]
    flops = float((lowered.cost_analysis() or {}).get("flops", 0.0))
    flow_steps = settings["flow.num_steps"] + GRADIENT_IN_FLOW_STEPS
    days = settings["train.num_steps"] * flow_steps * flops / _CPU_FLOPS_PER_SECOND / 86_400
    if days < 1.0:
        return None
    return (
        f"this training takes about {days:,.0f} days on a CPU (a rough estimate from the number of "
        "operations). Smaller images (data.image_size) shorten it; configs/folder.py has a network "
        "and a flow for CPUs; --mode=dry_run measures the time"
    )


def warn(experiment: Experiment, reference: Source | ImageReference) -> None:
    """Logs the warnings about an experiment that is about to be trained, and its real data."""
    logger = logging.getLogger("fdrl")
    if days := duration_warning(experiment):
        logger.warning("%s", days)
    if isinstance(reference, ImageReference) and experiment.settings["data.name"] not in BUILT_IN:
        num, *shape = reference.images.shape
        if (few := too_few(num)) and num < max_stored(tuple(shape)):  # More would be stored.
            logger.warning("%s; add images, or a folder 'test' of such images", few)
    line, is_warning = noise(experiment.settings)
    if is_warning and experiment.source.kind == "images":
        logger.warning("%s", line)
