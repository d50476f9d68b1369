"""Better samples by a ratio that is already trained: refinement and rejection.

Refinement (DGflow, `refine`) is for a generator and its discriminator, which estimates the density
ratio of the generator's samples and the data. The flow along this ratio moves the samples towards
the data. The ratio is stale: it belongs to the samples before the flow. It is trained where these
samples and the data are, and anywhere else its gradient has no meaning. To improve a generator
reliably, train `FDRL` with the generator's samples as `x0`.

Rejection (`accept`) is for samples of a trained flow. With little noise, the flow moves samples
within a mode and hardly any mass from one mode to another, so some modes stay too frequent. The
ratio `r = q~/p` knows by how much. If a sample `x` is kept with a probability proportional to
`1 / r(x)`, the kept samples follow the data `p`, as far as the ratio is right for the samples.

References: Ansari, Ang and Soh, "Refining Deep Generative Models via Discriminator Gradient Flow",
arXiv 2012.00780. Azadi et al., "Discriminator Rejection Sampling", ICLR 2019.
"""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import ArrayLike

from fdrl_jax import _keys
from fdrl_jax.compose import Estimator, product
from fdrl_jax.divergences import FDivergence, Output, check_output, first_variation
from fdrl_jax.langevin import as_floating, flow, noise_scale

Array = jax.Array


def refine(
    key: Array,
    x: Array,
    discriminator: Estimator,
    *,
    divergence: str | FDivergence = "kl",
    num_steps: int = 25,
    step_size: float = 0.1,
    entropy_weight: float = 0.01,
    generator: Callable[[Array], Array] | None = None,
    corrector: Estimator | None = None,
    check: bool = True,
) -> Array:
    """Moves a generator's samples towards the data, along the logit of its discriminator (DGflow).

    With the discriminator's logit `d = log p/q`, the density ratio is `log r = -(d + c)`, and a
    step is `x + η s ∇(d + c)(x) + ν ξ`, with `s = 1` for KL, `1 / (1 + e^d)` for log D and
    `1 / (1 + e^-d)` for JS, and with `ν = sqrt(2 η γ)`. The defaults are those of the authors. With
    a generator `G`, the flow runs in its latent space, with `log r(z) = -(d + c)(G(z))`.

    **When it fails.** The step size must fit the scale of the data and the slope of the logit,
    which is large if the discriminator separates samples from data well. Under KL the drift never
    stops, and samples that pass the data leave the region that the discriminator knows; under log D
    it fades. Samples that move farther than they are spread cause a warning. No such figure shows a
    result that is only slightly worse, and neither does the logit, which always increases. Compare
    samples before and after with held-out data, for instance by `metrics.energy_distance`.

    Args:
      key: as for `flow`.
      x: samples of the generator, [B, ...], or latent vectors if there is a generator.
      discriminator: `x [B, ...] -> [B]`, the logit of "real", before any sigmoid.
      divergence: the f-divergence, or a name for `divergences.get`.
      num_steps: the number of steps.
      step_size: `η`.
      entropy_weight: `γ`; 0 draws no noise.
      generator: `z [B, ...] -> x [B, ...]`, to refine latent vectors. Without it, samples are
        refined directly.
      corrector: `c: x [B, ...] -> [B]`, an estimate of `log q_d/q`. Needed if the discriminator was
        trained on samples of another generator, `q_d`, than the one to refine, `q`.
      check: reject a discriminator whose outputs on the given samples all lie in [0, 1], because
        they look like probabilities, and warn if the samples move too far. Inside `jax.jit` no
        values are known, so `False` is required there. It is also how to accept logits in [0, 1].

    Returns:
      The refined samples, [B, ...]; with a generator, its outputs for the refined latent vectors.

    Raises:
      ValueError: for an unknown divergence, for outputs that look like probabilities, for a check
        inside `jax.jit`, and as for `flow` and `noise_scale`.

    Reference: Ansari, Ang and Soh, arXiv 2012.00780, sections 3.1 to 3.3.
    """
    x = as_floating(x)
    if check:
        _check_logits(discriminator(x if generator is None else generator(x)))
    experts = [discriminator] if corrector is None else [discriminator, corrector]
    log_ratio = product(experts, [-1.0] * len(experts))
    if generator is not None:
        log_ratio = Partial(_composition, log_ratio, generator)  # type: ignore[no-untyped-call]
    refined: Array = flow(
        key,
        x,
        first_variation(log_ratio, divergence, output="log_ratio"),
        num_steps=num_steps,
        step_size=step_size,
        noise_scale=noise_scale(step_size, entropy_weight),
    )
    if check:
        _warn_of_distance(x, refined)
    return refined if generator is None else generator(refined)


