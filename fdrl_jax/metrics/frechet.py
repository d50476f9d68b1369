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
    cov_x, cov_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cov_x, cov_y = np.atleast_2d(cov_x), np.atleast_2d(cov_y)
    # Σx Σy has the eigenvalues of the symmetric Σx^½ Σy Σx^½, which needs no complex square root.
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.clip(values, 0.0, None))) @ vectors.T
    cross = np.linalg.eigvalsh(root @ cov_y @ root)
    gap = x.mean(axis=0) - y.mean(axis=0)
    return float(
        gap @ gap
        + np.trace(cov_x)
        + np.trace(cov_y)
        - 2.0 * np.sum(np.sqrt(np.clip(cross, 0.0, None)))
    )
