"""The data-dependent prior, which is fitted once when a run is created and then stored with it."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import linalg
from tqdm import tqdm

from experiments.data.source import Source, spread
from experiments.errors import UserError
from experiments.files import read_npz, replacing, sha256_of_arrays
from experiments.settings import Prior
from fdrl_jax import priors
from fdrl_jax.training import parallel

_CLUSTER_RANK, _CLASS_RANK = 50, 100  # Of each of several Gaussians, and of one for each class.
# Of an automatic number of clusters. With fewer examples in each, samples of the prior are too
# similar to the training data, and sets of fewer clusters gain little from them;
# docs/results.jsonl has figures.
_EXAMPLES_PER_CLUSTER, _MIN_CLUSTERS, _MAX_CLUSTERS = 70, 30, 100
_MAX_NUMBERS = 2**28  # Of the examples that a mixture is fitted to: 1 GiB.
# Up to 64 x 64 x 3 the full covariance is used, whose factor needs at most 604 MB.
MAX_EXACT_SIZE = 12_288
_DEFAULT_RANK = 512


class FittedPrior(NamedTuple):
    """`N(μ, F Fᵀ + C diag(s²) Cᵀ)`: mean `μ` [D], factor `F` [D, k] and remainder scale `s`.

    The remainder scale is an array of the example's shape, or a number; see `priors.gaussian`.
    """

    mean: np.ndarray
    factor: np.ndarray
    remainder_scale: float | np.ndarray
    share_held: float  # Share of the data's variance that `F` explains; 1 for a full covariance.
    num_examples: int
    # Of a mixture of M: mean [M, D], factor [D, M k], remainder scale [M, ...] and weights [M], or
    # for C classes [C, M].
    weights: np.ndarray | None = None

    @property
    def sha256(self) -> str:
        """Digest of the arrays that determine samples."""
        scale = np.asarray(self.remainder_scale, np.float64)
        of_mixture = () if self.weights is None else (self.weights,)
        return sha256_of_arrays((self.mean, self.factor, scale, *of_mixture))

    @property
    def rank(self) -> int:
        """Number of columns of the factor of each Gaussian."""
        return self.factor.shape[1] // self.num_components

    @property
    def num_components(self) -> int:
        """Number of Gaussians."""
        return 1 if self.weights is None else self.weights.shape[-1]


def choose(wanted: Prior, source: Source, num_classes: int | None) -> tuple[int, int]:
    """Returns how many Gaussians the prior has, and the rank of each; 0: the full covariance.

    Args:
      wanted: a rank of 0 means a usual one, of several Gaussians at most half of the mean number
        of their examples. 0 components mean a number that fits the training data, whose factor is
        at most as large as that of the largest full covariance. It is 1 for points.
      source: the data.
      num_classes: the number is that of each class.
    """
    rank, size = wanted.rank, math.prod(source.event_shape)
    if rank > size:
        raise ValueError(f"prior.rank must be at most {size}, the size of an example, got {rank}")
    largest = MAX_EXACT_SIZE**2 // ((rank or min(_CLUSTER_RANK, size)) * size)
    num = min(source.num_train // _EXAMPLES_PER_CLUSTER, _MAX_CLUSTERS, largest)
    num = num if num >= _MIN_CLUSTERS else 1
    num_sets = num_classes or 1
    num = wanted.num_components or max(num // num_sets, 1)
    if num > 1:
        # Generated points have no number of examples.
        half = max(source.num_train // (2 * num * num_sets), 1) if source.num_train else size
        return num, rank or min(_CLUSTER_RANK, size, half)
    if num_classes:
        return 1, rank or min(_CLASS_RANK, size)
    return 1, rank or (0 if size <= MAX_EXACT_SIZE else _DEFAULT_RANK)


def fit_to(source: Source, wanted: Prior, num_classes: int | None) -> FittedPrior:
    """Fits the prior that `choose` describes to the training data.

    A UserError names a class without examples, and a ValueError explains too many clusters.
    """
    num, rank = choose(wanted, source, num_classes)
    if num == 1 and not num_classes:
        return fit(source.train_batches(), rank, wanted.jitter)
    # A larger training set is represented by as many examples, spread evenly, as fit into memory.
    # A set of generated points has no number of examples.
    limit = min(source.num_train, _MAX_NUMBERS // math.prod(source.event_shape)) or None
    examples = np.concatenate(list(_with_progress(source.train_batches(limit))))
    labels = None
    if num_classes and source.labels is not None:
        labels = source.labels.train[spread(source.num_train, limit)]
        if missing := {*range(num_classes)} - {*labels.tolist()}:
            names = ", ".join(source.classes[label] for label in sorted(missing))
            raise UserError(f"network.by_class: no training images of the classes {names}")
    components = priors.clusters(examples, num, labels=labels)
    found = priors.fit_mixture(examples, components, rank, wanted.jitter, labels=labels)
    mean = found.means.reshape(len(found.means), -1)
    scale, held = found.remainder_scale, found.share_held
    return FittedPrior(mean, found.factor, scale, held, len(examples), found.weights)


def fit(batches: Iterable[np.ndarray], rank: int, jitter: float) -> FittedPrior:
    """Fits the prior in one pass over the training set, without augmentation or noise (eq. 8).

    Rank 0 means the full covariance. The jitter is a variance added to its diagonal. N examples of
    size D > N have a covariance of a rank below N, so that a factor of N columns represents it.
    """
    batches = _with_progress(batches)
    if rank:
        part = priors.low_rank(batches, rank)
        factor, scale = priors.low_rank_factor(part, jitter)
        return FittedPrior(part.mean, factor, scale, part.share_held, part.num_examples)
    rows, first = iter(batches), list[np.ndarray]()
    while not first or sum(map(len, first)) < first[0][0].size:
        if (batch := next(rows, None)) is None:
            return _of_few(first, jitter)
        first.append(batch)
    full = priors.moments(itertools.chain(first, rows))
    first.clear()  # Frees memory for the decomposition.
    factor = priors.covariance_factor(full.covariance, jitter)
    return FittedPrior(full.mean, factor, 0.0, 1.0, full.num_examples)


def _of_few(batches: Sequence[np.ndarray], jitter: float) -> FittedPrior:
    """Returns the prior of fewer examples than their size, whose covariance is `Rᵀ R / N`.

    `R` is that of the QR decomposition of the N centred examples: what the Cholesky decomposition
    of the covariance would give, without its zeros.
    """
    if not batches:
        raise UserError("a data-dependent prior needs at least one training example, got none")
    x = np.concatenate(batches).astype(np.float64)
    x = x.reshape(len(x), -1)
    mean = x.mean(axis=0)
    x -= mean
    upper = linalg.qr(x, mode="r", overwrite_a=True)[0] / math.sqrt(len(x))
    factor = np.asarray(upper.T, np.float32, order="C")
    return FittedPrior(mean, factor, math.sqrt(jitter), 1.0, len(x))


def _with_progress(batches: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    hidden = not parallel.is_first_process()
    shown: Iterable[np.ndarray] = tqdm(
        batches, "fitting the prior", leave=False, unit="batch", disable=hidden
    )
    return shown


def placeholder(wanted: Prior, source: Source, num_classes: int | None) -> FittedPrior:
    """Returns a prior of the largest shapes that a fit may return, for compiling and timing."""
    num, rank = choose(wanted, source, num_classes)
    shape, size = tuple(source.event_shape), math.prod(source.event_shape)
    if num == 1 and not num_classes:
        factor = np.zeros((size, rank or size), np.float32)
        scale = np.ones(shape, np.float32) if rank else 0.0
        return FittedPrior(np.zeros(size), factor, scale, 0.0, 0)
    total = num * (num_classes or 1)
    weights = np.full((num_classes, total) if num_classes else total, 1.0 / total)
    mean, factor = np.zeros((total, size)), np.zeros((size, total * rank), np.float32)
    return FittedPrior(mean, factor, np.ones((total, *shape), np.float32), 0.0, 0, weights)


def write(file: Path, fitted: FittedPrior) -> None:
    """Writes a prior."""
    with replacing(file) as stream:
        np.savez(stream, **{k: v for k, v in fitted._asdict().items() if v is not None})


def read(file: Path, sha256: str) -> FittedPrior:
    """Reads the prior of a run; a UserError names a file that is not the run's."""
    stored: dict[str, Any] = {name: a if a.ndim else a.item() for name, a in read_npz(file).items()}
    try:
        fitted = FittedPrior(**stored)
    except TypeError as error:
        raise UserError(f"{file} is not a prior: {error}") from error
    if fitted.sha256 != sha256:
        raise UserError(f"{file} is not the file the run was created with; restore it")
    return fitted


def describe(fitted: FittedPrior) -> str:
    """Returns a line of progress about the fit."""
    size, rank = len(fitted.factor), fitted.rank
    form = "full covariance" if fitted.share_held == 1.0 else f"rank {rank}"
    if fitted.weights is not None:
        form = f"{fitted.num_components} Gaussians of rank {rank}"
    return (
        f"prior: fitted to {fitted.num_examples:,} examples of {size:,} numbers, {form}, "
        f"{fitted.share_held:.2%} of the variance explained"
    )
