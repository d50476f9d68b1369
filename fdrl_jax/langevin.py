"""The Langevin flow: a pure, jittable Euler-Maruyama integration along a potential.

`x_{k+1} = x_k - η ∇φ(x_k) + ν ξ_k`, `ξ_k ~ N(0, I)` (eq. 9; `φ` is the first variation `f'(r(x))`,
`η` the step size, `ν = sqrt(2 η γ)` the noise scale with the entropy weight `γ`). The ratio is
flowed samples over data, `r = q/p`, so the flow decreases `log r` and moves towards the data. The
potential may be any function, whether it comes from an estimator, a classifier or a formula.

Random numbers: the noise of step `k` depends only on the key and `k`, and differs from whatever was
drawn from the key or the parts of `jax.random.split(key)`, such as the start. A flow of K + κ steps therefore passes through the
end of the flow of K steps, and a flow can be split into segments (`first_step`) without changing
its numbers. With a batch of typed keys, [B], each example has its own random stream: its path
depends only on its own key and start, whatever the batch size and the number of devices. This holds
for the generator "threefry2x32" (`training.rng.root_key`). It does not hold for "rbg", so one rbg
key per example is an error.

Step size and noise scale may be numbers, or schedules: functions of the step `k`.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from fdrl_jax import _keys

Array = jax.Array
Potential = Callable[[Array], Array]
Observe = Callable[[Array, Array], Any]
Scalar: TypeAlias = ArrayLike
Schedule: TypeAlias = Scalar | Callable[[Array], Scalar]  # A number, or a function of the step.


class TwoStage(NamedTuple):
    """Samples of the prior (`x_0`), after bridging (`x_K`) and after refinement (`x_{K+κ}`)."""

    prior: Array
    bridged: Array
    refined: Array


def noise_scale(step_size: float, entropy_weight: float) -> float:
    """Returns `ν = sqrt(2 η γ)`, the noise scale for an entropy weight `γ` (eq. 9).

    Raises:
      TypeError: for traced values.
      ValueError: for a negative step size or entropy weight.
    """
    if any(isinstance(value, jax.core.Tracer) for value in (step_size, entropy_weight)):
        raise TypeError(
            "noise_scale needs numbers, but its arguments are traced (by jax.jit, for instance): "
            "call it outside, or write jnp.sqrt(2 * step_size * entropy_weight)"
        )
    if step_size < 0 or entropy_weight < 0:
        got = f"{step_size} and {entropy_weight}"
        raise ValueError(f"step_size and entropy_weight must be >= 0, got {got}")
    return float((2.0 * step_size * entropy_weight) ** 0.5)


def drift(x: Array, potential_fn: Potential) -> Array:
    """Returns the drift `-∇φ(x)`, [B, ...], example by example.

    Args:
      x: a batch of points, [B, ...]. Integers and types of less than 32 bits are converted to
        float32.
      potential_fn: `x [B, ...] -> [B]`, each entry depending only on its own example. For a single
        point, [D] or a number, `x -> scalar` is also allowed.

    Raises:
      ValueError: if the potential returns another shape. [B, 1], for instance, would broadcast in
        sums with [B] and multiply the drift by B.
    """

    def total(points: Array) -> Array:
        value = potential_fn(points)
        if value.shape != points.shape[:1] and not (value.shape == () and points.ndim <= 1):
            raise ValueError(
                "a potential must return one number per example, shape "
                f"{points.shape[:1]} for x of shape {points.shape}, got {value.shape}"
                + ("; drop the last axis: `[:, 0]`" if value.shape[1:] == (1,) else "")
            )
        return jnp.sum(value)

    gradient: Array = jax.grad(total)(vary_with(as_floating(x), total))
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
      key: one key for the batch, or a typed key per example, [B].
      x: a batch of points, [B, ...], as for `drift`.
      potential_fn: as for `drift`.
      step_size: `η`, a scalar.
      noise_scale: `ν`, a scalar; zero gives the deterministic gradient flow.

    Returns:
      The points after the step, of the shape of `x`.

    Raises:
      TypeError: as for `flow`.
      ValueError: as for `drift` and `flow`.
    """
    x = as_floating(x)
    key = _keys.named(_keys.of_batch(key, x), "step")
    return _euler_maruyama(lambda: key, x, drift(x, potential_fn), step_size, noise_scale)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Constant:
    """The schedule of a Python number, which is part of the compiled program."""

    value: float

    def __call__(self, k: Array) -> float:
        return self.value


def _schedule(value: Schedule) -> Schedule:
    """Returns a function of the step, which is a pytree unless a plain function was given."""
    if callable(value):
        return value
    if isinstance(value, (int, float)):
        return _Constant(value)
    constant: Schedule = Partial(_first, value)  # type: ignore[no-untyped-call]
    return constant


def _first(value: Scalar, k: Array) -> Scalar:
    return value


