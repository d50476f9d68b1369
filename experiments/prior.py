"""The data-dependent prior, which is fitted once when a run is created and then stored with it."""

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import linalg
from tqdm import tqdm

from experiments.errors import UserError
from experiments.files import read_npz, replacing, sha256_of_arrays
from fdrl_jax import priors
from fdrl_jax.training import parallel

# Up to 64 x 64 x 3 the full covariance is used, whose factor needs at most 604 MB.
MAX_EXACT_SIZE = 12_288
DEFAULT_RANK = 512


class FittedPrior(NamedTuple):
    """`N(μ, F Fᵀ + C diag(s²) Cᵀ)`: mean `μ` [D], factor `F` [D, k] and remainder scale `s`.

    The remainder scale is an array of the example's shape, or a number; see `priors.gaussian`.
    """

    mean: np.ndarray
    factor: np.ndarray
    remainder_scale: float | np.ndarray
    share_held: float  # Share of the data's variance that `F` explains; 1 for a full covariance.
    num_examples: int

    @property
    def sha256(self) -> str:
        """Digest of the arrays that determine samples."""
        scale = np.asarray(self.remainder_scale, np.float64)
        return sha256_of_arrays((self.mean, self.factor, scale))


def choose_rank(rank: int, event_shape: Sequence[int]) -> int:
    """Returns the rank to use for `prior.rank`; 0 means the full covariance."""
    size = math.prod(event_shape)
    if rank > size:
        raise ValueError(f"prior.rank must be at most {size}, the size of an example, got {rank}")
    return rank or (0 if size <= MAX_EXACT_SIZE else DEFAULT_RANK)


def fit(batches: Iterable[np.ndarray], rank: int, jitter: float) -> FittedPrior:
    """Fits the prior in one pass over the training set, without augmentation or noise (eq. 8).

    Rank 0 means the full covariance. The jitter is a variance added to its diagonal. N examples of
    size D > N have a covariance of a rank below N, so that a factor of N columns represents it.
    """
    hidden = not parallel.is_first_process()
    batches = tqdm(batches, "fitting the prior", leave=False, unit="batch", disable=hidden)
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


def placeholder(rank: int, event_shape: Sequence[int]) -> FittedPrior:
    """Returns a prior of the largest shapes that `fit` may return, for compiling and timing."""
    size = math.prod(event_shape)
    factor = np.zeros((size, rank or size), np.float32)
    scale = np.ones(tuple(event_shape), np.float32) if rank else 0.0
    return FittedPrior(np.zeros(size), factor, scale, 0.0, 0)


def write(file: Path, fitted: FittedPrior) -> None:
    """Writes a prior."""
    with replacing(file) as stream:
        np.savez(stream, **fitted._asdict())


def read(file: Path, sha256: str) -> FittedPrior:
    """Reads the prior of a run; a UserError names a file that is not the run's."""
    mean, factor, scale, share, num = read_npz(file, *FittedPrior._fields).values()
    remainder_scale = scale if scale.ndim else float(scale)
    fitted = FittedPrior(mean, factor, remainder_scale, float(share), int(num))
    if fitted.sha256 != sha256:
        raise UserError(f"{file} is not the file the run was created with; restore it")
    return fitted


def describe(fitted: FittedPrior) -> str:
    """Returns a line of progress about the fit."""
    size, rank = fitted.factor.shape
    form = "full covariance" if fitted.share_held == 1.0 else f"rank {rank}"
    return (
        f"prior: fitted to {fitted.num_examples:,} examples of {size:,} numbers, {form}, "
        f"{fitted.share_held:.2%} of the variance explained"
    )
