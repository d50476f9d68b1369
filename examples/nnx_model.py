"""Your own model, here of Flax NNX, in your own training loop.

    python -m examples.nnx_model

`fdrl.FDRL` accepts any function that maps a batch to one number per example. With it, algorithm 1
of the paper is a short loop. The data are two moons, and the prior is normal.
`docs/reuse.md` has the same loop for plain Optax and for Equinox.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import make_moons
from tqdm import tqdm

import fdrl_jax as fdrl

BATCH_SIZE = 256
METHOD = fdrl.FDRL(num_steps=50, step_size=0.1, noise_scale=0.01)


class Estimator(nnx.Module):
    """`log r(x)`: two hidden layers, [B, 2] -> [B]."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List(
            [nnx.Linear(a, b, rngs=rngs) for a, b in ((2, width), (width, width), (width, 1))]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.layers[:-1]:
            x = nnx.leaky_relu(layer(x), 0.2)
        return self.layers[-1](x)[:, 0]


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains the estimator; returns energy distances to data of samples and of the prior."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_500, help="training steps")
    num_steps = parser.parse_args(argv).steps
    moons = make_moons(4_000, noise=0.05, random_state=0)[0]
    data = jnp.asarray((moons - moons.mean(axis=0)) / moons.std(axis=0), jnp.float32)
    model = Estimator(96, nnx.Rngs(0))
    schedule = optax.cosine_decay_schedule(2e-3, num_steps)
    optimizer = nnx.Optimizer(model, optax.adam(schedule), wrt=nnx.Param)

    @nnx.jit
    def train_step(model: Estimator, optimizer: nnx.Optimizer, key: jax.Array) -> None:
        data_key, prior_key, flow_key = jax.random.split(key, 3)
        real = jax.random.choice(data_key, data, (BATCH_SIZE,))
        x0 = jax.random.normal(prior_key, real.shape)
        grads = nnx.grad(lambda m: METHOD.objective(flow_key, m, real=real, x0=x0)[0])(model)
        optimizer.update(model, grads)

    for step in tqdm(range(num_steps), unit="step"):
        train_step(model, optimizer, jax.random.fold_in(jax.random.key(0), step))
    x0 = jax.random.normal(jax.random.key(1), (2_000, 2))
    samples = nnx.jit(lambda model: METHOD.sample(jax.random.key(2), x0, model))(model)
    distances = {}
    for name, points in (("prior", x0), ("samples", samples)):
        distances[name] = fdrl.metrics.energy_distance(np.asarray(points), np.asarray(data))
        print(f"energy distance to data, {name:8s} {distances[name]:.4f}")
    return distances


if __name__ == "__main__":
    main()
