"""Bridges: sets of examples between the numerator and the denominator.

A bridge has positions `0` (the numerator) to `last_position` (the denominator), and a subset of
them, with both ends, are the waymarks of a fit. `refine` adds waymarks between those that a
classifier tells apart too well.

Reference: Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fdrl_jax.divergences import first_variation
from fdrl_jax.langevin import flow
from fdrl_jax.objectives import objective
from fdrl_jax.ratio.network import Heads

Array = jax.Array
Bridge = Literal["none", "mixing", "flow"]

LAST_ANGLE = 1024  # Positions of the mixing bridge: angles of multiples of pi / 2048.
NUM_FLOW_STEPS = 32  # Particles are kept after each.
_STEP_SIZE, _NOISE_SCALE = 0.1, 0.02


class Samples(NamedTuple):
    """The examples of a fit, in standardised features.

    Attributes:
      numerator: [N, ...].
      particles: the denominator, [1, M, ...], or with the bridge "flow" the particles from the
        longest flow to none, [L + 1, M, ...].
      mixed: which features differ between numerator and denominator; the others are copied from
        the numerator (`x` of a mutual information), [...].
    """

    numerator: Array
    particles: Array
    mixed: Array


def last_position(samples: Samples) -> int:
    """Returns the position of the denominator."""
    num_lengths = len(samples.particles)
    return LAST_ANGLE if num_lengths == 1 else num_lengths


def refine(positions: tuple[int, ...], aucs: np.ndarray, max_auc: float) -> tuple[int, ...]:
    """Returns the positions with one more in the middle of each pair that is too far apart.

    Args:
      positions: the waymarks, increasing, [H + 1].
      aucs: area under the curve of each adjacent pair, [H].
      max_auc: pairs above it are divided.
    """
    pairs = zip(positions[:-1], positions[1:], aucs, strict=True)
    middles = {(a + b) // 2 for a, b, auc in pairs if auc > max_auc}
    return tuple(sorted({*positions, *middles}))


def spread(num_waymarks: int, last: int) -> tuple[int, ...]:
    """Returns equally spaced positions: both ends, and `num_waymarks` between them."""
    return tuple(int(p) for p in np.unique(np.linspace(0, last, num_waymarks + 2).round()))


def waymarks(samples: Samples, positions: Array, rows: Array, shift: Array) -> Array:
    """Returns examples of each waymark, [H + 1, B, ...].

    Args:
      samples: numerator and denominator.
      positions: the waymarks, [H + 1].
      rows: which examples, [B].
      shift: added to the rows of the denominator, [B], at least 1. In a mutual information, a pair
        of the denominator is then never one of the numerator.
    """
    top = samples.numerator[rows % len(samples.numerator)]
    others = (rows + shift) % samples.particles.shape[1]
    if len(samples.particles) > 1:
        moved = samples.particles[jnp.maximum(positions - 1, 0)[:, None], others]
        is_top = jnp.reshape(positions == 0, (-1,) + (1,) * top.ndim)
        return jnp.where(is_top, top, moved)
    positions = jnp.reshape(positions, (-1,) + (1,) * top.ndim)
    angle = positions * (jnp.pi / 2 / LAST_ANGLE)
    # The cosine of pi / 2 is not exactly 0 in float32.
    cosine = jnp.where(positions == LAST_ANGLE, 0.0, jnp.cos(angle))
    bottom = samples.particles[0, others]
    return jnp.where(samples.mixed, cosine * top + jnp.sin(angle) * bottom, top)


def denominator(samples: Samples) -> Array:
    """Returns the examples of the denominator, [M, ...], in standardised features."""
    num = samples.particles.shape[1]
    rows = jnp.arange(num)
    position = jnp.asarray([last_position(samples)])
    return waymarks(samples, position, rows, jnp.ones_like(rows))[0]


def with_particles(
    key: Array,
    heads: Heads,
    train: Samples,
    held_out: Samples,
    *,
    num_train_steps: int,
    batch_size: int,
    learning_rate: float,
) -> tuple[Samples, Samples]:
    """Replaces the denominators by the particles of our flow from denominator to numerator.

    A separate estimator is trained by algorithm 1 of Heng, Ansari and Soh (LR loss, KL flow), with
    the denominator as the prior. It then moves all examples of the denominator, also those held
    out. Memory is 33 times that of the denominator.

    Args:
      key: a key.
      heads: a network with one head.
      train: the examples of training.
      held_out: the examples that are held out.
      num_train_steps: training steps of this estimator.
      batch_size: examples of each set per step.
      learning_rate: the initial rate of Adam.
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, num_train_steps))
    init_key, train_key, flow_key = jax.random.split(key, 3)
    bottoms = [denominator(samples) for samples in (train, held_out)]

    @jax.jit
    def fit(top: Array, bottom: Array) -> optax.Params:
        def step(
            carry: tuple[optax.Params, optax.OptState], step_key: Array
        ) -> tuple[tuple[optax.Params, optax.OptState], None]:
            params, opt_state = carry
            k1, k2, k3 = jax.random.split(step_key, 3)
            real = jax.random.choice(k1, top, (batch_size,))
            x0 = jax.random.choice(k2, bottom, (batch_size,))

            def loss(params: optax.Params) -> tuple[Array, object]:
                return objective(
                    k3,
                    real,
                    x0,
                    lambda x: heads.outputs(params, x)[:, 0],
                    num_steps=NUM_FLOW_STEPS,
                    step_size=_STEP_SIZE,
                    noise_scale=_NOISE_SCALE,
                )

            gradient, _ = jax.grad(loss, has_aux=True)(params)
            updates, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(params, updates), opt_state), None

        params = heads.init(init_key, top[:2])
        keys = jax.random.split(train_key, num_train_steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    @jax.jit
    def move(params: optax.Params, key: Array, bottom: Array) -> Array:
        potential = first_variation(lambda x: heads.outputs(params, x)[:, 0], "kl", "log_ratio")

        last, path = flow(
            key,
            bottom,
            potential,
            num_steps=NUM_FLOW_STEPS,
            step_size=_STEP_SIZE,
            noise_scale=_NOISE_SCALE,
            observe=lambda x, drift: x,
        )
        return jnp.concatenate([path, last[None]])[::-1]

    params = fit(train.numerator, bottoms[0])
    paths = [move(params, jax.random.fold_in(flow_key, i), x) for i, x in enumerate(bottoms)]
    return train._replace(particles=paths[0]), held_out._replace(particles=paths[1])
