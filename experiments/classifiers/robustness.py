"""Classifiers of CIFAR from checkpoints of the PyTorch library `robustness`.

Such a checkpoint has the state dictionary of its `AttackerModel` under "model": the network under
`module.model.`, the mean and standard deviation for normalising images under `module.normalizer.`,
and copies of both under `module.attacker.`. The published files also contain objects of that
library, which are rejected. Convert such a file where PyTorch and the library are installed:

    torch.save({"model": torch.load(OLD, pickle_module=dill, weights_only=False)["model"]}, NEW)
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import UserError
from experiments.torch_file import load, state_dict
from fdrl_jax.networks import BottleneckResNet, from_torch_state_dict

# `(variables, x [B, H, W, 3] in [0, 1]) -> logits [B, classes]`, variables, number of classes.
TrainedElsewhere = tuple[Callable[..., jax.Array], dict[str, Any], int]


def read_robustness(path: Path) -> TrainedElsewhere:
    """Reads a checkpoint of a ResNet with bottleneck blocks, such as ResNet-50, of any width.

    Nothing in the file is executed.

    Raises:
      UserError: if the file cannot be read, or if tensors are missing or surplus; lists them.
    """
    try:
        entries = load(path)
        if not isinstance(entries, dict) or "model" not in entries:
            raise ValueError("it has no state dictionary under 'model'")
        return _classifier(state_dict(entries["model"], "model"))
    except ValueError as error:
        raise UserError(
            f"{path}: {error}; expected a checkpoint of the library robustness"
        ) from error


def _classifier(tensors: Mapping[str, np.ndarray]) -> TrainedElsewhere:
    normaliser, network = _split(tensors)
    mean, std = (_three(normaliser, f"new_{name}") for name in ("mean", "std"))
    kernel, last = network.get("conv1.weight"), network.get("linear.weight")
    if kernel is None or last is None or kernel.ndim != 4 or last.ndim != 2:
        raise ValueError("it has no model.conv1.weight and model.linear.weight of a CIFAR ResNet")
    blocks = _count_blocks(network)
    net = BottleneckResNet(blocks, kernel.shape[0], last.shape[0])
    variables = {"network": from_torch_state_dict(net, network), "mean": mean, "std": std}

    def apply(variables: dict[str, Any], x: jax.Array) -> jax.Array:
        # Clipped, as in that library.
        x = (jnp.clip(x, 0.0, 1.0) - variables["mean"]) / variables["std"]
        return cast(jax.Array, net.apply(variables["network"], x))

    return apply, variables, last.shape[0]


def _split(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the tensors of the normaliser and of the network, without their prefixes."""
    parts: dict[str, dict[str, np.ndarray]] = {"normalizer": {}, "model": {}, "attacker": {}}
    for name, values in tensors.items():
        part, dot, rest = name.partition(".")
        if part not in parts or not dot:
            raise ValueError(
                f"it contains {name!r}, which belongs to no model, normalizer or attacker"
            )
        parts[part][rest] = values
    return parts["normalizer"], parts["model"]


def _three(normaliser: dict[str, np.ndarray], name: str) -> jax.Array:
    values = normaliser.get(name)
    if values is None or values.size != 3:
        raise ValueError(f"it has no normalizer.{name} of three numbers")
    return jnp.asarray(values.reshape(-1), jnp.float32)


def _count_blocks(network: Mapping[str, Any]) -> tuple[int, ...]:
    matches = (re.match(r"layer(\d)\.(\d+)\.", name) for name in network)
    found = {(int(match[1]), int(match[2])) for match in matches if match}
    stages = sorted({stage for stage, _ in found})
    if not stages or stages != list(range(1, len(stages) + 1)):
        raise ValueError("it has no stages model.layer1, model.layer2 and so on")
    return tuple(1 + max(index for stage, index in found if stage == s) for s in stages)
