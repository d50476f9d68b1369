"""Residual networks for images: one module, and the specs of the paper's four networks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from fdrl_jax import _checks
from fdrl_jax.networks.layers import Conv, Dense, SelfAttention, activate

__all__ = ["SPECS", "ResNet", "ResNetSpec", "resnet"]
__dir__ = __all__.copy


class ResNetSpec(NamedTuple):
    """Widths and depths of a residual network.

    Attributes:
      stem: channels of the first convolution.
      blocks: `(channels, stride)` of each block.
      attention_after: number of blocks before the self-attention, if the network has it.
    """

    stem: int
    blocks: Sequence[tuple[int, int]]
    attention_after: int | None = None


# Table 4 of the paper.
SPECS = {
    "resnet32": ResNetSpec(128, ((128, 1),) * 3 + ((256, 2), (256, 1), (256, 1)) * 3, 3),
    "resnet64": ResNetSpec(64, ((64, 2), (128, 2), (128, 1)) + ((256, 2), (256, 1)) * 2, 3),
    "resnet64_shallow": ResNetSpec(64, ((64, 2), (128, 2), (128, 2), (256, 2)), 2),
    "resnet128": ResNetSpec(
        64, ((64, 2), (128, 2), (128, 2), (128, 1)) + ((256, 2), (256, 1)) * 2, 2
    ),
}


class _ResidualBlock(nn.Module):
    """`act(conv(act(conv(x))) + shortcut(x))`, of a 1x1 convolution if the shape changes."""

    features: int
    stride: int
    spectral_norm: bool
    dtype: DTypeLike
    use_bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options: dict[str, Any] = {"spectral_norm": self.spectral_norm, "dtype": self.dtype}

        def conv(stride: int, name: str) -> Conv:
            return Conv(self.features, 3, stride, self.use_bias, **options, name=name)

        y = conv(1, "conv2")(activate(conv(self.stride, "conv1")(x)))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, **options, name="shortcut_conv")(x)
        return activate(x + y)


class ResNet(nn.Module):
    """Residual network without normalisation layers. `resnet` makes one by name and checks it.

    Maps `x [B, H, W, C]` in [-1, 1] to `[B]`: the density ratio or its logarithm, depending on the
    loss, or to `[B, num_outputs]`. The layers are a 3x3 convolution, the blocks, the mean over
    positions and an affine map.

    Attributes:
      spec: widths and depths.
      spectral_norm: whether every kernel is divided by its largest singular value.
      attention: whether self-attention follows block number `spec.attention_after`.
      dtype: type of the computation; parameters, the last layer and the output are float32.
      remat: whether the backward pass recomputes the activations of a block, to need less memory.
      num_outputs: outputs per image; `None` for a single output without an axis.
      use_bias: whether the 3x3 convolutions add a bias per channel. Those of the paper do not, so
        their response to a flat background is proportional to its brightness.

    Reference: Heng et al., "Generative Modeling with Flow-Guided Density Ratio Learning", table 4.
    """

    spec: ResNetSpec
    spectral_norm: bool = False
    attention: bool = False
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    num_outputs: int | None = None
    use_bias: bool = False

    head = "linear"  # The name of the last layer, which computes in float32.

    @nn.compact
    def __call__(self, x: jax.Array, *, features: bool = False) -> jax.Array:
        """Maps images to the output, or with `features` to the input of the last map, [B, D]."""
        block = nn.remat(_ResidualBlock) if self.remat else _ResidualBlock
        options: dict[str, Any] = {"spectral_norm": self.spectral_norm, "dtype": self.dtype}
        x = activate(Conv(self.spec.stem, use_bias=self.use_bias, **options, name="conv1")(x))
        stage, index = 0, 0
        for number, (channels, stride) in enumerate(self.spec.blocks):
            # In the reference implementation, a stage starts where the resolution changes.
            stage, index = (stage + 1, 0) if stride > 1 or number == 0 else (stage, index + 1)
            name = f"layer{stage}_{index}"
            x = block(channels, stride, use_bias=self.use_bias, **options, name=name)(x)
            if self.attention and number + 1 == self.spec.attention_after:
                x = SelfAttention(**options, name="self_attn_module")(x)
        x = x.astype(jnp.float32).mean(axis=(1, 2))
        if features:
            return x
        x = Dense(self.num_outputs or 1, self.spectral_norm, name=self.head)(x)
        return x[..., 0] if self.num_outputs is None else x


def resnet(spec: str | ResNetSpec, *, width: int | None = None, **options: Any) -> ResNet:
    """Makes one of the paper's residual networks, or one from your own spec.

    Args:
      spec: `"resnet32"`, `"resnet64"`, `"resnet64_shallow"`, `"resnet128"`, or a spec.
      width: channels of the first convolution; those of all blocks scale in proportion.
      **options: attributes of `ResNet`.

    Raises:
      ValueError: for an unknown name, or sizes, outputs or `attention_after` that cannot be.
    """
    if isinstance(spec, str):
        _checks.check_name("network", spec, SPECS)
        spec = SPECS[spec]
    stem = spec.stem if width is None else width
    scale = stem / spec.stem if spec.stem > 0 else 0.0  # The check below rejects 0.
    blocks = tuple((round(size * scale), stride) for size, stride in spec.blocks)
    if not blocks or min(stem, *(min(block) for block in blocks)) < 1:
        raise ValueError(
            "a network needs blocks, and widths and strides of at least 1; "
            f"got stem {stem}, blocks {blocks}"
        )
    net = ResNet(ResNetSpec(stem, blocks, spec.attention_after), **options)
    if net.num_outputs is not None and net.num_outputs < 1:
        raise ValueError(f"num_outputs must be at least 1, got {net.num_outputs}")
    after = spec.attention_after
    if net.attention and after not in range(1, len(blocks) + 1):
        raise ValueError(f"attention_after must be a number from 1 to {len(blocks)}, got {after}")
    return net
