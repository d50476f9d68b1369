"""Paths between two points of a prior (figure 7 of the paper).

To compare samples along a path, flow all points with the same noise, so that they differ only in
where they start. One key for the batch would give each point different noise, so pass the same key
for each point:

    points = spherical(a, b, jnp.linspace(0.0, 1.0, 11))
    keys = jnp.broadcast_to(key, len(points))
    run = lambda keys, x: flow(keys, x, potential, num_steps=100, step_size=0.1, noise_scale=0.01)
    samples = jax.jit(run)(keys, points)
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def linear(a: Array, b: Array, weights: Array) -> Array:
    """Returns `(1 - t) a + t b`.

    Args:
      a: a point, of any shape.
      b: another point, of the same shape.
      weights: `t`, [T].

    Returns:
      Points, [T, ...]. Between independent samples of a Gaussian, they are closer to its mean than
      typical samples are.
    """
    t = _column(weights, a)
    return (1.0 - t) * a + t * b


def spherical(a: Array, b: Array, weights: Array) -> Array:
    """Returns `(sin((1 - t) ω) a + sin(t ω) b) / sin ω`, with `ω` the angle between the points.

    Between samples of a centred Gaussian, the points keep the norm of a typical sample, unlike
    those of `linear`. If the mean is not 0, subtract it before and add it after.

    Args:
      a: a point, of any shape.
      b: another point, of the same shape.
      weights: `t`, [T].

    Returns:
      Points, [T, ...]. They are those of `linear` where the arc is undefined: for points in the
      same or in opposite directions, or at zero.

    Reference: Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """
    t = _column(weights, a)
    lengths = jnp.linalg.norm(a) * jnp.linalg.norm(b)
    cosine = jnp.vdot(a, b) / jnp.where(lengths > 0.0, lengths, 1.0)
    angle = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    sine = jnp.sin(angle)
    defined = (sine > 1e-4) & (lengths > 0.0)
    safe = jnp.where(defined, sine, 1.0)
    arc = (jnp.sin((1.0 - t) * angle) * a + jnp.sin(t * angle) * b) / safe
    return jnp.where(defined, arc, linear(a, b, weights))


def _column(weights: Array, a: Array) -> Array:
    """Returns the weights as [T, 1, ..., 1], which broadcast with points of the shape of `a`."""
    return jnp.reshape(weights, (-1,) + (1,) * jnp.ndim(a))
