"""Optimal-transport distances between two samples, by OTT-JAX, in float32 on the device.

OTT-JAX is in the extra `metrics`. Importing it takes a second, so only the functions that use it
import it.
"""

import contextlib
import functools
import warnings
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fdrl_jax.metrics.rows import pair


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
      ValueError: for no points, or points with different numbers of features.
      ModuleNotFoundError: if OTT-JAX is not installed.

    Reference: Bonneel et al., "Sliced and Radon Wasserstein Barycenters of Measures", 2015.
    """
    with jax.default_matmul_precision("highest"):  # By default, accelerators round to fewer bits.
        squared = float(_sliced(*_on_device(x, y), num_projections, jax.random.key(seed)))
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
      ValueError: for no points, points with different numbers of features, or if Sinkhorn's
        algorithm does not converge.
      ModuleNotFoundError: if OTT-JAX is not installed.

    Reference: Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn
    Divergences", AISTATS 2019.
    """
    with jax.default_matmul_precision("highest"):
        value, converged = _sinkhorn(*_on_device(x, y), epsilon, max_iterations)
    if not converged:
        raise ValueError(
            f"Sinkhorn's algorithm did not converge in {max_iterations:,} iterations; "
            f"raise max_iterations or epsilon (now {epsilon:g})"
        )
    return float(value)


@functools.partial(jax.jit, static_argnums=2)
def _sliced(x: jax.Array, y: jax.Array, num_projections: int, key: jax.Array) -> jax.Array:
    with _ott_imported():
        from ott.tools import sliced
    value: jax.Array
    value, _ = sliced.sliced_wasserstein(x, y, n_proj=num_projections, rng=key)
    return value


@functools.partial(jax.jit, static_argnums=3)
def _sinkhorn(
    x: jax.Array, y: jax.Array, epsilon: float, max_iterations: int
) -> tuple[jax.Array, jax.Array]:
    with _ott_imported():
        from ott.tools import sinkhorn_divergence as divergences
    options = {"max_iterations": max_iterations}
    value, out = divergences.sinkdiv(x, y, epsilon=epsilon, solve_kwargs=options)
    return value, jnp.all(jnp.asarray(out.converged))


def _on_device(x: np.ndarray, y: np.ndarray) -> tuple[jax.Array, jax.Array]:
    # Centred before the conversion to float32, for precision; a common shift changes no distance.
    x, y = pair(x, y, 1)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


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
