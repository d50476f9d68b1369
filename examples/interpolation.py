"""Images between two points of the prior of a shipped sampler (figure 7 of the paper).

Run: python -m examples.interpolation [--sampler=cifar10] [--out=runs/interpolation.png]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fdrl_jax as fdrl
from examples.pretrained_samples import COLUMNS, save


def main(argv: list[str] | None = None) -> np.ndarray:
    """Draws pairs of rows: points of the prior, and where they flow with the same noise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sampler", default="mnist", help="as for fdrl_jax.pretrained")
    parser.add_argument("--rows", type=int, default=5, help="paths to draw")
    parser.add_argument("--out", type=Path, default=Path("runs/interpolation.png"))
    options, rows = parser.parse_args(argv), []
    sampler = fdrl.pretrained(options.sampler)
    starts = sampler.prior(jax.random.key(0), 200)  # Sample `i` is of class `i % 10`, if any.
    for row in range(options.rows):
        mean = starts[row::10].mean(axis=0)
        a, *others = starts[row::10] - mean
        # The nearest is mostly of the same Gaussian of the prior. An arc keeps the norm.
        b = min(others, key=lambda x, a=a: float(jnp.linalg.norm(x - a)))
        angle = jnp.arccos(jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b))
        t = jnp.linspace(0.0, 1.0, COLUMNS).reshape(-1, 1, 1, 1)
        x0 = mean + (jnp.sin((1.0 - t) * angle) * a + jnp.sin(t * angle) * b) / jnp.sin(angle)
        labels = jnp.full(COLUMNS, row) if sampler.problem.estimator.takes_labels else None
        keys = jnp.broadcast_to(jax.random.key(1), COLUMNS)  # Each image gets the same noise.
        rows += [x0, sampler.method.sample(keys, x0, sampler.estimator, labels=labels)]
    return save(np.concatenate(rows), options.out)


if __name__ == "__main__":
    main()
