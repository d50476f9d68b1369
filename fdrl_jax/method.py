"""Flow-guided density ratio learning (FDRL): one object for the method, and its objective.

`FDRL` holds the loss, the divergence and the flow, so training and sampling cannot disagree on what
the network returns. It knows nothing about data loading, optimizers or devices. `objective` is its
training objective as a function. `training.steps.make_train_step` is built on `FDRL`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fdrl_jax import bregman as bregman_lib
from fdrl_jax import divergences
from fdrl_jax.bregman import Bregman
from fdrl_jax.divergences import FDivergence, FirstVariation, Output, first_variation
from fdrl_jax.langevin import Observe, Schedule, as_floating, check_count, flow, vary_with

Array = jax.Array
Estimator = Callable[[Array], Array]
Metrics = dict[str, Array]
_MAY_BE_ZERO = ("noise_scale", "gradient_penalty")


class Record(NamedTuple):
    """What `FDRL.objective` returns in addition to the loss.

    Attributes:
      metrics: scalars. "loss", and the means over data and over flowed samples of the estimator's
        output ("output_real", "output_flowed") and of the density ratio ("ratio_real",
        "ratio_flowed"), as from `bregman.loss`; "drift_norm", the mean norm of the drift in the
        last step of the flow (0 without steps); and, with a penalty, "gradient_penalty", the term
        that it adds to the loss.
      flowed: the flowed samples, [M, ...].
      losses_real: the term of the loss of each data point, [N].
      losses_flowed: the term of the loss of each flowed sample, [M]. Without a penalty, the loss is
        the mean over data plus the mean over flowed samples.
    """

    metrics: Metrics
    flowed: Array
    losses_real: Array
    losses_flowed: Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class FDRL:
    """The method: a Bregman loss that trains a density ratio, and the flow that this ratio drives.

        method = fdrl.FDRL(num_steps=50, step_size=0.1, noise_scale=0.01)
        loss, record = method.objective(key, real, x0, estimator_fn)  # differentiate the loss
        samples = method.sample(key, x0, estimator_fn)

    It holds no arrays and can be hashed, so it can be a static argument of `jax.jit`. The loss
    determines whether the estimator returns the density ratio of flowed samples over data,
    `r = q~/p`, or its logarithm (`output`).

    Attributes:
      loss: the Bregman loss, or its name: "lr", "lsif" or "ukl".
      divergence: the f-divergence of the flow, or its name, as for `divergences.get`.
      num_steps: `K`, the steps of the flow in training, and the bridging steps in sampling.
      step_size: `η` of the first step, a positive number, or a function of the step `k -> η_k`.
      noise_scale: `ν` of the first step, a number, or a function of the step.
      step_size_decay: the factor by which the step size changes until step `K`. The step size then
        stays constant. Only for a step size and a noise scale that are numbers.
      num_refine_steps: `κ`, additional steps in sampling.
      gradient_penalty: `γ` of the zero-centred penalty
        `γ/2 (E_p |∇_x s(x)|² + E_q~ |∇_x s(x)|²)` (R1 + R2) on the output `s` of the estimator.
      gradient_penalty_fraction: the fraction of the batch, above 0 and at most 1, on which the
        penalty is computed. The first examples are used. A penalised example needs a second
        derivative, which costs more than the gradient of the loss. A quarter of the batch is often
        enough.
      unroll: steps per iteration of the compiled loop.

    Raises:
      TypeError: for a number of the wrong type, such as an array.
      ValueError: for an unknown loss or divergence, for a pair that does not work together, or for
        a number out of its range.

    References: Heng, Ansari and Soh, arXiv 2303.03714, algorithms 1 and 2. Mescheder, Geiger and
    Nowozin, "Which Training Methods for GANs do actually Converge?", 2018 (R1 and R2).
    """

    loss: str | Bregman = "lr"
    divergence: str | FDivergence = "kl"
    num_steps: int
    step_size: float | Callable[[Array], Any]
    noise_scale: float | Callable[[Array], Any]
    step_size_decay: float = 1.0
    num_refine_steps: int = 0
    gradient_penalty: float = 0.0
    gradient_penalty_fraction: float = 1.0
    unroll: int = 1

    def __post_init__(self) -> None:
        bregman_lib.check_pair(self.loss, self.divergence)
        for name in ("num_steps", "num_refine_steps"):
            check_count(name, getattr(self, name))
        schedules = [name for name in ("step_size", "noise_scale") if callable(getattr(self, name))]
        for name in ("step_size", "noise_scale", "step_size_decay", "gradient_penalty"):
            if name not in schedules:
                _check_number(name, getattr(self, name), may_be_zero=name in _MAY_BE_ZERO)
        if schedules and self.step_size_decay != 1.0:
            raise ValueError(
                "step_size_decay needs numbers for step_size and noise_scale, got a function of "
                f"the step for {' and '.join(schedules)}; include the decay in it"
            )
        _check_fraction(self.gradient_penalty_fraction)

    @property
    def output(self) -> Output:
        """What the estimator returns, as the loss trains it: "ratio" or "log_ratio"."""
        return bregman_lib.get(self.loss).output

    def objective(
        self,
        key: Array,
        real: Array,
        x0: Array,
        estimator_fn: Callable[..., Array],
        *,
        weights: Array | None = None,
        labels: tuple[Array, Array] | None = None,
        flow_estimator_fn: Callable[..., Array] | None = None,
    ) -> tuple[Array, Record]:
        """Lets prior samples flow and computes the Bregman loss against data (algorithm 1, eq. 11).

        Differentiate the loss with respect to the parameters that `estimator_fn` closes over. The
        loss treats the flowed samples as constants, so no gradient goes through the flow.

        Args:
          key: key of the noise of the flow: one for the batch, or one typed key per prior sample,
            [M].
          real: a batch of data, [N, ...]. Integers are converted to float32.
          x0: a batch of prior samples, [M, ...], with the same features as the data.
          estimator_fn: any function `x [B, ...] -> [B]`, from Flax, Equinox or plain JAX, whose
            output for an example depends on this example only. It is traced for batches of M and of
            N + M. With a penalty on a part of the batch, it is traced for this part and for the
            rest instead of N + M.
          weights: weights of the data, [N], not negative. All means over data are weighted,
            `Σ w_i a_i / Σ w_i`, so the samples learn the reweighted data.
          labels: the classes of the data, [N, ...], and of the prior samples, [M, ...]. The
            estimators are then functions of an example and its label, `(x, labels) -> [B]`, and
            learn a ratio for each class, `q~(x|y) / p(x|y)` if both have the same shares of the
            classes, and a multiple of it otherwise. A sample keeps its label along the flow.
          flow_estimator_fn: the same estimator in a form that is cheaper to apply many times, for
            example with weights that are already cast. The flow uses it instead of `estimator_fn`.

        Returns:
          The scalar loss, which includes the penalty, and a `Record`.

        Raises:
          TypeError: see `flow`.
          ValueError: see `flow`. Also if data and prior samples have different features or are
            empty, if the output of the estimator is not [B], or if there is not one weight per data
            point, or not one label per example.
        """
        return _objective(
            key,
            real,
            x0,
            estimator_fn,
            loss=bregman_lib.get(self.loss),
            divergence=divergences.get(self.divergence),
            num_steps=self.num_steps,
            **self.schedules(),
            gradient_penalty=self.gradient_penalty,
            gradient_penalty_fraction=self.gradient_penalty_fraction,
            weights=weights,
            labels=labels,
            flow_estimator_fn=flow_estimator_fn,
            unroll=self.unroll,
        )

    def sample(
        self,
        key: Array,
        x0: Array,
        estimator_fn: Estimator,
        *,
        num_refine_steps: int | None = None,
        observe: Observe | None = None,
    ) -> Any:
        """Draws samples: lets prior samples flow for `K + κ` steps (algorithm 2).

        Args:
          key: as for `flow`.
          x0: prior samples, [B, ...].
          estimator_fn: the trained estimator, `x [B, ...] -> [B]`, which may be conditioned by
            `compose.condition`. Outside of `jax.jit`, the compiled flow is reused if it is a pytree
            such as `jax.tree_util.Partial(net.apply, params)`, see `flow`. If it takes labels, pass
            `lambda x: estimator(x, labels)`.
          num_refine_steps: `κ`; by default that of the method.
          observe: as for `flow`.

        Returns:
          The samples, [B, ...]; with `observe`, `(samples, stacked results)`.

        Raises:
          TypeError: as for `flow`.
          ValueError: as for `flow`.
        """
        refine_steps = self.num_refine_steps if num_refine_steps is None else num_refine_steps
        check_count("num_refine_steps", refine_steps)
        return flow(
            key,
            x0,
            self.potential(estimator_fn),
            num_steps=self.num_steps + refine_steps,
            observe=observe,
            unroll=self.unroll,
            **self.schedules(),
        )

    def potential(self, estimator_fn: Estimator) -> FirstVariation:
        """Returns the potential `x -> f'(r(x))` of the flow (eq. 5), for `flow` or `drift`.

        Args:
          estimator_fn: an estimator that returns `output`, `x [B, ...] -> [B]`.
        """
        return first_variation(estimator_fn, self.divergence, output=self.output)

    def schedules(self) -> dict[str, Any]:
        """Returns step size and noise scale as keyword arguments of `flow`.

        With a decay, the step size changes geometrically over `K` steps, `η_k = η decay^(k/K)`, and
        then stays constant. The noise scale is multiplied by the square root of that factor, so the
        entropy weight `ν² / 2η` of eq. 9 is the same at every step.
        """
        if self.step_size_decay == 1.0:
            return {"step_size": self.step_size, "noise_scale": self.noise_scale}
        decay = functools.partial(_Decay, rate=self.step_size_decay, num_steps=self.num_steps)
        return {
            "step_size": decay(self.step_size),
            # The number 0 draws no noise; a schedule would draw it and multiply it by 0.
            "noise_scale": decay(self.noise_scale, of_noise=True) if self.noise_scale else 0.0,
        }


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Decay:
    """A schedule that decays geometrically over the flow, without arrays."""

    first: Any
    rate: float
    num_steps: int
    of_noise: bool = False

    def __call__(self, k: Array) -> Array:
        # With no training steps, `K = 0`, the decay is complete after one step.
        progress = k / max(self.num_steps, 1)
        factor = jnp.power(self.rate, jnp.minimum(progress, 1.0))
        value: Array = self.first * (jnp.sqrt(factor) if self.of_noise else factor)
        return value


def objective(
    key: Array,
    real: Array,
    x0: Array,
    estimator_fn: Estimator,
    *,
    bregman: str | Bregman = "lr",
    divergence: str | FDivergence = "kl",
    num_steps: int,
    step_size: Schedule,
    noise_scale: Schedule,
    gradient_penalty: float | Array = 0.0,
    gradient_penalty_fraction: float = 1.0,
    flow_estimator_fn: Estimator | None = None,
    unroll: int = 1,
) -> tuple[Array, Metrics]:
    """Computes the training objective of `FDRL`, without an object.

    The numbers are those of `FDRL.objective`. Step size, noise scale and penalty may also be traced
    arrays here, so one compiled function can serve several of their values.

    Args:
      key: as for `FDRL.objective`.
      real: as for `FDRL.objective`.
      x0: as for `FDRL.objective`.
      estimator_fn: as for `FDRL.objective`.
      bregman: the loss, or its name. It determines what the estimator learns (`Bregman.output`),
        which `first_variation` must be given for sampling.
      divergence: the f-divergence of the flow, or its name.
      num_steps: `K`, as for `flow`.
      step_size: `η`, as for `flow`.
      noise_scale: `ν`, as for `flow`.
      gradient_penalty: as for `FDRL`. The number 0 costs nothing.
      gradient_penalty_fraction: as for `FDRL`.
      flow_estimator_fn: as for `FDRL.objective`.
      unroll: as for `flow`.

    Returns:
      The scalar loss, and the metrics of a `Record`.

    Raises:
      TypeError: as for `FDRL.objective`.
      ValueError: as for `FDRL.objective`. Also if the divergence does not work with the loss, if
        the penalty is negative, or if the fraction is not in (0, 1].
    """
    loss, f_divergence = bregman_lib.check_pair(bregman, divergence)
    if not isinstance(gradient_penalty, jax.core.Tracer):
        _check_number("gradient_penalty", float(gradient_penalty), may_be_zero=True)
    _check_fraction(gradient_penalty_fraction)
    value, record = _objective(
        key,
        real,
        x0,
        estimator_fn,
        loss=loss,
        divergence=f_divergence,
        num_steps=num_steps,
        step_size=step_size,
        noise_scale=noise_scale,
        gradient_penalty=gradient_penalty,
        gradient_penalty_fraction=gradient_penalty_fraction,
        weights=None,
        labels=None,
        flow_estimator_fn=flow_estimator_fn,
        unroll=unroll,
    )
    return value, record.metrics


def _objective(
    key: Array,
    real: Array,
    x0: Array,
    estimator_fn: Callable[..., Array],
    *,
    loss: Bregman,
    divergence: FDivergence,
    num_steps: int,
    step_size: Schedule,
    noise_scale: Schedule,
    gradient_penalty: float | Array,
    gradient_penalty_fraction: float,
    weights: Array | None,
    labels: tuple[Array, Array] | None,
    flow_estimator_fn: Callable[..., Array] | None,
    unroll: int,
) -> tuple[Array, Record]:
    real, x0 = as_floating(real), as_floating(x0)
    if real.shape[1:] != x0.shape[1:] or not (real.size and x0.size):
        raise ValueError(
            "data and prior samples must have the same features and not be empty, got shapes "
            f"{real.shape} and {x0.shape}"
        )
    if weights is not None:
        weights = _checked_weights(weights, len(real))
    of_real, of_flowed = _checked_labels(labels, len(real), len(x0))

    def flow_from(start: Array, function: Estimator) -> Any:
        return flow(
            key,
            start,
            first_variation(function, divergence, output=loss.output),
            num_steps=num_steps,
            step_size=step_size,
            noise_scale=noise_scale,
            observe=lambda x, drift: jnp.linalg.norm(drift.reshape(len(x), -1), axis=-1),
            unroll=unroll,
        )

    # Stop the gradient at the closed-over parameters, before the flow. If it were stopped only
    # after the flow, the residuals of every step would be stored.
    labelled_fn = flow_estimator_fn or estimator_fn

    def flow_fn(x: Array) -> Array:
        return labelled_fn(x, *of_flowed)

    x0 = vary_with(x0, lambda x: flow_from(x, flow_fn))
    frozen_fn, closed_over = jax.closure_convert(flow_fn, x0)
    closed_over = lax.stop_gradient(closed_over)
    flowed, speeds = flow_from(lax.stop_gradient(x0), lambda x: frozen_fn(x, *closed_over))
    flowed, speeds = lax.stop_gradient((flowed, speeds))

    data, samples = (real, *of_real), (flowed.astype(real.dtype), *of_flowed)
    if isinstance(gradient_penalty, (int, float)) and gradient_penalty == 0:
        outputs = _outputs(estimator_fn, data, samples)
        value, metrics = bregman_lib.loss(loss, *outputs, weights=weights)
    else:
        outputs, square_norm = penalised_outputs(
            estimator_fn, data, samples, gradient_penalty_fraction, weights
        )
        value, metrics = bregman_lib.loss(loss, *outputs, weights=weights)
        penalty = 0.5 * gradient_penalty * square_norm
        value = value + penalty
        metrics = {**metrics, "loss": value, "gradient_penalty": penalty}
    metrics = {**metrics, "drift_norm": jnp.sum(speeds[-1:]) / len(flowed)}
    return value, Record(metrics, samples[0], *bregman_lib.losses(loss, *outputs))


def _outputs(
    estimator_fn: Callable[..., Array], data: tuple[Array, ...], samples: tuple[Array, ...]
) -> tuple[Array, Array]:
    """Returns the outputs on data and on flowed samples, from one call on both.

    Both are examples, and their labels if the estimator takes them.
    """
    x, *labels = (jnp.concatenate(pair) for pair in zip(data, samples, strict=True))
    outputs = estimator_fn(x, *labels)
    if outputs.shape != x.shape[:1]:
        raise ValueError(
            f"an estimator must return one number per example, shape {x.shape[:1]} for x of "
            f"shape {x.shape}, got {outputs.shape}"
        )
    return outputs[: len(data[0])], outputs[len(data[0]) :]


def penalised_outputs(
    estimator_fn: Callable[..., Array],
    data: tuple[Array, ...],
    samples: tuple[Array, ...],
    fraction: float,
    weights: Array | None,
) -> tuple[tuple[Array, Array], Array]:
    """Returns the outputs, and the mean squared gradient norms of data and of samples, summed.

    Only the first examples are differentiated. Each example passes through the network once.

    Args:
      estimator_fn: examples [B, ...], and their labels if it takes them, to outputs [B].
      data: real examples, [N, ...], and their labels if any.
      samples: the same for samples, [M, ...].
      fraction: part of both that is differentiated.
      weights: of the data, [N], or `None` for equal ones.

    Returns:
      The outputs on data, [N], and on samples, [M], and the sum of both means, a scalar.
    """
    num_real, num_flowed = (math.ceil(fraction * len(part[0])) for part in (data, samples))
    real, *of_real = (a[:num_real] for a in data)
    flowed, *of_flowed = (a[:num_flowed] for a in samples)

    def outputs_of(real: Array, flowed: Array) -> tuple[Array, Array]:
        return _outputs(estimator_fn, (real, *of_real), (flowed, *of_flowed))

    chosen = vary_with((real, flowed), lambda pair: outputs_of(*pair))
    outputs, pull_back = jax.vjp(outputs_of, *chosen)
    gradients = pull_back(jax.tree.map(jnp.ones_like, outputs))
    mean_real, mean_flowed = (jnp.sum(jnp.square(g)) / len(g) for g in gradients)
    if weights is not None:
        squares = jnp.sum(jnp.square(gradients[0]).reshape(num_real, -1), axis=-1)
        chosen_weights = weights[:num_real]
        total = jnp.sum(chosen_weights)
        mean_real = jnp.sum(chosen_weights * squares) / jnp.where(total > 0.0, total, 1.0)
    if num_real < len(data[0]) or num_flowed < len(samples[0]):
        rest = tuple(a[num_real:] for a in data), tuple(a[num_flowed:] for a in samples)
        others = _outputs(estimator_fn, *rest)
        outputs = (
            jnp.concatenate([outputs[0], others[0]]),
            jnp.concatenate([outputs[1], others[1]]),
        )
    return outputs, mean_real + mean_flowed


def _checked_labels(
    labels: tuple[Array, Array] | None, num_real: int, num_flowed: int
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Returns the labels of the data and of the samples as further arguments of an estimator."""
    if labels is None:
        return (), ()
    if len(labels) != 2:
        raise ValueError(
            "labels must be a pair, those of the data and those of the prior samples, got "
            f"{len(labels)} entries"
        )
    of_real, of_flowed = map(jnp.asarray, labels)
    if (of_real.shape[:1], of_flowed.shape[:1]) != ((num_real,), (num_flowed,)):
        raise ValueError(
            f"labels must be one per data point and one per prior sample, {num_real} and "
            f"{num_flowed}, got shapes {of_real.shape} and {of_flowed.shape}"
        )
    return (of_real,), (of_flowed,)


def _checked_weights(weights: Array, num: int) -> Array:
    weights = as_floating(weights)
    if weights.shape != (num,):
        raise ValueError(
            f"weights must be one number per data point, shape ({num},), got shape {weights.shape}"
        )
    if not isinstance(weights, jax.core.Tracer) and not (
        bool(jnp.all(weights >= 0)) and 0 < float(jnp.sum(weights)) < math.inf
    ):
        raise ValueError(
            "weights must be finite numbers >= 0, at least one of them positive; got minimum "
            f"{float(jnp.min(weights))} and sum {float(jnp.sum(weights))}"
        )
    return weights


def _check_number(name: str, value: object, *, may_be_zero: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(
            f"{name} must be a number, got {type(value).__name__} {value}; convert an array with "
            "float()"
        )
    if not (0 <= value < math.inf if may_be_zero else 0 < value < math.inf):
        bound = ">= 0" if may_be_zero else "above 0"
        raise ValueError(f"{name} must be {bound} and finite, got {value}")


def _check_fraction(value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"gradient_penalty_fraction must be above 0 and at most 1, got {value}")
