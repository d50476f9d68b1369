"""Trains the networks of the page `flow/index.html`, which lets points flow in a browser.

Command: python -m docs.flow_page
It takes 3 min on two CPU cores and writes flow/models.js.
"""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from sklearn.datasets import load_digits

import fdrl_jax as fdrl

MODELS = Path(__file__).parent / "flow" / "models.js"
Array = jax.Array


class Recipe(NamedTuple):
    """How the network of a set of points is trained."""

    title: str
    hidden_sizes: tuple[int, ...]
    method: fdrl.FDRL
    draw: Callable[[Array, int], Array]  # A key and a number to real points, [N, D].
    start: Callable[[Array, int], Array]  # The same for points of the prior, [N, D].
    optimizer: optax.GradientTransformation
    num_steps: int
    batch_size: int
    # What the page needs: "centres" [C, D] of the density, or "mean" [D] and "factor" [D, D] of the
    # prior; and the standard deviation of the density around its centres.
    arrays: dict[str, np.ndarray]
    sigma: float = 0.0


def plane(title: str, curve: Callable[[Array], Array], num_centres: int, sigma: float) -> Recipe:
    """Returns the recipe of points around a curve in the plane, a function of shares in [0, 1)."""

    def draw(key: Array, num: int) -> Array:
        share_key, noise_key = jax.random.split(key)
        noise = sigma * jax.random.normal(noise_key, (num, 2))
        return curve(jax.random.uniform(share_key, (num,))) + noise

    def start(key: Array, num: int) -> Array:
        return jax.random.normal(key, (num, 2))

    method = fdrl.FDRL(num_steps=100, num_refine_steps=20, step_size=0.1, noise_scale=0.01)
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, 3_000))
    arrays = {"centres": np.asarray(curve(jnp.arange(num_centres) / num_centres))}
    return Recipe(title, (64,) * 4, method, draw, start, optimizer, 3_000, 256, arrays, sigma)


def swissroll() -> Recipe:
    """Returns the recipe of coordinates 0 and 2 of scikit-learn's swiss roll, divided by 7.5."""

    def curve(share: Array) -> Array:
        angle = 1.5 * jnp.pi * (1.0 + 2.0 * share)
        return angle[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1) / 7.5

    # The centres are at most 1.1 standard deviations apart.
    return plane("Swiss roll", curve, num_centres=500, sigma=0.25 / 7.5)


def gaussians8() -> Recipe:
    """Returns the recipe of eight Gaussians on a circle."""

    def curve(share: Array) -> Array:
        angle = jnp.floor(8.0 * share) * jnp.pi / 4.0
        return 2.0 / 1.414 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)

    return plane("Eight Gaussians", curve, num_centres=8, sigma=0.02 / 1.414)


def digits() -> Recipe:
    """Returns the recipe of images of 8 x 8 pixels as points; it starts at their Gaussian."""
    images = jnp.asarray(load_digits().data / 8.0 - 1.0, jnp.float32)
    mean, size = images.mean(axis=0), images.shape[1]
    factor = jnp.linalg.cholesky(jnp.cov(images.T) + 3e-4 * jnp.eye(size))

    def draw(key: Array, num: int) -> Array:
        image_key, noise_key = jax.random.split(key)
        noise = 0.03 * jax.random.normal(noise_key, (num, size))
        return jax.random.choice(image_key, images, (num,)) + noise

    def start(key: Array, num: int) -> Array:
        return mean + jax.random.normal(key, (num, size)) @ factor.T

    flow = {"num_steps": 20, "num_refine_steps": 12, "step_size": 1.8, "noise_scale": 0.007}
    method = fdrl.FDRL(**flow, gradient_penalty=1.0)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 5e-4, 100, 2_000), b1=0.5)
    arrays = {"mean": np.asarray(mean), "factor": np.asarray(factor)}
    return Recipe("Digits", (96,) * 3, method, draw, start, optimizer, 2_000, 128, arrays)


RECIPES = {"swissroll": swissroll, "8gaussians": gaussians8, "digits": digits}


def train(recipe: Recipe) -> dict[str, Any]:
    """Returns the values of the page: the averaged weights of the network, and the settings."""
    keys = jax.random.split(jax.random.key(0), 3)
    net, method = fdrl.networks.MLP(recipe.hidden_sizes), recipe.method

    def step(i: Array, state: Any) -> Any:
        params, average, opt_state = state
        real_key, start_key, flow_key = jax.random.split(jax.random.fold_in(keys[1], i), 3)
        real = recipe.draw(real_key, recipe.batch_size)
        x0 = recipe.start(start_key, recipe.batch_size)

        def loss(params: Any) -> Array:
            return method.objective(flow_key, Partial(net.apply, params), real=real, x0=x0)[0]

        updates, opt_state = recipe.optimizer.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, jnp.maximum(0.002, 9.0 / (10.0 + i)))
        return params, average, opt_state

    params = jax.jit(net.init)(keys[0], recipe.start(keys[0], 1))
    state = params, params, recipe.optimizer.init(params)
    run = jax.jit(lambda state: jax.lax.fori_loop(0, recipe.num_steps, step, state))
    average = run(state)[1]
    layers = sorted(average["params"].items(), key=lambda item: int(item[0].split("_")[1]))
    weights = [np.ravel(layer[name]) for _, layer in layers for name in ("kernel", "bias")]
    real = recipe.draw(keys[2], 10_000)
    flow = {"stepSize": method.step_size, "noiseScale": method.noise_scale}
    return {
        "title": recipe.title,
        "sizes": [real.shape[1], *recipe.hidden_sizes, 1],
        "flow": flow | {"length": method.num_steps + method.num_refine_steps},
        "real": round(float(net.apply(average, real).mean()), 4),
        "sigma": recipe.sigma,
        "weights": to_base64(np.concatenate(weights)),
        "arrays": {name: to_base64(array) for name, array in recipe.arrays.items()},
    }


def to_base64(array: np.ndarray) -> str:
    """Returns an array as base64 of float32."""
    return base64.b64encode(np.asarray(array, "<f4").tobytes()).decode()


if __name__ == "__main__":
    values = {name: train(recipe()) for name, recipe in RECIPES.items()}
    # A script, because a page that is opened as a file cannot read files.
    MODELS.write_text(
        f"// Written by docs/flow_page.py.\nconst MODELS = {json.dumps(values, indent=1)};\n"
        'if (typeof module === "object") module.exports = MODELS;\n'
    )
