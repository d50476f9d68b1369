"""The data-dependent prior, which is fitted once when a run is created and then stored with it."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from experiments.errors import UserError
from experiments.files import read_npz, replacing, sha256_of_arrays
from fdrl_jax import priors
from fdrl_jax.training import parallel

# Up to 64 x 64 x 3 the full covariance is used, whose factor needs 604 MB.
MAX_EXACT_SIZE = 12_288
DEFAULT_RANK = 512


class FittedPrior(NamedTuple):
    """`N(μ, F Fᵀ + s² I)` with mean `μ` [D], factor `F` [D, k] and remainder scale `s`."""

    mean: np.ndarray
    factor: np.ndarray
    remainder_scale: float
    share_held: float  # Share of the data's variance that `F` explains; 1 for a full covariance.
    num_examples: int  # 0 for a prior that was fitted elsewhere.

    @property
    def sha256(self) -> str:
        """Digest of the arrays that determine samples."""
        return sha256_of_arrays((self.mean, self.factor, np.float64(self.remainder_scale)))


def choose_rank(rank: int, event_shape: Sequence[int]) -> int:
    """Returns the rank to use for `prior.rank`; 0 means the full covariance.

    Raises:
      ValueError: for a rank above the size of an example.
    """
    size = math.prod(event_shape)
    if rank > size:
        raise ValueError(f"prior.rank must be at most {size}, the size of an example, got {rank}")
    return rank or (0 if size <= MAX_EXACT_SIZE else DEFAULT_RANK)


def fit(batches: Iterable[np.ndarray], rank: int, jitter: float) -> FittedPrior:
    """Fits the prior in one pass over the training set, without augmentation or noise (eq. 8).

    Rank 0 means the full covariance. The jitter is a variance added to its diagonal.
    """
    hidden = not parallel.is_first_process()
    batches = tqdm(batches, "fitting the prior", leave=False, unit="batch", disable=hidden)
    if rank:
        part = priors.low_rank(batches, rank)
        factor, scale = priors.low_rank_factor(part, jitter)
        return FittedPrior(part.mean, factor, scale, part.share_held, part.num_examples)
    full = priors.moments(batches)
    factor = priors.covariance_factor(full.covariance, jitter)
    return FittedPrior(full.mean, factor, 0.0, 1.0, full.num_examples)


def from_covariance(mean: np.ndarray, covariance: np.ndarray) -> FittedPrior:
    """Returns a prior from a given covariance, which must include the jitter.

    The mean is [D], the covariance [D, D].
    """
    factor = priors.covariance_factor(np.asarray(covariance, np.float64), jitter=0.0)
    return FittedPrior(np.asarray(mean, np.float64), factor, 0.0, 1.0, num_examples=0)


def blank(rank: int, event_shape: Sequence[int]) -> FittedPrior:
    """Returns a placeholder of the same shapes, for compiling and timing."""
    size = math.prod(event_shape)
    factor = np.zeros((size, rank or size), np.float32)
    return FittedPrior(np.zeros(size), factor, 1.0 if rank else 0.0, 0.0, 0)


def write(file: Path, fitted: FittedPrior) -> None:
    """Writes a prior."""
    with replacing(file) as stream:
        np.savez(stream, **fitted._asdict())


def read(file: Path, sha256: str | None) -> FittedPrior:
    """Reads the prior of a run; that of a run of version 0.1 has no known digest.

    Raises:
      UserError: if the file is missing, damaged, or not the one the run was created with.
    """
    mean, factor, scale, share, num = read_npz(file, *FittedPrior._fields).values()
    try:
        fitted = FittedPrior(mean, factor, float(scale), float(share), int(num))
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged: {error}") from error
    if sha256 is not None and fitted.sha256 != sha256:
        raise UserError(
            f"{file} is not the prior the run was created with; restore the file, or train in a "
            "new --workdir"
        )
    return fitted


def describe(fitted: FittedPrior) -> str:
    """Returns a line of progress about the fit."""
    size, rank = fitted.factor.shape
    form = "full covariance" if rank == size else f"rank {rank}"
    return (
        f"prior: fitted to {fitted.num_examples:,} examples of {size:,} numbers, {form}, "
        f"{fitted.share_held:.2%} of the variance explained"
    )
