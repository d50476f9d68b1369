"""Distances of optimal transport between two samples, by OTT-JAX, in float32 on the device.

OTT-JAX is the extra `metrics`. It needs a second to import, so only the functions that use it do.
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
      y: another one, [M, ...].
      num_projections: directions θ, uniform on the sphere.
      seed: of the directions: the same for the same seed, so that values can be compared.

    Returns:
      The distance between the two sets of points, in the unit of the data: never negative, and
      above 0 also for two sets from one distribution.

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

    `S_ε(x, y) = OT_ε(x, y) - OT_ε(x, x)/2 - OT_ε(y, y)/2`: 0 for equal sets; the squared
    2-Wasserstein distance for ε → 0. For a set and the same one shifted by m it is `|m|²` at any ε.

    Args:
      x: a sample, [N, ...]. Time and memory grow with N M.
      y: another one, [M, ...].
      epsilon: strength of the entropic regularisation, in the squared unit of the data. Values
        compare at one ε alone.
      max_iterations: of Sinkhorn's algorithm; more are needed for a small ε.

    Returns:
      The divergence, in the squared unit of the data.

    Raises:
      ValueError: for points with different numbers of features, or if the iterations did not
        suffice.
      ModuleNotFoundError: if OTT-JAX is not installed.

    Reference: Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn
    Divergences", AISTATS 2019.
    """
    value, converged = _sinkhorn(max_iterations)(*_pair(x, y), epsilon)
    if not converged:
        raise ValueError(
            f"Sinkhorn's algorithm did not converge in {max_iterations:,} iterations; "
            f"take more of them or an epsilon above {epsilon:g}"
        )
    return float(value)


@functools.cache  # One compiled program, and not one a call.
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
    # Centred together before float64 becomes float32: transport ignores a common shift.
    centre = y.mean(axis=0)
    return jnp.asarray(x - centre, jnp.float32), jnp.asarray(y - centre, jnp.float32)


@contextlib.contextmanager
def _ott_imported() -> Iterator[None]:
    """Explains how to install OTT, and hides the warning that JAXopt, which it uses, has ended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "JAXopt is no longer", DeprecationWarning)
        try:
            yield
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "distances of optimal transport need OTT-JAX. Install it: pip install ott-jax",
                name=error.name,
            ) from error
