"""Converts weights of PyTorch networks, such as the reference implementation, to Flax variables."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fdrl_jax.networks.bottleneck import BottleneckResNet
from fdrl_jax.networks.mlp import MLP
from fdrl_jax.networks.resnet import ResNet
from fdrl_jax.networks.spectral import COLLECTION

Network = MLP | ResNet | BottleneckResNet


def from_torch_state_dict(net: Network, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Builds a network's variables from the reference implementation's parameters.

    Args:
      net: the network that the parameters belong to.
      state_dict: arrays by PyTorch's names (`layer1.0.conv1.weight`; kernels
        `[C_out, C_in, k, k]`), with or without the prefix `module.`. Those of the counter
        `num_batches_tracked` are ignored.

    Returns:
      Variables for `net.apply`: `"params"`, with `"spectral"` under spectral normalisation
      and `"batch_stats"` under batch normalisation.

    Raises:
      ValueError: if the tensors do not fit; lists each one that is missing, surplus or misshapen.
    """
    tensors = {
        name.removeprefix("module."): np.asarray(a)
        for name, a in state_dict.items()
        if not name.endswith("num_batches_tracked")  # A counter, which no output depends on.
    }
    template = _template(net, _input_features(tensors))
    _check(tensors, _shapes_by_name(template))
    variables: dict[str, Any] = jax.tree.map(
        lambda name: jnp.asarray(_from_torch_axes(tensors[name]), jnp.float32), _names(template)
    )
    return variables


def torch_shapes(net: Network, input_features: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's tensors in the reference implementation.

    Args:
      net: the network.
      input_features: channels of its images, or dimension of its points.

    Returns:
      The shape of every tensor in PyTorch's order of axes, by PyTorch's name.
    """
    return _shapes_by_name(_template(net, input_features))


def _template(net: Network, input_features: int) -> dict[str, Any]:
    """The shapes of a network's variables, none of which depends on the size of the images."""
    shape = (1, input_features) if isinstance(net, MLP) else (1, 8, 8, input_features)
    template: dict[str, Any] = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
    return template


def _names(template: dict[str, Any]) -> dict[str, Any]:
    """PyTorch's name of every variable, in the same tree."""

    def name(path: tuple[jax.tree_util.DictKey, ...], _: jax.ShapeDtypeStruct) -> str:
        _, *modules, leaf = (entry.key for entry in path)
        # layer1_0 here is layer1.0 there.
        parts = [re.sub(r"_(\d+)$", r".\1", module) for module in modules]
        return ".".join((*parts, suffixes.get(leaf, leaf)))

    # PyTorch stores the vectors next to the raw kernel, which it then calls weight_orig.
    kernel = "weight_orig" if COLLECTION in template else "weight"
    suffixes = {"kernel": kernel, "u": "weight_u", "v": "weight_v"}
    suffixes |= {"scale": "weight", "mean": "running_mean", "var": "running_var"}
    names: dict[str, Any] = jax.tree.map_with_path(name, template)
    return names


def _shapes_by_name(template: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    names, leaves = jax.tree.leaves(_names(template)), jax.tree.leaves(template)
    return {name: _torch_shape(leaf.shape) for name, leaf in zip(names, leaves, strict=True)}


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-3:-1], *shape[:-2]) if len(shape) > 1 else shape


def _from_torch_axes(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, (0, 1), (-1, -2)) if array.ndim > 1 else array


def _input_features(tensors: Mapping[str, np.ndarray]) -> int:
    for name in ("conv1", "mlp.0"):
        for suffix in ("weight", "weight_orig"):
            kernel = tensors.get(f"{name}.{suffix}")
            if kernel is not None and kernel.ndim > 1:
                return int(kernel.shape[1])
    # The first kernel is missing or misshapen, which `_check` reports.
    return 1


def _check(tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing {name} {expected[name]}" for name in expected if name not in tensors]
    problems += [
        f"surplus {name} {tensors[name].shape}" for name in tensors if name not in expected
    ]
    problems += [
        f"misshapen {name}: expected {shape}, got {tensors[name].shape}"
        for name, shape in expected.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        raise ValueError("the tensors do not fit the network: " + "; ".join(problems))
