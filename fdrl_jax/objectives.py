"""The objective of flow-guided density ratio learning, for any training loop.

Its inputs are a batch of data, a batch of prior samples and a function that estimates the ratio. It
knows nothing about data loading, optimizers or devices. `steps.make_train_step` is built on it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fdrl_jax import bregman as bregman_lib
from fdrl_jax.bregman import Bregman
from fdrl_jax.divergences import FDivergence, first_variation
from fdrl_jax.langevin import Schedule, as_floating, flow, vary_with

Array = jax.Array
Metrics = dict[str, Array]


def objective(
    key: Array,
    real: Array,
    x0: Array,
    estimator_fn: Callable[[Array], Array],
    *,
    bregman: str | Bregman = "lr",
    divergence: str | FDivergence = "kl",
    num_steps: int,
    step_size: Schedule,
    noise_scale: Schedule,
    gradient_penalty: float | Array = 0.0,
    gradient_penalty_fraction: float = 1.0,
    flow_estimator_fn: Callable[[Array], Array] | None = None,
    unroll: int = 1,
) -> tuple[Array, Metrics]:
    """Lets prior samples flow and computes the Bregman loss against data (algorithm 1, eq. 11).

    Differentiate it with respect to the parameters that `estimator_fn` closes over. The loss treats
    the flowed samples as constants, so no gradient goes through the flow.

    The estimator learns the density ratio of flowed samples over data, `r = q~/p`, or its
    logarithm. The loss determines which one (`Bregman.output`).

    Args:
      key: key of the noise of the flow: one for the batch, or one typed key per prior sample, [M].
      real: a batch of data, [N, ...]. Integers are converted to float32.
      x0: a batch of prior samples, [M, ...], with the same features as the data.
      estimator_fn: any function `x [B, ...] -> [B]`, from Flax, Equinox or plain JAX, whose output
        for an example depends on this example only. It is traced for batches of M and of N + M.
        With a penalty on a part of the batch, it is traced for this part and for the rest instead
        of N + M.
      bregman: the loss, or its name.
      divergence: the f-divergence of the flow, or its name.
      num_steps: `K`, as for `flow`.
      step_size: `η`, as for `flow`.
      noise_scale: `ν`, as for `flow`.
      gradient_penalty: `γ` of the zero-centred penalty
        `γ/2 (E_p |∇_x s(x)|² + E_q~ |∇_x s(x)|²)` (R1 + R2) on the output `s` of the estimator.
        The output is `log r`, or `r` itself for losses that learn an unconstrained ratio (LSIF).
        The Python number 0 costs nothing.
      gradient_penalty_fraction: fraction of the batch, above 0 and at most 1, on which the penalty
        is computed. The first examples are used. A penalised example needs a second derivative,
        which costs more than the gradient of the loss. A quarter of the batch is often enough.
      flow_estimator_fn: the same estimator in a form that is cheaper to apply many times, for
        example with weights that are already cast. The flow uses it instead of `estimator_fn`.
      unroll: as for `flow`.

    Returns:
      The scalar loss, and scalar metrics: those of `bregman.loss`, where "loss" includes the
      penalty; "drift_norm", the mean norm of the drift in the last step of the flow (0 without
      steps); and, with a penalty, "gradient_penalty", the term that it adds to the loss.

    Raises:
      TypeError: see `flow`.
      ValueError: see `flow`. Also if the divergence does not work with the loss, if data and prior
        samples have different features or are empty, if the output of the estimator is not [B], if
        the penalty is negative, or if the fraction is not in (0, 1].

    References: Heng, Ansari and Soh, arXiv 2303.03714, algorithm 1. Mescheder, Geiger and Nowozin,
    "Which Training Methods for GANs do actually Converge?", 2018 (R1 and R2).
    """
    loss, f_divergence = bregman_lib.check_pair(bregman, divergence)
    is_number = isinstance(gradient_penalty, (int, float))
    if not isinstance(gradient_penalty, jax.core.Tracer) and gradient_penalty < 0:
        raise ValueError(f"gradient_penalty must be >= 0, got {gradient_penalty}")
    if not 0 < gradient_penalty_fraction <= 1:
        raise ValueError(
            "gradient_penalty_fraction must be above 0 and at most 1, "
            f"got {gradient_penalty_fraction}"
        )
    real, x0 = as_floating(real), as_floating(x0)
    if real.shape[1:] != x0.shape[1:] or not (real.size and x0.size):
        raise ValueError(
            "data and prior samples must have the same features and not be empty, got shapes "
            f"{real.shape} and {x0.shape}"
        )

    def flow_from(start: Array, function: Callable[[Array], Array]) -> Any:
        return flow(
            key,
            start,
            first_variation(function, f_divergence, loss.output),
            num_steps=num_steps,
            step_size=step_size,
            noise_scale=noise_scale,
            observe=lambda x, drift: jnp.linalg.norm(drift.reshape(len(x), -1), axis=-1),
            unroll=unroll,
        )

    # Stop the gradient at the closed-over parameters, before the flow. If it were stopped only
    # after the flow, the residuals of every step would be stored.
    flow_fn = flow_estimator_fn or estimator_fn
    x0 = vary_with(x0, lambda x: flow_from(x, flow_fn))
    frozen_fn, closed_over = jax.closure_convert(flow_fn, x0)
    closed_over = lax.stop_gradient(closed_over)
    flowed, speeds = flow_from(lax.stop_gradient(x0), lambda x: frozen_fn(x, *closed_over))
    flowed, speeds = lax.stop_gradient((flowed, speeds))

    flowed = flowed.astype(real.dtype)
    if is_number and gradient_penalty == 0:
        value, metrics = bregman_lib.loss(loss, *_outputs(estimator_fn, real, flowed))
    else:
        outputs, square_norm = _penalised_outputs(
            estimator_fn, real, flowed, gradient_penalty_fraction
        )
        value, metrics = bregman_lib.loss(loss, *outputs)
        penalty = 0.5 * gradient_penalty * square_norm
        value = value + penalty
        metrics = {**metrics, "loss": value, "gradient_penalty": penalty}
    return value, {**metrics, "drift_norm": jnp.sum(speeds[-1:]) / len(flowed)}


def _outputs(
    estimator_fn: Callable[[Array], Array], real: Array, flowed: Array
) -> tuple[Array, Array]:
    """Returns the outputs on data and on flowed samples, from one call on both."""
    both = jnp.concatenate([real, flowed])
    outputs = estimator_fn(both)
    if outputs.shape != both.shape[:1]:
        raise ValueError(
            f"an estimator must return one number per example, shape {both.shape[:1]} for x of "
            f"shape {both.shape}, got {outputs.shape}"
        )
    return outputs[: len(real)], outputs[len(real) :]


def _penalised_outputs(
    estimator_fn: Callable[[Array], Array], real: Array, flowed: Array, fraction: float
) -> tuple[tuple[Array, Array], Array]:
    """Returns the outputs, and the mean squared gradient norms of data and of samples, summed.

    Only the first examples are differentiated. Each example passes through the network once.
    """
    num_real, num_flowed = (math.ceil(fraction * len(x)) for x in (real, flowed))
    chosen = vary_with(
        (real[:num_real], flowed[:num_flowed]), lambda pair: _outputs(estimator_fn, *pair)
    )
    outputs, pull_back = jax.vjp(lambda *x: _outputs(estimator_fn, *x), *chosen)
    gradients = pull_back(jax.tree.map(jnp.ones_like, outputs))
    mean_real, mean_flowed = (jnp.sum(jnp.square(g)) / len(g) for g in gradients)
    if num_real < len(real) or num_flowed < len(flowed):
        others = _outputs(estimator_fn, real[num_real:], flowed[num_flowed:])
        outputs = (
            jnp.concatenate([outputs[0], others[0]]),
            jnp.concatenate([outputs[1], others[1]]),
        )
    return outputs, mean_real + mean_flowed
