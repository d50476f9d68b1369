"""Makes an export small: arrays of 8 bits, and a prior of low rank."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import settings
from experiments.experiment import Experiment
from fdrl_jax import _covariance, priors
from fdrl_jax._covariance import LowRank

_MIN_SIZE = 5_000  # Smaller arrays are stored unchanged: they take little space.
_SPECTRUM = "prior/remainder_scale"  # Spans more decades than 8 bits hold, and is float16.
_LARGEST = 127  # Of int8, without the number -128, so that the range is symmetric.


def rounded(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns large arrays as int8, `a`, and a factor per index of their last axis, `a.scale`.

    The last axis counts the outputs of a layer and the directions of a prior. Numbers that were
    rounded before stay the same.
    """
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim < 2 or array.size < _MIN_SIZE:
            found[name] = array
            continue
        if name == _SPECTRUM:
            found[name] = array.astype(np.float16)
            continue
        largest = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
        scale = np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(_LARGEST)
        found[name] = np.round(array / scale).astype(np.int8)
        found[f"{name}.scale"] = scale
    return found


def simplified(model: Experiment, rank: int) -> Experiment:
    """Returns the experiment in float32, with a prior of at most `rank` directions.

    They are the leading principal directions of a data-dependent prior, of each Gaussian of a
    mixture. The variance of the others is kept per spatial frequency.
    """
    changes: dict[str, Any] = {"precision": "float32"}
    constants, arguments, prior = model.constants, model.prior_arguments, model.constants.prior
    num = np.shape(prior["weights"])[-1] if "weights" in prior else 1
    if "factor" in prior and prior["factor"].shape[1] > num * rank:
        shape = model.source.event_shape
        scales = np.broadcast_to({**arguments, **prior}["remainder_scale"], (num, *shape))
        each = zip(np.split(np.asarray(prior["factor"], np.float64), num, 1), scales, strict=True)
        factors, scales = zip(*(_leading(*one, rank) for one in each), strict=True)
        scale = np.reshape(scales, (num, *shape) if "weights" in prior else shape)
        small = {**prior, "factor": np.concatenate(factors, axis=1), "remainder_scale": scale}
        constants = constants._replace(prior=small)
        arguments = {name: a for name, a in arguments.items() if name not in small}
        changes["prior.rank"] = rank
    return dataclasses.replace(
        model,
        settings=settings.replace(model.settings, changes),
        constants=constants,
        prior_arguments=arguments,
        network=model.network.clone(dtype="float32"),
        denoiser=model.denoiser and model.denoiser.clone(dtype="float32"),
    )


def _leading(factor: np.ndarray, scale: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the leading directions of a factor [D, k], and the scale of the remainder then.

    Args:
      factor: of a Gaussian, [D, k] in float64.
      scale: of its remainder, of the example's shape. White noise has the same for each frequency.
      rank: number of directions.
    """
    total = _covariance.spectrum(factor.T, scale.shape) + np.square(scale, dtype=np.float64)
    left, singular, _ = np.linalg.svd(factor, full_matrices=False)
    variances = np.square(singular[:rank])
    part = LowRank(1, np.zeros(len(factor)), left[:, :rank], variances, total)
    return priors.low_rank_factor(part, jitter=0.0)
