"""The density of samples that a flow without noise moves (change of variables)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fdrl_jax._arrays import as_floating

__all__ = ["LogDensity", "log_density"]
__dir__ = __all__.copy

Array = jax.Array
_MAX_FEATURES = 64  # Exact Jacobians cost D passes, and their determinants D^3.
_NEWTON_STEPS, _MAX_RESIDUAL = 8, 1e-2


class LogDensity(NamedTuple):
    """Log-densities at points, [B] each; NaN where the flow is not invertible.

    Attributes:
      flowed: `log q~(x)`, the density of the flowed samples.
      data: `log q~(x) - log r(x)`, the density of the data according to the ratio.
      largest_eigenvalue: the largest eigenvalue of `η H` along the path; steps fold from 1 on.
      residual: the largest distance between a point and the image of its computed origin.
      start: the origins of the points in the prior, [B, D].
    """

    flowed: Array
    data: Array
    largest_eigenvalue: Array
    residual: Array
    start: Array


def log_density(
    x: Array,
    potential_fn: Callable[[Array], Array],
    log_ratio_fn: Callable[[Array], Array],
    prior_log_density: Callable[[Array], Array],
    *,
    num_steps: int,
    step_size: float,
) -> LogDensity:
    """Returns log-densities from a flow without noise, `x_{k+1} = x_k - η ∇φ(x_k)`.

    The flow is run backwards with Newton's method, and
    `log q~(x_K) = log q'(x_0) - Σ_k log |det(I - η H(x_k))|` with the Hessian `H` of `φ`. Then
    `log p = log q~ - log r` with `r = q~/p`. Call it inside `jax.jit`.

    Args:
      x: points, [B, D], with D at most 64.
      potential_fn: `φ`, `[B, D] -> [B]`, twice differentiable.
      log_ratio_fn: `log r`, flowed samples over data, `[B, D] -> [B]`.
      prior_log_density: `log q'`, `[B, D] -> [B]`.
      num_steps: the number of steps of the flow.
      step_size: `η`.

    Raises:
      ValueError: for points or results of functions with other shapes.

    Reference: Behrmann et al., "Invertible Residual Networks", ICML 2019.
    """
    x = as_floating(x)
    if x.ndim != 2 or not 1 <= x.shape[1] <= _MAX_FEATURES:
        raise ValueError(
            f"x must be points with 1 to {_MAX_FEATURES} features, [B, D], got shape {x.shape}; "
            "exact Jacobians are too expensive for more"
        )
    identity = jnp.eye(x.shape[1])
    of_point = jax.grad(lambda point: potential_fn(point[None])[0])
    # Reverse over reverse, because convolutions have no forward mode.
    gradient, hessian = jax.vmap(of_point), jax.vmap(jax.jacrev(of_point))

    def invert(target: Array, _: None) -> tuple[Array, tuple[Array, Array, Array]]:
        def newton(_: int, z: Array) -> Array:
            error = z - step_size * gradient(z) - target
            step: Array = jnp.linalg.solve(identity - step_size * hessian(z), error[..., None])
            return z - step[..., 0]

        z = lax.fori_loop(0, _NEWTON_STEPS, newton, target + step_size * gradient(target))
        eigenvalues = step_size * jnp.linalg.eigvalsh(hessian(z))
        log_det = jnp.sum(jnp.log(jnp.abs(1.0 - eigenvalues)), axis=-1)
        residual = jnp.linalg.norm(z - step_size * gradient(z) - target, axis=-1)
        return z, (log_det, eigenvalues[:, -1], residual)

    start, (log_dets, eigenvalues, residuals) = lax.scan(invert, x, None, length=num_steps)
    of_start, log_ratio = prior_log_density(start), log_ratio_fn(x)
    for name, values in (("prior_log_density", of_start), ("log_ratio_fn", log_ratio)):
        if (shape := jnp.shape(values)) != x.shape[:1]:  # [B, 1] would broadcast.
            raise ValueError(f"{name} must return one number per point, {x.shape[:1]}, got {shape}")
    largest = jnp.max(eigenvalues, axis=0, initial=-jnp.inf)
    residual = jnp.max(residuals, axis=0, initial=0.0)
    invertible = (largest < 1.0) & (residual < _MAX_RESIDUAL)
    flowed = jnp.where(invertible, of_start - jnp.sum(log_dets, axis=0), jnp.nan)
    return LogDensity(flowed, flowed - log_ratio, largest, residual, start)
