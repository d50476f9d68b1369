"""Preparation of a network's weights, done once before a loop that applies it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from fdrl_jax.networks.mlp import MLP
from fdrl_jax.networks.resnet import ResNet
from fdrl_jax.networks.spectral import COLLECTION, divided


def prepare(net: MLP | ResNet, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Divides kernels by their spectral norms and casts weights to the type of the computation.

    `net.apply` gives the same output with the result as with `variables`. A flow applies fixed
    weights at every step, and compilers do not always move this work out of the loop. `prepare`
    does it in advance. Use the result only for evaluation, and train the float32 `variables`.

    Args:
      net: the network.
      variables: its variables, with `"params"`.

    Returns:
      Variables for `net.apply`. The head stays in float32, because the network computes it so.
    """

    def of_layers(
        params: Mapping[str, Any], vectors: Mapping[str, Any], dtype: DTypeLike
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        new_params, new_vectors = dict(params), dict(vectors)
        for name, value in params.items():
            if isinstance(value, Mapping):
                own = vectors.get(name, {})
                new_params[name], new_vectors[name] = of_layers(value, own, dtype)
        if "kernel" in params:
            if vectors:
                new_params["kernel"], new_vectors = divided(params["kernel"], vectors)
            cast = {
                name: new_params[name].astype(dtype)
                for name in ("kernel", "bias")
                if name in params
            }
            new_params |= cast
        return new_params, new_vectors

    params, vectors = {}, {}
    for name, layer in variables["params"].items():
        dtype = jnp.promote_types(net.dtype, jnp.float32) if name == net.head else net.dtype
        own = variables.get(COLLECTION, {}).get(name, {})
        params[name], vectors[name] = of_layers(layer, own, dtype)
    prepared = {**variables, "params": params}
    return {**prepared, COLLECTION: vectors} if COLLECTION in variables else prepared
