"""Fits a mixture of Gaussians to examples, in float64 on the host.

The scatter matrix is a sum of `v vᵀ` over rows `v`. Each batch contributes its centred examples and
one more row that accounts for the change of the mean (Chan, Golub and LeVeque, "Updating formulae
and a pairwise algorithm for computing sample variances", 1979). This avoids both cancellation and a
second pass.
"""

import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy import fft, linalg
from scipy.cluster.vq import kmeans2

_BLOCK = 1_024  # Rows of a D x D matrix per block.
_BATCH = 1_000  # Examples per batch.
_NUM_DIRECTIONS = 50  # Distances between examples are computed in these directions.
_NUM_ROUNDS = 30  # Rounds of k-means.
_DEFAULT_RANK, _CLUSTER_RANK, _CLASS_RANK = 512, 50, 100
# Up to 64 x 64 x 3 the full covariance is used, whose factor needs at most 604 MB.
MAX_EXACT_SIZE = 12_288
# Limits of an automatic number of clusters. With fewer examples in each, samples of the prior are
# too similar to the training data, and sets of fewer clusters gain little from them.
_EXAMPLES_PER_CLUSTER, _MIN_CLUSTERS, _MAX_CLUSTERS = 70, 30, 100

Fitted = dict[str, np.ndarray]  # The arrays of `priors.mixture`.


