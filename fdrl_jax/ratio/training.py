"""Trains the networks of a ratio: one per fold, in lockstep, or one head per pair of waymarks."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from fdrl_jax.ratio import bridges
from fdrl_jax.ratio.base import Quadratic
from fdrl_jax.ratio.bridges import Gaussians
from fdrl_jax.ratio.network import Heads

__all__ = ["DEFAULTS", "MAX_HELD_OUT", "Inputs", "Options", "State", "Task", "scores", "train"]
__dir__ = __all__.copy

Array = jax.Array

MAX_HELD_OUT = 4096  # Examples of each waymark and fold for early stopping.
_PATIENCE = 5


class Options(NamedTuple):
    """How to train; hashable, so that fits of equal shapes share a compiled program.

    Attributes:
      num_steps: the most training steps, up to the end of a round between two looks at the held-out
        loss; the rate follows a cosine over them.
      batch_size: examples of each waymark per step; by default 128 below 4,000 rows, then 256.
      learning_rate: the highest rate of AdamW.
      weight_decay: the weight decay of AdamW.
      max_auc: waymarks are added until no adjacent pair has a held-out area under the curve above.
    """

    num_steps: int = 2_000
    batch_size: int | None = None
    learning_rate: float = 5e-3
    weight_decay: float = 1e-4
    max_auc: float = 0.9

    def optimizer(self) -> optax.GradientTransformation:
        warmup = min(100, self.num_steps // 10)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, warmup, max(self.num_steps, warmup + 1)
        )
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(schedule, weight_decay=self.weight_decay),
        )


DEFAULTS = Options()


class Task(NamedTuple):
    """What is trained and how; hashable, a static argument of compiled functions."""

    heads: Heads
    options: Options
    batch_size: int
    round_steps: int


class Inputs(NamedTuple):
    """The arrays that training reads; F folds, H + 1 waymarks.

    Attributes:
      keys: of the batches, [F].
      rows: numerator and denominator, [N, ...] and [M, ...].
      shares: cumulated weights of the training rows, [F, N] and [F, M].
      held_out: fixed held-out examples of each waymark, [F, H + 1, B, ...].
      offset: a log-ratio that the network is added to, one per fold.
      mixed: which columns differ, [...].
      marks: positions of the waymarks, [H + 1].
    """

    keys: Array
    rows: tuple[Array, Array]
    shares: tuple[Array, Array]
    held_out: Array
    offset: Quadratic | Gaussians
    mixed: Array
    marks: Array


class State(NamedTuple):
    """State of training, with a leading axis of folds except for the last three."""

    params: Any
    opt_state: Any
    average: Any
    best: Any
    step: Array
    best_loss: Array
    stale: Array


def train(task: Task, inputs: Inputs, key: Array) -> State:
    """Trains until the mean held-out loss of all folds no longer decreases.

    Raises:
      ValueError: if the held-out loss is never finite.
    """
    params = jax.vmap(task.heads.init, (0, None))(
        jax.random.split(key, len(inputs.keys)), inputs.rows[0][:2]
    )
    state = State(
        params,
        jax.vmap(task.options.optimizer().init)(params),
        params,
        params,
        jnp.int32(0),
        jnp.float32(jnp.inf),
        jnp.int32(0),
    )
    found: State = _run(task, inputs, state)
    if not np.isfinite(found.best_loss):
        raise ValueError(
            "training diverged: the held-out loss was never finite; lower the learning rate with "
            "options=fdrl.ratio.Options(learning_rate=...)"
        )
    return found


@functools.partial(jax.jit, static_argnums=0)
def scores(
    heads: Heads, params: Any, offset: Quadratic | Gaussians, waymarks: Array
) -> tuple[Array, Array]:
    """Returns log-ratios of one fold's pairs on their numerators and denominators, [H, B] each."""
    upper, lower = heads.adjacent(params, waymarks)
    bases = offset.adjacent(waymarks)
    return upper + bases[0], lower + bases[1]


def _loss(scores: tuple[Array, Array]) -> Array:
    return jnp.mean(jax.nn.softplus(-scores[0]) + jax.nn.softplus(scores[1]))


@functools.partial(jax.jit, static_argnums=0)
def _run(task: Task, inputs: Inputs, state: State) -> State:
    heads, options = task.heads, task.options
    optimizer = options.optimizer()

    def step(state: State, _: None) -> tuple[State, None]:
        rate = jnp.minimum(0.995, (1.0 + state.step) / (10.0 + state.step))

        def one(
            key: Array, shares: Any, offset: Any, params: Any, opt_state: Any, average: Any
        ) -> tuple[Any, Any, Any]:
            keys = jax.random.split(jax.random.fold_in(key, state.step))
            batch = []
            for part, rows, cumulated in zip(keys, inputs.rows, shares, strict=True):
                u = jax.random.uniform(part, (task.batch_size,))
                found = jnp.searchsorted(cumulated, u, side="right")
                batch.append(rows[jnp.minimum(found, len(rows) - 1)])
            marks = bridges.waymarks(batch[0], batch[1], inputs.mixed, inputs.marks)
            gradient = jax.grad(lambda p: _loss(scores(heads, p, offset, marks)))(params)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            average = jax.tree.map(lambda a, p: rate * a + (1.0 - rate) * p, average, params)
            return params, opt_state, average

        params, opt_state, average = jax.vmap(one)(
            inputs.keys, inputs.shares, inputs.offset, state.params, state.opt_state, state.average
        )
        return state._replace(
            params=params, opt_state=opt_state, average=average, step=state.step + 1
        ), None

    def one_round(state: State) -> State:
        state, _ = lax.scan(step, state, None, length=task.round_steps)

        def held_out_loss(params: Any, offset: Any, marks: Array) -> Array:
            return _loss(scores(heads, params, offset, marks))

        losses = jax.vmap(held_out_loss)(state.average, inputs.offset, inputs.held_out)
        value = jnp.mean(losses).astype(jnp.float32)
        better = value < state.best_loss
        return state._replace(
            best=jax.tree.map(lambda a, b: jnp.where(better, a, b), state.average, state.best),
            best_loss=jnp.where(better, value, state.best_loss),
            stale=jnp.where(better, 0, state.stale + 1),
        )

    def unfinished(state: State) -> Array:
        return (state.step < options.num_steps) & (state.stale < _PATIENCE)

    result: State = lax.while_loop(unfinished, one_round, state)
    return result
