"""The train state, which holds only arrays. Network and optimizer are passed where needed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fdrl_jax._arrays import at_least_float32

__all__ = ["TrainState", "apply_gradients", "create"]
__dir__ = __all__.copy

Array = jax.Array
Variables = dict[str, Any]


class TrainState(NamedTuple):
    """Everything that changes in training.

    Attributes:
      step: number of completed updates, an int32 scalar.
      variables: the network's variables: "params", and collections that are not trained by
        gradients (the vectors of spectral normalisation).
      ema_variables: exponential moving average of the parameters, in at least float32, and its own
        values of the other collections (the singular vectors of averaged kernels). Sampling and
        evaluation use these.
      opt_state: the Optax optimizer's state.
    """

    step: Array
    variables: Variables
    ema_variables: Variables
    opt_state: optax.OptState


def create(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step; the average starts at the initial parameters."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        # A copy: donated buffers must not appear twice in the state.
        ema_variables=jax.tree.map(lambda a: at_least_float32(jnp.copy(a)), variables),
        opt_state=optimizer.init(variables["params"]),
    )


def apply_gradients(
    state: TrainState,
    grads: Any,
    optimizer: optax.GradientTransformation,
    ema_rate: float | Array,
    *,
    ema_ramp: bool = False,
    **extra_args: Any,
) -> TrainState:
    """Updates parameters, their average and the step count; other collections do not change.

    Args:
      state: the state before.
      grads: gradients of the loss, with the structure of `state.variables["params"]`.
      optimizer: as given to `create`.
      ema_rate: decay of the average, in [0, 1): `ema <- rate * ema + (1 - rate) * params`.
      ema_ramp: increases the rate to `ema_rate` as `(1 + t) / (10 + t)`, where `t` is the number of
        earlier updates, so that early parameters are soon forgotten.
      **extra_args: for optimizers that need more than gradients, such as `value`, the loss.
    """
    if not (isinstance(ema_rate, jax.core.Tracer) or 0 <= ema_rate < 1):
        raise ValueError(f"ema_rate must be at least 0 and below 1, got {ema_rate}")
    params = state.variables["params"]
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(grads, state.opt_state, params, **extra_args)
    params = optax.apply_updates(params, updates)
    ramp = (1.0 + state.step) / (10.0 + state.step)
    rate: Any = jnp.minimum(ema_rate, ramp) if ema_ramp else ema_rate
    average = state.ema_variables["params"]
    # In half precision, a small step towards the parameters would round to none.
    wide = jax.tree.map(lambda new, old: new.astype(old.dtype), params, average)
    ema = optax.incremental_update(wide, average, 1.0 - rate)
    return TrainState(
        step=state.step + 1,
        variables={**state.variables, "params": params},
        ema_variables={**state.ema_variables, "params": ema},
        opt_state=opt_state,
    )
