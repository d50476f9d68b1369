"""Refinement of a generator (DGflow): 25 Gaussians, in data space and in latent space.

    python -m examples.refine_gan

A small GAN learns a grid of 25 narrow Gaussians and draws many samples between them. Its own
discriminator detects them. The flow along its logit moves the samples, or their latent vectors, to
where the discriminator says "real". The generator is not trained further.

The program writes a picture and the numbers. It takes about a minute on two CPU cores.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fdrl_jax as fdrl
from examples import gan

STD, NUM_SAMPLES = 0.05, 5_000
CENTRES = np.stack(np.meshgrid(*[np.arange(-4.0, 5.0, 2.0)] * 2), axis=-1).reshape(-1, 2)
# Steps and their size. Steps are small because the logit is steep at a mode.
DATA_FLOW, LATENT_FLOW = (200, 0.004), (25, 0.002)


def draw_data(key: jax.Array, num: int = 256) -> jax.Array:
    """Draws points of the mixture, [num, 2]."""
    mode_key, noise_key = jax.random.split(key)
    centres = jnp.asarray(CENTRES)[jax.random.randint(mode_key, (num,), 0, len(CENTRES))]
    return centres + STD * jax.random.normal(noise_key, (num, 2))


def judge(samples: np.ndarray, data: np.ndarray) -> dict[str, float]:
    """Returns the share of samples within 4 standard deviations of a mode, and the modes hit."""
    coverage = fdrl.metrics.mode_coverage(samples, CENTRES, 4.0 * STD)
    return {
        "high_quality_share": coverage.high_quality,
        "modes_hit": coverage.num_hit,
        "energy_distance": fdrl.metrics.energy_distance(samples, data),
    }


def draw_figure(columns: dict[str, np.ndarray], numbers: dict[str, dict], file: Path) -> None:
    """Draws the samples before and after, each over the centres of the modes."""
    size = (2.2 * len(columns), 2.7)
    figure, axes = plt.subplots(1, len(columns), figsize=size, layout="constrained", dpi=140)
    for ax, (title, points) in zip(axes, columns.items(), strict=True):
        ax.scatter(*points.T, s=1.5, lw=0, alpha=0.5, color="#d1602b")
        share, modes = (numbers[title][key] for key in ("high_quality_share", "modes_hit"))
        ax.set_title(f"{title}\n{share:.0%} within 4 σ\n{modes} modes", fontsize=10)
        ax.set(xticks=[], yticks=[])
        ax.set(xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
    figure.savefig(file, bbox_inches="tight")
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, dict]:
    """Trains the GAN, refines its samples in both spaces; returns the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000, help="updates of the GAN")
    parser.add_argument("--out", type=Path, default=Path("runs/refine_gan"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    trained = gan.train(
        draw_data, num_latents=2, num_steps=args.steps, num_last_steps=args.steps // 4, limit=6.0
    )
    z = gan.latents(jax.random.key(1), NUM_SAMPLES, 2)
    in_data = fdrl.compose.refine(trained.discriminator, "kl")
    in_latents = fdrl.compose.refine(trained.discriminator, "kl", generator=trained.generator)
    columns = {
        "generator": trained.generator(z),
        "refined in data space": gan.refine(in_data, trained.generator(z), *DATA_FLOW),
        "refined in latent space": trained.generator(gan.refine(in_latents, z, *LATENT_FLOW)),
        "data": draw_data(jax.random.key(3), NUM_SAMPLES),
    }
    columns = {name: np.asarray(points) for name, points in columns.items()}
    fresh = np.asarray(draw_data(jax.random.key(4), NUM_SAMPLES))
    numbers = {name: judge(points, fresh) for name, points in columns.items()}
    (args.out / "refine_gan.json").write_text(json.dumps(numbers, indent=2) + "\n")
    draw_figure(columns, numbers, args.out / "refine_gan.png")
    for name, of_samples in numbers.items():
        print(f"{name:24s} " + "   ".join(f"{k} {v:.3g}" for k, v in of_samples.items()))
    print(f"written: {args.out}/refine_gan.png, refine_gan.json")
    return numbers


if __name__ == "__main__":
    main()
