"""Errors of an estimated density ratio whose true value is known or can be estimated."""

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma, gammaln, logsumexp

from experiments.evaluation.rows import flat


def log_ratio_kl(
    true_kl: float, estimated_on_flowed: np.ndarray, estimated_on_data: np.ndarray
) -> float:
    """Estimates `KL(q̃ ‖ r̂ p)`, the error of an estimated density ratio.

    The value is `E_q̃[log r - log r̂] + E_p[r̂] - 1`: the divergence between q̃ and its model `r̂ p`,
    whose mass need not be 1. It is the excess of the unnormalised KL loss (appendix B) over its
    minimum. Its expectation is never negative and 0 only for `r̂ = r`.

    Args:
      true_kl: `E_q̃[log r] = KL(q̃ ‖ p)`, exact or estimated (`kl_to_density`). Nothing else about r
        is needed.
      estimated_on_flowed: `log r̂` on samples of q̃, [N].
      estimated_on_data: `log r̂` on samples of p, [M].

    Returns:
      The divergence, in nats.

    Raises:
      ValueError: unless there is one number per sample, [N] and [M].
    """
    (on_flowed,), (on_data,) = _numbers(estimated_on_flowed), _numbers(estimated_on_data)
    mass = np.exp(logsumexp(on_data) - np.log(len(on_data)))
    return float(true_kl - np.mean(on_flowed) + mass - 1.0)


def kl_to_density(
    samples: np.ndarray, log_density: np.ndarray, *, num_neighbours: int = 5
) -> float:
    """Estimates `KL(q̃ ‖ p) = -H(q̃) - E_q̃[log p]` from samples of q̃, for a known p.

    The entropy `H(q̃)` is estimated from distances to nearest neighbours (`entropy`), so the density
    of q̃ is not needed.

    Args:
      samples: samples of q̃, [N, D].
      log_density: `log p` at these samples, [N].
      num_neighbours: neighbours for the estimate of the entropy.

    Returns:
      The divergence, in nats. In two dimensions, 10,000 samples give it to about 0.04.

    Raises:
      ValueError: as for `entropy`, and unless there is one number per sample, [N].
    """
    (numbers,) = _numbers(log_density)
    if len(numbers) != len(samples):
        raise ValueError(f"expected one number per sample, got {len(numbers)} for {len(samples)}")
    return float(-entropy(samples, num_neighbours=num_neighbours) - np.mean(numbers))


def entropy(samples: np.ndarray, *, num_neighbours: int = 5) -> float:
    """Estimates the differential entropy by Kozachenko and Leonenko's formula.

    The value is `ψ(N) - ψ(k) + log V_D + D E[log ε_k]`. ε_k is the distance of a sample to its
    k-th neighbour, and V_D is the volume of the unit ball.

    Args:
      samples: samples, [N, D]. The bias is large unless D is small.
      num_neighbours: k.

    Returns:
      The entropy, in nats.

    Raises:
      ValueError: if there are too few samples, or if more than k of them coincide.

    Reference: Kozachenko and Leonenko, 1987; Kraskov et al., "Estimating mutual information", 2004.
    """
    samples = flat(samples)
    num, size = samples.shape
    if num <= num_neighbours:
        raise ValueError(f"expected more than {num_neighbours} samples, got {num}")
    distances = cKDTree(samples).query(samples, k=[num_neighbours + 1])[0][:, 0]
    if not distances.all():
        raise ValueError(
            f"more than {num_neighbours} samples coincide, so their density is not finite"
        )
    log_volume = size / 2 * np.log(np.pi) - gammaln(size / 2 + 1)
    mean_log_distance = np.mean(np.log(distances))
    return float(digamma(num) - digamma(num_neighbours) + log_volume + size * mean_log_distance)


def _numbers(*arrays: np.ndarray) -> list[np.ndarray]:
    """Returns arrays of one number per sample, [N], in float64."""
    shapes = [np.shape(array) for array in arrays]
    # [N, 1] would broadcast with [N].
    if any(len(shape) != 1 or shape != shapes[0] for shape in shapes):
        got = " and ".join(map(str, shapes))
        raise ValueError(f"expected one number per sample, [N], got shapes {got}")
    return [np.asarray(array, np.float64) for array in arrays]
