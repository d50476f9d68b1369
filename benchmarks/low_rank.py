"""What a data-dependent prior of low rank loses, in nats, with two forms of the remainder.

Run: python -m benchmarks.low_rank runs/cifar10 --ranks 0 64 320
Prints the KL divergence of the Gaussian with the full covariance, which the run has fitted, from
the Gaussian with the leading directions and a remainder of the same total variance: white noise, as
in probabilistic PCA, or one variance per spatial frequency, as in `priors.low_rank_factor`.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import linalg

from experiments import run
from experiments.errors import UserError
from fdrl_jax import _covariance


def main() -> None:
    """Prints a line per rank."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir", type=Path, help="a run whose prior has the full covariance")
    parser.add_argument("--ranks", type=int, nargs="+", default=[0, 64, 128, 192, 320])
    arguments = parser.parse_args()
    try:
        opened = run.open_run(arguments.workdir)
        fitted = opened.prior()
    except UserError as error:
        parser.error(str(error))
    if fitted is None or len(fitted.factor) != fitted.factor.shape[1]:
        parser.error(f"{arguments.workdir} has no data-dependent prior of the full covariance")
    factor, event_shape = fitted.factor.astype(np.float64), tuple(opened.data["event_shape"])
    if wrong := [rank for rank in arguments.ranks if not 0 <= rank < len(factor)]:
        parser.error(f"--ranks must be from 0 to {len(factor) - 1}, got {wrong[0]}")
    print(f"{'rank':>5}  {'white noise':>11}  {'per frequency':>13}")
    for rank, white, per_frequency in divergences(factor, event_shape, arguments.ranks):
        print(f"{rank:5}  {white:11.1f}  {per_frequency:13.1f}", flush=True)


def divergences(
    factor: np.ndarray, event_shape: tuple[int, ...], ranks: Sequence[int]
) -> Iterator[tuple[int, float, float]]:
    """Yields each rank and both KL divergences in nats.

    Args:
      factor: of the full covariance, [D, D].
      event_shape: shape of one example.
      ranks: numbers of directions, below D.
    """
    # In the basis of the cosines, in which the remainder is diagonal.
    rows = _covariance.cosines(factor.T, event_shape).reshape(len(factor), -1)
    covariance = rows.T @ rows
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    for rank in ranks:
        leading, white = directions[:, :rank], variances[rank:].mean()
        of_white = (leading * (variances[:rank] - white)) @ leading.T + white * np.eye(len(factor))
        explained = (leading * variances[:rank]) @ leading.T
        of_spectrum = explained + np.diag(np.diag(covariance - explained))
        yield rank, _kl(covariance, of_white), _kl(covariance, of_spectrum)


def _kl(covariance: np.ndarray, model: np.ndarray) -> float:
    """Returns `KL(N(0, covariance) || N(0, model))`."""
    root = linalg.cholesky(model, lower=True)
    whitened = linalg.solve_triangular(root, linalg.cholesky(covariance, lower=True), lower=True)
    log_det = 2.0 * np.log(np.diag(whitened)).sum()
    return float(0.5 * (np.square(whitened).sum() - len(model) - log_det))


if __name__ == "__main__":
    main()
