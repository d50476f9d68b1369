"""A small generative adversarial network (GAN), which the refinement examples refine.

Only the network of the discriminator is from the library. Generator and discriminator are Flax
modules, trained with the non-saturating loss and a gradient penalty on data (R1).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from tqdm import tqdm

import fdrl_jax as fdrl

Array = jax.Array
ENTROPY_WEIGHT = 0.01  # Of refinement, as in the paper of DGflow.


class Generator(nn.Module):
    """Maps latent vectors [B, L] to examples [B, D], each entry within `(-limit, limit)`."""

    num_outputs: int
    limit: float
    hidden_sizes: Sequence[int] = (128, 128, 128)

    @nn.compact
    def __call__(self, z: Array) -> Array:
        for size in self.hidden_sizes:
            z = nn.leaky_relu(nn.Dense(size)(z), 0.2)
        return self.limit * nn.tanh(nn.Dense(self.num_outputs)(z) / self.limit)


class Gan(NamedTuple):
    """A trained pair: `z [B, L] -> x [B, D]`, and `x [B, D] -> [B]`, the logit of "real"."""

    generator: Callable[[Array], Array]
    discriminator: Callable[[Array], Array]


def train(
    draw_data: Callable[[Array], Array],
    *,
    num_latents: int,
    num_steps: int,
    limit: float,
    num_last_steps: int = 0,
    hidden_sizes: Sequence[int] = (128, 128, 128),
    learning_rate: float = 5e-4,
    penalty: float = 0.1,
    batch_size: int = 256,
    steps_per_dispatch: int = 100,
) -> Gan:
    """Trains a generator and its discriminator.

    Args:
      draw_data: `key -> examples [batch_size, D]`.
      num_latents: `L`.
      num_steps: updates of both.
      limit: of the generator's outputs.
      num_last_steps: further updates of the discriminator only, so that its logit approaches
        `log p/q` of the final generator, which refinement needs.
      hidden_sizes: of both networks.
      learning_rate: of Adam, for both.
      penalty: weight of the squared gradient of the logit at data.
      batch_size: examples of each kind in a step.
      steps_per_dispatch: steps in one compiled loop.
    """
    data_shape = jax.eval_shape(draw_data, jax.random.key(0)).shape
    generator = Generator(data_shape[-1], limit, hidden_sizes)
    discriminator = fdrl.networks.MLP(hidden_sizes)
    root = jax.random.key(0)
    players = {
        "generator": generator.init(root, jnp.zeros((1, num_latents))),
        "discriminator": discriminator.init(root, jnp.zeros((1, data_shape[-1]))),
    }
    optimizer = optax.adam(learning_rate, b1=0.5)
    opt_states = {name: optimizer.init(params) for name, params in players.items()}

    def discriminator_loss(params: Any, real: Array, fake: Array) -> Array:
        logit, gradient = jax.vmap(
            jax.value_and_grad(lambda x: discriminator.apply(params, x[None])[0])
        )(real)
        fake_logit = discriminator.apply(params, fake)
        game = jnp.mean(nn.softplus(-logit)) + jnp.mean(nn.softplus(fake_logit))
        return game + 0.5 * penalty * jnp.mean(jnp.sum(gradient**2, axis=-1))

    def generator_loss(params: Any, critic: Any, z: Array) -> Array:
        return jnp.mean(nn.softplus(-discriminator.apply(critic, generator.apply(params, z))))

    def update(name: str, grads: Any, carry: Any) -> Any:
        players, opt_states = carry
        updates, opt_state = optimizer.update(grads, opt_states[name])
        params = optax.apply_updates(players[name], updates)
        return {**players, name: params}, {**opt_states, name: opt_state}

    def step(i: Array, carry: Any) -> Any:
        real_key, first, second = jax.random.split(jax.random.fold_in(root, i), 3)
        players, _ = carry
        fake = generator.apply(players["generator"], latents(first, batch_size, num_latents))
        grads = jax.grad(discriminator_loss)(players["discriminator"], draw_data(real_key), fake)
        carry = update("discriminator", grads, carry)

        def play(carry: Any) -> Any:
            players, _ = carry
            z = latents(second, batch_size, num_latents)
            grads = jax.grad(generator_loss)(players["generator"], players["discriminator"], z)
            return update("generator", grads, carry)

        return jax.lax.cond(i < num_steps, play, lambda carry: carry, carry)

    @jax.jit
    def take_steps(carry: Any, first: int, last: int) -> Any:
        return jax.lax.fori_loop(first, last, step, carry)

    carry, total = (players, opt_states), num_steps + num_last_steps
    for first in tqdm(range(0, total, steps_per_dispatch), desc="GAN", unit="dispatch"):
        carry = take_steps(carry, first, min(first + steps_per_dispatch, total))
        # Without this the host would run far ahead, and the bar would not show progress.
        jax.block_until_ready(carry)
    players, _ = carry
    return Gan(
        lambda z: generator.apply(players["generator"], z),
        lambda x: discriminator.apply(players["discriminator"], x),
    )


def latents(key: Array, num: int, num_latents: int) -> Array:
    """Draws latent vectors, standard normal, [num, L]."""
    return jax.random.normal(key, (num, num_latents))


def refine(
    potential: fdrl.compose.Estimator, start: Array, num_steps: int, step_size: float
) -> Array:
    """Flows samples, or latent vectors, along a potential of `fdrl.compose.refine`."""
    noise = fdrl.noise_scale(step_size, ENTROPY_WEIGHT)

    @jax.jit
    def run(key: Array, x: Array) -> Array:
        return fdrl.flow(
            key, x, potential, num_steps=num_steps, step_size=step_size, noise_scale=noise
        )

    return run(jax.random.key(2), start)
