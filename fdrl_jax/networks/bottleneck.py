"""Residual networks of bottleneck blocks, such as ResNet-50, for pretrained classifiers."""

from collections.abc import Sequence

import jax
from flax import linen as nn

from fdrl_jax.networks.layers import Conv, Dense


class Bottleneck(nn.Module):
    """Convolutions 1x1, 3x3 and 1x1, each normalised, with a shortcut.

    Attributes:
      features: inner channels; the output has four times as many.
      stride: stride of the 3x3 convolution and of the shortcut.
    """

    features: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        wide = 4 * self.features
        y = nn.relu(_norm("bn1")(Conv(self.features, 1, name="conv1")(x)))
        y = nn.relu(_norm("bn2")(Conv(self.features, 3, self.stride, name="conv2")(y)))
        y = _norm("bn3")(Conv(wide, 1, name="conv3")(y))
        if self.stride != 1 or x.shape[-1] != wide:
            x = _norm("shortcut_1")(Conv(wide, 1, self.stride, name="shortcut_0")(x))
        return nn.relu(x + y)


class BottleneckResNet(nn.Module):
    """Classifier of small images, `[B, H, W, C] -> [B, num_outputs]`, for inference only.

    The layers are a 3x3 convolution of stride 1, stages of bottleneck blocks with 1, 2, 4 and 8
    times the width, the mean over positions and an affine map. Each stage after the first halves
    the resolution. ResNet-50 has blocks (3, 4, 6, 3) and width 64. Batch normalisation uses the
    running statistics in "batch_stats" and never updates them.

    Attributes:
      blocks: number of blocks per stage.
      width: channels of the first convolution.
      num_outputs: number of classes.

    Reference: He et al., "Deep Residual Learning for Image Recognition", 2016.
    """

    blocks: Sequence[int] = (3, 4, 6, 3)
    width: int = 64
    num_outputs: int = 10

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(_norm("bn1")(Conv(self.width, name="conv1")(x)))
        for stage, count in enumerate(self.blocks):
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                block = Bottleneck(self.width * 2**stage, stride, name=f"layer{stage + 1}_{index}")
                x = block(x)
        return Dense(self.num_outputs, name="linear")(x.mean(axis=(1, 2)))


def _norm(name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=name)
