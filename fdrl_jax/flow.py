"""The Langevin flow: a pure, jittable Euler-Maruyama integration along a potential.

`x_{k+1} = x_k - η ∇φ(x_k) + ν ξ_k`, `ξ_k ~ N(0, I)` (eq. 9; `φ` is the first variation `f'(r(x))`,
`η` the step size, `ν = sqrt(2 η γ)` the noise scale with the entropy weight `γ`). This file knows
potentials only: where they come from (an estimator, a classifier, a formula) is not its business.

Random numbers: step `k` uses `fold_in(key, k)`, so a flow of K + κ steps passes through the end of
the flow of K steps, and a flow may be cut in pieces (`first_step`) without changing a number. A
batch of typed keys, [B], gives each example its own stream: its path then depends on its own key
and start alone, whatever the batch size and the number of devices.

Step size and noise scale may be numbers, or functions of the step `k`: schedules over the flow.
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
Schedule: TypeAlias = Scalar | Callable[[Array], Scalar]  # A number, or a function of the step.


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
        got = f"{step_size} and {entropy_weight}"
        raise ValueError(f"step_size and entropy_weight must be >= 0, got {got}")
    return float((2.0 * step_size * entropy_weight) ** 0.5)


def drift(x: Array, potential_fn: Potential) -> Array:
    """Returns the drift `-∇φ(x)`, [B, ...], example by example.

    Args:
      x: a batch of points, [B, ...]; integers count as float32.
      potential_fn: `x [B, ...] -> [B]`, each entry depending on its own example alone.
    """
    gradient: Array = jax.grad(lambda points: jnp.sum(potential_fn(points)))(as_floating(x))
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
      x: a batch of points, [B, ...]; integers count as float32.
      potential_fn: `x [B, ...] -> [B]`.
      step_size: `η`.
      noise_scale: `ν`; zero gives the deterministic gradient flow.

    Returns:
      The points after the step, of the shape and dtype of `x`.
    """
    x = as_floating(x)
    return _moved(key, x, drift(x, potential_fn), step_size, noise_scale)


@overload
def flow(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    *,
    num_steps: int,
    step_size: Schedule,
    noise_scale: Schedule,
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
    step_size: Schedule,
    noise_scale: Schedule,
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
    step_size: Schedule,
    noise_scale: Schedule,
    first_step: int | Array = 0,
    with_trajectory: bool = False,
    unroll: int = 1,
) -> Array | tuple[Array, Array]:
    """Runs the flow for a number of Euler-Maruyama steps (eq. 9) in one `lax.scan`.

    The potential is traced once. Memory does not grow with `num_steps` unless the trajectory or a
    gradient through the flow is asked for.

    Args:
      key: one key for the batch, or a typed key for each example, [B].
      x0: where the flow starts, [B, ...]; integers count as float32.
      potential_fn: `x [B, ...] -> [B]`.
      num_steps: how many steps, >= 0 (static).
      step_size: `η`, or a function `k -> η_k` of the step.
      noise_scale: `ν`, or a function `k -> ν_k`.
      first_step: index of the first step: the noise of step `k` follows from (key, k).
      with_trajectory: also return the path (static).
      unroll: steps per iteration of the compiled loop (static).

    Returns:
      `x_K`, [B, ...]; with the trajectory, `(x_K, path)` with the path [K + 1, B, ...] from `x_0`
      to `x_K`.

    Raises:
      ValueError: if `num_steps` is not a whole number >= 0.
    """
    step = _make_step(key, potential_fn, step_size, noise_scale)

    def body(x: Array, k: Array) -> tuple[Array, Array | None]:
        x, _ = step(x, k)
        return x, (x if with_trajectory else None)

    x0 = as_floating(x0)
    x_last, path = lax.scan(body, x0, first_step + _counted(num_steps), unroll=unroll)
    if path is not None:
        return x_last, jnp.concatenate([x0[None], path])
    return x_last


def flow_with_speed(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    *,
    num_steps: int,
    step_size: Schedule,
    noise_scale: Schedule,
) -> tuple[Array, Array]:
    """Runs `flow`, and returns the norm of the drift at every step, at no further cost.

    Args:
      key: as for `flow`.
      x0: as for `flow`.
      potential_fn: as for `flow`.
      num_steps: as for `flow`.
      step_size: as for `flow`.
      noise_scale: as for `flow`.

    Returns:
      `x_K`, [B, ...], and the norms of the drifts `|∇φ(x_k)|`, [K, B].

    Raises:
      ValueError: if `num_steps` is not a whole number >= 0.
    """
    step = _make_step(key, potential_fn, step_size, noise_scale)

    def body(x: Array, k: Array) -> tuple[Array, Array]:
        x, velocity = step(x, k)
        return x, jnp.linalg.norm(velocity.reshape(len(x), -1), axis=-1)

    return lax.scan(body, as_floating(x0), _counted(num_steps))


def two_stage(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    *,
    num_steps: int,
    num_refine_steps: int,
    step_size: Schedule,
    noise_scale: Schedule,
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

    Returns:
      `x_0`, `x_K` and `x_{K+κ}`, each [B, ...].

    Raises:
      ValueError: if a number of steps is not a whole number >= 0.
    """
    _check_count("num_refine_steps", num_refine_steps)
    x0 = as_floating(x0)
    bridged = flow(
        key, x0, potential_fn, num_steps=num_steps, step_size=step_size, noise_scale=noise_scale
    )
    refined = flow(
        key,
        bridged,
        potential_fn,
        num_steps=num_refine_steps,
        step_size=step_size,
        noise_scale=noise_scale,
        first_step=num_steps,
    )
    return TwoStage(x0, bridged, refined)


def normal_like(key: Array, x: Array) -> Array:
    """Draws standard normal noise of the shape and dtype of `x`, [B, ...].

    Args:
      key: one key for the batch, or a typed key for each example, [B].
      x: what the noise is like, floating point.

    Raises:
      ValueError: if the number of keys is not that of the examples.
    """
    key = _as_typed(key)
    if key.ndim == 0:
        return jax.random.normal(key, x.shape, x.dtype)
    # One key would otherwise give all the same noise. `len` refuses a symbolic batch size.
    if (num := key.shape[0]) != x.shape[0]:
        raise ValueError(f"one key, or one an example, is needed: got {num} for {x.shape[0]}")
    return jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(key)


def as_floating(x: Array) -> Array:
    """Returns floating-point arrays as they are, and others as float32."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(jnp.float32)


def _make_step(
    key: Array, potential_fn: Potential, step_size: Schedule, noise_scale: Schedule
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Returns `(x, k) -> (x after step k, drift at x)`."""
    key = _as_typed(key)
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in

    def step(x: Array, k: Array) -> tuple[Array, Array]:
        velocity = drift(x, potential_fn)
        eta, nu = (s(k) if callable(s) else s for s in (step_size, noise_scale))
        return _moved(fold_in(key, k), x, velocity, eta, nu), velocity

    return step


def _moved(key: Array, x: Array, velocity: Array, step_size: Scalar, noise_scale: Scalar) -> Array:
    moved: Array = x + step_size * velocity + noise_scale * normal_like(key, x)
    return moved.astype(x.dtype)


def _counted(num_steps: int) -> Array:
    _check_count("num_steps", num_steps)
    return jnp.arange(num_steps)


def _as_typed(key: Array) -> Array:
    """Accepts the raw uint32 keys of `jax.random.PRNGKey` beside typed ones."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be a whole number >= 0, got {value}")
