"""The train step: a per-replica function that knows at most an axis name.

It is built once from functions and hyper-parameters and holds no arrays, so `parallel` may map it
over devices by whatever means, and a user may call it in a jit of their own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fdrl_jax import bregman as bregman_lib
from fdrl_jax import rng, state
from fdrl_jax.flow import as_floating, flow_with_speed, normal_like
from fdrl_jax.priors import Batch
from fdrl_jax.problem import Constants, Problem
from fdrl_jax.state import TrainState, Variables

Array = jax.Array
Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Constants, Any], tuple[TrainState, Metrics]]
RepeatedStep = Callable[[TrainState, Constants, Any, Array], tuple[TrainState, Metrics]]


def make_train_step(
    problem: Problem,
    *,
    optimizer: optax.GradientTransformation,
    draw: Callable[[Any, Any, Array, Array], Batch],
    seed: int,
    batch_size: int,
    ema_rate: float = 0.998,
    dequantisation: float = 0.0,
    num_micro_batches: int = 1,
    axis_name: str | None = None,
) -> TrainStep:
    """Builds the train step (algorithm 1).

    One step draws data and prior samples, flows the latter for `K` steps with the present
    estimator (no gradient goes through the flow), and updates the estimator on the Bregman loss
    between data and flowed samples. Keys follow from (seed, position of the example).

    Args:
      problem: estimator, loss, divergence, flow and prior.
      optimizer: an Optax optimizer.
      draw: `(data arrays, host batch, key, positions [B]) -> batch`, with the data under "real",
        [B, ...]; a pure function that runs on the device. The key is the same for the whole run.
      seed: seed of the run.
      batch_size: examples of one replica.
      ema_rate: decay of the moving average of parameters.
      dequantisation: standard deviation of the Gaussian noise added to data.
      num_micro_batches: equal parts in which the batch goes through flow and gradient one after the
        other, to save memory; the result is that of the whole batch.
      axis_name: mapped axis over which gradients and metrics are averaged, if any.

    Returns:
      `(state, constants, host batch or None) -> (state, metrics)`. The metrics are scalars: those
      of `bregman.loss`, "grad_norm", and "drift_norm", the mean norm of the drift in the last step
      of the flow (0 for a flow of no steps).

    Raises:
      ValueError: for a loss and divergence that do not go together, or a batch that does not
        divide into the micro-batches.
    """
    bregman_lib.check_pair(problem.bregman, problem.divergence)

    def loss_and_grads(
        variables: Variables, constants: Constants, host_batch: Any, positions: Array
    ) -> tuple[Any, Metrics]:
        root = jax.random.key(seed)
        data_key = rng.stream_key(root, rng.Stream.DATA)
        batch = draw(constants.data, host_batch, data_key, positions)
        # Integers would stay integers under dequantisation, and the flowed samples take their type.
        real = as_floating(batch["real"])
        if dequantisation:
            keys = rng.example_keys(root, rng.Stream.DEQUANTISATION, positions)
            real = real + dequantisation * normal_like(keys, real)
        prior_keys = rng.example_keys(root, rng.Stream.PRIOR, positions)
        x0 = problem.prior_sample(constants.prior, prior_keys, batch)
        flowed, speeds = lax.stop_gradient(
            flow_with_speed(
                rng.example_keys(root, rng.Stream.FLOW, positions),
                x0,
                problem.potential(variables),
                num_steps=problem.flow.num_steps,
                **problem.flow.schedules(),
            )
        )

        def loss_fn(params: Any) -> tuple[Array, Metrics]:
            both = jnp.concatenate([real, flowed.astype(real.dtype)])
            out = problem.estimator.apply({**variables, "params": params}, both)
            return bregman_lib.loss(problem.bregman, *jnp.split(out, 2))

        grads, metrics = jax.grad(loss_fn, has_aux=True)(variables["params"])
        return grads, {**metrics, "drift_norm": jnp.sum(speeds[-1:]) / len(flowed)}

    return from_gradients(
        loss_and_grads,
        optimizer=optimizer,
        batch_size=batch_size,
        refresh=problem.estimator.refresh,
        ema_rate=ema_rate,
        num_micro_batches=num_micro_batches,
        axis_name=axis_name,
    )


def from_gradients(
    loss_and_grads: Callable[[Variables, Constants, Any, Array], tuple[Any, Metrics]],
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    refresh: Callable[[Variables], Variables] = lambda variables: variables,
    ema_rate: float = 0.998,
    num_micro_batches: int = 1,
    axis_name: str | None = None,
) -> TrainStep:
    """Builds a train step from what computes gradients: micro-batches, replicas and the update.

    Args:
      loss_and_grads: `(variables, constants, host batch, positions [B]) -> (grads, metrics)`, both
        means over the examples; the gradients are like `variables["params"]`.
      optimizer: as for `make_train_step`.
      batch_size: as for `make_train_step`.
      refresh: as in `problem.Estimator`.
      ema_rate: as for `make_train_step`.
      num_micro_batches: as for `make_train_step`.
      axis_name: as for `make_train_step`.

    Returns:
      `(state, constants, host batch or None) -> (state, metrics)`, with "grad_norm" added.

    Raises:
      ValueError: for a batch that does not divide into the micro-batches.
    """
    if num_micro_batches < 1 or batch_size % num_micro_batches:
        raise ValueError(
            f"a batch of {batch_size} does not divide into {num_micro_batches} micro-batches"
        )

    def train_step(
        train_state: TrainState, constants: Constants, host_batch: Any
    ) -> tuple[TrainState, Metrics]:
        train_state = train_state._replace(variables=refresh(train_state.variables))
        positions = rng.batch_positions(train_state.num_batches, batch_size, axis_name)

        # Each replica differentiates its own copy: `shard_map` sums the gradient of an array that
        # replicas share by itself, and the mean below would be a sum.
        variables = _per_replica(train_state.variables, axis_name)

        def of_part(part: Any) -> tuple[Any, Metrics]:
            return loss_and_grads(variables, constants, *part)

        grads, metrics = _mean_over_parts(
            of_part, (host_batch, positions), num_micro_batches, axis_name
        )
        if axis_name is not None:
            grads, metrics = lax.pmean((grads, metrics), axis_name)  # type: ignore[no-untyped-call]
        metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
        return state.apply_gradients(train_state, grads, optimizer, ema_rate), metrics

    return train_step


def repeat_steps(train_step: TrainStep, max_steps: int) -> RepeatedStep:
    """Returns a function that takes several train steps on the device, in one dispatch.

    How many is an argument and not a constant of the compiled program: every count up to
    `max_steps` runs the same machine code, so where a run is cut does not change its numbers.

    Args:
      train_step: from `make_train_step`.
      max_steps: the largest count.

    Returns:
      `(state, constants, host batches, count) -> (state, metrics)`: the host batches (if any) have
      a leading axis of `max_steps`; so have the metrics, of which the first `count` are set.
    """

    def run(
        train_state: TrainState, constants: Constants, host_batches: Any, count: Array
    ) -> tuple[TrainState, Metrics]:
        def batch_at(i: Array | int) -> Any:
            return jax.tree.map(
                lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), host_batches
            )

        def body(i: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            train_state, history = carry
            train_state, metrics = train_step(train_state, constants, batch_at(i))
            return train_state, jax.tree.map(lambda h, m: h.at[i].set(m), history, metrics)

        _, shapes = jax.eval_shape(train_step, train_state, constants, batch_at(0))
        history = jax.tree.map(lambda s: jnp.zeros((max_steps, *s.shape), s.dtype), shapes)
        done: tuple[TrainState, Metrics] = lax.fori_loop(0, count, body, (train_state, history))
        return done

    return run


def _per_replica(tree: Any, axis_name: str | None) -> Any:
    """Makes arrays depend on the replica for `shard_map`; their values stay as they are."""
    if axis_name is None:
        return tree
    # Not `lax.pcast`, which says the same but refuses `vmap`.
    replica = lax.axis_index(axis_name)
    return jax.tree.map(lambda a: jnp.where(replica >= 0, a, a), tree)


def _mean_over_parts(
    function: Callable[[Any], tuple[Any, Metrics]],
    inputs: Any,
    num_parts: int,
    axis_name: str | None,
) -> tuple[Any, Metrics]:
    """Averages gradients and metrics over equal parts of the batch, one part after the other."""
    if num_parts == 1:
        return function(inputs)
    parts = jax.tree.map(lambda a: a.reshape(num_parts, -1, *a.shape[1:]), inputs)
    shapes = jax.eval_shape(function, jax.tree.map(lambda a: a[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    zeros = _per_replica(zeros, axis_name)

    def body(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    total, _ = lax.scan(body, zeros, parts)
    mean: tuple[Any, Metrics] = jax.tree.map(lambda a: a / num_parts, total)
    return mean
