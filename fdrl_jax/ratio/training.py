"""Networks of ratios, the waymarks between two sets, and training.

A waymark at position `t` holds `cos(a) x + sin(a) y` with `a = π/2 t / LAST`, where `x` is of the
numerator and `y` of the denominator. Positions are whole numbers, so that they can be divided
without rounding. Networks are trained one per fold, in lockstep, or one head per pair of waymarks.

Reference: Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from fdrl_jax.ratio.base import Pair

__all__ = ["Gaussians", "Heads", "Network", "Options", "Trunk", "adjacent", "log_ratios"]
__dir__ = __all__.copy

Array = jax.Array
Offset = Callable[[Array], Array]  # A `Quadratic` or `Gaussians` of one fold.

LAST = 1024  # Position of the denominator; the numerator is at 0.
MAX_HELD_OUT = 4096  # Examples of each waymark and fold for early stopping.
_PATIENCE = 5
_MAX_AUC = 0.9  # Pairs of waymarks with more get another one between them.
# Below e^30, so that ratios of far sets and their squares are finite in float32.
_MAX_BASE = 30.0
_MIN_ROWS_PER_COLUMN = 20  # Of each set, to estimate a covariance.


class Options(NamedTuple):
    """How to train; hashable, so that fits of equal shapes share a compiled program.

    Attributes:
      num_steps: the most training steps, up to the end of a round between two looks at the held-out
        loss; the rate follows a cosine over them.
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


class Trunk(nn.Module):
    """Maps `x [B, ...]` to itself and all hidden layers of a perceptron, [B, D + sum(sizes)].

    Attributes:
      hidden_sizes: width of every hidden layer.
      squares: whether the input has the squares of the columns as well, which show heavy tails.
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

    `shared` heads are linear, of the features of one network, and start at 0. Otherwise there is
    one copy of the network per head.
    """

    network: Network | nn.Module  # Not its methods: those of equal modules differ.
    num_heads: int
    shared: bool

    def init(self, key: Array, x: Array) -> Any:
        """Returns initial parameters for inputs like `x`, [B, ...]."""
        if not self.shared:
            return jax.vmap(self.network.init, (0, None))(jax.random.split(key, self.num_heads), x)
        params = self.network.init(key, x)
        num_features = jax.eval_shape(self.network.apply, params, x).shape[1]
        kernel = jnp.zeros((num_features, self.num_heads))
        return {"network": params, "kernel": kernel, "bias": jnp.zeros(self.num_heads)}

    def __call__(self, params: Any, x: Array) -> Any:
        """Returns the output of every head, `x [B, ...] -> [B, H]`."""
        if not self.shared:
            return jax.vmap(self.network.apply, (0, None), 1)(params, x)
        return self.network.apply(params["network"], x) @ params["kernel"] + params["bias"]


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
    if shape != x.shape[:1] and not (len(shape) == 2 and shape[0] == len(x) and shape[1] > 1):
        raise ValueError(
            f"network must return one number per example, [{len(x)}], or features, "
            f"[{len(x)}, F], for x of shape {x.shape}, got {shape}"
            + ("; drop the last axis: `[:, 0]`" if shape == (len(x), 1) else "")
        )
    return Heads(network, num_heads, len(shape) == 2)


class Gaussians(NamedTuple):
    """Gaussians of flattened columns, one per waymark; `factor` makes them standard normal.

    Networks do not extrapolate from one waymark to the others, and the log-ratio of these Gaussians
    does. Networks only learn the difference.

    Attributes:
      mean: [F, W, D].
      factor: [F, W, D, D], or [F, W, D] for independent columns.
      log_scale: logarithm of the determinant of `factor`, [F, W].
    """

    mean: Array
    factor: Array
    log_scale: Array

    def __call__(self, x: Array) -> Array:
        """Returns the log-ratios of adjacent Gaussians of one fold, `x [B, ...] -> [B, H]`."""
        centred = x.reshape(len(x), -1) - self.mean[:, None]
        independent = self.factor.ndim == 2
        normal = centred * self.factor[:, None] if independent else centred @ self.factor
        densities = self.log_scale[:, None] - 0.5 * jnp.sum(normal**2, axis=-1)
        return (densities[:-1] - densities[1:]).T


