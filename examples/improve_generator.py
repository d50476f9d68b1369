"""Improve the samples of a generator: train from them, or refine them by a discriminator.

    python -m examples.improve_generator

The data are a ring. The generator, which stays as it is, maps latent vectors to a squashed and
blurred ring. Two ways to improve its samples are compared by energy distance to held-out data:

- `fdrl.FDRL` is trained with the samples of the generator as `x0`. Nothing pairs them with data.
- `fdrl.refine` moves the samples along the ratio of samples and data, the negative logit of a
  discriminator, without training (DGflow), and compares them with data at every step.

The program writes a picture and the numbers. It takes half a minute on two CPU cores.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.tree_util import Partial

import fdrl_jax as fdrl

Array = jax.Array
BATCH_SIZE, NUM_SAMPLES = 256, 5_000
METHOD = fdrl.FDRL(num_steps=20, step_size=0.02, noise_scale=0.005)
NETWORK = fdrl.networks.MLP((64, 64, 64))


def draw_data(key: Array, num: int) -> Array:
    """Draws points of a ring of radius 1 and width 0.05, [num, 2]."""
    angle_key, width_key = jax.random.split(key)
    angle = jax.random.uniform(angle_key, (num,), maxval=2.0 * jnp.pi)
    radius = 1.0 + 0.05 * jax.random.normal(width_key, (num, 1))
    return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def draw_latents(key: Array, num: int) -> Array:
    """Draws latent vectors, standard normal, [num, 2]."""
    return jax.random.normal(key, (num, 2))


def generator(z: Array) -> Array:
    """Maps latent vectors [B, 2] to points of a ring that is too flat and too wide."""
    norm = jnp.linalg.norm(z, axis=-1, keepdims=True)
    return z / norm * (1.0 + 0.25 * jnp.tanh(norm - 1.2)) * jnp.array([1.0, 0.6])


def train(loss: Callable[[Any, Array, Array, Array], Array], num_steps: int) -> Any:
    """Returns parameters of the network that minimise `loss(params, key, real, generated)`."""
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps))
    params = NETWORK.init(jax.random.key(0), jnp.zeros((1, 2)))

    def step(i: Array, carry: tuple) -> tuple:
        params, opt_state = carry
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), 3)
        real, generated = draw_data(keys[0], BATCH_SIZE), draw_latents(keys[1], BATCH_SIZE)
        grads = jax.grad(loss)(params, keys[2], real, generator(generated))
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state

    run = jax.jit(lambda carry: jax.lax.fori_loop(0, num_steps, step, carry))
    return run((params, optimizer.init(params)))[0]


def fdrl_loss(params: Any, key: Array, real: Array, generated: Array) -> Array:
    """The objective of the method, with the generator's samples as the start of the flow."""
    return METHOD.objective(key, Partial(NETWORK.apply, params), real=real, x0=generated)[0]


def discriminator_loss(params: Any, key: Array, real: Array, generated: Array) -> Array:
    """The logistic loss of a discriminator whose logit is the network's output."""
    on_real, on_generated = NETWORK.apply(params, real), NETWORK.apply(params, generated)
    return jnp.mean(jax.nn.softplus(-on_real)) + jnp.mean(jax.nn.softplus(on_generated))


def draw_figure(columns: dict[str, np.ndarray], distances: dict[str, float], file: Path) -> None:
    """Draws the samples of each kind. Points outside of the axes are not visible."""
    size = (2.2 * len(columns), 2.7)
    figure, axes = plt.subplots(1, len(columns), figsize=size, layout="constrained", dpi=140)
    for ax, (title, points) in zip(axes, columns.items(), strict=True):
        ax.scatter(*points.T, s=1.5, lw=0, alpha=0.5, color="#d1602b")
        ax.set_title(f"{title}\nenergy distance {distances[title]:.2g}", fontsize=9)
        ax.set(xticks=[], yticks=[], xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal")
    figure.savefig(file, bbox_inches="tight")
    plt.close(figure)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Improves the samples both ways; returns energy distances to held-out data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_500, help="training steps of each network")
    parser.add_argument("--out", type=Path, default=Path("runs/improve_generator"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    z = draw_latents(jax.random.key(2), NUM_SAMPLES)
    x, key = generator(z), jax.random.key(3)
    trained = Partial(NETWORK.apply, train(fdrl_loss, args.steps))
    logit = Partial(NETWORK.apply, train(discriminator_loss, args.steps))
    log_ratio = Partial(lambda f, x: -f(x), logit)
    options = {"log_ratio": log_ratio, "real": np.asarray(draw_data(jax.random.key(6), 2_000))}
    columns = {
        "generator": x,
        "trained from its samples": METHOD.sample(key, x, trained),
        "refined": fdrl.refine(key, x, **options).samples,
        "refined in latent space": fdrl.refine(key, z, **options, generator=generator).samples,
        "data": draw_data(jax.random.key(4), NUM_SAMPLES),
    }
    columns = {name: np.asarray(points) for name, points in columns.items()}
    held_out = np.asarray(draw_data(jax.random.key(5), NUM_SAMPLES))
    distances = {
        name: fdrl.metrics.energy_distance(points, held_out) for name, points in columns.items()
    }
    (args.out / "improve_generator.json").write_text(json.dumps(distances, indent=2) + "\n")
    draw_figure(columns, distances, args.out / "improve_generator.png")
    for name, distance in distances.items():
        print(f"energy distance to data, {name:27s} {distance:.4f}")
    print(f"written: {args.out}/improve_generator.png, improve_generator.json")
    return distances


if __name__ == "__main__":
    main()
