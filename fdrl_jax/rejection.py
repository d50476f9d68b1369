"""Rejection of flowed samples by their density ratio, which makes their distribution exact.

A flow with little noise moves samples within a mode and hardly any mass from one mode to another,
so some modes stay too frequent. The ratio `r = q~/p` knows by how much. If a sample `x` is kept
with a probability proportional to `1 / r(x)`, the kept samples follow the data `p`, as far as the
ratio is right. The probability is `min(1, c / r(x))` with a bound `c`, below which all are kept.

Reference: Azadi et al., "Discriminator Rejection Sampling", ICLR 2019.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from fdrl_jax import _keys
from fdrl_jax.divergences import Output, check_output

Array = jax.Array


def bound(outputs: ArrayLike, quantile: float = 0.05) -> Array:
    """Returns the bound `c` as a quantile of the outputs on some samples.

    With the quantile 0, rejection is exact on these samples, and a single one with a small ratio
    can make acceptance rare. A larger quantile keeps too few of the samples with the smallest
    ratios, and accepts more.

    Args:
      outputs: ratios or their logarithms of samples of the flow, [N]; about 1,000 are enough.
      quantile: from 0 to 1.

    Returns:
      The bound in the unit of the outputs, a scalar.

    Raises:
      ValueError: if there are no outputs, or for another quantile.
    """
    outputs = jnp.asarray(outputs)
    if outputs.ndim != 1 or not outputs.size:
        raise ValueError(f"outputs must have shape [N] with N > 0, got {outputs.shape}")
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile must be from 0 to 1, got {quantile}")
    return jnp.quantile(outputs, quantile)


def accept(key: Array, outputs: ArrayLike, bound: ArrayLike, *, output: Output) -> Array:
    """Decides which samples are kept: `x` with probability `min(1, c / r(x))`.

    Args:
      key: one key, or one per example, [B].
      outputs: of the estimator on samples of the flow, [B].
      bound: `c`, as from `bound`, in the unit of the outputs.
      output: what these are: "ratio" or "log_ratio". A ratio below the bound is kept, also a
        negative one, which an unconstrained network may have.

    Returns:
      True for the samples to keep, [B].

    Raises:
      ValueError: for another `output`, or if the number of keys is wrong.
    """
    check_output(output)
    outputs = jnp.asarray(outputs)
    keys = _keys.of_batch(key, outputs)
    if output == "log_ratio":
        probabilities = jnp.exp(jnp.minimum(0.0, bound - outputs))
    else:
        probabilities = jnp.where(outputs > bound, bound / outputs, 1.0)
    if keys.ndim:
        uniform = jax.vmap(jax.random.uniform)(keys)
    else:
        uniform = jax.random.uniform(keys, outputs.shape)
    kept: Array = uniform < probabilities
    return kept
