"""The Langevin flow: a pure, jittable Euler-Maruyama integration along a potential.

`x_{k+1} = x_k - η ∇φ(x_k) + ν ξ_k`, `ξ_k ~ N(0, I)` (eq. 9; `φ` is the first variation `f'(r(x))`,
`η` the step size, `ν = sqrt(2 η γ)` the noise scale with the entropy weight `γ`). This file knows
potentials only: where they come from (an estimator, a classifier, a formula) is not its business.

Random numbers: step `k` uses `fold_in(key, k)`, so a flow of K + κ steps passes through the end of
the flow of K steps, and a flow may be cut in pieces (`first_step`) without changing a number. A
batch of typed keys, [B], gives each example its own stream: its path then depends on its own key
and start alone, whatever the batch size and the number of devices.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias, overload

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Potential = Callable[[Array], Array]
Scalar: TypeAlias = chex.Numeric


class TwoStage(NamedTuple):
    """Samples of the prior, `x_0`, after the bridging steps, `x_K`, and refined, `x_{K+κ}`."""

    prior: Array
    bridged: Array
    refined: Array


def noise_scale(step_size: float, entropy_weight: float) -> float:
    """Returns `ν = sqrt(2 η γ)`, the noise scale of an entropy weight `γ` (eq. 9).

    Raises:
      ValueError: for a negative step size or entropy weight.
    """
    if step_size < 0 or entropy_weight < 0:
        raise ValueError(
            f"step_size and entropy_weight must be >= 0, got {step_size} and {entropy_weight}"
        )
    return float((2.0 * step_size * entropy_weight) ** 0.5)


def drift(x: Array, potential_fn: Potential) -> Array:
    """Returns `-∇φ(x)`, example by example.

    Args:
      x: a batch of points, [B, ...].
      potential_fn: `x [B, ...] -> [B]`, each entry depending on its own example alone.
    """
    gradient: Array = jax.grad(lambda points: jnp.sum(potential_fn(points)))(x)
    return -gradient


def langevin_step(
    key: Array,
    x: Array,
    potential_fn: Potential,
    *,
    step_size: Scalar,
    noise_scale: Scalar,
) -> Array:
    """Takes one Euler-Maruyama step (eq. 9): `x - η ∇φ(x) + ν ξ`.

    Args:
      key: one key for the batch, or a typed key for each example, [B].
      x: a batch of points, [B, ...], floating point.
      potential_fn: `x [B, ...] -> [B]`.
      step_size: `η`.
      noise_scale: `ν`; zero gives the deterministic gradient flow.

    Returns:
      The points after the step, of the shape and dtype of `x`.
    """
    moved: Array = x + step_size * drift(x, potential_fn) + noise_scale * normal_like(key, x)
    return moved.astype(x.dtype)


@overload
def flow(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    *,
    num_steps: int,
    step_size: Scalar,
    noise_scale: Scalar,
    first_step: int | Array = 0,
    with_trajectory: Literal[False] = False,
    unroll: int = 1,
) -> Array: ...


@overload
def flow(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    *,
    num_steps: int,
    step_size: Scalar,
    noise_scale: Scalar,
    first_step: int | Array = 0,
    with_trajectory: Literal[True],
    unroll: int = 1,
) -> tuple[Array, Array]: ...


def flow(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    *,
    num_steps: int,
    step_size: Scalar,
    noise_scale: Scalar,
    first_step: int | Array = 0,
    with_trajectory: bool = False,
    unroll: int = 1,
) -> Array | tuple[Array, Array]:
    """Runs the flow for a number of Euler-Maruyama steps (eq. 9) in one `lax.scan`.

    The potential is traced once. Memory does not grow with `num_steps` unless the trajectory or a
    gradient through the flow is asked for.

    Args:
      key: one key for the batch, or a typed key for each example, [B].
      x0: where the flow starts, [B, ...].
      potential_fn: `x [B, ...] -> [B]`.
      num_steps: how many steps, >= 0 (static).
      step_size: `η`.
      noise_scale: `ν`.
      first_step: index of the first step: the noise of step `k` follows from (key, k).
      with_trajectory: also return the path (static).
      unroll: steps per iteration of the compiled loop (static).

    Returns:
      `x_K`, [B, ...]; with the trajectory, `(x_K, path)` with the path [K + 1, B, ...] from `x_0`
      to `x_K`.

    Raises:
      ValueError: if `num_steps` is not a whole number >= 0.
    """
    _check_count("num_steps", num_steps)
    x0 = jnp.asarray(x0)
    if not jnp.issubdtype(x0.dtype, jnp.floating):
        x0 = x0.astype(jnp.float32)
    key = _as_typed(key)

    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in

    def body(x: Array, k: Array) -> tuple[Array, Array | None]:
        x = langevin_step(
            fold_in(key, k), x, potential_fn, step_size=step_size, noise_scale=noise_scale
        )
        return x, (x if with_trajectory else None)

    steps = first_step + jnp.arange(num_steps)
    x_last, path = lax.scan(body, x0, steps, unroll=unroll)
    if path is not None:
        return x_last, jnp.concatenate([x0[None], path])
    return x_last


def two_stage(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    *,
    num_steps: int,
    num_refine_steps: int,
    step_size: Scalar,
    noise_scale: Scalar,
) -> TwoStage:
    """Samples in two stages (algorithm 2): K bridging steps, then κ refinement steps.

    Both stages are the same flow: the refined samples equal `flow` with K + κ steps.

    Args:
      key: as for `flow`.
      x0: as for `flow`.
      potential_fn: as for `flow`.
      num_steps: bridging steps `K`, as in training.
      num_refine_steps: refinement steps `κ`, >= 0.
      step_size: as for `flow`.
      noise_scale: as for `flow`.

    Raises:
      ValueError: if a number of steps is not a whole number >= 0.
    """
    _check_count("num_refine_steps", num_refine_steps)
    hyper = {"step_size": step_size, "noise_scale": noise_scale}
    bridged = flow(key, x0, potential_fn, num_steps=num_steps, **hyper)
    refined = flow(
        key, bridged, potential_fn, num_steps=num_refine_steps, first_step=num_steps, **hyper
    )
    return TwoStage(x0, bridged, refined)


def normal_like(key: Array, x: Array) -> Array:
    """Draws standard normal noise of the shape and dtype of `x`, [B, ...].

    Args:
      key: one key for the batch, or a typed key for each example, [B].
      x: what the noise is like.
    """
    key = _as_typed(key)
    if key.ndim == 0:
        return jax.random.normal(key, x.shape, x.dtype)
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(key)


def _as_typed(key: Array) -> Array:
    """Accepts the raw uint32 keys of `jax.random.PRNGKey` beside typed ones."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be a whole number >= 0, got {value}")
