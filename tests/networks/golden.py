"""Reference values of the authors' implementation, and helpers to compare with them.

Weights are generated from the names of the tensors; see `weights`. Images in the files are NCHW.
"""

import json
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.authors_weights import from_torch_state_dict
from fdrl_jax import bregman, divergences
from fdrl_jax.networks import MLP, ResNet, resnet

FOLDER = Path(__file__).parents[1] / "golden"

NETWORKS: dict[str, MLP | ResNet] = {
    "mlp": MLP(),
    "resnet32": resnet("resnet32"),
    "resnet64_shallow_sn_attn": resnet("resnet64_shallow", spectral_norm=True, attention=True),
}

# By the authors' names: potentials of the flow as functions of the network's output, and losses.
POTENTIALS = {
    "Pearson": divergences.get("pearson").potential_from_ratio,
    "KL": divergences.get("kl").potential_from_log_ratio,
    "JS": divergences.get("js").potential_from_log_ratio,
    "logD": divergences.get("logd").potential_from_log_ratio,
}
LOSSES = {"LSIF": bregman.get("lsif"), "LR": bregman.get("lr"), "KL": bregman.get("ukl")}


class Case(NamedTuple):
    """A network with its weights and reference values."""

    net: MLP | ResNet
    variables: dict
    numbers: dict[str, np.ndarray]

    def images(self, name: str) -> np.ndarray:
        array = self.numbers[name]
        return np.moveaxis(array, 1, -1) if array.ndim == 4 else array


def load(name: str) -> Case:
    with np.load(FOLDER / f"{name}.npz") as file:
        numbers = dict(file)
    net = NETWORKS[name]
    return Case(net, from_torch_state_dict(net, weights(name, numbers)), numbers)


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    text = (FOLDER / f"{name}.state_dict.json").read_text()
    return {tensor: tuple(shape) for tensor, shape in json.loads(text).items()}


def weights(name: str, numbers: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    stored = {
        key.removeprefix("state_dict/"): array
        for key, array in numbers.items()
        if key.startswith("state_dict/")
    }
    return {key: stored.get(key, _weight(key, shape)) for key, shape in shapes(name).items()}


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("gamma"):
        return np.float32(0.5)
    scale = 0.1 if name.endswith("bias") else np.sqrt(0.8 / np.prod(shape[1:]))
    return (scale * random.standard_normal(shape)).astype(np.float32)
