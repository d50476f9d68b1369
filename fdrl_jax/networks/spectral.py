"""Spectral normalisation: a kernel divided by its largest singular value.

The singular value is estimated from two vectors in the collection `"spectral"`: `sigma = u^T W v`,
with `W` the kernel as a `[C_out, C_in * k * k]` matrix. The vectors change only if the collection
is mutable. A flow or a sampler thus sees one fixed function, and a training step that applies the
network with `mutable=["spectral"]` updates them once.

A program that applies fixed variables many times should divide once, before its loop; see
`prepare`.

Reference: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

COLLECTION = "spectral"
_DIVIDED = "divided"  # Replaces the vectors of a kernel that has been divided already.
_NUM_INIT_ITERATIONS = 15
_EPSILON = 1e-12


def as_matrix(kernel: jax.Array) -> jax.Array:
    """Flattens a kernel as PyTorch does, so that its singular vectors can be used here.

    Args:
      kernel: `[C_in, C_out]` or `[k, k, C_in, C_out]`.

    Returns:
      The matrix `[C_out, C_in]` or `[C_out, C_in * k * k]`.
    """
    out_and_in_first = jnp.moveaxis(kernel, (-1, -2), (0, 1))
    return out_and_in_first.reshape(kernel.shape[-1], -1)


def power_iteration(matrix: jax.Array, u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Updates the singular vectors once: `v = normalise(W^T u)`, then `u = normalise(W v)`.

    Args:
      matrix: `W`, `[M, N]`.
      u: left vector `[M]`.

    Returns:
      The new `u` `[M]` and `v` `[N]`.
    """
    v = _normalise(matrix.T @ u)
    return _normalise(matrix @ v), v


def update_vectors(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one power iteration for every spectrally normalised kernel of a network.

    This is the update of applying the network with `mutable=["spectral"]`, for callers that have no
    input or that split a batch. Variables without such kernels are returned unchanged.

    Args:
      variables: a network's variables, with `"params"`.

    Returns:
      The variables with new vectors.

    Raises:
      ValueError: for variables that `prepare` has divided.
    """
    if COLLECTION not in variables:
        return dict(variables)

    def update(vectors: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        if _DIVIDED in vectors:
            raise ValueError(
                "these variables are prepared: their kernels are divided by spectral norms; update "
                "the vectors of the variables that were given to `prepare`"
            )
        if "u" in vectors:
            u, v = power_iteration(as_matrix(params["kernel"]), vectors["u"])
            return {"u": u, "v": v}
        return {name: update(vectors[name], params[name]) for name in vectors}

    return {**variables, COLLECTION: update(variables[COLLECTION], variables["params"])}


def normalised(module: nn.Module, kernel: jax.Array) -> jax.Array:
    """Divides a kernel by its spectral norm, with the vectors as variables of `module`.

    Gradients flow through `sigma` to the kernel, never to the vectors.

    Args:
      module: the Flax module that owns the kernel, inside its compact call.
      kernel: `[C_in, C_out]` or `[k, k, C_in, C_out]`.

    Returns:
      `kernel / sigma`, of the shape of the kernel.
    """
    if module.has_variable(COLLECTION, _DIVIDED):
        return kernel
    matrix = as_matrix(kernel)
    fixed = jax.lax.stop_gradient(matrix)

    def initial_u() -> jax.Array:
        # Enough iterations for a good sigma, because the first flow runs before the first update.
        key = module.make_rng("params")
        start = _normalise(jax.random.normal(key, matrix.shape[:1], matrix.dtype))
        u: jax.Array = jax.lax.fori_loop(
            0, _NUM_INIT_ITERATIONS, lambda _, u: power_iteration(fixed, u)[0], start
        )
        return u

    u = module.variable(COLLECTION, "u", initial_u)
    v = module.variable(COLLECTION, "v", lambda: _normalise(fixed.T @ u.value))
    if module.is_mutable_collection(COLLECTION) and not module.is_initializing():
        u.value, v.value = power_iteration(fixed, u.value)
    return kernel / _sigma(matrix, u.value, v.value)


def divided(kernel: jax.Array, vectors: Mapping[str, jax.Array]) -> tuple[jax.Array, Any]:
    """Divides a kernel outside its module.

    Args:
      kernel: `[C_in, C_out]` or `[k, k, C_in, C_out]`.
      vectors: the kernel's entry in the collection.

    Returns:
      `kernel / sigma`, and a new entry that marks the kernel as divided.
    """
    if _DIVIDED in vectors:
        return kernel, vectors
    kernel = kernel / _sigma(as_matrix(kernel), vectors["u"], vectors["v"])
    return kernel, {_DIVIDED: jnp.zeros(())}


def _sigma(matrix: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
    # The vectors are estimates, not parameters. They must not be trained even if a caller
    # differentiates with respect to all variables.
    u, v = jax.lax.stop_gradient((u, v))
    sigma: jax.Array = u @ matrix @ v
    return sigma


def _normalise(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), _EPSILON)
