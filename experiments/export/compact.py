"""Makes an export small: arrays of 8 bits, and a prior of low rank at few frequencies."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import settings
from experiments.experiment import Experiment
from fdrl_jax import _covariance

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


def simplified(model: Experiment, rank: int, num_frequencies: int) -> Experiment:
    """Returns the experiment in float32, with a small data-dependent prior, to be written.

    The prior keeps at most `rank` leading principal directions, of each Gaussian of a mixture. Of
    larger examples, the directions have coefficients only at the `num_frequencies` spatial
    frequencies where they vary most. Their factor is then [num_frequencies, k], and `frequencies`
    has the positions in a flat example. All other variance is kept per spatial frequency.
    """
    changes: dict[str, Any] = {"precision": "float32"}
    constants, arguments, prior = model.constants, model.prior_arguments, model.constants.prior
    num = np.shape(prior["weights"])[-1] if "weights" in prior else 1
    size, columns = prior["factor"].shape if "factor" in prior else (0, 0)
    if columns > num * rank or size > num_frequencies:
        shape = (num, *model.source.event_shape)
        scales = np.broadcast_to({**arguments, **prior}["remainder_scale"], shape)
        small = _small(np.asarray(prior["factor"], np.float64), scales, rank, num_frequencies)
        if "weights" not in prior:
            small["remainder_scale"] = small["remainder_scale"][0]
        constants = constants._replace(prior={**prior, **small})
        arguments = {name: a for name, a in arguments.items() if name not in small}
        changes["prior.rank"] = min(rank, columns // num)
    return dataclasses.replace(
        model,
        settings=settings.replace(model.settings, changes),
        constants=constants,
        prior_arguments=arguments,
        network=model.network.clone(dtype="float32"),
        denoiser=model.denoiser and model.denoiser.clone(dtype="float32"),
    )


def _small(
    factor: np.ndarray, scales: np.ndarray, rank: int, num_frequencies: int
) -> dict[str, np.ndarray]:
    """Returns the arrays of a smaller prior of M Gaussians.

    Args:
      factor: of all Gaussians, [D, M k] in float64.
      scales: of their remainders, [M, ...]. White noise has the same for each frequency.
      rank: largest number of directions of each.
      num_frequencies: largest number of frequencies of the directions.
    """
    num, shape, size = len(scales), scales.shape[1:], len(factor)

    def in_cosines(factor: np.ndarray) -> np.ndarray:
        return _covariance.cosines(factor.T, shape).reshape(num, -1, size)

    coefficients = in_cosines(factor)
    total = np.square(coefficients).sum(axis=1).reshape(scales.shape)
    total += np.square(scales, dtype=np.float64)
    if factor.shape[1] > num * rank:
        each = np.split(factor, num, axis=1)
        factor = np.concatenate([_leading(one, rank) for one in each], axis=1)
        coefficients = in_cosines(factor)
    held = np.square(coefficients).sum(axis=1)
    small = {}
    if size > num_frequencies:
        kept = np.sort(np.argsort(-held.sum(axis=0), kind="stable")[:num_frequencies])
        factor = coefficients[..., kept].reshape(-1, num_frequencies).T
        held *= np.isin(np.arange(size), kept)
        small["frequencies"] = kept.astype(np.int32)
    scale = np.sqrt(np.maximum(total - held.reshape(total.shape), 0.0)).astype(np.float32)
    return small | {"factor": factor.astype(np.float32), "remainder_scale": scale}


def _leading(factor: np.ndarray, rank: int) -> np.ndarray:
    """Returns the leading principal directions of a factor [D, k], times standard deviations."""
    left, singular, _ = np.linalg.svd(factor, full_matrices=False)
    return np.asarray(left[:, :rank] * singular[:rank])
