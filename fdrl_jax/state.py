"""The train state: arrays only. Functions (network, optimizer) are passed to what needs them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
Variables = dict[str, Any]


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
      step: number of updates done, an int32 scalar.
      variables: the network's variables: "params", and collections that are not trained by
        gradients (the vectors of spectral normalisation).
      ema_variables: exponential moving average of the parameters, with the other collections of
        the newest step. Sampling and evaluation use these.
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
        ema_variables=jax.tree.map(jnp.copy, variables),
        opt_state=optimizer.init(variables["params"]),
    )


def apply_gradients(
    state: TrainState,
    grads: Any,
    optimizer: optax.GradientTransformation,
    ema_rate: float,
) -> TrainState:
    """Updates parameters, their average and the step count.

    Args:
      state: the state before.
      grads: gradients of the loss, like `state.variables["params"]`.
      optimizer: as given to `create`.
      ema_rate: decay of the average: `ema <- rate * ema + (1 - rate) * params`.
    """
    params = state.variables["params"]
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    params = optax.apply_updates(params, updates)
    ema = optax.incremental_update(params, state.ema_variables["params"], 1.0 - ema_rate)
    return TrainState(
        step=state.step + 1,
        variables={**state.variables, "params": params},
        # Collections that are not trained have no average: those of the newest step serve.
        ema_variables={**state.variables, "params": ema},
        opt_state=opt_state,
    )
