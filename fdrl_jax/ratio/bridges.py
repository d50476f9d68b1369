"""Waymarks: sets of examples between the numerator and the denominator.

A waymark at position `t` holds `cos(a) x + sin(a) y` with `a = π/2 t / LAST`, where `x` is of the
numerator and `y` of the denominator. Position 0 is the numerator, and `LAST` the denominator.
Positions are whole numbers, so that they can be divided without rounding.

Reference: Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["LAST", "Gaussians", "moments", "refine", "spread", "waymarks"]
__dir__ = __all__.copy

Array = jax.Array

LAST = 1024
# Below e^30, so that ratios of far sets and their squares are finite in float32.
_MAX_BASE = 30.0


class Gaussians(NamedTuple):
    """Gaussians with independent columns, one per waymark.

    Networks do not extrapolate from one waymark to the others, and the log-ratio of these Gaussians
    does. Networks only learn the difference.

    Attributes:
      mean: [W, ...].
      variance: [W, ...].
    """

    mean: Array
    variance: Array

    def log_density(self, x: Array) -> Array:
        """Returns log-densities of `x [W, B, ...]` or `[1, B, ...]`, up to a constant, [W, B]."""
        mean, variance = self.mean[:, None], self.variance[:, None]
        terms = (x - mean) ** 2 / variance + jnp.log(variance)
        return -0.5 * jnp.sum(terms.reshape(*terms.shape[:2], -1), axis=-1)

    def adjacent(self, waymarks: Array) -> tuple[Array, Array]:
        """Returns log-ratios of Gaussians `h` and `h + 1` on waymarks `h` and `h + 1`, [H, B]."""
        first, second = (
            Gaussians(self.mean[part], self.variance[part])
            for part in (slice(None, -1), slice(1, None))
        )
        upper, lower = (
            jnp.clip(first.log_density(x) - second.log_density(x), -_MAX_BASE, _MAX_BASE)
            for x in (waymarks[:-1], waymarks[1:])
        )
        return upper, lower

    def __call__(self, x: Array) -> Array:
        """Returns the log-ratio of the first Gaussian to the last one, `x [B, ...] -> [B]`."""
        densities = self.log_density(x[None])
        out: Array = densities[0] - densities[-1]
        return out


def refine(positions: tuple[int, ...], aucs: np.ndarray, max_auc: float) -> tuple[int, ...]:
    """Returns the positions with one more in the middle of each pair that is too far apart.

    Args:
      positions: the waymarks, increasing, [H + 1].
      aucs: area under the curve of each adjacent pair, [H].
      max_auc: pairs above it are divided.
    """
    pairs = zip(positions[:-1], positions[1:], aucs, strict=True)
    middles = {(a + b) // 2 for a, b, auc in pairs if auc > max_auc}
    return tuple(sorted({*positions, *middles}))


def spread(num_waymarks: int) -> tuple[int, ...]:
    """Returns equally spaced positions: both ends, and `num_waymarks` between them."""
    return tuple(int(p) for p in np.linspace(0, LAST, num_waymarks + 2).round())


def waymarks(top: Array, bottom: Array, mixed: Array, positions: Array) -> Array:
    """Returns examples of each waymark, [H + 1, B, ...].

    Args:
      top: examples of the numerator, [B, ...].
      bottom: examples of the denominator, [B, ...].
      mixed: which columns differ between numerator and denominator; the others are copied from the
        numerator (`x` of a mutual information), [...].
      positions: the waymarks, [H + 1].
    """
    cosine, sine = _shares(positions, top.ndim)
    return jnp.where(mixed, cosine * top + sine * bottom, top)


def moments(
    rows: tuple[Array, Array], weights: tuple[Array, Array], mixed: Array, positions: Array
) -> Gaussians:
    """Returns Gaussians with the means and variances of all waymarks, [H + 1, ...].

    Columns that are constant in a set have no density; there all Gaussians are equal.

    Args:
      rows: numerator [N, ...] and denominator [M, ...].
      weights: of the rows, with the sum 1.
      mixed: see `waymarks`.
      positions: the waymarks, [H + 1].
    """
    means = [jnp.tensordot(w, x, 1) for w, x in zip(weights, rows, strict=True)]
    variances = [
        jnp.tensordot(w, (x - mean) ** 2, 1)
        for w, x, mean in zip(weights, rows, means, strict=True)
    ]
    cosine, sine = _shares(positions, mixed.ndim)
    used = mixed & (variances[0] > 0.0) & (variances[1] > 0.0)
    mean = cosine * means[0] + sine * means[1]
    variance = cosine**2 * variances[0] + sine**2 * variances[1]
    return Gaussians(jnp.where(used, mean, 0.0), jnp.where(used, variance, 1.0))


def _shares(positions: Array, ndim: int) -> tuple[Array, Array]:
    """Returns the factors of numerator and denominator in waymarks, [H + 1, 1, ...] each."""
    positions = jnp.reshape(positions, (-1,) + (1,) * ndim)
    angle = positions * (jnp.pi / 2 / LAST)
    # The cosine of pi / 2 is not exactly 0 in float32.
    return jnp.where(positions == LAST, 0.0, jnp.cos(angle)), jnp.sin(angle)
