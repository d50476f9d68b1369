"""Makes an export small: arrays of 8 bits, and a prior of low rank."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments import settings
from experiments.experiment import Experiment
from fdrl_jax import _covariance, priors
from fdrl_jax._covariance import LowRank

_MIN_SIZE = 5_000  # Smaller arrays are stored unchanged: they take little space.
_EXACT = "prior/remainder_scale"  # The spectrum of images spans more decades than 8 bits hold.
_LARGEST = 127  # Of int8, without the number -128, so that the range is symmetric.


def rounded(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns large arrays as int8, `a`, and a factor per index of their last axis, `a.scale`.

    The last axis counts the outputs of a layer and the directions of a prior. Numbers that were
    rounded before stay the same.
    """
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if array.ndim < 2 or array.size < _MIN_SIZE or name == _EXACT:
            found[name] = array
            continue
        largest = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
        scale = np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(_LARGEST)
        found[name] = np.round(array / scale).astype(np.int8)
        found[f"{name}.scale"] = scale
    return found


def simplified(model: Experiment, rank: int) -> Experiment:
    """Returns the experiment in float32, with a prior of at most `rank` directions.

    They are the leading principal directions of a data-dependent prior. The variance of the others
    is kept per spatial frequency.
    """
    changes = {"precision": "float32"}
    model = dataclasses.replace(
        model,
        network=model.network.clone(dtype="float32"),
        denoiser=model.denoiser and model.denoiser.clone(dtype="float32"),
    )
    # The Gaussians of a mixture have low ranks already.
    of_data = "factor" in model.constants.prior and "weights" not in model.constants.prior
    if not of_data or model.constants.prior["factor"].shape[1] <= rank:
        wanted = settings.replace(model.settings, changes)
        return dataclasses.replace(model, settings=wanted)
    prior = {name: np.asarray(a, np.float64) for name, a in model.constants.prior.items()}
    # The variance of white noise is the same for every frequency.
    scale = {**model.prior_arguments, **prior}["remainder_scale"]
    spectrum = _covariance.spectrum(prior["factor"].T, model.source.event_shape)
    left, singular, _ = np.linalg.svd(prior["factor"], full_matrices=False)
    leading = LowRank(
        model.source.num_train,
        prior["mean"],
        left[:, :rank],
        singular[:rank] ** 2,
        spectrum + scale**2,
    )
    factor, scale = priors.low_rank_factor(leading, jitter=0.0)
    small = {"mean": model.constants.prior["mean"], "factor": factor, "remainder_scale": scale}
    return dataclasses.replace(
        model,
        settings=settings.replace(model.settings, {**changes, "prior.rank": rank}),
        constants=model.constants._replace(prior=small),
        prior_arguments={"clip": model.prior_arguments["clip"]},
    )
