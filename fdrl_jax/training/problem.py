"""A learning problem as functions and a method, for training steps and samplers."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
from flax import linen as nn

from fdrl_jax import networks
from fdrl_jax._checks import one_or_nan
from fdrl_jax.langevin import Potential
from fdrl_jax.method import FDRL
from fdrl_jax.priors import Batch
from fdrl_jax.training.state import Variables

__all__ = ["Condition", "Constants", "Estimator", "Problem"]
__dir__ = __all__.copy

Array = jax.Array
# `(estimator, arrays of a classifier, batch) -> conditioned estimator`.
Condition = Callable[[Callable[[Array], Array], Any, Batch], Callable[[Array], Array]]


class Estimator(NamedTuple):
    """A density-ratio network as functions.

    It estimates the ratio of flowed samples over data, `r = q~/p`, or its logarithm. For a network
    of this package use `Estimator.from_network`, which also sets `refresh` and `prepare`.

    Attributes:
      apply: `(variables, x [B, ...]) -> [B]`, each output depending only on its own example. With
        `takes_labels`, `(variables, x, labels [B]) -> [B]`.
      refresh: `variables -> variables`, called before each training step, and on the averaged
        variables after it, to update those that are not trained by gradients (the vectors of
        spectral normalisation), which flow, loss and sampling use as constants.
      prepare: `variables -> variables` with which `apply` gives the same outputs at a lower cost,
        for instance by casting weights in advance. It is called once before a flow, never on
        variables that are differentiated. Averaged parameters are always float32.
      takes_labels: whether it estimates a ratio for each class, of the batch under "label", [B].
    """

    apply: Callable[..., Array]
    refresh: Callable[[Variables], Variables] = lambda variables: variables
    prepare: Callable[[Variables], Variables] = lambda variables: variables
    takes_labels: bool = False

    @classmethod
    def from_network(cls, network: nn.Module, *, takes_labels: bool | None = None) -> Self:
        """Returns the estimator of a Flax module that maps [B, ...] to [B].

        With `takes_labels`, by default that of a residual network with `num_outputs`, it maps to
        [B, C], and the label of an example selects an output; one out of range gives NaN.
        """

        def apply(variables: Variables, x: Array, *labels: Array) -> Any:
            outputs: Any = network.apply(variables, x)
            if labels and outputs.ndim != 2:
                raise ValueError(f"labels need an output per class, [B, C], got {outputs.shape}")
            for of_x in labels:
                chosen = jnp.take_along_axis(outputs, of_x[:, None], axis=1)[:, 0]
                outputs = one_or_nan(of_x, outputs.shape[1]) * chosen
            return outputs

        if takes_labels is None:
            takes_labels = getattr(network, "num_outputs", None) is not None
        made = cls(apply, networks.update_vectors, takes_labels=takes_labels)
        if isinstance(network, (networks.MLP, networks.ResNet)):
            made = made._replace(prepare=functools.partial(networks.prepare, network))
        return made

    def labels(self, batch: Batch) -> tuple[Array, ...]:
        """Returns the further arguments of `apply`: the classes of a batch, if it takes them."""
        if not self.takes_labels:
            return ()
        if "label" not in batch:
            raise ValueError(
                "an estimator that takes labels needs the classes of a batch under 'label', "
                f"got {sorted(batch)}"
            )
        return (jnp.asarray(batch["label"]),)


class Constants(NamedTuple):
    """Arrays that steps and samplers read and never change."""

    data: Any  # The `draw` of a training step reads them.
    prior: Any  # The `params` of a `priors.Prior`.
    classifier: Any = None  # Conditional sampling needs it.


class Problem(NamedTuple):
    """A method and its estimator, whose flow starts from a prior.

    Attributes:
      method: loss, divergence, flow and gradient penalty.
      estimator: the network, which returns `method.output`.
      prior_sample: `(params, keys [B], batch) -> x_0 [B, ...]`, as in `priors.Prior`.
      condition: a `Condition`, for instance with `compose.condition`, applied only in sampling.
      denoise: `(variables, x [B, ...]) -> [B, ...]`, or `None`. It learns to remove noise from
        data, with its own parameters among the variables, and is applied to refined samples.
    """

    method: FDRL
    estimator: Estimator
    prior_sample: Callable[[Any, Array, Batch], Array]
    condition: Condition | None = None
    denoise: Callable[[Variables, Array], Array] | None = None

    def potential(
        self, variables: Variables, batch: Batch | None = None, constants: Constants | None = None
    ) -> Potential:
        """Returns the potential `f'(r(x))` of the estimator with these variables (eq. 5).

        With constants, it is that of sampling, conditioned if there is a condition (eq. 12). If the
        estimator takes labels, they are those of the batch.
        """
        prepared, labels = self.estimator.prepare(variables), self.estimator.labels(batch or {})

        def estimator(x: Array) -> Array:
            return self.estimator.apply(prepared, x, *labels)

        if self.condition is None or constants is None:
            return self.method.potential(estimator)
        return self.method.potential(self.condition(estimator, constants.classifier, batch or {}))
