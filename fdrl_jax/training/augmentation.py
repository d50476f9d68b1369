"""Random changes to training images that do not change their class."""

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def shifted(key: Array, positions: Array, images: Array, max_shift: int) -> Array:
    """Shifts each image by a random number of pixels along both axes.

    Args:
      key: one typed key for the whole run.
      positions: positions of the examples in the run, [B]. They determine the shifts, so a resumed
        run shifts each image as the uninterrupted run would.
      images: [B, H, W, C].
      max_shift: largest shift along each axis, in pixels; the border is repeated.

    Returns:
      Images of the same shape and type.
    """

    def of_image(position: Array, image: Array) -> Array:
        own = jax.random.fold_in(key, position)
        offset = jax.random.randint(own, (2,), 0, 2 * max_shift + 1, jnp.int32)
        border = (max_shift, max_shift)
        padded = jnp.pad(image, (border, border, (0, 0)), mode="edge")
        return lax.dynamic_slice(padded, (*offset, jnp.int32(0)), image.shape)

    moved: Array = jax.vmap(of_image)(positions, images)
    return moved
