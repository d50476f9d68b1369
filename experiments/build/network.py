"""The network of a run, from its settings."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.settings import Settings
from fdrl_jax import networks
from fdrl_jax.state import Variables

Network = networks.MLP | networks.ResNet


def make_network(
    settings: Mapping[str, Any], event_shape: tuple[int, ...], num_outputs: int | None = None
) -> Network:
    """Builds the network of a run.

    Args:
      settings: flat settings. `hardware.prepare` has replaced the precision "auto".
      event_shape: shape of one example.
      num_outputs: number of classes of a classifier; `None` for a density ratio.

    Raises:
      ValueError: for a network that does not fit the data.
    """
    name, spectral_norm = settings["network.name"], settings["network.spectral_norm"]
    kind = "images" if len(event_shape) == 3 else "points"
    dtype = "bfloat16" if settings["precision"] == "bfloat16" else "float32"
    if name == "auto":
        name = "mlp" if kind == "points" else _for_image_size(max(event_shape[:2]))
    if (name == "mlp") != (kind == "points"):
        fitting = "'mlp'" if kind == "points" else "a residual network such as 'resnet'"
        raise ValueError(f"network.name={name!r} does not fit {kind}; use {fitting}")
    if name == "mlp":
        return networks.MLP(tuple(settings["network.hidden_sizes"]), spectral_norm, dtype)
    width, blocks = settings["network.width"], settings["network.blocks"]
    if name != "resnet":
        spec: str | networks.ResNetSpec = name
    elif blocks and width:
        pairs = tuple((features, stride) for features, stride in blocks)
        spec = networks.ResNetSpec(width, pairs, settings["network.attention_after"])
    else:
        raise ValueError("network.name='resnet' needs network.width and network.blocks")
    return networks.resnet(
        spec,
        width=width or None,
        spectral_norm=spectral_norm,
        attention=settings["network.attention"],
        dtype=dtype,
        remat=settings["network.remat"],
        num_outputs=num_outputs,
        input_mean=settings["network.input_mean"],
        input_std=settings["network.input_std"],
    )


def standardised(settings: Settings, batches: Iterable[np.ndarray]) -> Settings:
    """Returns settings in which measured numbers replace `network.input_std=0`.

    Args:
      settings: flat settings.
      batches: images [B, H, W, C] to measure; read only if needed.
    """
    if settings["network.input_std"]:
        return settings
    pixels = np.concatenate([x.reshape(-1, x.shape[-1]) for x in batches])
    mean = pixels.mean(axis=0, dtype=np.float64)
    std = np.sqrt(np.mean(np.square(pixels - mean), dtype=np.float64))
    # Few digits: they are read in reports, and sums in another order would change the last ones.
    # A set of equal images has no deviation; its network only shifts.
    return {
        **settings,
        "network.input_mean": tuple(round(float(m), 3) for m in mean),
        "network.input_std": round(float(std), 3) or 1.0,
    }


def with_placeholder(settings: Settings) -> Settings:
    """Returns settings for compiling and timing without data.

    A number of the same cost replaces `network.input_std=0`, which is measured on data.
    """
    return {**settings, "network.input_std": settings["network.input_std"] or 0.5}


def init_network(key: jax.Array, network: Network, event_shape: tuple[int, ...]) -> Variables:
    """Returns the initial variables of a network."""
    return dict(jax.jit(network.init)(key, jnp.zeros((1, *event_shape))))


def _for_image_size(size: int) -> str:
    """Returns the paper's network for the closest of its image sizes, 32, 64 and 128."""
    return "resnet32" if size <= 48 else "resnet64" if size <= 96 else "resnet128"
