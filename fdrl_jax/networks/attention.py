"""Self-attention over the positions of an image."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fdrl_jax.networks.layers import Conv


class SelfAttention(nn.Module):
    """Self-attention with a residual connection: `y = x + gamma * W_o attended`.

    Keys, queries and values have `C / 8` channels. For positions `i, j`,
    `attended_j = sum_i softmax_i(key_i . query_j) value_i`. The learnt scalar `gamma` starts at 0,
    so the module starts as the identity.

    Maps images `[B, H, W, C]` to images of the same shape.

    Attributes:
      spectral_norm: whether every kernel is divided by its largest singular value.
      dtype: type of the convolutions. Scores and weights are computed in at least float32, and
        parameters are float32.
      implementation: of the convolutions, as in `convolve`.

    Reference: Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019.
    """

    spectral_norm: bool = False
    dtype: DTypeLike = jnp.float32
    implementation: str = "custom"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]

        def project(features: int, name: str, images: jax.Array) -> jax.Array:
            layer = Conv(
                features,
                kernel_size=1,
                use_bias=True,
                spectral_norm=self.spectral_norm,
                dtype=self.dtype,
                implementation=self.implementation,
                name=name,
            )
            return layer(images)

        def positions(name: str) -> jax.Array:
            images = project(max(channels // 8, 1), name, x)
            return images.reshape(images.shape[0], -1, images.shape[-1]).astype(dtype)

        # In bfloat16 the scores would be rounded before the softmax, an error of 1 to 3%. With few
        # channels, float32 costs little time.
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        scores = jnp.einsum("bic,bjc->bij", positions("key"), positions("query"))
        weights = nn.softmax(scores, axis=1)
        attended = jnp.einsum("bij,bic->bjc", weights, positions("value"))
        output = project(channels, "self_att", attended.reshape(*x.shape[:-1], -1))
        gamma = self.param("gamma", nn.initializers.zeros, (), jnp.float32)
        return x + gamma.astype(self.dtype) * output
