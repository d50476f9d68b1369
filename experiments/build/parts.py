"""Parts that several kinds of runs are built of, from the flat config."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import data, schema
from experiments.build.rollbacks import after_rollbacks
from experiments.data import DataOptions, Source
from experiments.errors import UserError
from fdrl_jax import networks, state
from fdrl_jax.state import TrainState, Variables

Network = networks.MLP | networks.ResNet
Apply = Callable[[Variables, jax.Array], jax.Array]


def checked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a nested config and returns it flat.

    Raises:
      UserError: naming each key and value that does not fit.
    """
    schema.check(config)
    c = schema.as_floats(schema.flatten(config))
    c["data.dir"] = c["data.dir"] or os.environ.get("FDRL_DATA_DIR", "")
    return c


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns the library's errors into the user's.

    They explain bad combinations, such as a loss with a divergence, or a batch with devices.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(f"config: {error}") from error


def section(c: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns the keys of a section, without its name."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): c[key] for key in c if key.startswith(prefix)}


def source(c: dict[str, Any]) -> Source:
    """Opens the data.

    Raises:
      DataError: for data that are missing or cannot be read.
    """
    return data.load(DataOptions(**section(c, "data")))


def network(
    c: Mapping[str, Any], event_shape: tuple[int, ...], num_outputs: int | None = None
) -> Network:
    """Builds the network of a run; with several outputs, a classifier's.

    Raises:
      ValueError: for a network that does not fit the data.
    """
    name, spectral_norm = c["network.name"], c["network.spectral_norm"]
    dtype = "bfloat16" if c["precision"] == "bfloat16" else "float32"
    kind = "images" if len(event_shape) == 3 else "points"
    if name == "auto":
        name = "mlp" if kind == "points" else network_for(max(event_shape[:2]))
    if (name == "mlp") != (kind == "points"):
        fitting = "'mlp'" if kind == "points" else "a residual network such as 'resnet'"
        raise ValueError(f"network.name={name!r} does not fit {kind}; use {fitting}")
    if name == "mlp":
        return networks.MLP(tuple(c["network.hidden_sizes"]), spectral_norm, dtype)
    if name != "resnet":
        spec, width = name, c["network.width"] or None
    elif c["network.blocks"] and c["network.width"]:
        blocks = tuple(tuple(block) for block in c["network.blocks"])
        spec = networks.ResNetSpec(c["network.width"], blocks, c["network.attention_after"])
        width = None
    else:
        raise ValueError("network.name='resnet' needs network.width and network.blocks")
    return networks.resnet(
        spec,
        width=width,
        spectral_norm=spectral_norm,
        attention=c["network.attention"],
        dtype=dtype,
        remat=c["network.remat"],
        num_outputs=num_outputs,
    )


def initial_state(
    key: jax.Array,
    network: Network,
    optimizer: optax.GradientTransformation,
    event_shape: tuple[int, ...],
) -> TrainState:
    """Returns the state of a network before its first step."""
    example = jnp.zeros((1, *event_shape))
    return state.create(dict(jax.jit(network.init)(key, example)), optimizer)


def network_for(image_size: int) -> str:
    """Returns the paper's network for the nearest of its sizes, 32, 64 and 128."""
    return "resnet32" if image_size <= 48 else "resnet64" if image_size <= 96 else "resnet128"


def learning_rate(c: Mapping[str, Any]) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    rate = c["optimizer.learning_rate"]
    if c["optimizer.schedule"] == "cosine":
        return optax.cosine_decay_schedule(rate, c["train.num_steps"])
    if c["optimizer.schedule"] == "piecewise":
        factors = dict.fromkeys(c["optimizer.boundaries"], c["optimizer.decay"])
        return optax.piecewise_constant_schedule(rate, factors)
    return optax.constant_schedule(rate)


def optimizer(c: Mapping[str, Any], schedule: optax.Schedule) -> optax.GradientTransformation:
    """Returns Adam, with clipped gradients if the config says so; its state counts rollbacks."""
    adam = optax.adam(schedule, b1=c["optimizer.b1"], b2=c["optimizer.b2"])
    if c["optimizer.clip_norm"] > 0:
        adam = optax.chain(optax.clip_by_global_norm(c["optimizer.clip_norm"]), adam)
    return after_rollbacks(adam)
