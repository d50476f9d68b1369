"""Mean and covariance of a data set in one pass, exact or low-rank, in float64 on the host.

The scatter matrix is a sum of `v vᵀ` over rows `v`. Each batch contributes its centred examples and
one more row that accounts for the change of the mean (Chan, Golub and LeVeque, 1979). This avoids
both cancellation and a second pass.
"""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from scipy import fft, linalg

_BLOCK = 1_024  # Rows of a D x D matrix per block.


class Moments(NamedTuple):
    """Sufficient statistics of a Gaussian, in float64.

    Attributes:
      num_examples: N.
      mean: `μ`, [D].
      scatter: the scatter matrix `Σ (x - μ)(x - μ)ᵀ` over the examples, [D, D].
    """

    num_examples: int
    mean: np.ndarray
    scatter: np.ndarray

    @property
    def covariance(self) -> np.ndarray:
        """The biased covariance (1/N), [D, D]."""
        return self.scatter / self.num_examples


class LowRank(NamedTuple):
    """The leading eigenvectors of a covariance that is never formed.

    Attributes:
      num_examples: N.
      mean: [D].
      directions: [D, k], by decreasing variance. Those with a variance are orthonormal; if the data
        have fewer than k such directions, the others have variance 0 and may have any length.
      variances: along the directions, [k].
      spectrum: the variance of each coefficient of the orthonormal discrete cosine transform (type
        2, over all axes of an example), of the example's shape, exact. Its sum is the trace of the
        covariance.
    """

    num_examples: int
    mean: np.ndarray
    directions: np.ndarray
    variances: np.ndarray
    spectrum: np.ndarray

    @property
    def share_held(self) -> float:
        """Share of the total variance along the directions."""
        total = self.spectrum.sum()
        return float(self.variances.sum() / total) if total else 1.0


def moments(batches: Iterable[np.ndarray]) -> Moments:
    """Computes mean and covariance in one pass over batches.

    In addition to the D x D scatter matrix, it needs memory for one block of its rows.

    Args:
      batches: arrays [B, ...] of examples; for the prior, without augmentation and in [-1, 1].

    Returns:
      Count, mean [D] and scatter matrix [D, D].

    Raises:
      ValueError: if there are no examples, or one is not finite.

    Reference: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979.
    """
    scatter: np.ndarray | None = None
    for seen in _rows(batches):
        size = seen.rows.shape[1]
        if scatter is None:
            scatter = np.zeros((size, size))
        # The matrix is symmetric: only the blocks below the diagonal are computed.
        for top in range(0, size, _BLOCK):
            end = min(top + _BLOCK, size)
            scatter[top:end, :end] += seen.rows[:, top:end].T @ seen.rows[:, :end]
    if scatter is None:
        raise ValueError("a data-dependent prior needs at least one example, got none")
    for top in range(0, len(scatter), _BLOCK):
        end = min(top + _BLOCK, len(scatter))
        scatter[:top, top:end] = scatter[top:end, :top].T
    return Moments(seen.num_examples, seen.mean, scatter)


def low_rank(batches: Iterable[np.ndarray], rank: int, seed: int = 0) -> LowRank:
    """Computes mean, leading eigenvectors and spectrum of the covariance in one pass over batches.

    This is a Nyström approximation from a random sketch `Y = Σ Ω` of twice the rank. It stores two
    arrays of D x 2k and never a D x D matrix.

    Args:
      batches: arrays [B, ...] of examples without augmentation, in [-1, 1].
      rank: number of directions `k`, at most D.
      seed: seed of the random test matrix `Ω`.

    Returns:
      The mean, the `k` leading directions with their variances, and the spectrum.

    Raises:
      ValueError: if there are no examples, one is not finite, or the rank is not from 1 to D.

    Reference: Tropp, Yurtsever, Udell and Cevher, "Fixed-rank approximation of a positive-
    semidefinite matrix from streaming data", NeurIPS 2017, algorithm 3.
    """
    sketch: np.ndarray | None = None
    for seen in _rows(batches):
        if sketch is None:
            size = seen.rows.shape[1]
            total = np.zeros(seen.event_shape)
            if not 1 <= rank <= size:
                raise ValueError(f"the rank must be from 1 to {size}, got {rank}")
            width = min(2 * rank + 10, size)
            test = np.random.default_rng(seed).standard_normal((size, width))
            sketch = np.zeros((size, width))
        projected = seen.rows @ test
        for top in range(0, len(sketch), _BLOCK):
            sketch[top : top + _BLOCK] += seen.rows[:, top : top + _BLOCK].T @ projected
        total += spectrum(seen.rows, seen.event_shape)
    if sketch is None:
        raise ValueError("a data-dependent prior needs at least one example, got none")
    sketch /= seen.num_examples
    directions, variances = _nystroem(sketch, test, rank)
    total /= seen.num_examples
    return LowRank(seen.num_examples, seen.mean, directions, variances, total)


def covariance_factor(covariance: np.ndarray, jitter: float = 1e-4) -> np.ndarray:
    """Returns the Cholesky factor of `Σ + jitter I`: `Σ` of eq. 8, and the authors' jitter.

    Args:
      covariance: `Σ`, [D, D].
      jitter: added to the diagonal, in the squared unit of the data.

    Returns:
      The lower triangular factor, [D, D], float32, computed in float64.

    Raises:
      ValueError: if the sum is not positive definite.
    """
    regularised = np.array(covariance, np.float64, order="F")
    regularised[np.diag_indices_from(regularised)] += jitter
    try:
        factor = linalg.cholesky(regularised, lower=True, overwrite_a=True)
    except linalg.LinAlgError:
        raise ValueError(
            f"the covariance plus {jitter:g} I is not positive definite; raise the jitter"
        ) from None
    return np.asarray(factor, np.float32, order="C")


