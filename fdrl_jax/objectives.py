"""The objective of flow-guided density ratio learning, for a training loop of any kind.

It needs a batch of data, a batch of prior samples and a function that estimates the ratio, and
nothing of batches, optimizers or devices. `steps.make_train_step` is built on it.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fdrl_jax import bregman as bregman_lib
from fdrl_jax.bregman import Bregman
from fdrl_jax.divergences import FDivergence, first_variation
from fdrl_jax.langevin import Schedule, as_floating, flow

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
    """Flows prior samples by the estimator and compares them with data (algorithm 1, eq. 11).

    Differentiate it with respect to whatever `estimator_fn` closes over: the flow is a constant of
    the loss, and no gradient goes through it.

    The estimator learns the ratio of flowed samples over data, `r = q~/p`, or its logarithm, as the
    loss determines (`Bregman.output`).

    Args:
      key: one key for the batch, or a typed key per prior sample, [M]; drives the flow.
      real: a batch of data, [N, ...]; integers count as float32.
      x0: a batch of prior samples, [M, ...], of the same features.
      estimator_fn: `x [B, ...] -> [B]`, each output depending on its own example only. Any
        function: of Flax, Equinox or plain JAX. It is traced for batches of M and N + M, or of
        the penalised examples and the others in place of N + M.
      bregman: the loss, or its name.
      divergence: the f-divergence of the flow, or its name.
      num_steps: `K`, as for `flow`.
      step_size: `η`, as for `flow`.
      noise_scale: `ν`, as for `flow`.
      gradient_penalty: `γ` of the zero-centred penalty
        `γ/2 (E_p |∇_x s(x)|² + E_q~ |∇_x s(x)|²)` (R1 + R2) on the output `s` of the estimator:
        `log r`, or, under losses that learn an unconstrained ratio (LSIF), `r` itself, as its
        logarithm does not exist. The Python number 0 costs nothing.
      gradient_penalty_fraction: share of the batch, above 0 and at most 1, whose first examples
        estimate both means of the penalty. The second differentiation of a penalised example costs
        more than the first one of the loss, and a quarter of the batch is often enough.
      flow_estimator_fn: the same estimator in a form that is cheaper to apply many times, such as
        with weights that are cast already; the flow uses it, and `estimator_fn` if it is left out.
      unroll: as for `flow`.

    Returns:
      The scalar loss and metrics, all scalars: those of `bregman.loss`, with the whole objective
      as "loss"; "drift_norm", the mean norm of the drift in the last step of the flow (0 for no
      steps); and, with a penalty, "gradient_penalty", its part of the loss.

    Raises:
      TypeError: as `flow`.
      ValueError: as `flow`; for a loss and divergence that do not go together, data and prior
        samples of different features, outputs that are not [B], a negative penalty, or a fraction
        outside of (0, 1].

    References: Heng, Ansari and Soh, arXiv 2303.03714, algorithm 1. Mescheder, Geiger and Nowozin,
    "Which Training Methods for GANs do actually Converge?", 2018 (R1 and R2).
    """
    loss, f_divergence = bregman_lib.check_pair(bregman, divergence)
    is_number = isinstance(gradient_penalty, (int, float))
    if is_number and gradient_penalty < 0:
        raise ValueError(f"gradient_penalty must be >= 0, got {gradient_penalty}")
    if not 0 < gradient_penalty_fraction <= 1:
        raise ValueError(
            "gradient_penalty_fraction must be above 0 and at most 1, "
            f"got {gradient_penalty_fraction}"
        )
    real, x0 = as_floating(real), as_floating(x0)
    if real.shape[1:] != x0.shape[1:]:
        raise ValueError(
            "data and prior samples must have the same features, got shapes "
            f"{real.shape} and {x0.shape}"
        )

    # Closed-over parameters are frozen before the flow: stopping the gradient only after it would
    # store the residuals of every step.
    frozen_fn, closed_over = jax.closure_convert(flow_estimator_fn or estimator_fn, x0)
    closed_over = lax.stop_gradient(closed_over)
    flowed, speeds = flow(
        key,
        lax.stop_gradient(x0),
        first_variation(lambda x: frozen_fn(x, *closed_over), f_divergence, loss.output),
        num_steps=num_steps,
        step_size=step_size,
        noise_scale=noise_scale,
        observe=lambda x, drift: jnp.linalg.norm(drift.reshape(len(x), -1), axis=-1),
        unroll=unroll,
    )
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
    """Returns the outputs at data and at flowed samples, of one call for both."""
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
    """Returns the outputs, and the sum of the mean square norms of both gradients.

    Only the first examples are differentiated; each example still goes through the network once.
    """
    num_real, num_flowed = (math.ceil(fraction * len(x)) for x in (real, flowed))
    chosen = (real[:num_real], flowed[:num_flowed])
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