def _composition(outer: Estimator, inner: Callable[[Array], Array], z: Array) -> Array:
    return outer(inner(z))


def _check_logits(outputs: Array) -> None:
    if isinstance(outputs, jax.core.Tracer):
        raise ValueError(
            "refine cannot check the values of a discriminator inside jax.jit; call it outside, or "
            "pass check=False if the discriminator returns logits, before any sigmoid"
        )
    low, high = float(jnp.min(outputs)), float(jnp.max(outputs))
    if low >= 0.0 and high <= 1.0:
        raise ValueError(
            f"the discriminator's outputs on these samples are from {low:.3g} to {high:.3g}, which "
            "look like probabilities; return the logit, before the sigmoid, or pass check=False if "
            "these are logits"
        )


def _warn_of_distance(before: Array, after: Array) -> None:
    """Warns if samples move farther than they are spread, which a small correction does not."""

    def root_mean_square(x: Array) -> float:
        return float(jnp.sqrt(jnp.mean(jnp.sum(jnp.square(x).reshape(len(x), -1), axis=-1))))

    moved = root_mean_square(after - before)
    spread = root_mean_square(before - jnp.mean(before, axis=0))
    if len(before) > 1 and not moved <= spread:  # A single sample has no spread.
        warnings.warn(
            f"refinement moved the samples by {moved:.3g}, farther than their spread of "
            f"{spread:.3g}, so most are probably where the discriminator was not trained; use a "
            "smaller step_size, fewer steps or divergence='logd', or train FDRL with these samples "
            "as x0",
            stacklevel=3,
        )


def acceptance_bound(outputs: ArrayLike, quantile: float = 0.05) -> Array:
    """Returns the bound `c` as a quantile of the outputs on some samples.

    With the quantile 0, rejection is exact on these samples, and a single one with a small ratio
    can make acceptance rare. A larger quantile keeps too few of the samples with the smallest
    ratios, and accepts more.

    Args:
      outputs: ratios or their logarithms of samples of the flow, [N]; about 1,000 are enough. Those
        that are not finite are left out.
      quantile: from 0 to 1.

    Returns:
      The bound in the unit of the outputs, a scalar; NaN if none is finite.

    Raises:
      ValueError: if there are no outputs, or for another quantile.
    """
    outputs = jnp.asarray(outputs)
    if outputs.ndim != 1 or not outputs.size:
        raise ValueError(f"outputs must have shape [N] with N > 0, got {outputs.shape}")
    if not 0.0 <= quantile <= 1.0:
        raise ValueError(f"quantile must be from 0 to 1, got {quantile}")
    return jnp.nanquantile(jnp.where(jnp.isfinite(outputs), outputs, jnp.nan), quantile)


def accept(key: Array, outputs: ArrayLike, bound: ArrayLike, *, output: Output) -> Array:
    """Decides which samples are kept: `x` with probability `min(1, c / r(x))`.

    Args:
      key: one key, or one per example, [B].
      outputs: of the estimator on samples of the flow, [B].
      bound: `c`, as from `acceptance_bound`, in the unit of the outputs.
      output: what these are: "ratio" or "log_ratio". A ratio below the bound is kept, also a
        negative one, which an unconstrained network may have.

    Returns:
      True for the samples to keep, [B].

    Raises:
      ValueError: for another `output`, if the number of keys is wrong, or for a known bound that is
        NaN or, of ratios, not positive.
    """
    check_output(output)
    known = None if isinstance(bound, jax.core.Tracer) else np.asarray(bound)
    if known is not None and (np.isnan(known).any() or (output == "ratio" and (known <= 0).any())):
        raise ValueError(
            f"bound must be a number, and above 0 if the outputs are ratios, got {bound}, which "
            "would reject almost all samples. Check that the outputs are finite, or use a larger "
            "quantile in acceptance_bound"
        )
    outputs = jnp.asarray(outputs)
    # In float32 for outputs of half precision too, whose uniform numbers are coarse.
    uniform = _keys.uniform_like(_keys.named(_keys.typed(key), "keep"), outputs.astype(jnp.float32))
    if output == "log_ratio":
        probabilities = jnp.exp(jnp.minimum(0.0, bound - outputs))
    else:
        probabilities = jnp.where(outputs <= bound, 1.0, bound / outputs)
    kept: Array = uniform < probabilities
    return kept
