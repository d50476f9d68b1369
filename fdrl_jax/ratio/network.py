"""Networks that estimate ratios: what a user may pass, the default, and one output per head."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

__all__ = ["Heads", "Network", "SupportsNetwork", "Trunk", "default_trunk", "with_heads"]
__dir__ = __all__.copy

Array = jax.Array
Params = Any


class Network(NamedTuple):
    """A network as a pair of pure functions. A Flax Linen module is one already.

    Attributes:
      init: `(key, x [B, ...]) -> params`, a pytree of floating-point arrays.
      apply: `(params, x [B, ...]) -> [B]`, one number per example, or `-> [B, F]`, features that
        `fit_ratio` maps to one number per head by a linear layer.
    """

    init: Callable[[Array, Array], Params]
    apply: Callable[[Params, Array], Array]


class SupportsNetwork(Protocol):
    """Anything with the methods `init` and `apply` of `Network`, such as a Flax Linen module."""

    @property
    def init(self) -> Callable[..., Any]: ...

    @property
    def apply(self) -> Callable[..., Any]: ...


class Trunk(nn.Module):
    """Features of the default network: the input and all hidden layers of a perceptron.

    Maps `x [B, ...]` to `[B, D + sum(hidden_sizes)]`.

    Attributes:
      hidden_sizes: width of every hidden layer.
      squares: whether the input has the squares of the columns as well. Sets may differ in their
        distance from the centre, as heavy tails do, which a perceptron is slow to learn.
    """

    hidden_sizes: tuple[int, ...] = (128, 128)
    squares: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.reshape(len(x), -1)
        features = [jnp.concatenate([x, x**2 - 1.0], axis=-1) if self.squares else x]
        for size in self.hidden_sizes:
            features.append(nn.silu(nn.Dense(size)(features[-1])))
        return jnp.concatenate(features, axis=-1)


def default_trunk(num_columns: int, num_rows: int) -> Trunk:
    """Returns a trunk of two layers, which are small for few rows."""
    width = 64 if num_rows < 4_000 else 128
    return Trunk((min(max(4 * num_columns, width), 1024), width), squares=num_columns <= 100)


class Heads(NamedTuple):
    """A network with one output per head; a static argument of compiled functions.

    Attributes:
      network: has the functions `init` and `apply`. Not these functions: bound methods of equal
        modules differ, so that each fit would be compiled again.
      num_heads: H.
      shared: whether the network returns features, which linear heads share; they start at 0.
        Otherwise there is one copy of the network per head.
    """

    network: SupportsNetwork
    num_heads: int
    shared: bool

    def init(self, key: Array, x: Array) -> Params:
        """Returns initial parameters for inputs like `x`, [B, ...]."""
        if not self.shared:
            keys = jax.random.split(key, self.num_heads)
            return jax.vmap(self.network.init, (0, None))(keys, x)
        params = self.network.init(key, x)
        num_features = jax.eval_shape(self.network.apply, params, x).shape[1]
        return {
            "network": params,
            "kernel": jnp.zeros((num_features, self.num_heads)),
            "bias": jnp.zeros(self.num_heads),
        }

    def outputs(self, params: Params, x: Array) -> Array:
        """Returns the output of every head, `x [B, ...] -> [B, H]`."""
        if not self.shared:
            of_copies: Array = jax.vmap(self.network.apply, (0, None), 1)(params, x)
            return of_copies
        features = self.network.apply(params["network"], x)
        out: Array = features @ params["kernel"] + params["bias"]
        return out

    def adjacent(self, params: Params, waymarks: Array) -> tuple[Array, Array]:
        """Returns outputs of head `h` on waymarks `h` and `h + 1`, [H + 1, B, ...] -> [H, B]."""
        size = waymarks.shape[1]
        if not self.shared:
            pairs = jnp.concatenate([waymarks[:-1], waymarks[1:]], axis=1)
            out = jax.vmap(self.network.apply)(params, pairs)
            return out[:, :size], out[:, size:]
        flat = waymarks.reshape(-1, *waymarks.shape[2:])
        features = self.network.apply(params["network"], flat).reshape(*waymarks.shape[:2], -1)
        upper, lower = (
            jnp.einsum("hbf,fh->hb", part, params["kernel"]) + params["bias"][:, None]
            for part in (features[:-1], features[1:])
        )
        return upper, lower


def with_heads(network: SupportsNetwork, num_heads: int, x: Array) -> Heads:
    """Returns the network with one output per head, after a check of its shapes on `x`, [B, ...].

    Raises:
      TypeError: for anything without `init` and `apply`; says how to pass other libraries' modules.
      ValueError: for another output than [B] or [B, F] with F > 1, or for parameters that are not
        floating-point arrays, or variables of Flax that are not parameters.
    """
    if not (hasattr(network, "init") and hasattr(network, "apply")):
        raise TypeError(
            f"network must have the functions init and apply, got {type(network).__name__}; wrap "
            "it as fdrl.ratio.Network(init, apply). The page 'Density ratios' shows this"
        )
    params = jax.eval_shape(network.init, jax.random.key(0), x)
    if isinstance(network, nn.Module) and set(params) != {"params"}:
        raise ValueError(
            f"network has variables {sorted(params)}, but only 'params' are trained; use layers "
            "without a state, such as LayerNorm in place of BatchNorm"
        )
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            "all parameters of the network must be floating-point arrays; keep others out of them, "
            "for example with equinox.partition(model, equinox.is_inexact_array)"
        )
    shape = jax.eval_shape(network.apply, params, x).shape
    if shape != x.shape[:1] and not (len(shape) == 2 and shape[0] == len(x) and shape[1] > 1):
        raise ValueError(
            f"network must return one number per example, [{len(x)}], or features, "
            f"[{len(x)}, F], for x of shape {x.shape}, got {shape}"
            + ("; drop the last axis: `[:, 0]`" if shape == (len(x), 1) else "")
        )
    return Heads(network, num_heads, len(shape) == 2)
