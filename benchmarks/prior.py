"""Time, memory and accuracy of the data-dependent prior on real images.

Run: python -m benchmarks.prior --data_dir=DIR [--image_size=64] [--rank=0] [--picture=FILE.png]
Run it once per setting, because the peak of memory is that of the process.
"""

import argparse
import resource
import time
from pathlib import Path

import jax
import numpy as np

from experiments import pictures
from experiments import prior as fitted_prior
from experiments.data import DataOptions, load
from fdrl_jax import priors
from fdrl_jax.training import rng

NUM_DIRECTIONS = 64
NUM_SAMPLES = 4_096


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_024


def main() -> None:
    """Prints time and memory of the fit, and the errors of the model and of its samples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data_dir", required=True, help="folder or zip of images")
    parser.add_argument("--image_size", type=int, default=64, help="in pixels, width and height")
    parser.add_argument("--rank", type=int, default=0, help="rank of the covariance (prior.rank)")
    parser.add_argument("--picture", type=Path, help="also draw samples and data to this file")
    arguments = parser.parse_args()

    options = DataOptions(
        "folder", arguments.data_dir, image_size=arguments.image_size, in_memory_megabytes=0
    )
    source = load(options)
    rank = fitted_prior.choose_rank(arguments.rank, source.event_shape)
    before, started = peak_megabytes(), time.perf_counter()
    fitted = fitted_prior.fit(source.train_batches(), rank, 1e-4)
    print(f"fit: {time.perf_counter() - started:.1f} s")
    print(f"peak memory: {peak_megabytes():,.0f} MB, before the fit {before:,.0f} MB")

    # Uses Gaussian samples before clipping, because clipping changes the covariance by design.
    prior = priors.gaussian(
        fitted.mean.reshape(source.event_shape),
        fitted.factor,
        remainder_scale=fitted.remainder_scale,
        clip=None,
    )
    directions = np.random.default_rng(0).standard_normal((len(fitted.mean), NUM_DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    seen = np.concatenate([b.reshape(len(b), -1) @ directions for b in source.train_batches()])
    sample = jax.jit(prior.sample)
    drawn = []
    for first in range(0, NUM_SAMPLES, 256):
        keys = rng.example_keys(
            rng.root_key(0), rng.Stream.PRIOR, np.arange(first, first + 256, dtype=np.int32)
        )
        drawn.append(np.asarray(sample(prior.params, keys, {})).reshape(256, -1))
    projected = np.concatenate([d @ directions for d in drawn])
    model = ((fitted.factor.T @ directions) ** 2).sum(axis=0) + fitted.remainder_scale**2
    for name, found in (("model", model), ("samples", projected.var(axis=0))):
        error = np.abs(found / seen.var(axis=0) - 1.0)
        print(
            f"variance along {NUM_DIRECTIONS} random directions, {name} against data: "
            f"mean error {error.mean():.2%}, largest {error.max():.2%}"
        )
    cross = [np.cov(p, rowvar=False) for p in (projected, seen)]
    print(f"covariance of the projections: {_relative(*cross):.2%} (Frobenius)")
    if arguments.picture:
        images = np.clip(drawn[0][:100].reshape(-1, *source.event_shape), -1.0, 1.0)
        pictures.save(pictures.prior_and_data(source, images), arguments.picture)


def _relative(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


if __name__ == "__main__":
    main()
