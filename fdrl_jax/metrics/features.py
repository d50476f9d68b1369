"""A feature space of images that needs no pretrained weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_WIDTHS = (64, 32, 16)  # Channels after each convolution.
_GRID = 2  # Cells per side over which the last channels are averaged.
_SIDE = 32  # Pixels; images whose shorter side is at least twice this are averaged down towards it.
_BATCH_SIZE = 256  # Images per batch.


def random_conv_features(images: np.ndarray) -> np.ndarray:
    """Maps images to the pooled responses of fixed random filters, [N, 64].

    The features are three 3x3 convolutions to 64, 32 and 16 channels, with ReLU and He-normal
    filters from a fixed seed, averaged over each quarter of the image. The filters respond to
    edges, strokes and texture, which the mean and covariance of pixels do not distinguish (the
    data-dependent prior has those of the data), and the quarters to their position. A few hundred
    images suffice for the covariance of 64 features. The features are meant for grey or colour
    images of 8 x 8 to 32 x 32. Larger images are first averaged over squares of pixels, to 32 to 63
    pixels on the shorter side. The features do not represent objects, so use them to rank samples
    of one data set, not to compare data sets.

    Args:
      images: [N, H, W, C] floating-point numbers, with H and W of at least 2, in [-1, 1]; values
        outside are clipped.

    Returns:
      Features, float32. The same images give the same features on every machine, up to rounding.

    Raises:
      ValueError: for an array of another shape, or of integers.

    Reference: Saxe et al., "On Random Weights and Unsupervised Feature Learning", ICML 2011.
    """
    images = np.asarray(images)
    if images.ndim != 4 or min(images.shape[1:3]) < _GRID:
        raise ValueError(f"expected images [N, H, W, C] of at least 2 x 2, got {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        # Clipped to [-1, 1], nearly all bytes would be 1.
        raise ValueError(
            f"images must be floating-point numbers in [-1, 1], got {images.dtype}; convert bytes "
            "with images / 127.5 - 1"
        )
    features = np.array(_features(np.clip(images.astype(np.float32), -1.0, 1.0)))
    # On CPUs, the ReLU of XLA may return 0 for NaN.
    features[np.isnan(images).any(axis=(1, 2, 3))] = np.nan
    return features


@jax.jit
def _features(images: jax.Array) -> jax.Array:
    images = _downsampled(images)
    filters = [jnp.asarray(kernel) for kernel in _filters(images.shape[-1])]

    def of_image(image: jax.Array) -> jax.Array:
        maps = image[None]
        for kernel in filters:
            maps = jax.nn.relu(
                lax.conv_general_dilated(
                    maps,
                    kernel,
                    (1, 1),
                    "SAME",
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                    # By default, TPUs would round to bfloat16 and GPUs to TF32.
                    precision=lax.Precision.HIGHEST,
                )
            )
        return _pooled(maps[0])

    features: jax.Array = lax.map(of_image, images, batch_size=_BATCH_SIZE)
    return features


def _downsampled(images: jax.Array) -> jax.Array:
    """Averages over squares of pixels; rows and columns that do not fill a square are dropped."""
    num, height, width, channels = images.shape
    factor = max(1, min(height, width) // _SIDE)
    rows, columns = height // factor, width // factor
    squares = images[:, : rows * factor, : columns * factor]
    return squares.reshape(num, rows, factor, columns, factor, channels).mean(axis=(2, 4))


def _pooled(maps: jax.Array) -> jax.Array:
    """Averages over each cell of the grid; the last row and column of an odd size are dropped."""
    height, width = maps.shape[0] // _GRID, maps.shape[1] // _GRID
    cells = maps[: _GRID * height, : _GRID * width].reshape(_GRID, height, _GRID, width, -1)
    return cells.mean(axis=(1, 3)).ravel()


@functools.cache
def _filters(num_channels: int) -> tuple[np.ndarray, ...]:
    # NumPy guarantees the stream of RandomState for ever, but not that of its newer generators.
    rng, filters = np.random.RandomState(0), []
    for width in _WIDTHS:
        scale = np.sqrt(2.0 / (9 * num_channels))
        kernel = scale * rng.standard_normal((3, 3, num_channels, width))
        filters.append(kernel.astype(np.float32))
        num_channels = width
    return tuple(filters)
