"""Counters of rollbacks, stored in the optimizer state and therefore in checkpoints."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fdrl_jax.training.state import TrainState


class Rollbacks(NamedTuple):
    """Counters and learning-rate factor, accumulated over rollbacks after divergence; scalars."""

    num: jax.Array  # Number of rollbacks, int32.
    num_skipped: jax.Array  # Skipped batches, int32; step `s` draws batch `s + num_skipped`.
    learning_rate_scale: jax.Array  # Factor on every update, float32.


class _State(NamedTuple):
    optimizer: optax.OptState
    rollbacks: Rollbacks


def after_rollbacks(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer whose state includes `Rollbacks`, which scale its updates."""

    def init(params: optax.Params) -> _State:
        start = Rollbacks(jnp.int32(0), jnp.int32(0), jnp.float32(1.0))
        return _State(optimizer.init(params), start)

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, _State]:
        updates, inner = optimizer.update(updates, state.optimizer, params)
        scaled = optax.tree.scale(state.rollbacks.learning_rate_scale, updates)
        return scaled, state._replace(optimizer=inner)

    return optax.GradientTransformation(init, update)


def of(train_state: TrainState) -> Rollbacks:
    """Returns the rollbacks of a state whose optimizer is from `after_rollbacks`."""
    return train_state.opt_state.rollbacks


def roll_back(
    train_state: TrainState, before: Rollbacks, num_skipped: int, learning_rate_factor: float
) -> TrainState:
    """Returns an earlier state that skips the batches on which training diverged.

    `before` are the rollbacks of the state that diverged.
    """
    rollbacks = Rollbacks(
        num=before.num + jnp.int32(1),
        num_skipped=before.num_skipped + jnp.int32(num_skipped),
        learning_rate_scale=before.learning_rate_scale * jnp.float32(learning_rate_factor),
    )
    return train_state._replace(opt_state=train_state.opt_state._replace(rollbacks=rollbacks))