def log_ratios(heads: Heads | None, offset: Offset, params: Any, x: Array) -> Array:
    """Returns log-ratios of adjacent waymarks by one fold, `x [B, ...] -> [B, H]`."""
    out = offset(x)
    return out if heads is None else out + heads(params, x)


def adjacent(heads: Heads | None, offset: Offset, params: Any, marks: Array) -> tuple[Array, Array]:
    """Returns log-ratio `h` on waymarks `h` and `h + 1`, [H + 1, B, ...] -> [H, B] each."""
    flat = marks.reshape(-1, *marks.shape[2:])
    out = log_ratios(heads, lambda x: jnp.clip(offset(x), -_MAX_BASE, _MAX_BASE), params, flat)
    out = out.reshape(*marks.shape[:2], -1)
    head = jnp.arange(out.shape[-1])
    return out[head, :, head], out[head + 1, :, head]


def refine(positions: tuple[int, ...], aucs: Sequence[float]) -> tuple[int, ...]:
    """Returns the positions with one more in the middle of each pair that is too far apart."""
    pairs = zip(positions[:-1], positions[1:], aucs, strict=True)
    middles = {(a + b) // 2 for a, b, auc in pairs if auc > _MAX_AUC}
    return tuple(sorted({*positions, *middles}))


def spread(num_waymarks: int) -> tuple[int, ...]:
    """Returns equally spaced positions: both ends, and `num_waymarks` between them."""
    return tuple(int(p) for p in np.linspace(0, LAST, num_waymarks + 2).round())


def waymarks(top: Array, bottom: Array, mixed: Array, positions: Array) -> Array:
    """Returns examples of each waymark, [H + 1, B, ...], from those of both sets, [B, ...].

    Columns that are not `mixed`, [...], are copied from the numerator (`x` of pairs).
    """
    cosine, sine = _shares(positions, top.ndim)
    return jnp.where(mixed, cosine * top + sine * bottom, top)


def gaussians(rows: Pair, weights: Pair, mixed: np.ndarray, positions: Array) -> Gaussians:
    """Returns Gaussians of one fold with the means and covariances of all waymarks.

    Their columns are independent if there are few rows. Columns that are constant in a set have no
    density; there all Gaussians are equal.
    """
    flat = [np.asarray(x, np.float64).reshape(len(x), -1) for x in rows]
    means = [w @ x for w, x in zip(weights, flat, strict=True)]
    covariances = []
    for w, x, mean in zip(weights, flat, means, strict=True):
        covariances.append((x - mean).T @ (w[:, None] * (x - mean)))
    used = (np.diag(covariances[0]) > 0.0) & (np.diag(covariances[1]) > 0.0)
    is_diagonal = min(map(len, flat)) < _MIN_ROWS_PER_COLUMN * len(used)
    found = []
    for cosine, sine in zip(*map(np.ravel, _shares(positions, 0)), strict=True):
        of_top, of_bottom = np.where(mixed, cosine, 1.0), np.where(mixed, sine, 0.0)
        mean = of_top * means[0] + of_bottom * means[1]
        covariance = np.outer(of_top, of_top) * covariances[0]
        covariance += np.outer(of_bottom, of_bottom) * covariances[1]
        covariance = np.where(np.outer(used, used), covariance, np.eye(len(used)))
        variance = np.diag(covariance)
        if is_diagonal:
            factor = 1.0 / np.sqrt(variance)
        else:
            factor = np.linalg.inv(np.linalg.cholesky(covariance + 1e-6 * np.diag(variance))).T
        scales = factor if is_diagonal else np.diag(factor)
        found.append((np.where(used, mean, 0.0), factor, np.log(scales).sum()))
    return Gaussians(*(jnp.float32(np.stack(part))[None] for part in zip(*found, strict=True)))


def _shares(positions: Array, ndim: int) -> tuple[Array, Array]:
    """Returns the factors of numerator and denominator in waymarks, [H + 1, 1, ...] each."""
    positions = jnp.reshape(positions, (-1,) + (1,) * ndim)
    angle = positions * (jnp.pi / 2 / LAST)
    # The cosine of pi / 2 is not exactly 0 in float32.
    return jnp.where(positions == LAST, 0.0, jnp.cos(angle)), jnp.sin(angle)


class Inputs(NamedTuple):
    """The arrays that training reads; F folds, H + 1 waymarks."""

    keys: Array  # Of initial parameters and of batches, [2, F].
    rows: tuple[Array, ...]  # Numerator and denominator, [N, ...] and [M, ...].
    shares: tuple[Array, ...]  # Cumulated weights of the training rows, [F, N] and [F, M].
    held_out: Array  # Fixed examples of each waymark, [F, H + 1, B, ...].
    offset: Any  # The log-ratio that the network is added to, one `Offset` per fold.
    mixed: Array  # Which columns differ, [...].
    marks: Array  # Positions of the waymarks, [H + 1].


class _State(NamedTuple):
    folds: Any  # Parameters, their average and the state of the optimizer, per fold.
    best: Any  # The average with the lowest loss.
    step: Array
    best_loss: Array
    stale: Array


def train(heads: Heads, options: Options, inputs: Inputs) -> tuple[Any, int]:
    """Trains until the mean held-out loss of all folds no longer decreases.

    Returns:
      Parameters with a leading axis of folds, and the number of steps.
    """
    num_rows = min(map(len, inputs.rows))
    batch_size = options.batch_size or (128 if num_rows < 4_000 else 256)
    # A network overfits a few hundred examples within tens of steps.
    per_round = options.num_steps // (20 if num_rows >= 4_000 else 40)
    round_steps = max(min(per_round, 8 * num_rows // batch_size), 1)
    found: _State = _run(heads, options, batch_size, round_steps, inputs)
    if not np.isfinite(found.best_loss):
        raise ValueError(
            "training diverged: the held-out loss was never finite; lower the learning rate with "
            "options=fdrl.ratio.Options(learning_rate=...)"
        )
    return found.best, int(found.step)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    heads: Heads, options: Options, batch_size: int, round_steps: int, inputs: Inputs
) -> _State:
    warmup = min(100, options.num_steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, warmup, max(options.num_steps, warmup + 1)
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4)
    )

    def loss(params: Any, offset: Any, marks: Array) -> Array:
        upper, lower = adjacent(heads, offset, params, marks)
        return jnp.mean(jax.nn.softplus(-upper) + jax.nn.softplus(lower))

    def step(state: _State, _: None) -> tuple[_State, None]:
        rate = jnp.minimum(0.995, (1.0 + state.step) / (10.0 + state.step))

        def of_fold(key: Array, shares: Any, offset: Any, fold: Any) -> Any:
            params, average, opt_state = fold
            keys = jax.random.split(jax.random.fold_in(key, state.step))
            batch = []
            for part, rows, cumulated in zip(keys, inputs.rows, shares, strict=True):
                u = jax.random.uniform(part, (batch_size,))
                found = jnp.searchsorted(cumulated, u, side="right")
                batch.append(rows[jnp.minimum(found, len(rows) - 1)])
            marks = waymarks(batch[0], batch[1], inputs.mixed, inputs.marks)
            gradient = jax.grad(loss)(params, offset, marks)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            average = jax.tree.map(lambda a, p: rate * a + (1.0 - rate) * p, average, params)
            return params, average, opt_state

        folds = jax.vmap(of_fold)(inputs.keys[1], inputs.shares, inputs.offset, state.folds)
        return state._replace(folds=folds, step=state.step + 1), None

    def one_round(state: _State) -> _State:
        state, _ = lax.scan(step, state, None, length=round_steps)
        average = state.folds[1]
        losses = jax.vmap(loss)(average, inputs.offset, inputs.held_out)
        value = jnp.mean(losses).astype(jnp.float32)
        better = value < state.best_loss
        return state._replace(
            best=jax.tree.map(lambda a, b: jnp.where(better, a, b), average, state.best),
            best_loss=jnp.where(better, value, state.best_loss),
            stale=jnp.where(better, 0, state.stale + 1),
        )

    def unfinished(state: _State) -> Array:
        return (state.step < options.num_steps) & (state.stale < _PATIENCE)

    params = jax.vmap(heads.init, (0, None))(inputs.keys[0], inputs.rows[0][:2])
    folds = params, params, jax.vmap(optimizer.init)(params)
    state = _State(folds, params, jnp.int32(0), jnp.float32(jnp.inf), jnp.int32(0))
    result: _State = lax.while_loop(unfinished, one_round, state)
    return result
