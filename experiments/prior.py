"""The data-dependent prior, which is fitted once when a run is created and then stored with it."""

import math
from typing import Any, TypeAlias

import numpy as np
from tqdm import tqdm

from experiments import devices
from experiments.data.source import Source, spread
from experiments.errors import UserError
from experiments.settings import Prior
from fdrl_jax import priors

FittedPrior: TypeAlias = dict[str, np.ndarray]  # The arrays of `priors.mixture`, by name.
_MAX_NUMBERS = 2**28  # Of the examples that a mixture is fitted to: 1 GiB.


def fit_to(source: Source, wanted: Prior, num_classes: int | None) -> FittedPrior:
    """Fits the prior that the settings describe to the training data, without noise (eq. 8)."""
    num, rank = choose(wanted, source, num_classes)
    labels, limit = None, None
    if num > 1 or num_classes:
        # A larger training set is represented by as many examples, spread evenly, as fit into
        # memory. A set of generated points has no number of examples.
        limit = min(source.num_train, _MAX_NUMBERS // math.prod(source.event_shape)) or None
    hidden = not devices.is_first_process()
    batches = tqdm(
        source.train_batches(limit), "fitting the prior", leave=False, unit="batch", disable=hidden
    )
    data: Any = iter(batches)
    if num > 1 or num_classes:
        data = np.concatenate(list(data))
    if num_classes and source.labels is not None:
        labels = source.labels.train[spread(source.num_train, limit)]
        if missing := {*range(num_classes)} - {*labels.tolist()}:
            names = ", ".join(source.classes[label] for label in sorted(missing))
            raise UserError(f"network.by_class: no training images of the classes {names}")
    found: FittedPrior = priors.fit(
        data, num_components=num, rank=rank or None, labels=labels, jitter=wanted.jitter
    ).params
    if not hidden:
        (size, columns), count = found["factor"].shape, len(found["mean"])
        print(f"prior: {count} Gaussians of rank {columns // count}, {size:,} numbers each")
    return found


def choose(wanted: Prior, source: Source, num_classes: int | None) -> tuple[int, int]:
    """Returns how many Gaussians the prior has, of each class, and their rank; 0: exact."""
    # Generated points have no number of examples, and one Gaussian.
    return priors.choose(
        source.num_train,
        math.prod(source.event_shape),
        num_components=wanted.num_components or None,
        rank=wanted.rank or None,
        num_classes=num_classes,
    )


def placeholder(wanted: Prior, source: Source, num_classes: int | None) -> FittedPrior:
    """Returns a prior of the largest shapes that a fit may return, for compiling and timing."""
    num, rank = choose(wanted, source, num_classes)
    size, total = math.prod(source.event_shape), num * (num_classes or 1)
    arrays: FittedPrior = {
        "weights": np.full((num_classes, total) if num_classes else total, 1.0 / total),
        "mean": np.zeros((total, size)),
        "factor": np.zeros((size, total * (rank or size)), np.float32),
    }
    if rank:
        arrays["remainder_scale"] = np.ones((total, *source.event_shape), np.float32)
    return arrays
