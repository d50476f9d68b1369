"""Networks that estimate a density ratio or its logarithm."""

from fdrl_jax.networks.attention import SelfAttention
from fdrl_jax.networks.convolution import convolve
from fdrl_jax.networks.denoiser import Denoiser
from fdrl_jax.networks.layers import Conv, Dense
from fdrl_jax.networks.mlp import MLP
from fdrl_jax.networks.prepared import prepare
from fdrl_jax.networks.resnet import SPECS, ResNet, ResNetSpec, resnet
from fdrl_jax.networks.spectral import update_vectors

__all__ = [
    "MLP",
    "SPECS",
    "Conv",
    "Denoiser",
    "Dense",
    "ResNet",
    "ResNetSpec",
    "SelfAttention",
    "convolve",
    "prepare",
    "resnet",
    "update_vectors",
]
