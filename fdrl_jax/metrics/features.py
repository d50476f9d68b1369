"""A feature space of images that needs no weights from elsewhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_WIDTHS = (64, 32, 16)  # Channels after each convolution.
_GRID = 2  # Cells a side over which the last channels are averaged.
_SIDE = 32  # Images whose shorter side is twice as long or more are shrunk towards it, in pixels.
_BATCH_SIZE = 256  # Images at a time.


def random_conv_features(images: np.ndarray) -> np.ndarray:
    """Maps images to the pooled responses of fixed random filters, [N, 64].

    Three 3x3 convolutions with He-normal filters of a fixed seed and ReLU, to 64, 32 and 16
    channels; then the mean over each quarter of the image. Filters see edges, strokes and texture,
    which the mean and the covariance of pixels (equal for data and the data-dependent prior) do
    not tell apart, and quarters see where. 64 numbers are few enough for a covariance from some
    hundred images. It is made for grey or colour images of 8 x 8 to 32 x 32; of larger ones it sees
    the means of squares of pixels, 32 to 63 on the shorter side. It knows nothing of objects, so it
    ranks samples of one data set and says nothing across data sets.

    Args:
      images: in [-1, 1], [N, H, W, C] with H and W of at least 2; values beyond are clipped.

    Returns:
      Features, float32. The same images give the same features everywhere, up to rounding.

    Raises:
      ValueError: for arrays of another shape.

    Reference: Saxe et al., "On Random Weights and Unsupervised Feature Learning", ICML 2011.
    """
    images = np.asarray(images, np.float32)
    if images.ndim != 4 or min(images.shape[1:3]) < _GRID:
        raise ValueError(f"images [N, H, W, C] of at least 2 x 2 needed, got {images.shape}")
    return np.asarray(_features(np.clip(images, -1.0, 1.0)))


@jax.jit
def _features(images: jax.Array) -> jax.Array:
    images = _shrunk(images)
    filters = [jnp.asarray(kernel) for kernel in _filters(images.shape[-1])]

    def of_image(image: jax.Array) -> jax.Array:
        maps = image[None]
        for kernel in filters:
            maps = jax.nn.relu(
                lax.conv_general_dilated(
                    maps, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            )
        return _pooled(maps[0])

    features: jax.Array = lax.map(of_image, images, batch_size=_BATCH_SIZE)
    return features


def _shrunk(images: jax.Array) -> jax.Array:
    """Averages over squares of pixels; rows and columns that fill no square fall away."""
    num, height, width, channels = images.shape
    factor = max(1, min(height, width) // _SIDE)
    rows, columns = height // factor, width // factor
    squares = images[:, : rows * factor, : columns * factor]
    return squares.reshape(num, rows, factor, columns, factor, channels).mean(axis=(2, 4))


def _pooled(maps: jax.Array) -> jax.Array:
    """Averages over each cell of the grid; the last row and column of an odd size fall away."""
    height, width = maps.shape[0] // _GRID, maps.shape[1] // _GRID
    cells = maps[: _GRID * height, : _GRID * width].reshape(_GRID, height, _GRID, width, -1)
    return cells.mean(axis=(1, 3)).ravel()


@functools.cache
def _filters(num_channels: int) -> tuple[np.ndarray, ...]:
    # NumPy promises the stream of RandomState for ever, that of its newer generators it does not.
    rng, filters = np.random.RandomState(0), []
    for width in _WIDTHS:
        scale = np.sqrt(2.0 / (9 * num_channels))
        kernel = scale * rng.standard_normal((3, 3, num_channels, width))
        filters.append(kernel.astype(np.float32))
        num_channels = width
    return tuple(filters)