def _compiled_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a function once for arguments of equal structure, where nothing can be outdated.

    Its keyword arguments are static. Positional arguments may be any pytrees. If one of them
    contains a plain Python function, which may close over arrays that change, or if the caller is
    traced already, the function is called as it is.
    """
    static = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    compiled = jax.jit(function, static_argnames=static)

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        leaves = jax.tree.leaves(arguments)
        return (compiled if all(map(_is_known, leaves)) else function)(*arguments, **options)

    return call


def _is_known(leaf: object) -> bool:
    """Returns whether a leaf of a pytree is a number or an array with known values."""
    is_array = isinstance(leaf, (jax.Array, np.ndarray, np.number, int, float))
    return is_array and not isinstance(leaf, jax.core.Tracer)


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
    unroll: int = 1,
) -> Any:
    """Runs `num_steps` Euler-Maruyama steps (eq. 9) in one `lax.scan`.

    Outside of `jax.jit`, the compiled loop is reused if everything that the flow calls is a pytree
    of arrays: a `jax.tree_util.Partial`, an NNX module, or what `first_variation` makes of either.
    A plain Python function is traced and compiled at every call, which takes seconds for a network,
    because the arrays it closes over may have changed. Call such a flow inside `jax.jit`.

    Memory does not grow with `num_steps` unless `observe` stores something or a gradient is taken
    through the flow.

    Args:
      key: one key for the batch, or a typed key per example, [B]. Keys per example must be of
        "threefry2x32", the default of JAX on most machines and always that of
        `training.rng.root_key`; the path of an example then depends only on its own key and start.
      x0: where the flow starts, [B, ...], as `x` for `drift`.
      potential_fn: as for `drift`; traced once.
      num_steps: the number of steps, >= 0 (a static Python int).
      step_size: `η`, a scalar, or a function `k -> η_k` of the step.
      noise_scale: `ν`, a scalar, or a function `k -> ν_k`. If it is the Python number 0, no noise
        is drawn.
      first_step: index of the first step. The noise of step `k` depends only on (key, k).
      observe: `(x_k [B, ...], drift at x_k [B, ...]) -> pytree`, called before each step. The
        results are stacked over the steps. `lambda x, drift: x` stores the path `x_0 .. x_{K-1}`.
      unroll: steps per iteration of the compiled loop (static).

    Returns:
      `x_K`, [B, ...]; with `observe`, `(x_K, stacked results)`, with a leading axis of `num_steps`.

    Raises:
      TypeError: for a key that is not a JAX key, or points that are not one array of real numbers.
      ValueError: if `num_steps` is not a static whole number >= 0, if the potential does not return
        [B], if the step size or noise scale is not a scalar, if `first_step` is not one whole
        number, if there is neither one key nor one key per example, or for rbg keys per example.
    """
    check_count("num_steps", num_steps)
    if jnp.ndim(first_step) or not jnp.issubdtype(jnp.result_type(first_step), jnp.integer):
        raise ValueError(f"first_step must be one whole number, got {first_step}")
    return _flow(
        _keys.typed(key),
        as_floating(x0),
        potential_fn,
        _schedule(step_size),
        _schedule(noise_scale),
        first_step,
        observe,
        num_steps=num_steps,
        unroll=unroll,
    )


@_compiled_once
def _flow(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    step_size: Schedule,
    noise_scale: Schedule,
    first_step: int | Array,
    observe: Observe | None,
    *,
    num_steps: int,
    unroll: int,
) -> Any:
    step = _make_step(key, potential_fn, step_size, noise_scale)

    def body(x: Array, k: Array) -> tuple[Array, Any]:
        moved, velocity = step(x, k)
        return moved, (None if observe is None else observe(x, velocity))

    x0 = vary_with(x0, lambda x: step(x, jnp.asarray(first_step))[0])
    steps = first_step + jnp.arange(num_steps)
    x_last, observed = lax.scan(body, x0, steps, unroll=unroll)
    return x_last if observe is None else (x_last, observed)


def two_stage(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    *,
    num_steps: int,
    num_refine_steps: int,
    step_size: Schedule,
    noise_scale: Schedule,
    unroll: int = 1,
) -> TwoStage:
    """Samples in two stages (algorithm 2): K bridging steps, then κ refinement steps.

    Both stages run in one loop, and the potential is traced once. The refined samples equal those
    of `flow` with K + κ steps. Outside of `jax.jit`, the compiled loop is reused as that of `flow`.

    Args:
      key: as for `flow`.
      x0: as for `flow`.
      potential_fn: as for `flow`.
      num_steps: bridging steps `K`, as in training.
      num_refine_steps: refinement steps `κ`, >= 0.
      step_size: as for `flow`.
      noise_scale: as for `flow`.
      unroll: as for `flow`.

    Returns:
      `x_0`, `x_K` and `x_{K+κ}`, each [B, ...].

    Raises:
      TypeError: as for `flow`.
      ValueError: as for `flow`.
    """
    check_count("num_steps", num_steps)
    check_count("num_refine_steps", num_refine_steps)
    stages: TwoStage = _two_stage(
        _keys.typed(key),
        as_floating(x0),
        potential_fn,
        _schedule(step_size),
        _schedule(noise_scale),
        num_steps=num_steps,
        num_refine_steps=num_refine_steps,
        unroll=unroll,
    )
    return stages


@_compiled_once
def _two_stage(
    key: Array,
    x0: Array,
    potential_fn: Potential,
    step_size: Schedule,
    noise_scale: Schedule,
    *,
    num_steps: int,
    num_refine_steps: int,
    unroll: int,
) -> TwoStage:
    step = _make_step(key, potential_fn, step_size, noise_scale)

    def body(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        x, bridged = carry
        x, _ = step(x, k)
        return (x, jnp.where(k < num_steps, x, bridged)), None

    x0 = vary_with(x0, lambda x: step(x, jnp.int32(0))[0])
    steps = jnp.arange(num_steps + num_refine_steps)
    (refined, bridged), _ = lax.scan(body, (x0, x0), steps, unroll=unroll)
    return TwoStage(x0, bridged, refined)


def as_floating(x: Any) -> Array:
    """Converts integers, and floating-point types of less than 32 bits, to float32.

    In bfloat16 a flow would stall, because 1 + 0.001 rounds to 1.

    Raises:
      TypeError: for anything else than one array of real numbers.
    """
    if isinstance(x, np.ndarray) and x.dtype.kind in "iu":
        x = x.astype(np.float32)  # JAX would make int32 of int64, and wrap around.
    x = x if isinstance(x, Mapping) else jnp.asarray(x)
    if isinstance(x, Mapping) or jnp.iscomplexobj(x):
        got = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"points must be one array of real numbers, [B, ...], got {got}")
    is_wide = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize >= 4
    wide: Array = x if is_wide else x.astype(jnp.float32)
    return wide


def vary_with(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Marks arrays as different on each device if a function of them is.

    Inside a `jax.shard_map` that checks replication, a gradient by an array that the devices share
    is a sum over the devices. The gradient of a marked array is that of its own device. Elsewhere,
    and for arrays that already differ, this does nothing.

    Args:
      tree: a pytree of arrays.
      function: a function of the tree. It is traced once more if an array is shared.

    Returns:
      The tree with the same values.
    """
    axes = jax.sharding.get_abstract_mesh().manual_axes
    leaves = jax.tree.leaves(tree)
    shared = [axis for axis in axes if any(axis not in _varying(jax.typeof(a)) for a in leaves)]
    # Without the check, no array is marked, not even the index of the device.
    if not shared or not _varying(jax.eval_shape(lambda: lax.axis_index(shared[0]))):
        return tree
    results = jax.tree.leaves(jax.eval_shape(function, tree))
    return vary_over(tree, [a for a in shared if any(a in _varying(r) for r in results)])


