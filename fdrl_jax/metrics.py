"""Distances between samples and data, for evaluation and not for training."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fdrl_jax._checks import check_images

__all__ = [
    "EnergyRatio",
    "energy_distance",
    "energy_ratio",
    "frechet_distance",
    "mean_distance",
    "random_conv_features",
]
__dir__ = __all__.copy

_ROWS = 1_000  # A block of 1,000 x 10,000 distances needs 80 MB.
_FEW_FEATURES = 8  # Up to this number, differences are faster than a matrix product.
_COINCIDENT = 1e-13  # Squared distances below this share of the squared norms are rounding errors.
_NUM_SPLITS, _MAX_SPLIT_POINTS = 1_000, 1_000
_WIDTHS = (64, 32, 16)  # Channels after each convolution of the random features.
_GRID = 2  # Cells per side over which the last channels are averaged.
_SIDE = 32  # Pixels; images whose shorter side is at least twice this are averaged down towards it.
_IMAGES = 256  # Per batch.


class EnergyRatio(NamedTuple):
    """The ratio, with expectation 1 for true data, and the 5% and 95% quantiles of true data."""

    value: float
    low: float
    high: float


def energy_distance(x: np.ndarray, y: np.ndarray, *, unbiased: bool = True) -> float:
    """Estimates the squared energy distance `2 E|X - Y| - E|X - X'| - E|Y - Y'|`.

    It is computed in float64 on the default device, in blocks, so memory grows only with M and D.

    Args:
      x: a sample, [N, ...].
      y: another sample, [M, ...].
      unbiased: exclude the distances of points to themselves (the U-statistic), so an estimate may
        be negative. The expectation of the biased V-statistic is `E|X - X'| (1/N + 1/M)` for equal
        distributions.

    Raises:
      ValueError: for fewer than two points, or points with different numbers of features.

    Reference: Székely and Rizzo, "Energy statistics", 2013.
    """
    x, y = _pair(x, y)
    n, m, fewer = len(x), len(y), int(unbiased)
    within = _sum_distances(x, x) / (n * (n - fewer)) + _sum_distances(y, y) / (m * (m - fewer))
    return 2.0 * _sum_distances(x, y) / (n * m) - within


def mean_distance(x: np.ndarray, y: np.ndarray | None = None) -> float:
    """Returns the mean distance `E|X - Y|` between two samples, or `E|X - X'|` within one."""
    first, second = _pair(x, x if y is None else y)
    num_second = len(second) - 1 if y is None else len(second)
    return _sum_distances(first, second) / (len(first) * num_second)


def energy_ratio(samples: np.ndarray, data: np.ndarray) -> EnergyRatio:
    """Divides the energy distance of samples [N, ...] to data [M, ...] by that of true data.

    The data are independent of the samples, such as a held-out part. The numerator is the biased
    estimate (the V-statistic). The denominator is its expectation for true data, `E|Y - Y'| (1/N +
    1/M)`, with the mean distance within the data. The same deviation gives a larger ratio with more
    samples. For large N and M, the distribution of the ratio of true data depends on neither, so
    its quantiles are those of 1,000 random splits of (at most 1,000 of) the data into halves.

    Raises:
      ValueError: for fewer than two points, different numbers of features, or data that coincide.
    """
    samples, data = _pair(samples, data)
    n, m = len(samples), len(data)
    expected = mean_distance(data) * (1 / n + 1 / m)
    if expected == 0.0:
        raise ValueError("all points of the data coincide, so there is no distance to compare with")
    rng = np.random.default_rng(0)
    half = min(m, _MAX_SPLIT_POINTS) // 2
    points = rng.permutation(data)[: 2 * half]
    signs = rng.permuted(np.tile(np.repeat([1.0, -1.0], half), (_NUM_SPLITS, 1)), axis=1)
    with jax.enable_x64(True):
        ratios = np.asarray(_split_ratios(jnp.asarray(points), jnp.asarray(signs)))
    low, high = np.quantile(ratios, (0.05, 0.95))
    distance = energy_distance(samples, data, unbiased=False)
    return EnergyRatio(distance / expected, float(low), float(high))


def _sum_distances(x: np.ndarray, y: np.ndarray) -> float:
    with jax.enable_x64(True):
        return float(_sum(jnp.asarray(x), jnp.asarray(y)))


@jax.jit
def _sum(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.sum(lax.map(lambda row: _distances(row[None], y).sum(), x, batch_size=_ROWS))


@jax.jit
def _split_ratios(points: jax.Array, signs: jax.Array) -> jax.Array:
    """Returns the ratio for splits [S, 2 H] into two halves of H points, marked by 1 and -1."""
    half = len(points) // 2
    distances = _distances(points, points)
    # 2 mean(A, B) - mean(A, A) - mean(B, B) as a quadratic form in the signs.
    energies = -jnp.sum((signs @ distances) * signs, axis=1) / half**2
    mean_distance = jnp.sum(distances) / (2 * half * (2 * half - 1))
    return energies / (mean_distance * 2.0 / half)


@jax.jit
def _distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the distances [N, M] of points [N, D] and [M, D], without an array of N x M x D."""
    if x.shape[1] <= _FEW_FEATURES:
        gaps = (x[:, i, None] - y[:, i] for i in range(x.shape[1]))
        return jnp.sqrt(sum((gap**2 for gap in gaps), jnp.zeros((len(x), len(y)), x.dtype)))
    norms = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)
    squares = norms - 2.0 * jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)
    return jnp.sqrt(jnp.where(squares <= _COINCIDENT * norms, 0.0, squares))


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the squared Fréchet distance between Gaussians fitted to two sets of features.

    `|μ_x - μ_y|² + tr(Σ_x + Σ_y - 2 (Σ_x Σ_y)^(1/2))` of features [N, D] and [M, D], with unbiased
    covariances. It is biased upwards unless there are many more examples than features, so compare
    values only at equal N.

    Raises:
      ValueError: for different numbers of features, or fewer than two examples.

    Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017.
    """
    x, y = _pair(x, y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")  # The decomposition would fail.
    # If Σ = RᵀR, the eigenvalues of Σx Σy are the squares of the singular values of Rx Ryᵀ. These
    # are accurate, and cheap to compute, also for fewer examples than features.
    root_x, root_y = (
        np.asarray(np.linalg.qr((a - a.mean(axis=0)) / np.sqrt(len(a) - 1), mode="r"))
        for a in (x, y)
    )
    cross = np.linalg.svd(root_x @ root_y.T, compute_uv=False)
    gap = x.mean(axis=0) - y.mean(axis=0)
    return float(gap @ gap + np.sum(root_x**2) + np.sum(root_y**2) - 2.0 * np.sum(cross))


def random_conv_features(images: np.ndarray) -> np.ndarray:
    """Maps images to the pooled responses of fixed random filters, float32 [N, 64].

    Three 3x3 convolutions to 64, 32 and 16 channels, with ReLU and He-normal filters, are averaged
    over each quarter of the image. They respond to edges, strokes and texture, not to objects, so
    use them to rank samples of one data set. A few hundred images suffice for their covariance.
    Images of more than 63 pixels on the shorter side are first averaged over squares of pixels.

    Args:
      images: [N, H, W, C] floating-point numbers in [-1, 1], else clipped; H and W at least 2.

    Raises:
      ValueError: for an array of another shape, or of integers.

    Reference: Saxe et al., "On Random Weights and Unsupervised Feature Learning", ICML 2011.
    """
    images = np.asarray(images)
    if images.ndim != 4 or min(images.shape[1:3]) < _GRID:
        raise ValueError(f"expected images [N, H, W, C] of at least 2 x 2, got {images.shape}")
    check_images("images", images)
    features = np.array(_features(np.clip(images.astype(np.float32), -1.0, 1.0)))
    # On CPUs, the ReLU of XLA may return 0 for NaN.
    features[np.isnan(images).any(axis=(1, 2, 3))] = np.nan
    return features


@jax.jit
def _features(images: jax.Array) -> jax.Array:
    factor = max(1, min(images.shape[1:3]) // _SIDE)
    rows, columns = (length // factor for length in images.shape[1:3])
    images = _means(images[:, : rows * factor, : columns * factor], rows, columns)
    # NumPy guarantees the stream of RandomState for ever, but not that of its newer generators.
    rng, filters, channels = np.random.RandomState(0), [], images.shape[-1]
    for width in _WIDTHS:
        kernel = np.sqrt(2.0 / (9 * channels)) * rng.standard_normal((3, 3, channels, width))
        filters.append(jnp.asarray(kernel, jnp.float32))
        channels = width

    def of_image(image: jax.Array) -> jax.Array:
        maps = image[None]
        for kernel in filters:
            # By default, TPUs would round to bfloat16 and GPUs to TF32.
            maps = lax.conv_general_dilated(
                *(maps, kernel, (1, 1), "SAME"),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=lax.Precision.HIGHEST,
            )
            maps = jax.nn.relu(maps)
        return _means(maps, _GRID, _GRID).ravel()

    features: jax.Array = lax.map(of_image, images, batch_size=_IMAGES)
    return features


def _means(images: jax.Array, rows: int, columns: int) -> jax.Array:
    """Means over equal cells; rows and columns of pixels that do not fill a cell are dropped."""
    num, height, width, channels = images.shape
    height, width = height // rows, width // columns
    cells = images[:, : rows * height, : columns * width]
    return cells.reshape(num, rows, height, columns, width, channels).mean(axis=(2, 4))


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows [N, D] and [M, D], less the mean of `y`, which makes rounding errors smaller."""
    shapes = np.shape(x), np.shape(y)
    # Before they are flattened: [N, 2, 3] and [M, 3, 2] have equally many features.
    if min(len(x), len(y)) < 2 or shapes[0][1:] != shapes[1][1:]:
        raise ValueError(
            "both samples must have at least 2 points and the same features, "
            f"got {shapes[0]} and {shapes[1]}"
        )
    x, y = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, y))
    centre = y.mean(axis=0)
    return x - centre, y - centre
