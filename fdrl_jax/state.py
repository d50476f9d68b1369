"""The train state: arrays only. Functions (network, optimizer) are passed to what needs them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
Variables = dict[str, Any]


class Rollbacks(NamedTuple):
    """What returns to an earlier state after divergence have changed.

    Attributes:
      num: how many there were, an int32 scalar.
      num_skipped: batches left out so far: step `s` draws batch `s + num_skipped`; int32.
      learning_rate_scale: factor on every update, a float32 scalar.
    """

    num: Array
    num_skipped: Array
    learning_rate_scale: Array


class TrainState(NamedTuple):
    """All that changes in training.

    Attributes:
      step: number of updates done, an int32 scalar.
      variables: the network's variables: "params", and collections that are not trained by
        gradients (the vectors of spectral normalisation).
      ema_variables: exponential moving average of the parameters, with the other collections of
        the newest step. Sampling and evaluation use these.
      opt_state: the Optax optimizer's state.
      rollbacks: what returns to an earlier state have changed.
    """

    step: Array
    variables: Variables
    ema_variables: Variables
    opt_state: optax.OptState
    rollbacks: Rollbacks

    @property
    def num_batches(self) -> Array:
        """The number of batches that are behind: taken or left out."""
        return self.step + self.rollbacks.num_skipped


def create(variables: Variables, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step; the average starts at the initial parameters.

    Args:
      variables: the network's initial variables, with "params".
      optimizer: an Optax optimizer.
    """
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        # A copy: donated buffers must not appear twice in the state.
        ema_variables=jax.tree.map(jnp.copy, variables),
        opt_state=optimizer.init(variables["params"]),
        rollbacks=Rollbacks(
            num=jnp.zeros((), jnp.int32),
            num_skipped=jnp.zeros((), jnp.int32),
            learning_rate_scale=jnp.ones((), jnp.float32),
        ),
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

    Returns:
      The state one step later.
    """
    params = state.variables["params"]
    updates, opt_state = optimizer.update(grads, state.opt_state, params)
    updates = optax.tree.scale(state.rollbacks.learning_rate_scale, updates)
    params = optax.apply_updates(params, updates)
    ema = optax.incremental_update(params, state.ema_variables["params"], 1.0 - ema_rate)
    return TrainState(
        step=state.step + 1,
        variables={**state.variables, "params": params},
        # Collections that are not trained have no average: those of the newest step serve.
        ema_variables={**state.variables, "params": ema},
        opt_state=opt_state,
        rollbacks=state.rollbacks,
    )


def roll_back(state: TrainState, num_skipped: int, learning_rate_factor: float) -> TrainState:
    """Returns an earlier state made ready to go on past what made it diverge.

    Args:
      state: the earlier state, with the `rollbacks` of the one that diverged.
      num_skipped: batches to leave out.
      learning_rate_factor: multiplies the updates from now on.
    """
    before = state.rollbacks
    return state._replace(
        rollbacks=Rollbacks(
            num=before.num + jnp.int32(1),
            num_skipped=before.num_skipped + jnp.int32(num_skipped),
            learning_rate_scale=before.learning_rate_scale * jnp.float32(learning_rate_factor),
        )
    )
