"""Spectral normalisation: a kernel divided by its largest singular value.

The singular value is estimated from two vectors in the collection `"spectral"`: `sigma = u^T W v`,
with `W` the kernel as a `[C_out, C_in * k * k]` matrix. Only a training step that applies the
network with `mutable=["spectral"]` updates them; a flow or a sampler sees one fixed function.

Reference: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

__all__ = ["prepare", "update_vectors"]
__dir__ = __all__.copy

_COLLECTION = "spectral"
_DIVIDED = "divided"  # Replaces the vectors of a kernel that has been divided already.


def update_vectors(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one power iteration for every spectrally normalised kernel of a network.

    This is the update of applying the network with `mutable=["spectral"]`, for callers that have no
    input or that split a batch. Variables without such kernels are returned unchanged.

    Raises:
      ValueError: for variables that `prepare` has divided.
    """
    if _COLLECTION not in variables:
        return dict(variables)

    def update(vectors: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        if _DIVIDED in vectors:
            raise ValueError(
                "these variables are prepared: their kernels are divided by spectral norms; update "
                "the vectors of the variables that were given to `prepare`"
            )
        if "u" in vectors:
            u, v = _power_iteration(_as_matrix(params["kernel"]), vectors["u"])
            return {"u": u, "v": v}
        return {name: update(vectors[name], params[name]) for name in vectors}

    return {**variables, _COLLECTION: update(variables[_COLLECTION], variables["params"])}


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
    if module.is_mutable_collection(_COLLECTION) and not module.is_initializing():
        u.value, v.value = _power_iteration(fixed, u.value)
    return kernel / _sigma(matrix, u.value, v.value)


class _Network(Protocol):
    """A network with the name of its last layer, which computes in float32."""

    dtype: DTypeLike

    @property
    def head(self) -> str: ...


def prepare(net: _Network, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Divides kernels by their spectral norms and casts weights to the type of the computation.

    `net.apply` gives the same output with the result as with the `variables` of the `MLP` or
    `ResNet`. A flow applies fixed weights at every step, and compilers do not always move this work
    out of the loop. Use the result only for evaluation, and train the float32 `variables`.
    """

    def of_layers(params: Any, vectors: Any, dtype: DTypeLike) -> tuple[Any, Any]:
        if "kernel" not in params:
            layers = {
                name: of_layers(value, vectors.get(name, {}), dtype)
                if isinstance(value, Mapping)
                else (value, None)
                for name, value in params.items()
            }
            new = {name: layer for name, (_, layer) in layers.items() if layer}
            return {name: layer for name, (layer, _) in layers.items()}, new
        kernel = params["kernel"]
        if vectors and _DIVIDED not in vectors:
            kernel = kernel / _sigma(_as_matrix(kernel), vectors["u"], vectors["v"])
            vectors = {_DIVIDED: jnp.zeros(())}
        return {n: a.astype(dtype) for n, a in {**params, "kernel": kernel}.items()}, vectors

    params, vectors = {}, {}
    for name, layer in variables["params"].items():
        dtype = jnp.promote_types(net.dtype, jnp.float32) if name == net.head else net.dtype
        own = variables.get(_COLLECTION, {}).get(name, {})
        params[name], vectors[name] = of_layers(layer, own, dtype)
    prepared = {**variables, "params": params}
    return {**prepared, _COLLECTION: vectors} if _COLLECTION in variables else prepared


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
