"""Uses of a ratio: mutual information and importance weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from fdrl_jax.bregman import Bregman
from fdrl_jax.ratio.bridges import Bridge
from fdrl_jax.ratio.fitting import Observe, Options, checked_array, fit, fit_ratio
from fdrl_jax.ratio.network import SupportsNetwork
from fdrl_jax.ratio.result import DensityRatio

Array = jax.Array


class MutualInformation(NamedTuple):
    """An estimate of `I(x; y)`.

    Attributes:
      value: the estimate, in nats: the mean of `log r` over held-out pairs. This is a plug-in
        estimate, neither an upper nor a lower bound.
      standard_error: over held-out pairs; the error of the ratio is not included.
      ratio: `r(x, y) = p(x, y) / (p(x) p(y))`, a function of the concatenated features of a pair,
        [B, Dx + Dy].
    """

    value: float
    standard_error: float
    ratio: DensityRatio


def mutual_information(
    key: Array,
    x: ArrayLike,
    y: ArrayLike,
    *,
    network: SupportsNetwork | None = None,
    loss: str | Bregman = "lr",
    bridge: Bridge = "mixing",
    num_waymarks: int | None = None,
    max_auc: float = 0.9,
    num_steps: int = 2_000,
    batch_size: int = 256,
    learning_rate: float = 5e-3,
    weight_decay: float = 1e-4,
    held_out_fraction: float = 0.2,
    observe: Observe | None = None,
) -> MutualInformation:
    """Estimates the mutual information `E[log p(x, y) / (p(x) p(y))]` of paired samples.

    The numerator is the pairs. The denominator is pairs whose `y` comes from another row, drawn
    again in each training step. With the bridge "mixing" only `y` is mixed.

    Args:
      key: a key.
      x: samples of `x`, [N, ...], at least 20.
      y: samples of `y`, [N, ...], in the same order.
      network: as for `fit_ratio`; its input is `[x, y]`, flattened, [B, Dx + Dy].
      loss: as for `fit_ratio`.
      bridge: as for `fit_ratio`.
      num_waymarks: as for `fit_ratio`.
      max_auc: as for `fit_ratio`.
      num_steps: as for `fit_ratio`.
      batch_size: as for `fit_ratio`.
      learning_rate: as for `fit_ratio`.
      weight_decay: as for `fit_ratio`.
      held_out_fraction: as for `fit_ratio`.
      observe: as for `fit_ratio`.

    Returns:
      The estimate, its standard error and the ratio.

    Raises:
      TypeError: as for `fit_ratio`.
      ValueError: as for `fit_ratio`, and unless there is one `y` per `x`.

    Reference: Belghazi et al., "Mutual Information Neural Estimation", ICML 2018 (shuffled pairs);
    Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020 (bridges).
    """
    xs, ys = checked_array("x", x), checked_array("y", y)
    if len(xs) != len(ys):
        raise ValueError(
            f"x and y must be pairs, one y per x, got {len(xs)} and {len(ys)} examples"
        )
    xs, ys = xs.reshape(len(xs), -1), ys.reshape(len(ys), -1)
    pairs = np.concatenate([xs, ys], axis=1)
    ratio = fit(
        key,
        pairs,
        pairs,
        mixed=np.arange(pairs.shape[1]) >= xs.shape[1],
        network=network,
        loss=loss,
        bridge=bridge,
        num_waymarks=num_waymarks,
        max_auc=max_auc,
        options=Options(batch_size, learning_rate, weight_decay, num_steps),
        held_out_fraction=held_out_fraction,
        observe=observe,
    )
    return MutualInformation(*ratio.divergence("kl"), ratio)


def importance_weights(
    key: Array,
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    truncate: float | None = None,
    **options: Any,
) -> Array:
    """Returns weights that make samples of the denominator represent the numerator.

    Under covariate shift, the denominator is the training inputs and the numerator the inputs on
    which the model will be used.

    Args:
      key: a key.
      numerator: samples of the target, [N, ...].
      denominator: samples to be weighted, [M, ...].
      truncate: as for `DensityRatio.weights`.
      **options: options of `fit_ratio`.

    Returns:
      One weight per sample of the denominator, [M], with mean 1.

    Raises:
      TypeError: as for `fit_ratio`.
      ValueError: as for `fit_ratio` and `DensityRatio.weights`.

    Reference: Shimodaira, "Improving predictive inference under covariate shift", 2000.
    """
    ratio = fit_ratio(key, numerator, denominator, **options)
    values = jnp.asarray(checked_array("denominator", denominator), jnp.float32)
    return ratio.weights(values, truncate=truncate)