def choose(
    num_examples: int,
    size: int,
    *,
    num_components: int | None,
    rank: int | None,
    num_classes: int | None = None,
) -> tuple[int, int]:
    """Returns the number of Gaussians (of each class) and their rank, 0 for a full covariance.

    `None` chooses components by the number of examples, with a factor at most as large as that of
    the largest full covariance, and ranks of at most half of the examples per component.
    """
    if rank is not None and not 1 <= rank <= size:
        raise ValueError(f"the rank must be from 1 to {size}, the size of an example, got {rank}")
    num_sets = num_classes or 1
    if num_components is None:
        largest = MAX_EXACT_SIZE**2 // ((rank or min(_CLUSTER_RANK, size)) * size)
        found = min(num_examples // _EXAMPLES_PER_CLUSTER, _MAX_CLUSTERS, largest)
        num_components = max(found // num_sets, 1) if found >= _MIN_CLUSTERS else 1
    if num_components > 1:
        # Generated points have no number of examples.
        half = max(num_examples // (2 * num_components * num_sets), 1) if num_examples else size
        return num_components, rank or min(_CLUSTER_RANK, size, half)
    if num_classes:
        return 1, rank or min(_CLASS_RANK, size)
    return 1, rank or (0 if size <= MAX_EXACT_SIZE else _DEFAULT_RANK)


def fit_one(examples: Iterable[np.ndarray], rank: int, jitter: float) -> Fitted:
    """Fits one Gaussian to batches of examples in one pass; a rank of 0 is exact."""
    if rank:
        return _joined([low_rank(examples, rank)], np.ones(1), jitter)
    rows, first = iter(examples), list[np.ndarray]()
    while not first or sum(map(len, first)) < math.prod(first[0].shape[1:]):
        if (batch := next(rows, None)) is None:
            return _of_few(first, jitter)
        first.append(np.asarray(batch))
    num, mean, scatter = moments(itertools.chain(first, rows))
    first.clear()  # Frees memory for the decomposition.
    covariance = np.array(scatter / num, order="F")
    covariance[np.diag_indices_from(covariance)] += jitter
    try:
        factor = linalg.cholesky(covariance, lower=True, overwrite_a=True)
    except linalg.LinAlgError:
        raise ValueError(
            f"the covariance plus {jitter:g} I is not positive definite; raise the jitter"
        ) from None
    factor = np.asarray(factor, np.float32, order="C")
    return {"weights": np.ones(1), "mean": mean[None], "factor": factor}


def fit_mixture(
    examples: np.ndarray,
    num_components: int,
    rank: int,
    jitter: float,
    labels: np.ndarray | None = None,
) -> Fitted:
    """Fits a Gaussian of a rank to each cluster of the examples, or of those of each class."""
    components = clusters(examples, num_components, labels)
    counts = np.bincount(components)
    weights = counts / len(examples)
    if labels is not None:
        of_classes = np.bincount(labels)
        weights = np.zeros((len(of_classes), len(counts)))
        np.add.at(weights, (labels, components), 1.0)
        weights /= of_classes[:, None]
    sets = (examples[components == number] for number in range(len(counts)))
    return _joined([low_rank(batches(own), rank) for own in sets], weights, jitter)


def clusters(examples: np.ndarray, num: int, labels: np.ndarray | None = None) -> np.ndarray:
    """Assigns examples to clusters: k-means in the leading 50 principal directions of the data.

    With labels, each class has clusters of its own. Clusters without examples are left out.

    Reference: Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.
    """
    if labels is not None:
        found, first = np.zeros(len(examples), np.int32), 0
        for own in (np.flatnonzero(labels == label) for label in np.unique(labels)):
            found[own] = first + clusters(examples[own], min(num, len(own)))
            first = int(found[own].max()) + 1
        return found
    if not 1 <= num <= len(examples):
        raise ValueError(f"the number of components must be from 1 to {len(examples)}, got {num}")
    if num == 1:
        return np.zeros(len(examples), np.int32)
    rows = examples.reshape(len(examples), -1)
    part = low_rank(batches(examples), min(_NUM_DIRECTIONS, rows.shape[1]))
    projected = np.concatenate([(batch - part.mean) @ part.directions for batch in batches(rows)])
    # The choice of centres fails if there are fewer different examples than clusters.
    num_centres = min(num, len(np.unique(projected, axis=0)))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        _, found = kmeans2(
            projected, num_centres, _NUM_ROUNDS, minit="++", seed=np.random.default_rng(0)
        )
    return np.unique(found, return_inverse=True)[1].astype(np.int32)


class LowRank(NamedTuple):
    """The leading eigenvectors of a covariance that is never formed.

    The spectrum is exact: the variance of each coefficient of the orthonormal discrete cosine
    transform over all axes. Its sum is the trace of the covariance.
    """

    mean: np.ndarray  # [D]
    directions: np.ndarray  # [D, k], by decreasing variance; orthonormal where there is one.
    variances: np.ndarray  # [k]
    spectrum: np.ndarray  # It has the shape of an example.


def low_rank(examples: Iterable[np.ndarray], rank: int) -> LowRank:
    """Computes the moments in one pass, from a sketch of twice the rank: two arrays of D x 2k.

    Reference: Tropp, Yurtsever, Udell and Cevher, "Fixed-rank approximation of a positive-
    semidefinite matrix from streaming data", NeurIPS 2017, algorithm 3.
    """
    rows = _rows(examples)
    first = next(rows)
    size = first.rows.shape[1]
    width = min(2 * rank + 10, size)
    test = np.random.default_rng(0).standard_normal((size, width))
    sketch, total = np.zeros((size, width)), np.zeros(first.event_shape)
    for seen in itertools.chain([first], rows):
        projected = seen.rows @ test
        for top in range(0, len(sketch), _BLOCK):
            sketch[top : top + _BLOCK] += seen.rows[:, top : top + _BLOCK].T @ projected
        total += _spectrum(seen.rows, seen.event_shape)
    sketch /= seen.num_examples
    directions, variances = _nystroem(sketch, test, rank)
    return LowRank(seen.mean, directions, variances, total / seen.num_examples)


def moments(examples: Iterable[np.ndarray]) -> tuple[int, np.ndarray, np.ndarray]:
    """Returns N, mean [D] and the lower triangle of `Σ (x - μ)(x - μ)ᵀ` [D, D], in one pass."""
    rows = _rows(examples)
    first = next(rows)
    size = first.rows.shape[1]
    scatter = np.zeros((size, size))
    for seen in itertools.chain([first], rows):
        for top in range(0, size, _BLOCK):
            end = min(top + _BLOCK, size)
            scatter[top:end, :end] += seen.rows[:, top:end].T @ seen.rows[:, :end]
    return seen.num_examples, seen.mean, scatter


def from_cosines(
    coefficients: np.ndarray, frequencies: np.ndarray, event_shape: tuple[int, ...]
) -> np.ndarray:
    """Returns the rows [B, D] whose cosine transform has coefficients [B, R] at frequencies [R]."""
    all_of_them = np.zeros((len(coefficients), math.prod(event_shape)), coefficients.dtype)
    all_of_them[:, frequencies] = coefficients
    axes = range(1, len(event_shape) + 1)
    rows = fft.idctn(all_of_them.reshape(-1, *event_shape), axes=axes, norm="ortho")
    return np.asarray(rows).reshape(all_of_them.shape)


def _of_few(examples: list[np.ndarray], jitter: float) -> Fitted:
    """Fits fewer examples than their size: their covariance is `Rᵀ R / N`, with the `R` of QR."""
    *_, (num, mean, _, event_shape) = _rows(examples)
    x = np.concatenate(examples).astype(np.float64).reshape(num, -1) - mean
    upper = linalg.qr(x, mode="r", overwrite_a=True)[0] / math.sqrt(num)
    factor = np.asarray(upper.T, np.float32, order="C")
    # White noise is white in the basis of the cosines, too.
    scale = np.full((1, *event_shape), math.sqrt(jitter), np.float32)
    params = {"weights": np.ones(1), "mean": mean[None], "factor": factor}
    return {**params, "remainder_scale": scale}


def _joined(parts: Sequence[LowRank], weights: np.ndarray, jitter: float) -> Fitted:
    """Returns `F` and `s` of each part such that `F Fᵀ + C diag(s²) Cᵀ` is about `Σ + jitter I`.

    `s²` is the spectrum of `Σ` less that of `F Fᵀ`, plus the jitter. So the remainder of an image
    stays as smooth as images are, because cosines nearly decorrelate neighbouring pixels.

    Reference: Ahmed, Natarajan and Rao, "Discrete cosine transform", 1974.
    """
    factors, scales = list[np.ndarray](), list[np.ndarray]()
    for part in parts:
        factor = part.directions * np.sqrt(part.variances)
        left = np.maximum(part.spectrum - _spectrum(factor.T, part.spectrum.shape), 0.0)
        factors.append(factor.astype(np.float32))
        scales.append(np.sqrt(left + jitter).astype(np.float32))
    return {
        "weights": weights,
        "mean": np.stack([part.mean for part in parts]),
        "factor": np.concatenate(factors, axis=1),
        "remainder_scale": np.stack(scales),
    }


def _spectrum(rows: np.ndarray, event_shape: tuple[int, ...]) -> np.ndarray:
    """Returns the diagonal of `rowsᵀ rows` in the basis of the cosines, of the event's shape."""
    axes = range(1, len(event_shape) + 1)
    coefficients = fft.dctn(rows.reshape(-1, *event_shape), axes=axes, norm="ortho")
    return np.asarray(np.square(coefficients).sum(axis=0))


class _PartialMoments(NamedTuple):
    """Count and mean of all examples so far, and the latest batch's rows of the scatter matrix."""

    num_examples: int
    mean: np.ndarray
    rows: np.ndarray
    event_shape: tuple[int, ...]


def _rows(examples: Iterable[np.ndarray]) -> Iterator[_PartialMoments]:
    """Yields, for each batch of B examples, the B + 1 rows `v` whose `v vᵀ` sum to the scatter."""
    count, mean = 0, np.zeros(())
    for batch in examples:
        if not len(batch):
            continue
        x = np.asarray(batch, np.float64).reshape(len(batch), -1)
        if not np.isfinite(x).all():
            raise ValueError("the examples are not finite")
        rows = np.empty((len(x) + 1, x.shape[1]))
        batch_mean = x.mean(axis=0)
        np.subtract(x, batch_mean, out=rows[:-1])
        moved = batch_mean - mean
        rows[-1] = moved * np.sqrt(count * len(x) / (count + len(x)))
        mean = mean + moved * (len(x) / (count + len(x)))
        count += len(x)
        yield _PartialMoments(count, mean, rows, np.shape(batch)[1:])
    if not count:
        raise ValueError("a data-dependent prior needs at least one example, got none")


def _nystroem(sketch: np.ndarray, test: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the leading eigenvectors and eigenvalues of `Σ`; overwrites `Σ Ω` and `Ω`."""
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


def batches(examples: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the examples in batches."""
    for first in range(0, len(examples), _BATCH):
        yield examples[first : first + _BATCH]
