"""The data-dependent prior of a run: fitted once, kept in its workdir."""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.data import Source, digest, read_arrays
from experiments.errors import UserError
from experiments.storage.workdir import replacing
from fdrl_jax import priors

# Up to 64 x 64 x 3 the whole covariance is kept: its factor takes 604 MB.
MAX_EXACT_SIZE = 12_288
DEFAULT_RANK = 512
_FORMAT = 1  # Of the file; raise it when what is stored changes its meaning.


class FittedPrior(NamedTuple):
    """`N(μ, F Fᵀ + s² I)` with `μ` [D], `F` [D, k] and the remainder `s`.

    `share_held` is the share of the data's variance that `F` holds: 1 for a full covariance.
    `num_examples` is 0 for a prior that was not fitted here.
    """

    mean: np.ndarray
    factor: np.ndarray
    remainder_scale: float
    share_held: float
    num_examples: int


def choose_rank(rank: int, event_shape: Sequence[int]) -> int:
    """Returns the rank to use for `prior.rank`; 0 stands for the whole covariance.

    Raises:
      ValueError: for a rank beyond the size of an example.
    """
    size = math.prod(event_shape)
    if rank > size:
        raise ValueError(f"prior.rank must be at most {size}, the size of an example, got {rank}")
    return rank or (0 if size <= MAX_EXACT_SIZE else DEFAULT_RANK)


def load_or_fit(source: Source, rank: int, jitter: float, file: Path | None) -> FittedPrior:
    """Returns the prior that is kept in a file, or fits it and keeps it there.

    A kept one is used only for the same data, transform, rank and jitter. Fitting takes one pass
    over the un-augmented training set, and replaces a kept one that does not fit.

    Args:
      source: the data.
      rank: of the covariance, or 0 for all of it.
      jitter: added to the diagonal.
      file: where it is kept, if anywhere.

    Raises:
      UserError: if the kept one does not fit and was fitted elsewhere, so that it would be lost.
    """
    fingerprint = _fingerprint(source, rank, jitter)
    kept = None if file is None else _read(file, fingerprint)
    if kept is not None:
        return kept
    started = time.perf_counter()
    fitted = _fit(source, rank, jitter)
    size, form = len(fitted.mean), f"rank {rank}" if rank else "full covariance"
    print(
        f"prior: fitted to {fitted.num_examples:,} examples of {size:,} numbers, {form}, "
        f"{fitted.share_held:.2%} of the variance held, {time.perf_counter() - started:.1f} s"
    )
    if file is not None and jax.process_index() == 0:
        _write(file, fitted, fingerprint)
    return fitted


def adopt(
    source: Source, jitter: float, file: Path, mean: np.ndarray, covariance: np.ndarray
) -> None:
    """Keeps a full-covariance prior that was fitted elsewhere to the same data.

    Args:
      source: the data.
      jitter: that the covariance has on its diagonal already.
      file: where `load_or_fit` will find it.
      mean: [D].
      covariance: [D, D].
    """
    factor = priors.covariance_factor(np.asarray(covariance, np.float64), jitter=0.0)
    fitted = FittedPrior(np.asarray(mean, np.float64), factor, 0.0, 1.0, num_examples=0)
    _write(file, fitted, _fingerprint(source, 0, jitter))


def blank(source: Source, rank: int) -> FittedPrior:
    """Returns a prior of the right shapes that is fitted to nothing."""
    size = math.prod(source.event_shape)
    factor = np.zeros((size, rank or size), np.float32)
    return FittedPrior(np.zeros(size), factor, 1.0 if rank else 0.0, 0.0, 0)


def _fingerprint(source: Source, rank: int, jitter: float) -> str:
    return digest(_FORMAT, source.fingerprint, source.event_shape, rank, jitter)


def _fit(source: Source, rank: int, jitter: float) -> FittedPrior:
    batches = tqdm(source.train_batches(), desc="fitting the prior", unit="batch", leave=False)
    if rank:
        part = priors.low_rank(batches, rank)
        factor, scale = priors.low_rank_factor(part, jitter)
        return FittedPrior(part.mean, factor, scale, part.share_held, part.num_examples)
    found = priors.moments(batches)
    mean, num_examples = found.mean, found.num_examples
    covariance = found.covariance
    del found  # As large as the covariance.
    return FittedPrior(mean, priors.covariance_factor(covariance, jitter), 0.0, 1.0, num_examples)


def _read(file: Path, fingerprint: str) -> FittedPrior | None:
    if not file.exists():
        return None
    try:
        arrays = read_arrays(file, [*FittedPrior._fields, "fingerprint"])
        kept = FittedPrior(
            arrays["mean"],
            arrays["factor"],
            float(arrays["remainder_scale"]),
            float(arrays["share_held"]),
            int(arrays["num_examples"]),
        )
        fits = str(arrays["fingerprint"]) == fingerprint
    except (ValueError, TypeError, KeyError) as error:
        logging.getLogger("fdrl").warning("%s is damaged (%s); fitting anew", file, error)
        return None
    if not fits and not kept.num_examples:
        raise UserError(
            f"{file} was fitted elsewhere, to other data or with another prior.rank or "
            "prior.jitter. Bring those back, or remove it to fit a prior anew"
        )
    return kept if fits else None


def _write(file: Path, fitted: FittedPrior, fingerprint: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as stream:
        np.savez(stream, fingerprint=np.array(fingerprint), **fitted._asdict())
