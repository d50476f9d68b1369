"""Networks of ratios, the waymarks between two sets, and training.

A waymark at position `t` holds `cos(a) x + sin(a) y` with `a = π/2 t / LAST`, where `x` is of the
numerator and `y` of the denominator. Positions are whole numbers, so that they can be divided
without rounding. Networks are trained one per fold, in lockstep, or one head per pair of waymarks.

Reference: Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from fdrl_jax.ratio.base import Quadratic

__all__ = ["Gaussians", "Heads", "Network", "Options", "SupportsNetwork", "Trunk"]
__dir__ = __all__.copy

Array = jax.Array

LAST = 1024  # Position of the denominator; the numerator is at 0.
MAX_HELD_OUT = 4096  # Examples of each waymark and fold for early stopping.
_PATIENCE = 5
_MAX_AUC = 0.9  # Pairs of waymarks with more get another one between them.
# Below e^30, so that ratios of far sets and their squares are finite in float32.
_MAX_BASE = 30.0


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


class SupportsNetwork(Protocol):
    """Anything with the methods `init` and `apply` of `Network`, such as a Flax Linen module."""

    @property
    def init(self) -> Callable[..., Any]: ...

    @property
    def apply(self) -> Callable[..., Any]: ...


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

    network: SupportsNetwork  # Not its methods: those of equal modules differ, and would recompile.
    num_heads: int
    shared: bool

    def init(self, key: Array, x: Array) -> Any:
        """Returns initial parameters for inputs like `x`, [B, ...]."""
        if not self.shared:
            keys = jax.random.split(key, self.num_heads)
            return jax.vmap(self.network.init, (0, None))(keys, x)
        params = self.network.init(key, x)
        num_features = jax.eval_shape(self.network.apply, params, x).shape[1]
        kernel = jnp.zeros((num_features, self.num_heads))
        return {"network": params, "kernel": kernel, "bias": jnp.zeros(self.num_heads)}

    def outputs(self, params: Any, x: Array) -> Array:
        """Returns the output of every head, `x [B, ...] -> [B, H]`."""
        if not self.shared:
            of_copies: Array = jax.vmap(self.network.apply, (0, None), 1)(params, x)
            return of_copies
        features = self.network.apply(params["network"], x)
        out: Array = features @ params["kernel"] + params["bias"]
        return out

    def adjacent(self, params: Any, marks: Array) -> tuple[Array, Array]:
        """Returns outputs of head `h` on waymarks `h` and `h + 1`, [H + 1, B, ...] -> [H, B]."""
        size = marks.shape[1]
        if not self.shared:
            pairs = jnp.concatenate([marks[:-1], marks[1:]], axis=1)
            out = jax.vmap(self.network.apply)(params, pairs)
            return out[:, :size], out[:, size:]
        flat = marks.reshape(-1, *marks.shape[2:])
        features = self.network.apply(params["network"], flat).reshape(*marks.shape[:2], -1)
        upper, lower = (
            jnp.einsum("hbf,fh->hb", part, params["kernel"]) + params["bias"][:, None]
            for part in (features[:-1], features[1:])
        )
        return upper, lower


def with_heads(network: SupportsNetwork, num_heads: int, x: Array) -> Heads:
    """Returns the network with one output per head, after a check of its shapes on `x`, [B, ...].

    Raises:
      TypeError: for anything without `init` and `apply`.
      ValueError: for other shapes of outputs, or parameters that cannot be trained.
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


class Gaussians(NamedTuple):
    """Gaussians with independent columns, one per waymark; mean and variance [W, ...].

    Networks do not extrapolate from one waymark to the others, and the log-ratio of these Gaussians
    does. Networks only learn the difference.
    """

    mean: Array
    variance: Array

    def log_density(self, x: Array) -> Array:
        """Returns log-densities of `x [W, B, ...]` or `[1, B, ...]`, up to a constant, [W, B]."""
        mean, variance = self.mean[:, None], self.variance[:, None]
        terms = (x - mean) ** 2 / variance + jnp.log(variance)
        return -0.5 * jnp.sum(terms.reshape(*terms.shape[:2], -1), axis=-1)

    def adjacent(self, marks: Array) -> tuple[Array, Array]:
        """Returns log-ratios of Gaussians `h` and `h + 1` on waymarks `h` and `h + 1`, [H, B]."""
        first, second = Gaussians(*(a[:-1] for a in self)), Gaussians(*(a[1:] for a in self))
        upper, lower = (
            jnp.clip(first.log_density(x) - second.log_density(x), -_MAX_BASE, _MAX_BASE)
            for x in (marks[:-1], marks[1:])
        )
        return upper, lower

    def __call__(self, x: Array) -> Array:
        """Returns the log-ratio of the first Gaussian to the last one, `x [B, ...] -> [B]`."""
        densities = self.log_density(x[None])
        out: Array = densities[0] - densities[-1]
        return out


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