def low_rank_factor(part: LowRank, jitter: float = 1e-4) -> tuple[np.ndarray, np.ndarray]:
    """Returns `F` and `s` such that `F Fᵀ + C diag(s²) Cᵀ` approximates `Σ + jitter I`.

    The columns of `C` are the cosines of the discrete cosine transform. The variance that the `k`
    directions do not explain is kept per cosine: `s²` is the spectrum of `Σ` less that of `F Fᵀ`,
    plus the jitter. Thus the sum has the spectrum of `Σ`, and the remainder of an image stays as
    smooth as images are, because the transform nearly decorrelates neighbouring pixels.

    Args:
      part: what `low_rank` returns.
      jitter: as for `covariance_factor`.

    Returns:
      `F`, [D, k] float32, and `s`, of the example's shape, float32, for the `factor` and
      `remainder_scale` of `priors.gaussian`.

    Reference: Ahmed, Natarajan and Rao, "Discrete cosine transform", 1974.
    """
    factor = part.directions * np.sqrt(part.variances)
    left = np.maximum(part.spectrum - spectrum(factor.T, part.spectrum.shape), 0.0)
    return factor.astype(np.float32), np.sqrt(left + jitter).astype(np.float32)


def spectrum(rows: np.ndarray, event_shape: tuple[int, ...]) -> np.ndarray:
    """Returns the diagonal of `rowsᵀ rows` in the basis of the cosines, of the event's shape."""
    return np.asarray(np.square(cosines(rows, event_shape)).sum(axis=0))


def cosines(rows: np.ndarray, event_shape: tuple[int, ...]) -> np.ndarray:
    """Returns the orthonormal discrete cosine transform of each row [D], [B, *event_shape]."""
    axes = range(1, len(event_shape) + 1)
    return np.asarray(fft.dctn(rows.reshape(-1, *event_shape), axes=axes, norm="ortho"))


def from_cosines(
    coefficients: np.ndarray, frequencies: np.ndarray, event_shape: tuple[int, ...]
) -> np.ndarray:
    """Returns the rows [B, D] that have coefficients only at some frequencies.

    Args:
      coefficients: of the transform that `cosines` computes, [B, R].
      frequencies: their positions in a flat example, [R].
      event_shape: that of an example.
    """
    all_of_them = np.zeros((len(coefficients), math.prod(event_shape)), coefficients.dtype)
    all_of_them[:, frequencies] = coefficients
    axes = range(1, len(event_shape) + 1)
    rows = fft.idctn(all_of_them.reshape(-1, *event_shape), axes=axes, norm="ortho")
    return np.asarray(rows).reshape(all_of_them.shape)


class _PartialMoments(NamedTuple):
    """Count and mean of all examples so far, and the latest batch's rows of the scatter matrix."""

    num_examples: int
    mean: np.ndarray
    rows: np.ndarray
    event_shape: tuple[int, ...]


def _rows(batches: Iterable[np.ndarray]) -> Iterator[_PartialMoments]:
    """Yields, for each batch of B examples, the B + 1 rows `v` whose `v vᵀ` sum to the scatter."""
    count, mean = 0, np.zeros(())
    for examples in batches:
        if not len(examples):
            continue
        x = np.asarray(examples, np.float64).reshape(len(examples), -1)
        if not np.isfinite(x).all():
            raise ValueError("the examples are not finite")
        rows = np.empty((len(x) + 1, x.shape[1]))
        batch_mean = x.mean(axis=0)
        np.subtract(x, batch_mean, out=rows[:-1])
        moved = batch_mean - mean
        rows[-1] = moved * np.sqrt(count * len(x) / (count + len(x)))
        mean = mean + moved * (len(x) / (count + len(x)))
        count += len(x)
        yield _PartialMoments(count, mean, rows, np.shape(examples)[1:])


def _nystroem(sketch: np.ndarray, test: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the leading eigenvectors and eigenvalues of the sketched matrix.

    Args:
      sketch: `Y = Σ Ω`, [D, width]; overwritten.
      test: `Ω`, [D, width]; overwritten.
      rank: number of eigenvectors, at most the width.
    """
    # A tiny multiple of the identity makes the core positive definite; it is subtracted later.
    shift = np.finfo(np.float64).eps * np.linalg.norm(sketch) * np.sqrt(len(sketch))
    core = test.T @ sketch + shift * (test.T @ test)
    root = _cholesky(0.5 * (core + core.T))
    test *= shift
    sketch += test
    for top in range(0, len(sketch), _BLOCK):
        block = sketch[top : top + _BLOCK]
        block[:] = linalg.solve_triangular(root, block.T, lower=True).T
    squares, rotation = np.linalg.eigh(sketch.T @ sketch)
    squares, rotation = squares[::-1][:rank], rotation[:, ::-1][:, :rank]
    tiny = np.finfo(np.float64).tiny
    directions = sketch @ (rotation / np.sqrt(np.maximum(squares, tiny)))
    return directions, np.maximum(squares - shift, 0.0)


def _cholesky(core: np.ndarray) -> np.ndarray:
    """Returns the Cholesky factor of a matrix that is positive definite up to rounding errors."""
    lift = np.finfo(np.float64).eps * max(float(np.trace(core)), np.finfo(np.float64).tiny)
    while True:
        try:
            return np.asarray(linalg.cholesky(core, lower=True))
        except linalg.LinAlgError:
            core = core + lift * np.eye(len(core))
            lift *= 10.0
