"""The training step, a pure function for one replica.

It holds no arrays. `parallel` maps it over devices, and you can call it inside your own `jax.jit`.
The random key is an argument, so `jax.vmap` over keys trains several seeds at once.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fdrl_jax import _keys
from fdrl_jax._arrays import as_floating, vary_over
from fdrl_jax.method import Metrics, objective
from fdrl_jax.priors import Batch
from fdrl_jax.training import rng, state
from fdrl_jax.training.problem import Constants, Problem
from fdrl_jax.training.state import TrainState, Variables

__all__ = ["TrainStep", "from_gradients", "make_train_step", "repeat_steps"]
__dir__ = __all__.copy

Array = jax.Array
# `(root key, state, constants, host batch=None) -> (state, metrics)`, one update.
TrainStep = Callable[..., tuple[TrainState, Metrics]]
# `(variables, key, constants, host batch, positions [B]) -> (gradients, metrics)`.
LossAndGrads = Callable[[Variables, Array, Constants, Any, Array], tuple[Any, Metrics]]

# A denoiser works at full resolution. On whole batches of MNIST, it adds half to a step.
_DENOISED_FRACTION = 0.25
# Samples deviate from data by more than the noise that data have, so it learns to remove more of
# it; see docs/failing.md for other factors.
_DENOISED_NOISE = 2.0


def make_train_step(
    problem: Problem,
    *,
    draw: Callable[[Any, Any, Array, Array], Batch],
    dequantisation: float = 0.0,
    gradient_penalty_fraction: float = 1.0,
    **options: Any,
) -> TrainStep:
    """Builds the training step (algorithm 1).

    One step draws data and prior samples and updates the estimator on `FDRL.objective`. All random
    numbers depend only on the key and on the position of the example. The same update trains a
    denoiser, if there is one, by its squared error on a quarter of the batch with twice the
    dequantisation noise. The gradients of the estimator do not depend on it, but both count in a
    clipped norm.

    Args:
      problem: method, estimator, prior and denoiser.
      draw: `(data arrays, host batch, key, positions [B]) -> batch`, a pure function that runs on
        the device and returns the data under "real", [B, ...], and for an estimator that takes
        labels the classes under "label", [B], also of the prior samples. The key is the same for
        all steps.
      dequantisation: standard deviation of the Gaussian noise that is added to data.
      gradient_penalty_fraction: the fraction of the batch, in (0, 1], that the gradient penalty is
        computed on. It needs a second derivative, and a quarter of the batch is often enough.
      **options: `optimizer`, `batch_size` and other arguments of `from_gradients`.

    Returns:
      A `TrainStep`. Its metrics are those of `FDRL.objective`, "grad_norm" and, with a denoiser,
      its error, "denoising_loss", which "loss" does not include.

    Raises:
      ValueError: for a fraction out of its range, a denoiser without dequantisation, and when the
        step is traced, for batches of another size and as for `FDRL.objective`.
    """
    if problem.denoise and not dequantisation:
        raise ValueError("a denoiser needs dequantisation above 0, the noise that it removes")
    if not 0 < gradient_penalty_fraction <= 1:
        raise ValueError(
            "gradient_penalty_fraction must be above 0 and at most 1, got "
            f"{gradient_penalty_fraction}"
        )

    def loss_and_grads(
        variables: Variables, key: Array, constants: Constants, host_batch: Any, positions: Array
    ) -> tuple[Any, Metrics]:
        data_key = rng.stream_key(key, rng.Stream.DATA)
        batch = draw(constants.data, host_batch, data_key, positions)
        # Dequantisation needs floating-point numbers.
        real = clean = as_floating(batch["real"])
        if dequantisation:
            keys = rng.example_keys(key, rng.Stream.DEQUANTISATION, positions)
            real = real + dequantisation * _keys.noise_like(keys, real)
        prior_keys = rng.example_keys(key, rng.Stream.PRIOR, positions)
        x0 = problem.prior_sample(constants.prior, prior_keys, batch)
        for name, array in (("draw", real), ("the prior", x0)):
            if len(array) != len(positions):
                raise ValueError(
                    f"{name} must return one example per position, {len(positions)}, "
                    f"got {len(array)}"
                )

        labels = problem.estimator.labels(batch)
        # Outside `loss_fn`, so that it is done once per step and not differentiated.
        prepared = problem.estimator.prepare(variables)

        def loss_fn(params: Any) -> tuple[Array, Metrics]:
            loss, record = objective(
                problem.method,
                rng.example_keys(key, rng.Stream.FLOW, positions),
                lambda *x: problem.estimator.apply({**variables, "params": params}, *x),
                real=real,
                x0=x0,
                labels=(labels[0], labels[0]) if labels else None,
                flow_estimator=lambda *x: problem.estimator.apply(prepared, *x),
                penalised=gradient_penalty_fraction,
            )
            if problem.denoise is None:
                return loss, record.metrics
            part = slice(math.ceil(_DENOISED_FRACTION * len(real)))
            noisy = clean[part] + _DENOISED_NOISE * (real[part] - clean[part])
            denoised = problem.denoise({**variables, "params": params}, noisy)
            error = jnp.mean((denoised - clean[part]) ** 2)
            return loss + error, {**record.metrics, "denoising_loss": error}

        result: tuple[Any, Metrics] = jax.grad(loss_fn, has_aux=True)(variables["params"])
        return result

    return from_gradients(loss_and_grads, refresh=problem.estimator.refresh, **options)


def from_gradients(
    loss_and_grads: LossAndGrads,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    refresh: Callable[[Variables], Variables] = lambda variables: variables,
    ema_rate: float = 0.998,
    ema_ramp: bool = False,
    axis_name: str | None = None,
) -> TrainStep:
    """Builds a training step from a function that computes gradients.

    Args:
      loss_and_grads: returns means over the examples: gradients with the structure of
        `variables["params"]`, and metrics with "loss", to which the step adds "grad_norm".
      optimizer: an Optax optimizer. It receives the loss as `value`, which some optimizers need.
      batch_size: examples per replica.
      refresh: as in `problem.Estimator`.
      ema_rate: decay of the moving average of the parameters, in [0, 1).
      ema_ramp: as for `state.apply_gradients`.
      axis_name: mapped axis over which gradients and metrics are averaged, if any.
    """
    axes = () if axis_name is None else (axis_name,)
    # Under jit, a second call with the same shapes does not trace the function again.
    loss_and_grads = jax.jit(loss_and_grads)

    def train_step(
        key: Array, train_state: TrainState, constants: Constants, host_batch: Any = None
    ) -> tuple[TrainState, Metrics]:
        train_state = train_state._replace(variables=refresh(train_state.variables))
        positions = rng.batch_positions(train_state.step, batch_size, axis_name)

        # Each replica differentiates its own copy. Otherwise `shard_map` would already sum the
        # gradients of the shared array, and the mean below would return this sum.
        variables = vary_over(train_state.variables, axes)

        grads, metrics = loss_and_grads(variables, key, constants, host_batch, positions)
        if axis_name is not None:
            grads, metrics = lax.pmean((grads, metrics), axis_name)  # type: ignore[no-untyped-call]
        after = state.apply_gradients(
            train_state, grads, optimizer, ema_rate, ema_ramp=ema_ramp, value=metrics["loss"]
        )
        # Averaged first, normalised after: the average of kernels has singular vectors of its own.
        after = after._replace(ema_variables=refresh(after.ema_variables))
        return after, {**metrics, "grad_norm": optax.tree.norm(grads)}

    return train_step


def repeat_steps(
    train_step: TrainStep, max_steps: int
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Returns a function that runs up to `max_steps` training steps on the device in one dispatch.

    All numbers of steps run the same machine code, so results do not depend on where a run is
    interrupted.

    Returns:
      `(key, state, constants, host batches, count) -> (state, metrics)`. Host batches (if any) and
      metrics have a leading axis of `max_steps`, of which `count` are used and set. A `count` above
      `max_steps` is a ValueError if it is known.
    """
    # Under jit, the step is traced once, for its shapes and for the loop.
    traced_once = jax.jit(train_step)

    def run(
        key: Array,
        train_state: TrainState,
        constants: Constants,
        host_batches: Any,
        count: int | Array,
    ) -> tuple[TrainState, Metrics]:
        if not isinstance(count, jax.core.Tracer) and count > max_steps:
            raise ValueError(f"count must be at most {max_steps}, got {count}")

        def take(train_state: TrainState, i: Array) -> Any:
            host_batch = jax.tree.map(
                lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), host_batches
            )
            return traced_once(key, train_state, constants, host_batch)

        def body(i: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            train_state, history = carry
            train_state, metrics = take(train_state, i)
            return train_state, jax.tree.map(lambda h, m: h.at[i].set(m), history, metrics)

        _, shapes = jax.eval_shape(take, train_state, jnp.int32(0))
        history = jax.tree.map(lambda s: jnp.zeros((max_steps, *s.shape), s.dtype), shapes)
        done: tuple[TrainState, Metrics] = lax.fori_loop(0, count, body, (train_state, history))
        return done

    return run
