"""Networks of ratios, the waymarks between two sets, and training.

A waymark at position `t` from 0 to 1 holds `cos(a) x + sin(a) y` with `a = π/2 t`, where `x` is of
the numerator and `y` of the denominator. Folds are trained in lockstep.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from fdrl_jax.ratio.base import Quadratic, Side, flat

__all__ = ["Heads", "Model", "Network", "Options"]
__dir__ = __all__.copy

Array = jax.Array

_PATIENCE = 5
_CHUNK = 8192  # Points per call of the network, which bounds memory.
_MAX_BASE = 30.0  # Below it ratios of far sets and their squares are finite in float32.
_MIN_ROWS_PER_COLUMN = 20  # Of each set, to estimate a covariance.


class Options(NamedTuple):
    """How to train; hashable, so that fits of equal shapes share a compiled program.

    Attributes:
      num_steps: the most training steps; the rate follows a cosine over them.
      batch_size: examples of each waymark per step; by default 128 below 4,000 rows, then 256.
      learning_rate: the highest rate of AdamW.
    """

    num_steps: int = 2_000
    batch_size: int | None = None
    learning_rate: float = 5e-3


DEFAULTS = Options()


class Network(NamedTuple):
    """A network as a pair of pure functions. A Flax Linen module is one already.

    Attributes:
      init: `(key, x [B, ...]) -> params`, a pytree of floating-point arrays.
      apply: `(params, x [B, ...]) -> [B]`, or `[B, F]`, features for a linear layer.
    """

    init: Callable[[Array, Array], Any]
    apply: Callable[[Any, Array], Array]


class Heads(NamedTuple):
    """A network with one output per head; a static argument of compiled functions.

    Heads are linear, of the features of one network, and start at 0; if it has no features, but
    one number as output, there is one copy of the network per head.
    """

    network: Network | nn.Module  # Not its methods: those of equal modules differ.
    num_heads: int
    num_features: int | None

    def init(self, key: Array, x: Array) -> Any:
        """Returns initial parameters for inputs like `x`, [B, ...]."""
        if self.num_features is None:
            return jax.vmap(self.network.init, (0, None))(jax.random.split(key, self.num_heads), x)
        kernel = jnp.zeros((self.num_features, self.num_heads))
        return jnp.zeros(self.num_heads), kernel, self.network.init(key, x)

    def __call__(self, params: Any, x: Array) -> Any:
        """Returns the output of every head, `x [B, ...] -> [B, H]`."""
        if self.num_features is None:
            return jax.vmap(self.network.apply, (0, None), 1)(params, x)
        bias, kernel, of_network = params
        return self.network.apply(of_network, x) @ kernel + bias


def with_heads(network: Network | nn.Module, num_heads: int, x: Array) -> Heads:
    """Returns the network with one output per head; raises errors unless it fits `x`, [B, ...]."""
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
    shape = jax.eval_shape(network.apply, params, x).shape
    if shape[:1] != x.shape[:1] or len(shape) > 2 or shape[1:] == (1,):
        raise ValueError(
            f"network must return one number per example, [{len(x)}], or features, [{len(x)}, F], "
            f"for x of shape {x.shape}, got {shape}; of one number, drop the last axis: `[:, 0]`"
        )
    return Heads(network, num_heads, shape[1] if len(shape) == 2 else None)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """The log-ratios of adjacent waymarks by one fold, or with a leading axis of folds."""

    # One output per pair of waymarks; `None` if a network does not help.
    heads: Heads | None = dataclasses.field(metadata={"static": True})
    offset: Quadratic  # What the network is added to.
    params: Any
    share: Any = 1.0  # Of the network.

    def __call__(self, x: Array, largest: float = jnp.inf) -> Any:
        """Returns log-ratios of one fold, [B, H], with an offset that is clipped to `largest`."""
        out = jnp.clip(self.offset(x), -largest, largest)
        return out if self.heads is None else out + self.share * self.heads(self.params, x)

    def adjacent(self, marks: Array) -> tuple[Array, Array]:
        """Returns log-ratio `h` on waymarks `h` and `h + 1`, [H + 1, B, ...] -> [H, B] each."""
        out = self(marks.reshape(-1, *marks.shape[2:]), _MAX_BASE)
        out = out.reshape(*marks.shape[:2], -1)
        head = jnp.arange(out.shape[-1])
        return out[head, :, head], out[head + 1, :, head]


def fold_log_ratios(model: Model, x: Array) -> Array:
    """Returns log-ratios of mapped columns by every fold, `x [B, ...] -> [F, B]`."""
    size = len(x) if isinstance(x, jax.core.Tracer) else _CHUNK
    starts = range(0, max(len(x), 1), max(size, 1))
    return jnp.concatenate([_of_chunk(model, x[i : i + size]) for i in starts], axis=1)


_of_chunk = jax.jit(jax.vmap(lambda fold, x: jnp.sum(fold(x), axis=1), (0, None)))


def waymarks(top: Array, bottom: Array, mixed: Array, positions: Array) -> Array:
    """Returns examples of each waymark, [H + 1, B, ...], from those of both sets, [B, ...].

    Columns that are not `mixed`, [...], are copied from the numerator (`x` of pairs).
    """
    cosine, sine = _shares(positions, top.ndim)
    return jnp.where(mixed, cosine * top + sine * bottom, top)


def gaussians(sides: tuple[Side, Side], mixed: np.ndarray, positions: Array) -> Quadratic:
    """Returns the log-ratios of adjacent Gaussians with the moments of the waymarks, of fold 0.

    Unlike networks they extrapolate to the other waymarks. Columns are independent if there are few
    rows; in those that are constant in a set, which has no density there, all Gaussians are equal.
    """
    means, covariances = [], []
    for side in sides:
        w, x = side.without(0), flat(np.float64(side.rows))
        means.append(w @ x)
        covariances.append((x - means[-1]).T @ (w[:, None] * (x - means[-1])))
    used = (np.diag(covariances[0]) > 0.0) & (np.diag(covariances[1]) > 0.0)
    independent = min(len(side.rows) for side in sides) < _MIN_ROWS_PER_COLUMN * len(used)
    found = []
    for cosine, sine in zip(*map(np.ravel, _shares(positions, 0)), strict=True):
        shares = np.where(mixed, cosine, 1.0), np.where(mixed, sine, 0.0)
        mean = np.where(used, shares[0] * means[0] + shares[1] * means[1], 0.0)
        scaled = [np.outer(s, s) * c for s, c in zip(shares, covariances, strict=True)]
        covariance = np.where(np.outer(used, used), scaled[0] + scaled[1], np.eye(len(used)))
        variance = np.diag(covariance)
        if independent:
            square, size = 1.0 / variance, np.log(variance).sum()
            linear = square * mean
        else:
            covariance += 1e-6 * np.diag(variance)
            square, size = np.linalg.inv(covariance), np.linalg.slogdet(covariance)[1]
            linear = square @ mean
        found.append(((mean @ linear + size) / 2, -linear, square / 2))
    parts = (np.diff(np.stack(part), axis=0)[None] for part in zip(*found, strict=True))
    return Quadratic(*map(jnp.float32, parts))


def _shares(positions: Array, ndim: int) -> tuple[Array, Array]:
    """Returns the factors of numerator and denominator in waymarks, [H + 1, 1, ...] each."""
    positions = jnp.reshape(positions, (-1,) + (1,) * ndim)
    angle = positions * (jnp.pi / 2)
    # The cosine of pi / 2 is not exactly 0 in float32.
    return jnp.where(positions == 1.0, 0.0, jnp.cos(angle)), jnp.sin(angle)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(
    heads: Heads,
    options: Options,
    keys: Array,  # Of initial parameters and of batches, [2, F] for F folds.
    rows: tuple[Array, ...],  # Numerator and denominator, [N, ...] and [M, ...].
    shares: tuple[Array, ...],  # Cumulated weights of the training rows, [F, N] and [F, M].
    held_out: Array,  # Fixed examples of each waymark, [F, H + 1, B, ...].
    offset: Quadratic,
    mixed: Array,  # Which columns differ, [...].
    positions: Array,  # Of the waymarks, [H + 1].
) -> tuple[Any, Array]:
    """Returns the parameters of all folds with the lowest mean held-out loss, and this loss."""
    num_rows = min(map(len, rows))
    batch_size = options.batch_size or (128 if num_rows < 4_000 else 256)
    # A network overfits a few hundred examples within tens of steps.
    per_round = options.num_steps // (20 if num_rows >= 4_000 else 40)
    round_steps = max(min(per_round, 8 * num_rows // batch_size), 1)
    warmup = min(100, options.num_steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, warmup, max(options.num_steps, warmup + 1)
    )
    adamw = optax.adamw(schedule, weight_decay=1e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)

    def loss(params: Any, offset: Any, marks: Array) -> Array:
        upper, lower = Model(heads, offset, params).adjacent(marks)
        return jnp.mean(jax.nn.softplus(-upper) + jax.nn.softplus(lower))

    def update(state: Any, _: None) -> Any:
        folds, step = state
        rate = jnp.minimum(0.995, (1.0 + step) / (10.0 + step))

        def of_fold(key: Array, shares: Any, offset: Any, fold: Any) -> Any:
            params, average, opt_state = fold
            batch = []
            parts = jax.random.split(jax.random.fold_in(key, step))
            for part, values, cumulated in zip(parts, rows, shares, strict=True):
                u = jax.random.uniform(part, (batch_size,))
                found = jnp.searchsorted(cumulated, u, side="right")
                batch.append(values[jnp.minimum(found, len(values) - 1)])
            marks = waymarks(batch[0], batch[1], mixed, positions)
            gradient = jax.grad(loss)(params, offset, marks)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            average = jax.tree.map(lambda a, p: rate * a + (1.0 - rate) * p, average, params)
            return params, average, opt_state

        return (jax.vmap(of_fold)(keys[1], shares, offset, folds), step + 1), None

    def one_round(state: Any) -> Any:
        folds, step, best, lowest, stale = state
        (folds, step), _ = lax.scan(update, (folds, step), None, length=round_steps)
        value = jnp.mean(jax.vmap(loss)(folds[1], offset, held_out)).astype(jnp.float32)
        better = value < lowest
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), folds[1], best)
        return folds, step, best, jnp.where(better, value, lowest), jnp.where(better, 0, stale + 1)

    params = jax.vmap(heads.init, (0, None))(keys[0], rows[0][:2])
    folds = params, params, jax.vmap(optimizer.init)(params)
    state = folds, jnp.int32(0), params, jnp.float32(jnp.inf), jnp.int32(0)
    _, _, best, lowest, _ = lax.while_loop(
        lambda s: (s[1] < options.num_steps) & (s[4] < _PATIENCE), one_round, state
    )
    return best, lowest
