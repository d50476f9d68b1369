"""Fits a density ratio to two arrays."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from fdrl_jax import _keys, bregman
from fdrl_jax._checks import nearest
from fdrl_jax.bregman import Bregman
from fdrl_jax.ratio import bridges
from fdrl_jax.ratio.bridges import LAST, Bridge, Gaussians, Samples
from fdrl_jax.ratio.network import (
    Heads,
    SupportsNetwork,
    default_trunk,
    to_log_ratio,
    to_loss_input,
    with_heads,
)
from fdrl_jax.ratio.result import DensityRatio, area_under_curve, check_columns, column_names

Array = jax.Array
Observe = Callable[[int, int, float], None]

MIN_EXAMPLES = 20
MAX_WAYMARKS = 32
# Below it a single classifier had smaller errors than a bridge, see docs/ratios.md.
MIN_BRIDGED_AUC = 0.99
_MAX_HELD_OUT = 4096  # Examples of each set for early stopping.
_NUM_ROUNDS, _PATIENCE = 20, 5


class Options(NamedTuple):
    """How to train; hashable, so that fits of equal shapes share a compiled program."""

    batch_size: int
    learning_rate: float
    weight_decay: float
    num_steps: int

    def round_steps(self, samples: Samples) -> int:
        """Returns the steps between two looks at the held-out loss: at most ten epochs.

        A network overfits a few hundred examples within tens of steps.
        """
        num = min(len(samples.numerator), len(samples.denominator))
        return max(min(self.num_steps // _NUM_ROUNDS, 10 * num // self.batch_size), 1)

    def optimizer(self) -> optax.GradientTransformation:
        warmup = min(100, self.num_steps // 10)
        schedule = optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, warmup, max(self.num_steps, warmup + 1)
        )
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(schedule, weight_decay=self.weight_decay),
        )


class Task(NamedTuple):
    """What is trained and how; hashable, a static argument of compiled functions."""

    heads: Heads
    loss: Bregman
    options: Options


class Inputs(NamedTuple):
    """The arrays that training reads.

    Attributes:
      key: of the batches.
      train: examples to train on.
      held_out: waymarks of held-out examples, the same in every round, [H + 1, B, ...].
      marks: positions of the waymarks, [H + 1].
      gaussians: with the moments of the waymarks.
    """

    key: Array
    train: Samples
    held_out: Array
    marks: Array
    gaussians: Gaussians


class State(NamedTuple):
    """State of training; `stale` counts the rounds since the best held-out loss."""

    step: Array
    params: Any
    opt_state: Any
    average: Any
    best: Any
    best_loss: Array
    stale: Array


def fit_ratio(
    key: Array,
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    network: SupportsNetwork | None = None,
    loss: str | Bregman = "lr",
    bridge: Bridge = "mixing",
    num_waymarks: int | None = None,
    max_auc: float = 0.9,
    num_steps: int = 2_000,
    batch_size: int = 256,
    learning_rate: float = 5e-3,
    weight_decay: float = 1e-4,
    held_out_fraction: float = 0.2,
    observe: Observe | None = None,
) -> DensityRatio:
    """Estimates `r(x) = numerator(x) / denominator(x)` from samples of both densities.

    Features are standardised by the mean and the standard deviation of both sets. A part of both
    sets is held out. It stops training early, and `DensityRatio` computes divergences and checks
    on it. If the held-out loss is not significantly lower than that of the constant ratio 1, the
    ratio is 1.

    Bridges: a classifier that separates the sets perfectly says nothing about the size of the
    ratio. With waymarks `p_0 = numerator, p_1, ..., p_H = denominator` between them, the network
    learns `log p_h / p_{h+1}` for each adjacent pair, and the logarithms add up.

    Gaussians with the moments of the waymarks give the network a start from which the sum
    extrapolates to sets that are far apart; the network of each pair learns what they miss.

    Args:
      key: a key.
      numerator: samples of the numerator, [N, ...], at least 20.
      denominator: samples of the denominator, [M, ...], at least 20, with the same features.
      network: a Flax Linen module or a `Network(init, apply)`, with one number per example as
        output, [B], or features, [B, F]. One network with features is shared by all pairs of
        waymarks, each with a linear layer of its own. A network with one number per example is
        copied for each pair. It is given standardised features. By default, a perceptron with two
        hidden layers whose width fits the data.
      loss: "lr", "lsif" or "ukl", or a `Bregman`. With LSIF the ratio is the softplus of the
        output, so it is positive.
      bridge: "mixing", waymarks `cos(a) x + sin(a) y` of samples `x` of the numerator and `y` of
        the denominator; or "none". Sets that a single classifier does not separate with a held-out
        area under the curve of more than 0.99 get no waymarks.
      num_waymarks: number of waymarks between both sets. By default they are added until no
        adjacent pair has a held-out area under the curve above `max_auc`.
      max_auc: see `num_waymarks`.
      num_steps: the most training steps, up to the end of a round between two looks at the held-out
        loss; the rate follows a cosine over them.
      batch_size: examples of each waymark per step.
      learning_rate: the highest rate of AdamW.
      weight_decay: the weight decay of AdamW.
      held_out_fraction: the part of both sets that is held out.
      observe: `(step, num_steps, lowest held-out loss) -> None`, called at least 20 times per full
        fit, as for a progress bar (docs/ratios.md has one). A bridge whose waymarks are chosen
        automatically needs several fits.

    Returns:
      The ratio.

    Raises:
      TypeError: for a network that is neither of the two, or a key that is not a JAX key.
      ValueError: for arrays with different features, data frames with different columns, less than
        20 examples or values that are masked or not finite, for options out of range, for unknown
        names, and if training diverges.

    Reference: Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
    """
    top, bottom = checked_array("numerator", numerator), checked_array("denominator", denominator)
    columns = column_names(numerator), column_names(denominator)
    check_columns({"numerator": columns[0], "denominator": columns[1]})
    if top.shape[1:] != bottom.shape[1:]:
        raise ValueError(
            "numerator and denominator must have the same features, got shapes "
            f"{top.shape} and {bottom.shape}"
        )
    return fit(
        key,
        top,
        bottom,
        mixed=np.ones(top.shape[1:], bool),
        network=network,
        loss=loss,
        bridge=bridge,
        num_waymarks=num_waymarks,
        max_auc=max_auc,
        options=Options(batch_size, learning_rate, weight_decay, num_steps),
        held_out_fraction=held_out_fraction,
        observe=observe,
        columns=columns[0] or columns[1],
    )


def checked_array(name: str, values: ArrayLike) -> np.ndarray:
    """Returns the values in floating point, [N, ...]; numbers per example become [N, 1].

    Raises:
      ValueError: for too few examples, no features, or values that are not finite real numbers.
    """
    if np.ma.is_masked(values):  # NumPy would use what the mask hides.
        raise ValueError(f"{name} has masked values; remove or impute them")
    if hasattr(values, "toarray"):
        raise ValueError(f"{name} must be an array; convert a sparse matrix with toarray()")
    array = np.asarray(values)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim == 0 or len(array) < MIN_EXAMPLES or array[0].size == 0:
        raise ValueError(
            f"{name} must have at least {MIN_EXAMPLES} examples, [N, ...], got shape "
            f"{np.shape(values)}"
        )
    if array.dtype == object:  # A data frame with columns of several types, or no numbers.
        try:
            array = array.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be real numbers: {error}") from error
    if array.dtype.kind in "USMmc":
        raise ValueError(f"{name} must be real numbers, got {array.dtype}")
    array = array.astype(np.promote_types(array.dtype, np.float32))
    if num_bad := int(np.sum(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))):
        raise ValueError(
            f"{name} has values that are not finite (NaN or infinite) in {num_bad} of {len(array)} "
            "examples; remove or impute them"
        )
    return array


def fit(
    key: Array,
    top: np.ndarray,
    bottom: np.ndarray,
    *,
    mixed: np.ndarray,
    network: SupportsNetwork | None,
    loss: str | Bregman,
    bridge: Bridge,
    num_waymarks: int | None,
    max_auc: float,
    options: Options,
    held_out_fraction: float,
    observe: Observe | None,
    columns: tuple[str, ...] = (),
) -> DensityRatio:
    """Fits a ratio to checked arrays; see `fit_ratio`.

    Features that are not `mixed`, a mask [...], are copied from the numerator to all waymarks.
    """
    loss = bregman.get(loss)
    _check_options(bridge, num_waymarks, max_auc, options, held_out_fraction)
    split_key, fit_key = jax.random.split(_keys.typed(key))
    mean, inverse_std = _standardisation(top, bottom)
    network = default_trunk(top[0].size) if network is None else network

    def part(index: int) -> Samples:
        sets = []
        for number, values in enumerate((top, bottom)):
            # One permutation for both sets of a mutual information, whose rows are pairs.
            order_key = split_key if not mixed.all() else jax.random.fold_in(split_key, number)
            order = np.asarray(jax.random.permutation(order_key, len(values)))
            num_held_out = max(round(held_out_fraction * len(values)), 2)
            rows = order[num_held_out:] if index == 0 else order[:num_held_out]
            sets.append(jnp.asarray((values[rows] - mean) * inverse_std, jnp.float32))
        return Samples(sets[0], sets[1], jnp.asarray(mixed))

    train, held_out = part(0), part(1)
    one_head = with_heads(network, 1, train.numerator[:2])

    def fit_positions(positions: tuple[int, ...], num_steps: int) -> "Fitted":
        return train_heads(
            fit_key,
            one_head._replace(num_heads=len(positions) - 1),
            loss,
            train,
            held_out,
            positions,
            options._replace(num_steps=num_steps),
            observe,
        )

    def gaussian_aucs(positions: tuple[int, ...]) -> np.ndarray:
        marks, rows = jnp.asarray(positions), jnp.arange(len(held_out.numerator))
        gaussians = bridges.moments(train, marks)
        return _aucs(*bridges.adjacent(gaussians, _draw(held_out, marks, fit_key, rows)))

    # Short fits find most waymarks; the full one may still separate some pairs.
    budgets = max(options.num_steps // 4, 1), options.num_steps
    if bridge == "none" or num_waymarks is not None:
        fitted = fit_positions(bridges.spread(num_waymarks or 0), options.num_steps)
    else:
        for num_steps in budgets:
            fitted = fit_positions((0, LAST), num_steps)
            if fitted.aucs[0] > MIN_BRIDGED_AUC:
                fitted = _fit_with_waymarks(fit_positions, gaussian_aucs, budgets, max_auc)
                break

    return DensityRatio(
        heads=fitted.heads,
        loss=loss,
        bridge=bridge,
        params=fitted.params,
        ends=fitted.ends,
        mean=jnp.asarray(mean, jnp.float32),
        inverse_std=jnp.asarray(inverse_std, jnp.float32),
        differs=fitted.differs,
        waymarks=tuple(p / LAST for p in fitted.positions),
        aucs=tuple(float(auc) for auc in fitted.aucs),
        num_steps=fitted.num_steps,
        held_out_numerator=held_out.numerator,
        held_out_denominator=bridges.denominator(held_out),
        columns=columns,
    )


def _fit_with_waymarks(
    fit_positions: Callable[[tuple[int, ...], int], "Fitted"],
    gaussian_aucs: Callable[[tuple[int, ...]], np.ndarray],
    budgets: tuple[int, int],
    max_auc: float,
) -> "Fitted":
    """Adds waymarks until no adjacent pair is separable.

    Gaussians show most of them, short fits more, and the full fits may still find a few.
    """
    positions: tuple[int, ...] = ()
    refined = bridges.spread(1)
    while positions != refined and len(refined) <= MAX_WAYMARKS + 2:
        positions = refined
        refined = bridges.refine(positions, gaussian_aucs(positions), max_auc)
    for num_steps in budgets:
        while True:
            fitted = fit_positions(positions, num_steps)
            refined = bridges.refine(positions, fitted.aucs, max_auc)
            if refined == positions or len(refined) > MAX_WAYMARKS + 2:
                break
            positions = refined
    return fitted


class Fitted(NamedTuple):
    """Trained heads, and how well they separate held-out pairs of adjacent waymarks, [H]."""

    heads: Heads
    positions: tuple[int, ...]
    params: Any
    ends: Gaussians
    aucs: np.ndarray
    differs: bool
    num_steps: int


def train_heads(
    key: Array,
    heads: Heads,
    loss: Bregman,
    train: Samples,
    held_out: Samples,
    positions: tuple[int, ...],
    options: Options,
    observe: Observe | None,
) -> Fitted:
    """Trains one head per pair of adjacent waymarks, with early stopping.

    Raises:
      ValueError: if the held-out loss is never finite.
    """
    init_key, train_key, held_out_key = jax.random.split(key, 3)
    marks = jnp.asarray(positions)
    gaussians = bridges.moments(train, marks)
    params = heads.init(init_key, train.numerator[:2])
    state = State(
        jnp.int32(0),
        params,
        options.optimizer().init(params),
        params,
        params,
        jnp.float32(jnp.inf),
        jnp.int32(0),
    )
    num = min(max(len(held_out.numerator), len(held_out.denominator)), _MAX_HELD_OUT)
    fixed = _draw(held_out, marks, held_out_key, jnp.arange(num))
    task = Task(heads, loss, options)
    inputs = Inputs(train_key, train, fixed, marks, gaussians)
    if observe is None:
        state = _run(task, inputs, state)
    else:
        while bool(_unfinished(state, options)):
            state = _round(task, inputs, state)
            observe(int(state.step), options.num_steps, float(state.best_loss))
    if not np.isfinite(state.best_loss):
        raise ValueError(
            "training diverged: the held-out loss was never finite; lower learning_rate, or use "
            "loss='lr', which is the most robust"
        )
    outputs, bases = _outputs(heads, state.best, gaussians, fixed)
    upper, lower = (
        np.asarray(to_log_ratio(loss, out) + base) for out, base in zip(outputs, bases, strict=True)
    )
    nothing = (jnp.zeros(()),) * 2
    before, after = _terms(loss, nothing, nothing), _terms(loss, outputs, bases)
    parts = [np.asarray(b - a).sum(axis=0) for b, a in zip(before, after, strict=True)]
    gains = parts[0] + parts[1]
    # Rows of the numerator may be repeated, and repetitions are no further evidence. Those of the
    # denominator are drawn with replacement, which adds to the variance of their own number.
    repeated = 1.0 / min(len(held_out.numerator), num) - 1.0 / num
    variance = gains.var() / num + parts[0].var() * repeated
    variance += parts[1].var() / len(held_out.denominator)
    return Fitted(
        heads,
        positions,
        state.best,
        Gaussians(*(a[jnp.array([0, -1])] for a in gaussians)),
        _aucs(upper, lower),
        bool(gains.mean() > 2.0 * np.sqrt(variance)),
        int(state.step),
    )


def _aucs(upper: ArrayLike, lower: ArrayLike) -> np.ndarray:
    pairs = zip(np.asarray(upper), np.asarray(lower), strict=True)
    return np.array([area_under_curve(*pair) for pair in pairs])


def _draw(samples: Samples, marks: Array, key: Array, rows: Array) -> Array:
    num = len(samples.denominator)
    return bridges.waymarks(samples, marks, rows, jax.random.randint(key, rows.shape, 1, num))


def _terms(
    loss: Bregman, outputs: tuple[Array, Array], bases: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Returns the loss of each numerator and of each denominator (eq. 2)."""
    upper, lower = (
        to_loss_input(loss, out, base) for out, base in zip(outputs, bases, strict=True)
    )
    return loss.flowed_term(upper), loss.real_term(lower)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(
    heads: Heads, params: Any, gaussians: Gaussians, waymarks: Array
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Returns outputs and log-ratios of Gaussians on all adjacent waymarks, [H, B] four times."""
    return heads.adjacent(params, waymarks), bridges.adjacent(gaussians, waymarks)


def _unfinished(state: State, options: Options) -> Array:
    return (state.step < options.num_steps) & (state.stale < _PATIENCE)


@functools.partial(jax.jit, static_argnums=0)
def _run(task: Task, inputs: Inputs, state: State) -> State:
    """Trains until the last step, or until the held-out loss no longer decreases."""
    one_round = functools.partial(_round, task, inputs)
    result: State = lax.while_loop(lambda s: _unfinished(s, task.options), one_round, state)
    return result


@functools.partial(jax.jit, static_argnums=0)
def _round(task: Task, inputs: Inputs, state: State) -> State:
    """Takes some training steps, and keeps the averaged parameters if they are the best."""
    options, train = task.options, inputs.train
    optimizer = options.optimizer()

    def mean_loss(params: Any, waymarks: Array) -> Array:
        found = _outputs(task.heads, params, inputs.gaussians, waymarks)
        upper, lower = _terms(task.loss, *found)
        return jnp.mean(upper + lower)

    def step(state: State, _: None) -> tuple[State, None]:
        row_key, shift_key = jax.random.split(jax.random.fold_in(inputs.key, state.step))
        # Random shifts make the rows of the denominator uniform as well.
        rows = jax.random.randint(row_key, (options.batch_size,), 0, len(train.numerator))
        waymarks = _draw(train, inputs.marks, shift_key, rows)
        gradient = jax.grad(mean_loss)(state.params, waymarks)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        rate = jnp.minimum(0.995, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda a, p: rate * a + (1.0 - rate) * p, state.average, params)
        return state._replace(
            step=state.step + 1, params=params, opt_state=opt_state, average=average
        ), None

    state, _ = lax.scan(step, state, None, length=options.round_steps(train))
    value = mean_loss(state.average, inputs.held_out).astype(jnp.float32)
    better = value < state.best_loss
    return state._replace(
        best=jax.tree.map(lambda a, b: jnp.where(better, a, b), state.average, state.best),
        best_loss=jnp.where(better, value, state.best_loss),
        stale=jnp.where(better, 0, state.stale + 1),
    )


def _standardisation(top: np.ndarray, bottom: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and inverse standard deviation of both sets; 0 for constant features.

    Warns if a feature is constant in one set only, where the ratio is infinite or 0, or varies too
    little to be used.
    """
    means = [values.mean(axis=0, dtype=np.float64) for values in (top, bottom)]
    variances = [values.var(axis=0, dtype=np.float64) for values in (top, bottom)]
    mean = (means[0] + means[1]) / 2.0
    variance = (variances[0] + variances[1]) / 2.0 + (means[0] - means[1]) ** 2 / 4.0
    largest = np.maximum(np.abs(top).max(axis=0), np.abs(bottom).max(axis=0))
    varies = [np.sqrt(v) > 1e-5 * largest for v in (*variances, variance)]
    if num := int(np.sum(varies[0] != varies[1])):
        warnings.warn(
            f"{num} of {mean.size} features are constant in one set and vary in the other; there "
            "the density ratio does not exist. Remove these features",
            stacklevel=4,
        )
    spread = np.maximum(top.max(axis=0), bottom.max(axis=0)) - np.minimum(
        top.min(axis=0), bottom.min(axis=0)
    )
    # Of features that are constant up to rounding, only the rounding would be left.
    rounding = 16.0 * max(np.finfo(values.dtype).eps for values in (top, bottom))
    if num := int(np.sum((spread > rounding * largest) & ~varies[2])):
        warnings.warn(
            f"{num} of {mean.size} features vary by less than 1e-5 of their size and are "
            "ignored, because the ratio is computed in float32. Subtract the same constant from "
            "these features in both sets, and in all points where you evaluate the ratio",
            stacklevel=4,
        )
    return mean, np.where(varies[2], 1.0 / np.sqrt(np.where(varies[2], variance, 1.0)), 0.0)


def _check_options(
    bridge: str,
    num_waymarks: int | None,
    max_auc: float,
    options: Options,
    held_out_fraction: float,
) -> None:
    if bridge not in get_args(Bridge):
        hint = nearest(bridge, get_args(Bridge)) or "."
        raise ValueError(f"unknown bridge {bridge!r}{hint} Allowed: {', '.join(get_args(Bridge))}")
    if num_waymarks is not None and (bridge == "none" or not 0 <= num_waymarks <= MAX_WAYMARKS):
        raise ValueError(
            f"num_waymarks must be from 0 to {MAX_WAYMARKS}, with bridge='mixing', got "
            f"{num_waymarks} with bridge={bridge!r}"
        )
    for name, value in (("num_steps", options.num_steps), ("batch_size", options.batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0.0 < options.learning_rate < np.inf:  # A negative one would end in a ratio of 1.
        raise ValueError(f"learning_rate must be above 0 and finite, got {options.learning_rate}")
    if not 0.0 <= options.weight_decay < np.inf:
        raise ValueError(f"weight_decay must be at least 0 and finite, got {options.weight_decay}")
    if not 0.0 < held_out_fraction < 0.9:
        raise ValueError(
            f"held_out_fraction must be above 0 and below 0.9, got {held_out_fraction}"
        )
    if not 0.5 < max_auc < 1.0:
        raise ValueError(f"max_auc must be above 0.5 and below 1, got {max_auc}")
