"""Networks that estimate a density ratio or its logarithm."""

from fdrl_jax.networks.denoiser import Denoiser
from fdrl_jax.networks.layers import MLP, Conv, Dense
from fdrl_jax.networks.resnet import SPECS, ResNet, ResNetSpec, resnet
from fdrl_jax.networks.spectral import prepare, update_vectors

__all__ = [
    "MLP",
    "SPECS",
    "Conv",
    "Denoiser",
    "Dense",
    "ResNet",
    "ResNetSpec",
    "prepare",
    "resnet",
    "update_vectors",
]
__dir__ = __all__.copy
