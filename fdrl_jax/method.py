"""Flow-guided density ratio learning (FDRL): the loss, the divergence and the flow as one object.

Training and sampling then cannot disagree on what the network returns.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jax.typing import ArrayLike

from fdrl_jax import bregman as bregman_lib
from fdrl_jax._arrays import as_floating, vary_with
from fdrl_jax._checks import check_count, check_not_bytes, check_number
from fdrl_jax.bregman import Bregman
from fdrl_jax.divergences import FDivergence, FirstVariation, Output, first_variation
from fdrl_jax.langevin import Observe, Schedule, flow

__all__ = ["FDRL", "Record"]
__dir__ = __all__.copy

Array = jax.Array
Estimator = Callable[..., Array]  # `x [B, ...] -> [B]`, or `(x, labels [B]) -> [B]`.
Metrics = dict[str, Array]


class Record(NamedTuple):
    """What `FDRL.objective` returns in addition to the loss.

    Attributes:
      metrics: those of `bregman.loss`; "drift_norm", the mean norm of the drift in the last step of
        the flow (0 without steps); and, with a penalty, its term of the loss, "gradient_penalty".
      flowed: the flowed samples, [M, ...].
    """

    metrics: Metrics
    flowed: Array


_NUMBERS = ("step_size", "noise_scale", "entropy_weight", "gradient_penalty")  # They are leaves.
_STATIC = ("loss", "divergence", "num_steps", "num_refine_steps")


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, kw_only=True)
class FDRL:
    """The method: a Bregman loss that trains a density ratio, and the flow that this ratio drives.

        method = fdrl.FDRL(num_steps=50, step_size=0.1, noise_scale=0.01)
        loss, record = method.objective(key, estimator, real=real, x0=x0)  # differentiate the loss
        samples = method.sample(key, x0, estimator)

    The loss determines whether the estimator returns the density ratio of flowed samples over data,
    `r = q~/p`, or its logarithm (`output`). The flow minimises the divergence plus the negative
    entropy of the samples times `entropy_weight`, whose effect is noise; give either.

    It is a pytree whose leaves are step size, noise and penalty, so these may be traced. It can
    also be hashed: as a static argument of `jax.jit`, its zeros cost nothing.

    Attributes:
      loss: the Bregman loss, or its name: "lr", "lsif" or "ukl".
      divergence: the f-divergence of the flow, or its name, as for `divergences.get`.
      num_steps: `K`, the steps of the flow in training, and the bridging steps in sampling.
      step_size: `η`, a positive number, or a function of the step `k -> η_k`.
      noise_scale: `ν`, a number, or a function of the step.
      entropy_weight: `γ`, a number; `ν = sqrt(2 η γ)` (eq. 9).
      num_refine_steps: `κ`, additional steps in sampling.
      gradient_penalty: the weight of the zero-centred penalty
        `1/2 (E_p |∇_x s(x)|² + E_q~ |∇_x s(x)|²)` (R1 + R2) on the output `s` of the estimator.

    Raises:
      TypeError, ValueError: for names, pairs or numbers that are not allowed.

    References: Heng, Ansari and Soh, arXiv 2303.03714, algorithms 1 and 2. Mescheder, Geiger and
    Nowozin, "Which Training Methods for GANs do actually Converge?", 2018 (R1 and R2).
    """

    loss: str | Bregman = "lr"
    divergence: str | FDivergence = "kl"
    num_steps: int
    step_size: Schedule
    noise_scale: Schedule | None = None
    entropy_weight: ArrayLike | None = None
    num_refine_steps: int = 0
    gradient_penalty: ArrayLike = 0.0

    def __post_init__(self) -> None:
        self.potential(jnp.sum)  # A ValueError for names that are unknown or do not fit.
        for name in ("num_steps", "num_refine_steps"):
            check_count(name, getattr(self, name))
        if (self.noise_scale is None) == (self.entropy_weight is None):
            raise ValueError(
                "FDRL needs either noise_scale or entropy_weight, got "
                f"{self.noise_scale} and {self.entropy_weight}"
            )
        for name in _NUMBERS:
            value = getattr(self, name)
            is_schedule = callable(value) and name in ("step_size", "noise_scale")
            is_missing = value is None and name in ("noise_scale", "entropy_weight")
            if not (is_missing or is_schedule):
                check_number(name, value, above_zero=name == "step_size")

    def tree_flatten_with_keys(self) -> Any:
        """Returns the leaves with their names, and what is static, for JAX."""
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(self, name)) for name in _NUMBERS]
        return leaves, tuple(getattr(self, name) for name in _STATIC)

    @classmethod
    def tree_unflatten(cls, static: tuple[Any, ...], leaves: Iterable[Any]) -> Self:
        """Rebuilds the method from leaves of any kind, such as gradients or shapes, unchecked."""
        method = object.__new__(cls)
        fields = zip((*_STATIC, *_NUMBERS), (*static, *leaves), strict=True)
        for name, value in fields:
            object.__setattr__(method, name, value)
        return method

    @property
    def output(self) -> Output:
        """What the estimator returns, as the loss trains it: "ratio" or "log_ratio"."""
        return bregman_lib.get(self.loss).output

    def objective(
        self,
        key: Array,
        estimator: Estimator,
        *,
        real: Array,
        x0: Array,
        labels: tuple[Array, Array] | None = None,
        weights: Array | None = None,
    ) -> tuple[Array, Record]:
        """Lets prior samples flow and computes the Bregman loss against data (algorithm 1, eq. 11).

        Differentiate the loss with respect to the parameters that `estimator` closes over. No
        gradient goes through the flow.

        Args:
          key: for the noise of the flow: one key, or one typed key per prior sample, [M].
          estimator: any function `x [B, ...] -> [B]`, whose output for an example depends on this
            example only. It is traced for batches of M and N + M.
          real: a batch of data, [N, ...], on the scale that the network should see; not bytes.
          x0: a batch of prior samples, [M, ...], with the same features as the data.
          labels: the classes of the data, [N, ...], and of the prior samples, [M, ...]. The
            estimator is then `(x, labels) -> [B]` and learns a ratio for each class, `q~(x|y) /
            p(x|y)` if both have the same shares of the classes, and a multiple of it otherwise.
          weights: weights of the data, [N], not negative: all means over data are `Σ w_i a_i /
            Σ w_i`. With a negative weight that is traced, the loss is NaN.

        Returns:
          The scalar loss, which includes the penalty, and a `Record`.

        Raises:
          TypeError, ValueError: as for `flow`, for bytes, and for shapes that do not fit.
        """
        return objective(self, key, estimator, real=real, x0=x0, labels=labels, weights=weights)

    def sample(
        self,
        key: Array,
        x0: Array,
        estimator: Estimator,
        *,
        labels: Array | None = None,
        num_refine_steps: int | None = None,
        observe: Observe | None = None,
    ) -> Any:
        """Draws samples: lets prior samples flow for `K + κ` steps (algorithm 2).

        Args:
          key: as for `flow`.
          x0: prior samples, [B, ...].
          estimator: the trained estimator, `x [B, ...] -> [B]`, also from `condition`. Outside of
            `jax.jit`, the compiled flow is reused if it is a pytree such as
            `jax.tree_util.Partial(net.apply, params)`; anything else is compiled at every call.
          labels: the classes of the samples, [B, ...], for an estimator of two arguments.
          num_refine_steps: `κ`; by default that of the method.
          observe: as for `flow`.

        Returns:
          The samples, [B, ...]; with `observe`, `(samples, stacked results)`.
        """
        refine_steps = self.num_refine_steps if num_refine_steps is None else num_refine_steps
        check_count("num_refine_steps", refine_steps)
        if labels is not None:
            labels = jnp.asarray(labels)
            if labels.shape[:1] != jnp.shape(x0)[:1]:
                raise ValueError(
                    f"labels must be one per prior sample, {jnp.shape(x0)[:1]}, got {labels.shape}"
                )
            estimator = Partial(_of_labels, estimator, labels)  # type: ignore[no-untyped-call]
        return flow(
            key,
            x0,
            self.potential(estimator),
            num_steps=self.num_steps + refine_steps,
            observe=observe,
            **self.schedules(),
        )

    def potential(self, estimator: Callable[[Array], Array]) -> FirstVariation:
        """Returns the potential `x -> f'(r(x))` of the flow (eq. 5), for `flow` or `drift`."""
        return first_variation(estimator, self.divergence, output=self.output)

    def schedules(self) -> dict[str, Any]:
        """Returns step size and noise scale as keyword arguments of `flow`."""
        eta, gamma, noise = self.step_size, self.entropy_weight, self.noise_scale
        if gamma is None:
            return {"step_size": eta, "noise_scale": noise}
        if callable(eta):
            return {"step_size": eta, "noise_scale": lambda k: jnp.sqrt(2.0 * eta(k) * gamma)}
        are_known = isinstance(eta, (int, float)) and isinstance(gamma, (int, float))
        square: Any = 2.0 * eta * gamma
        return {"step_size": eta, "noise_scale": (math if are_known else jnp).sqrt(square)}


def _of_labels(estimator: Estimator, labels: Array, x: Array) -> Array:
    return estimator(x, labels)


def objective(
    method: FDRL,
    key: Array,
    estimator: Estimator,
    *,
    real: Array,
    x0: Array,
    labels: tuple[Array, Array] | None = None,
    weights: Array | None = None,
    flow_estimator: Estimator | None = None,
    penalised: float = 1.0,
) -> tuple[Array, Record]:
    """Computes `FDRL.objective`, with what only a training step needs.

    `flow_estimator` is the same estimator in a form that is cheaper to apply many times, and
    `penalised` the fraction of both batches, the first examples, that has a penalty.
    """
    for name, array in (("real", real), ("x0", x0)):
        check_not_bytes(name, array)
    real, x0 = as_floating(real), as_floating(x0)
    if not real.ndim or real.shape[1:] != x0.shape[1:] or not (real.size and x0.size):
        raise ValueError(
            "data and prior samples must have the same features and not be empty, got shapes "
            f"{real.shape} and {x0.shape}"
        )
    if weights is not None:
        weights = _checked_weights(weights, len(real))
    of_real, of_flowed = _checked_labels(labels, len(real), len(x0))

    def flow_from(start: Array, function: Callable[[Array], Array]) -> Any:
        return flow(
            key,
            start,
            method.potential(function),
            num_steps=method.num_steps,
            observe=lambda x, drift: jnp.linalg.norm(drift.reshape(len(x), -1), axis=-1),
            **method.schedules(),
        )

    # Stop the gradient at the closed-over parameters, before the flow. If it were stopped only
    # after the flow, the residuals of every step would be stored.
    labelled = flow_estimator or estimator

    def flow_fn(x: Array) -> Array:
        return labelled(x, *of_flowed)

    x0 = vary_with(x0, lambda x: flow_from(x, flow_fn))
    frozen_fn, closed_over = jax.closure_convert(flow_fn, x0)
    closed_over = lax.stop_gradient(closed_over)
    flowed, speeds = flow_from(lax.stop_gradient(x0), lambda x: frozen_fn(x, *closed_over))
    flowed, speeds = lax.stop_gradient((flowed, speeds))

    data, samples = (real, *of_real), (flowed.astype(real.dtype), *of_flowed)
    loss, weight = bregman_lib.get(method.loss), method.gradient_penalty
    if isinstance(weight, (int, float)) and weight == 0:
        outputs = _outputs(estimator, data, samples)
        value, metrics = bregman_lib.loss(loss, *outputs, weights=weights)
    else:
        outputs, square_norm = _penalised_outputs(estimator, data, samples, penalised, weights)
        value, metrics = bregman_lib.loss(loss, *outputs, weights=weights)
        penalty = jnp.asarray(0.5 * weight * square_norm)
        value = value + penalty
        metrics = {**metrics, "loss": value, "gradient_penalty": penalty}
    metrics = {**metrics, "drift_norm": jnp.sum(speeds[-1:]) / len(flowed)}
    return value, Record(metrics, samples[0])


def _outputs(
    estimator: Estimator, data: tuple[Array, ...], samples: tuple[Array, ...]
) -> tuple[Array, Array]:
    """Returns the outputs on data and on flowed samples, each with its labels, from one call."""
    x, *labels = (jnp.concatenate(pair) for pair in zip(data, samples, strict=True))
    outputs = estimator(x, *labels)
    if outputs.shape != x.shape[:1]:
        raise ValueError(
            f"an estimator must return one number per example, shape {x.shape[:1]} for x of "
            f"shape {x.shape}, got {outputs.shape}"
        )
    return outputs[: len(data[0])], outputs[len(data[0]) :]


def _penalised_outputs(
    estimator: Estimator,
    data: tuple[Array, ...],
    samples: tuple[Array, ...],
    fraction: float,
    weights: Array | None,
) -> tuple[tuple[Array, Array], Array]:
    """Returns the outputs, and the mean squared gradient norms of data and of samples, summed.

    Only the first examples are differentiated. Each example passes through the network once.
    """
    num_real, num_flowed = (math.ceil(fraction * len(part[0])) for part in (data, samples))
    real, *of_real = (a[:num_real] for a in data)
    flowed, *of_flowed = (a[:num_flowed] for a in samples)

    def outputs_of(real: Array, flowed: Array) -> tuple[Array, Array]:
        return _outputs(estimator, (real, *of_real), (flowed, *of_flowed))

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
        others = _outputs(estimator, *rest)
        outputs = jax.tree.map(lambda *parts: jnp.concatenate(parts), outputs, others)
    return outputs, mean_real + mean_flowed


def _checked_labels(
    labels: tuple[Array, Array] | None, num_real: int, num_flowed: int
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Returns the labels of the data and of the samples as further arguments of an estimator."""
    if labels is None:
        return (), ()
    shapes = [jnp.shape(part) for part in labels]
    if [shape[:1] for shape in shapes] != [(num_real,), (num_flowed,)]:
        raise ValueError(
            f"labels must be a pair: one per data point, {num_real}, and one per prior sample, "
            f"{num_flowed}, got {len(shapes)} entries of shapes {', '.join(map(str, shapes[:3]))}"
        )
    of_real, of_flowed = map(jnp.asarray, labels)
    return (of_real,), (of_flowed,)


def _checked_weights(weights: Array, num: int) -> Array:
    weights = as_floating(weights)
    if weights.shape != (num,):
        raise ValueError(
            f"weights must be one number per data point, shape ({num},), got shape {weights.shape}"
        )
    is_traced = isinstance(weights, jax.core.Tracer)
    known: Any = weights if is_traced else np.asarray(weights)  # JAX would trace it under jit.
    total = known.sum()
    is_valid = (known >= 0).all() & (total > 0) & (total < math.inf)
    if is_traced:
        return jnp.where(is_valid, weights, jnp.nan)
    if not is_valid:
        raise ValueError(
            "weights must be finite numbers >= 0, at least one of them positive; got minimum "
            f"{known.min()} and sum {total}"
        )
    return weights
