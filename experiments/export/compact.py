"""Makes an export small: arrays of 8 bits, and a prior of low rank."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments import settings
from experiments.experiment import Experiment
from fdrl_jax import priors
from fdrl_jax._covariance import LowRank

_MIN_SIZE = 5_000  # Smaller arrays are stored unchanged: they take little space.
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
        largest = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
        scale = np.where(largest > 0, largest, 1.0).astype(np.float32) / np.float32(_LARGEST)
        found[name] = np.round(array / scale).astype(np.int8)
        found[f"{name}.scale"] = scale
    return found


def simplified(model: Experiment, rank: int) -> Experiment:
    """Returns the experiment in float32, with a prior of at most `rank` directions.

    They are the leading principal directions of a data-dependent prior. The variance of the others
    is spread evenly, which preserves the total.
    """
    network, changes = model.network.clone(dtype="float32"), {"precision": "float32"}
    of_data = model.settings.prior.name == "data_dependent"
    if not of_data or model.constants.prior["factor"].shape[1] <= rank:
        wanted = settings.replace(model.settings, changes)
        return dataclasses.replace(model, network=network, settings=wanted)
    factor = np.asarray(model.constants.prior["factor"], np.float64)
    variances, directions = np.linalg.eigh(factor @ factor.T)
    variances = variances + model.prior_arguments["remainder_scale"] ** 2
    leading = LowRank(
        model.source.num_train,
        np.asarray(model.constants.prior["mean"]),
        directions[:, -rank:],
        variances[-rank:],
        float(variances.sum()),
    )
    small, remainder_scale = priors.low_rank_factor(leading, jitter=0.0)
    prior = {**model.constants.prior, "factor": small}
    return dataclasses.replace(
        model,
        network=network,
        settings=settings.replace(model.settings, {**changes, "prior.rank": rank}),
        constants=model.constants._replace(prior=prior),
        prior_arguments={**model.prior_arguments, "remainder_scale": remainder_scale},
    )
