"""Random changes to training images that do not change their class."""

import jax
import jax.numpy as jnp
from jax import lax

from fdrl_jax import _keys

Array = jax.Array
_STREAM = 1_000  # Folded into the key, so that the caller may draw the images with the same key.


def shifted(key: Array, positions: Array, images: Array, max_shift: int) -> Array:
    """Shifts each image by a random number of pixels along both axes.

    Args:
      key: one typed key for the whole run. It may be that of `draw`: the shifts have a stream of
        their own.
      positions: positions of the examples in the run, [B]. They determine the shifts, so a resumed
        run shifts each image as the uninterrupted run would.
      images: [B, H, W, C].
      max_shift: largest shift along each axis, in pixels; the border is repeated.

    Returns:
      Images of the same shape and type.

    Raises:
      ValueError: for positions that are not integers.
    """

    def of_image(own: Array, image: Array) -> Array:
        offset = jax.random.randint(own, (2,), 0, 2 * max_shift + 1, jnp.int32)
        border = (max_shift, max_shift)
        padded = jnp.pad(image, (border, border, (0, 0)), mode="edge")
        return lax.dynamic_slice(padded, (*offset, jnp.int32(0)), image.shape)

    keys = _keys.at_positions(jax.random.fold_in(key, _STREAM), positions)
    moved: Array = jax.vmap(of_image)(keys, images)
    return moved