def moments(
    rows: tuple[Array, ...], weights: tuple[Array, ...], mixed: Array, positions: Array
) -> Gaussians:
    """Returns Gaussians with the means and variances of all waymarks, [H + 1, ...].

    Columns that are constant in a set have no density; there all Gaussians are equal.
    """
    means = [jnp.tensordot(w, x, 1) for w, x in zip(weights, rows, strict=True)]
    of_sets = zip(weights, rows, means, strict=True)
    variances = [jnp.tensordot(w, (x - mean) ** 2, 1) for w, x, mean in of_sets]
    cosine, sine = _shares(positions, mixed.ndim)
    used = mixed & (variances[0] > 0.0) & (variances[1] > 0.0)
    mean = cosine * means[0] + sine * means[1]
    variance = cosine**2 * variances[0] + sine**2 * variances[1]
    return Gaussians(jnp.where(used, mean, 0.0), jnp.where(used, variance, 1.0))


def _shares(positions: Array, ndim: int) -> tuple[Array, Array]:
    """Returns the factors of numerator and denominator in waymarks, [H + 1, 1, ...] each."""
    positions = jnp.reshape(positions, (-1,) + (1,) * ndim)
    angle = positions * (jnp.pi / 2 / LAST)
    # The cosine of pi / 2 is not exactly 0 in float32.
    return jnp.where(positions == LAST, 0.0, jnp.cos(angle)), jnp.sin(angle)


class Inputs(NamedTuple):
    """The arrays that training reads; F folds, H + 1 waymarks."""

    keys: Array  # Of the batches, [F].
    rows: tuple[Array, ...]  # Numerator and denominator, [N, ...] and [M, ...].
    shares: tuple[Array, ...]  # Cumulated weights of the training rows, [F, N] and [F, M].
    held_out: Array  # Fixed examples of each waymark, [F, H + 1, B, ...].
    offset: Quadratic | Gaussians  # The log-ratio that the network is added to, one per fold.
    mixed: Array  # Which columns differ, [...].
    marks: Array  # Positions of the waymarks, [H + 1].


class State(NamedTuple):
    """State of training, with a leading axis of folds except for the last three."""

    params: Any
    opt_state: Any
    average: Any
    best: Any
    step: Array
    best_loss: Array
    stale: Array


def _optimizer(options: Options) -> optax.GradientTransformation:
    warmup = min(100, options.num_steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, warmup, max(options.num_steps, warmup + 1)
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-4))


def train(
    heads: Heads, options: Options, batch_size: int, round_steps: int, inputs: Inputs, key: Array
) -> State:
    """Trains until the mean held-out loss of all folds no longer decreases, or never is finite."""
    keys = jax.random.split(key, len(inputs.keys))
    params = jax.vmap(heads.init, (0, None))(keys, inputs.rows[0][:2])
    opt_state = jax.vmap(_optimizer(options).init)(params)
    ends = jnp.int32(0), jnp.float32(jnp.inf), jnp.int32(0)
    state = State(params, opt_state, params, params, *ends)
    found: State = _run(heads, options, batch_size, round_steps, inputs, state)
    if not np.isfinite(found.best_loss):
        raise ValueError(
            "training diverged: the held-out loss was never finite; lower the learning rate with "
            "options=fdrl.ratio.Options(learning_rate=...)"
        )
    return found


@functools.partial(jax.jit, static_argnums=0)
def scores(
    heads: Heads, params: Any, offset: Quadratic | Gaussians, marks: Array
) -> tuple[Array, Array]:
    """Returns log-ratios of one fold's pairs on their numerators and denominators, [H, B] each."""
    upper, lower = heads.adjacent(params, marks)
    bases = offset.adjacent(marks)
    return upper + bases[0], lower + bases[1]


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _run(
    heads: Heads, options: Options, batch_size: int, round_steps: int, inputs: Inputs, state: State
) -> State:
    optimizer = _optimizer(options)

    def loss(params: Any, offset: Any, marks: Array) -> Array:
        upper, lower = scores(heads, params, offset, marks)
        return jnp.mean(jax.nn.softplus(-upper) + jax.nn.softplus(lower))

    def step(state: State, _: None) -> tuple[State, None]:
        rate = jnp.minimum(0.995, (1.0 + state.step) / (10.0 + state.step))

        def one(
            key: Array, shares: Any, offset: Any, params: Any, opt_state: Any, average: Any
        ) -> tuple[Any, Any, Any]:
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
            return params, opt_state, average

        params, opt_state, average = jax.vmap(one)(
            inputs.keys, inputs.shares, inputs.offset, state.params, state.opt_state, state.average
        )
        return State(params, opt_state, average, state.best, state.step + 1, *state[5:]), None

    def one_round(state: State) -> State:
        state, _ = lax.scan(step, state, None, length=round_steps)
        losses = jax.vmap(loss)(state.average, inputs.offset, inputs.held_out)
        value = jnp.mean(losses).astype(jnp.float32)
        better = value < state.best_loss
        return state._replace(
            best=jax.tree.map(lambda a, b: jnp.where(better, a, b), state.average, state.best),
            best_loss=jnp.where(better, value, state.best_loss),
            stale=jnp.where(better, 0, state.stale + 1),
        )

    def unfinished(state: State) -> Array:
        return (state.step < options.num_steps) & (state.stale < _PATIENCE)

    result: State = lax.while_loop(unfinished, one_round, state)
    return result
