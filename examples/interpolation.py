"""Images between two points of the prior of a shipped sampler (figure 7 of the paper).

python -m examples.interpolation [--sampler=cifar10] [--out=runs/interpolation.png]
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.image
import numpy as np

import fdrl_jax as fdrl
from examples.pretrained_samples import COLUMNS, SCALE, tile


def arc(a: jax.Array, b: jax.Array, t: jax.Array) -> jax.Array:
    """Returns points [T, ...] between two samples of a centred Gaussian, with their norm."""
    angle = jnp.arccos(jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b))
    first, second = (jnp.sin(s * angle).reshape(-1, *[1] * a.ndim) for s in (1.0 - t, t))
    return (first * a + second * b) / jnp.sin(angle)


def main(argv: list[str] | None = None) -> np.ndarray:
    """Draws pairs of rows: points of the prior, and where they flow with the same noise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sampler", default="mnist", help="as for fdrl_jax.pretrained")
    parser.add_argument("--rows", type=int, default=5, help="paths to draw")
    parser.add_argument("--out", type=Path, default=Path("runs/interpolation.png"))
    options = parser.parse_args(argv)
    sampler, rows = fdrl.pretrained(options.sampler), []
    starts = sampler.prior(jax.random.key(0), 200)  # Sample `i` is of class `i % 10`, if any.
    for row in range(options.rows):
        first, *others = starts[row::10]
        # The nearest start mostly belongs to the same Gaussian of the prior.
        last = min(others, key=lambda x, first=first: float(jnp.linalg.norm(x - first)))
        mean = starts[row::10].mean(axis=0)
        x0 = mean + arc(first - mean, last - mean, jnp.linspace(0.0, 1.0, COLUMNS))
        labels = [jnp.full(COLUMNS, row)] if sampler.problem.estimator.takes_labels else []
        keys = jnp.broadcast_to(jax.random.key(1), COLUMNS)  # The same noise for each.
        estimator = jax.tree_util.Partial(lambda labels, x: sampler.estimator(x, *labels), labels)
        rows += [x0, sampler.method.sample(keys, x0, estimator)]
    images = np.concatenate(rows)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet = tile(images).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    matplotlib.image.imsave(options.out, np.broadcast_to(sheet, (*sheet.shape[:2], 3)))
    return images


if __name__ == "__main__":
    main()
