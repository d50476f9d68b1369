"""The Fréchet distance between two sets of features."""

import numpy as np

from fdrl_jax.metrics.rows import pair


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the squared Fréchet distance between Gaussians fitted to two sets of features.

    `|μ_x - μ_y|² + tr(Σ_x + Σ_y - 2 (Σ_x Σ_y)^(1/2))`.

    Args:
      x: features, [N, D].
      y: features, [M, D]. The estimate is biased upwards unless there are many more examples than
        features, so compare values only at equal N.

    Returns:
      The squared distance, in the squared unit of the features, with unbiased covariances
      (1 / (N - 1)).

    Raises:
      ValueError: for different numbers of features, or fewer than two examples.

    Reference: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017.
    """
    x, y = pair(x, y, 2)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")  # The decomposition would fail.
    # If Σ = RᵀR, the eigenvalues of Σx Σy are the squares of the singular values of Rx Ryᵀ. These
    # are accurate, and cheap to compute, also for fewer examples than features.
    root_x, root_y = _root(x), _root(y)
    cross = np.linalg.svd(root_x @ root_y.T, compute_uv=False)
    gap = x.mean(axis=0) - y.mean(axis=0)
    return float(gap @ gap + np.sum(root_x**2) + np.sum(root_y**2) - 2.0 * np.sum(cross))


def _root(x: np.ndarray) -> np.ndarray:
    """Returns a triangular `R` with the covariance `Rᵀ R` of examples, [min(N, D), D]."""
    return np.asarray(np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), mode="r"))
