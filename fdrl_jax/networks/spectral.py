"""Spectral normalisation: a kernel divided by its largest singular value.

The singular value is estimated from two vectors in the collection `"spectral"`: `sigma = u^T W v`,
with `W` the kernel as a `[C_out, C_in * k * k]` matrix. Only `update_vectors` changes them.

Reference: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

if TYPE_CHECKING:
    from fdrl_jax.networks.layers import MLP
    from fdrl_jax.networks.resnet import ResNet

__all__ = ["prepare", "update_vectors"]
__dir__ = __all__.copy

_COLLECTION = "spectral"
_DIVIDED = "divided"  # Replaces the vectors of a kernel that has been divided already.


def update_vectors(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one power iteration for every spectrally normalised kernel of a network.

    Variables without such kernels are returned unchanged; those of `prepare` are a ValueError.
    """
    if _COLLECTION not in variables:
        return dict(variables)
    params, vectors = _flat(variables)
    for path in [path for path in vectors if path[-1] != "v"]:
        if path[-1] == _DIVIDED:
            raise ValueError(
                "these variables are prepared: their kernels are divided by spectral norms; update "
                "the vectors of the variables that were given to `prepare`"
            )
        matrix = _as_matrix(params[*path[:-1], "kernel"])
        vectors[path], vectors[*path[:-1], "v"] = _power_iteration(matrix, vectors[path])
    return {**variables, _COLLECTION: unflatten_dict(vectors)}  # type: ignore[no-untyped-call]


def normalised(module: nn.Module, kernel: jax.Array) -> jax.Array:
    """Divides a kernel by its spectral norm, with the vectors as variables of its module.

    Gradients flow through `sigma` to the kernel, never to the vectors.
    """
    if module.has_variable(_COLLECTION, _DIVIDED):
        return kernel
    matrix = _as_matrix(kernel)
    fixed = jax.lax.stop_gradient(matrix)

    def initial_u() -> jax.Array:
        # Enough iterations for a good sigma, because the first flow runs before the first update.
        key = module.make_rng("params")
        start = _normalise(jax.random.normal(key, matrix.shape[:1], matrix.dtype))
        u: jax.Array = jax.lax.fori_loop(0, 15, lambda _, u: _power_iteration(fixed, u)[0], start)
        return u

    u = module.variable(_COLLECTION, "u", initial_u)
    v = module.variable(_COLLECTION, "v", lambda: _normalise(fixed.T @ u.value))
    return kernel / _sigma(matrix, u.value, v.value)


def prepare(net: "MLP | ResNet", variables: Mapping[str, Any]) -> dict[str, Any]:
    """Divides kernels by their spectral norms and casts weights to the type of the computation.

    `net.apply` gives the same output with the result as with the `variables` of the `MLP` or
    `ResNet`. A flow applies fixed weights at every step, and compilers do not always move this work
    out of the loop. Use the result only for evaluation, and train the float32 `variables`.
    """
    params, vectors = _flat(variables)
    for path, array in params.items():
        layer = path[:-1]
        if (*layer, "kernel") not in params:  # The scalar of self-attention.
            continue
        if path[-1] == "kernel" and (*layer, "u") in vectors:
            array = array / _sigma(_as_matrix(array), *(vectors.pop((*layer, n)) for n in "uv"))
            vectors[*layer, _DIVIDED] = jnp.zeros(())
        is_head = layer == (net.head,)
        dtype = jnp.promote_types(net.dtype, jnp.float32) if is_head else net.dtype
        params[path] = array.astype(dtype)
    prepared = {**variables, "params": unflatten_dict(params)}  # type: ignore[no-untyped-call]
    if _COLLECTION in variables:
        prepared[_COLLECTION] = unflatten_dict(vectors)  # type: ignore[no-untyped-call]
    return prepared


def _flat(variables: Mapping[str, Any]) -> tuple[dict[tuple[str, ...], Any], ...]:
    return tuple(
        flatten_dict(variables.get(name, {}))  # type: ignore[no-untyped-call]
        for name in ("params", _COLLECTION)
    )


def _as_matrix(kernel: jax.Array) -> jax.Array:
    """Flattens a kernel to [C_out, C_in * k * k], as PyTorch does, whose vectors then fit."""
    return jnp.moveaxis(kernel, (-1, -2), (0, 1)).reshape(kernel.shape[-1], -1)


def _power_iteration(matrix: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Updates the vectors of `W [M, N]` once: `v = normalise(W^T u)`, `u = normalise(W v)`."""
    v = _normalise(matrix.T @ u)
    return _normalise(matrix @ v), v


def _sigma(matrix: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
    # Estimates, which are not trained even if a caller differentiates by all variables.
    u, v = jax.lax.stop_gradient((u, v))
    sigma: jax.Array = u @ matrix @ v
    return sigma


def _normalise(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), 1e-12)
