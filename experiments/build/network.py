"""The network of a run, from its settings."""

from experiments.settings import Settings
from fdrl_jax import networks

Network = networks.MLP | networks.ResNet


def make_network(
    settings: Settings, event_shape: tuple[int, ...], num_outputs: int | None = None
) -> Network:
    """Builds the network of a run for examples of a shape.

    `hardware.prepare` has replaced the precision "auto". `num_outputs` is the number of classes of
    a classifier, or `None` for a density ratio.

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
    spec: str | networks.ResNetSpec = name
    width, blocks = settings["network.width"], settings["network.blocks"]
    if name == "resnet":
        if not (width and blocks):
            raise ValueError("network.name='resnet' needs network.width and network.blocks")
        pairs = tuple(map(tuple, blocks))
        spec = networks.ResNetSpec(width, pairs, settings["network.attention_after"])
    return networks.resnet(
        spec,
        width=width or None,
        spectral_norm=spectral_norm,
        attention=settings["network.attention"],
        dtype=dtype,
        remat=settings["network.remat"],
        num_outputs=num_outputs,
        use_bias=settings["network.use_bias"],
    )


def _for_image_size(size: int) -> str:
    """Returns the paper's network for the closest of its image sizes, 32, 64 and 128."""
    return "resnet32" if size <= 48 else "resnet64" if size <= 96 else "resnet128"
