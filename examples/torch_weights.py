"""Converts weights of the authors' PyTorch networks to Flax variables."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdrl_jax.networks import MLP, ResNet

Network = MLP | ResNet


def from_torch_state_dict(net: Network, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns a network's variables from arrays by PyTorch's names (`layer1.0.conv1.weight`).

    Raises:
      ValueError: if the arrays do not fit; lists each one that is missing, surplus or misshapen.
    """
    first = [state_dict[n] for n in state_dict if re.fullmatch(r"(conv1|mlp\.0)\.weight.*", n)]
    template = _template(net, next((a.shape[1] for a in first if a.ndim > 1), 1))
    names, expected = _names(template), _shapes(template)
    found = {name: np.shape(array) for name, array in state_dict.items()}
    if found != expected:
        differing = [n for n in expected | found if found.get(n) != expected.get(n)]
        pairs = (f"{n}: expected {expected.get(n)}, got {found.get(n)}" for n in differing)
        raise ValueError("the tensors do not fit the network: " + "; ".join(pairs))

    def converted(name: str) -> jax.Array:
        array = np.asarray(state_dict[name], np.float32)
        return jnp.asarray(np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array)

    variables: dict[str, Any] = jax.tree.map(converted, names)
    return variables


def torch_shapes(net: Network, input_features: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors of the authors' network, by PyTorch's name.

    `input_features` are the channels of its images, or the dimension of its points.
    """
    return _shapes(_template(net, input_features))


def _template(net: Network, input_features: int) -> dict[str, Any]:
    """The shapes of a network's variables, none of which depends on the size of the images."""
    shape = (1, input_features) if isinstance(net, MLP) else (1, 8, 8, input_features)
    template: dict[str, Any] = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
    return template


def _names(template: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's name of every variable, in the same tree."""
    # PyTorch stores the vectors of spectral normalisation next to the raw kernel.
    kernel = "weight_orig" if "spectral" in template else "weight"
    suffixes = {"kernel": kernel, "u": "weight_u", "v": "weight_v"}

    def name(path: tuple[jax.tree_util.DictKey, ...], _: jax.ShapeDtypeStruct) -> str:
        _, *modules, leaf = (entry.key for entry in path)
        # layer1_0 here is layer1.0 there.
        parts = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
        return ".".join((*parts, suffixes.get(leaf, leaf)))

    names: dict[str, Any] = jax.tree.map_with_path(name, template)
    return names


def _shapes(template: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    def torch_order(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-3:-1], *shape[:-2]) if len(shape) > 1 else shape

    names, leaves = jax.tree.leaves(_names(template)), jax.tree.leaves(template)
    return {name: torch_order(leaf.shape) for name, leaf in zip(names, leaves, strict=True)}
