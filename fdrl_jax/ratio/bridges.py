"""Waymarks: sets of examples between the numerator and the denominator.

A waymark at position `t` holds `cos(a) x + sin(a) y` with `a = π/2 t / LAST`, where `x` is of the
numerator and `y` of the denominator. Position 0 is the numerator, and `LAST` the denominator.
Positions are whole numbers, so that they can be divided without rounding.

Reference: Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
Bridge = Literal["none", "mixing"]

LAST = 1024


class Samples(NamedTuple):
    """The examples of a fit, in standardised features.

    Attributes:
      numerator: [N, ...].
      denominator: [M, ...].
      mixed: which features differ between numerator and denominator; the others are copied from
        the numerator (`x` of a mutual information), [...].
    """

    numerator: Array
    denominator: Array
    mixed: Array


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


def waymarks(samples: Samples, positions: Array, rows: Array, shift: Array) -> Array:
    """Returns examples of each waymark, [H + 1, B, ...].

    Args:
      samples: numerator and denominator.
      positions: the waymarks, [H + 1].
      rows: which examples, [B].
      shift: added to the rows of the denominator, [B], at least 1. In a mutual information, a pair
        of the denominator is then never one of the numerator.
    """
    top = samples.numerator[rows % len(samples.numerator)]
    bottom = samples.denominator[(rows + shift) % len(samples.denominator)]
    positions = jnp.reshape(positions, (-1,) + (1,) * top.ndim)
    angle = positions * (jnp.pi / 2 / LAST)
    # The cosine of pi / 2 is not exactly 0 in float32.
    cosine = jnp.where(positions == LAST, 0.0, jnp.cos(angle))
    return jnp.where(samples.mixed, cosine * top + jnp.sin(angle) * bottom, top)


def denominator(samples: Samples) -> Array:
    """Returns the examples of the denominator, [M, ...], with copied features."""
    rows = jnp.arange(len(samples.denominator))
    return waymarks(samples, jnp.asarray([LAST]), rows, jnp.ones_like(rows))[0]
