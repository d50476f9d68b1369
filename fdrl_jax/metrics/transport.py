"""Optimal-transport distances between two samples, by OTT-JAX, in float32 on the device.

OTT-JAX is in the extra `metrics`. Importing it takes a second, so only the functions that use it
import it.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fdrl_jax.metrics.rows import flat


def sliced_wasserstein(
    x: np.ndarray, y: np.ndarray, *, num_projections: int = 128, seed: int = 0
) -> float:
    """Estimates the sliced 2-Wasserstein distance, `(E_θ W₂²(⟨θ, X⟩, ⟨θ, Y⟩))^(1/2)`.

    Args:
      x: a sample, [N, ...].
      y: another sample, [M, ...].
      num_projections: number of directions θ, uniform on the sphere.
      seed: seed of the directions. Use the same seed for values that you compare.

    Returns:
      The distance between the two sets of points, in the unit of the data. It is positive even for
      two samples from one distribution.

    Raises:
      ValueError: for points with different numbers of features.
      ModuleNotFoundError: if OTT-JAX is not installed.

    Reference: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures", 2015.
    """
    squared = float(_sliced(num_projections)(*_pair(x, y), jax.random.key(seed)))
    return float(np.sqrt(max(squared, 0.0)))


def sinkhorn_divergence(
    x: np.ndarray, y: np.ndarray, *, epsilon: float, max_iterations: int = 10_000
) -> float:
    """Computes the Sinkhorn divergence with squared distances as cost.

    `S_ε(x, y) = OT_ε(x, y) - OT_ε(x, x)/2 - OT_ε(y, y)/2`. It is 0 for equal sets and tends to the
    squared 2-Wasserstein distance as ε → 0. Between a set and its translation by m it is `|m|²` for
    every ε.

    Args:
      x: a sample, [N, ...]. Time and memory grow with N M.
      y: another sample, [M, ...].
      epsilon: strength of the entropic regularisation, in the squared unit of the data. Values for
        different ε are not comparable.
      max_iterations: iterations of Sinkhorn's algorithm; a small ε needs more.

    Returns:
      The divergence, in the squared unit of the data.

    Raises:
      ValueError: for points with different numbers of features, or if Sinkhorn's algorithm does not
        converge.
      ModuleNotFoundError: if OTT-JAX is not installed.

    Reference: Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn
    Divergences", AISTATS 2019.
    """
    value, converged = _sinkhorn(max_iterations)(*_pair(x, y), epsilon)
    if not converged:
        raise ValueError(
            f"Sinkhorn's algorithm did not converge in {max_iterations:,} iterations; "
            f"raise max_iterations or epsilon (now {epsilon:g})"
        )
    return float(value)


@functools.cache  # One compiled program, not one per call.
def _sliced(num_projections: int) -> Callable[..., jax.Array]:
    with _ott_imported():
        from ott.tools import sliced

    @jax.jit
    def squared(x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        value: jax.Array
        value, _ = sliced.sliced_wasserstein(x, y, n_proj=num_projections, rng=key)
        return value

    return squared


@functools.cache
def _sinkhorn(max_iterations: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
    with _ott_imported():
        from ott.tools import sinkhorn_divergence as divergences

    @jax.jit
    def both(x: jax.Array, y: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
        options = {"max_iterations": max_iterations}
        value, out = divergences.sinkdiv(x, y, epsilon=epsilon, solve_kwargs=options)
        return value, jnp.all(jnp.asarray(out.converged))

    return both


def _pair(x: np.ndarray, y: np.ndarray) -> tuple[jax.Array, jax.Array]:
    x, y = flat(x), flat(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must have the same number of features, got {x.shape} and {y.shape}"
        )
    # Centred before the conversion to float32, for precision; a common shift changes no distance.
    centre = y.mean(axis=0)
    return jnp.asarray(x - centre, jnp.float32), jnp.asarray(y - centre, jnp.float32)


@contextlib.contextmanager
def _ott_imported() -> Iterator[None]:
    """Explains how to install OTT-JAX, and hides a deprecation warning of JAXopt, which it uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "JAXopt is no longer", DeprecationWarning)
        try:
            yield
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "optimal-transport distances need OTT-JAX. Install it with: pip install ott-jax",
                name=error.name,
            ) from error