def vary_over(tree: Any, axes: Iterable[str]) -> Any:
    """Marks arrays as different along mapped axes, without changing their values."""
    for axis in axes:
        replica = lax.axis_index(axis)
        # `lax.pcast` would do the same, but it does not support `vmap`.
        tree = jax.tree.map(functools.partial(jnp.where, replica >= 0), tree, tree)
    return tree


def _varying(kind: Any) -> frozenset[str]:
    """Returns the axes along which an array of this type may differ."""
    axes: frozenset[str] = kind.manual_axis_type.varying if kind.manual_axis_type else frozenset()
    return axes


def _make_step(
    key: Array, potential_fn: Potential, step_size: Schedule, noise_scale: Schedule
) -> Callable[[Array, Array], tuple[Array, Array]]:
    """Returns `(x, k) -> (x after step k, drift at x)`."""
    key = _keys.named(_keys.typed(key), "flow")
    fold_in = jax.vmap(jax.random.fold_in, (0, None)) if key.ndim else jax.random.fold_in

    def step(x: Array, k: Array) -> tuple[Array, Array]:
        _keys.of_batch(key, x)  # Also where no noise is drawn.
        velocity = drift(x, potential_fn)
        eta, nu = (s(k) if callable(s) else s for s in (step_size, noise_scale))
        return _euler_maruyama(lambda: fold_in(key, k), x, velocity, eta, nu), velocity

    return step


def _euler_maruyama(
    make_key: Callable[[], Array],
    x: Array,
    velocity: Array,
    step_size: Scalar,
    noise_scale: Scalar,
) -> Array:
    for name, value in (("step_size", step_size), ("noise_scale", noise_scale)):
        if jnp.ndim(value):
            # [B] would broadcast over the features of points [B, B].
            raise ValueError(f"{name} must be a scalar, got an array of shape {jnp.shape(value)}")
    moved: Array = x + step_size * velocity
    if not (isinstance(noise_scale, (int, float)) and noise_scale == 0):
        moved = moved + noise_scale * _keys.normal_like(make_key(), x)
    result: Array = moved.astype(x.dtype)
    return result


def check_count(name: str, value: object) -> None:
    """Checks that a number of steps is a static whole number.

    Raises:
      ValueError: for an array, or another value than a whole number >= 0.
    """
    if isinstance(value, jax.Array):
        raise ValueError(
            f"{name} must be a static Python int, got a JAX array or traced value, {value}; "
            "under jax.jit, name it in static_argnames"
        )
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be a whole number >= 0, got {value!r}")
