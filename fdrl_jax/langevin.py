"""The Langevin flow: a pure, jittable Euler-Maruyama integration along a potential.

`x_{k+1} = x_k - η ∇φ(x_k) + ν ξ_k`, `ξ_k ~ N(0, I)` (eq. 9; `φ` is the first variation `f'(r(x))`,
`η` the step size, `ν = sqrt(2 η γ)` the noise scale with the entropy weight `γ`). The ratio is
flowed samples over data, `r = q/p`, so the flow decreases `log r` and moves towards the data.

The noise of step `k` depends only on the key and `k`, and differs from whatever was drawn from the
key or the parts of `jax.random.split(key)`, such as the start. A flow can therefore be split into
segments (`first_step`). With a batch of typed keys, [B], the path of an example depends only on its
own key and start, whatever the batch size and the number of devices. This holds for the generator
"threefry2x32" (`training.rng.root_key`); one key of "rbg" per example is an error.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from fdrl_jax import _keys
from fdrl_jax._arrays import as_floating, vary_with
from fdrl_jax._checks import check_count, check_number

__all__ = ["drift", "flow"]
__dir__ = __all__.copy

Array = jax.Array
Potential = Callable[[Array], Array]
Observe = Callable[[Array, Array], Any]
Schedule: TypeAlias = ArrayLike | Callable[[Array], ArrayLike]  # A number, or one for each step.


def drift(x: Array, potential_fn: Potential) -> Array:
    """Returns the drift `-∇φ(x)`, [B, ...], example by example.

    Args:
      x: points, [B, ...]; integers and types of less than 32 bits are converted to float32.
      potential_fn: `x [B, ...] -> [B]`, each entry depending only on its own example. For a single
        point, [D] or a number, `x -> scalar` is also allowed.

    Raises:
      ValueError: if the potential returns another shape, such as [B, 1], which would broadcast.
    """

    def total(points: Array) -> Array:
        value = potential_fn(points)
        shape = getattr(value, "shape", None)
        if shape != points.shape[:1] and not (shape == () and points.ndim <= 1):
            found = type(value).__name__ if shape is None else shape
            raise ValueError(
                "a potential must return one number per example, shape "
                f"{points.shape[:1]} for x of shape {points.shape}, got {found}"
                + ("; drop the last axis: `[:, 0]`" if shape and shape[1:] == (1,) else "")
            )
        return jnp.sum(value)

    gradient: Array = jax.grad(total)(vary_with(as_floating(x), total))
    return -gradient


def flow(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    *,
    num_steps: int,
    step_size: Schedule,
    noise_scale: Schedule,
    first_step: int | Array = 0,
    observe: Observe | None = None,
) -> Any:
    """Runs `num_steps` Euler-Maruyama steps (eq. 9) in one `lax.scan`.

    Outside of `jax.jit`, the compiled loop is reused if everything that the flow calls is a pytree
    of arrays: a `jax.tree_util.Partial`, an NNX module, or what `first_variation` makes of either.
    A plain Python function is compiled at every call, because the arrays it closes over may have
    changed: call such a flow inside `jax.jit`. Memory does not grow with `num_steps` unless
    `observe` stores something or a gradient is taken through the flow.

    Args:
      key: one key for the batch, or a typed key of "threefry2x32" per example, [B].
      x0: where the flow starts, [B, ...], as `x` for `drift`.
      potential_fn: as for `drift`; traced once.
      num_steps: the number of steps, >= 0 (a static Python int).
      step_size: `η`, a scalar, or a function `k -> η_k` of the step.
      noise_scale: `ν`, the same. If it is the Python number 0, no noise is drawn.
      first_step: index of the first step.
      observe: `(x_k [B, ...], drift at x_k [B, ...]) -> pytree`, called before each step.
        `lambda x, drift: x` stores the path `x_0 .. x_{K-1}`.

    Returns:
      `x_K`, [B, ...]; with `observe`, `(x_K, results)`, stacked with a leading axis of `num_steps`.

    Raises:
      TypeError, ValueError: for keys, points, numbers or shapes that are not as described.
    """
    if not callable(potential_fn):
        raise TypeError(f"a potential is a function [B, ...] -> [B], got {type(potential_fn)}")
    check_count("num_steps", num_steps)
    if jnp.ndim(first_step) or not jnp.issubdtype(jnp.result_type(first_step), jnp.integer):
        raise ValueError(f"first_step must be one whole number, got {first_step}")
    for name, value in (("step_size", step_size), ("noise_scale", noise_scale)):
        if not callable(value):
            check_number(name, value)
    noise = None if isinstance(noise_scale, (int, float)) and noise_scale == 0 else noise_scale
    x0 = as_floating(x0)
    arguments = _keys.typed(key), x0, potential_fn, step_size, noise, first_step, observe
    run = _compiled_flow if has_only_numbers(arguments) else _flow
    return run(*arguments, num_steps=num_steps)


def has_only_numbers(tree: Any) -> bool:
    """Returns whether what is compiled for a pytree can be reused, so that no leaf is a function.

    A plain function may close over arrays that have changed since it was compiled.
    """
    known = (jax.Array, np.ndarray, np.number, int, float)
    leaves = jax.tree.leaves(tree)
    return all(isinstance(a, known) and not isinstance(a, jax.core.Tracer) for a in leaves)


def _flow(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    step_size: Schedule,
    noise_scale: Schedule | None,
    first_step: int | Array,
    observe: Observe | None,
    *,
    num_steps: int,
) -> Any:
    key = _keys.named(key, "flow")
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in

    def step(x: Array, k: Array) -> tuple[Array, Any]:
        _keys.of_batch(key, x)  # Also where no noise is drawn.
        velocity = drift(x, potential_fn)
        eta: Any = step_size(k) if callable(step_size) else step_size
        nu: Any = noise_scale(k) if callable(noise_scale) else noise_scale
        for name, value in (("step_size", eta), ("noise_scale", nu)):
            if value is not None and jnp.ndim(value):  # [B] would broadcast over features.
                raise ValueError(f"{name} must be a scalar, got shape {jnp.shape(value)}")
        moved = x + eta * velocity
        if nu is not None:
            moved = moved + nu * _keys.noise_like(fold_in(key, k), x)
        return moved.astype(x.dtype), (None if observe is None else observe(x, velocity))

    x0 = vary_with(x0, lambda x: step(x, jnp.asarray(first_step))[0])
    x_last, observed = lax.scan(step, x0, first_step + jnp.arange(num_steps))
    return x_last if observe is None else (x_last, observed)


_compiled_flow = jax.jit(_flow, static_argnames="num_steps")
