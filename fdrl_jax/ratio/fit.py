"""Fits a density ratio to two arrays, or to pairs for their mutual information."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.stats import norm

from fdrl_jax import _keys
from fdrl_jax._checks import check_number, real_examples, refuse_functions
from fdrl_jax.networks.layers import Trunk
from fdrl_jax.ratio import base, equality, training
from fdrl_jax.ratio.base import NUM_FOLDS, Side
from fdrl_jax.ratio.result import DensityRatio, Estimate, Scores, area_under_curve, total
from fdrl_jax.ratio.training import Network, Options

__all__ = ["MutualInformation", "fit_ratio", "mutual_information"]
__dir__ = __all__.copy

Array = jax.Array

_MIN_EXAMPLES = 20
_MAX_WAYMARKS = 32
_MAX_AUC = 0.9  # Pairs of waymarks with more get another one between them.
_MAX_HELD_OUT = 4096  # Examples of each waymark and fold for early stopping.
_MIN_BRIDGED_AUC = 0.99  # Below it a single classifier had smaller errors than a bridge.
_HEAVY = 12.0  # Standard deviations of a value that no light tail has.
_MAX_SQUARED = 100  # Columns; a network of more gets no squares, and may do without a regression.
_MAX_COPIES, _MAX_EXCHANGED = 8, 40_000  # Of pairs with exchanged partners.


class MutualInformation(NamedTuple):
    """A plug-in estimate of `I(x; y)` in nats, neither an upper nor a lower bound.

    It is the KL divergence of `ratio`, `p(x, y) / (p(x) p(y))` of the columns `[x, y]`, and its
    standard error, over pairs.
    """

    value: float
    standard_error: float
    ratio: DensityRatio


class _Problem(NamedTuple):
    """What is fitted, and how."""

    key: Array
    rng: np.random.Generator  # Of folds and permutations.
    sides: tuple[Side, Side]
    mixed: np.ndarray  # Which columns differ between the sets, [...].
    network: Any  # `None` for the default.
    options: Options
    columns: Any = None  # `Columns`, once the rows are mapped.


def fit_ratio(
    key: Array,
    numerator: ArrayLike,
    denominator: ArrayLike | None = None,
    *,
    network: Network | nn.Module | None = None,
    num_waymarks: int | None = None,
    numerator_weights: ArrayLike | None = None,
    denominator_weights: ArrayLike | None = None,
    groups: tuple[ArrayLike, ArrayLike] | None = None,
    options: Options = training.DEFAULTS,
) -> DensityRatio:
    """Estimates `r(x) = numerator(x) / denominator(x)`; the page "Density ratios" says how.

    Args:
      key: a key.
      numerator: samples of the numerator, [N, ...], at least 20.
      denominator: samples of the denominator, [M, ...], with the same columns.
      network: a Linen module or a `Network` of mapped columns with one number per example, [B],
        or features, [B, F], for a linear layer per pair of waymarks; by default, a perceptron.
      num_waymarks: number of waymarks between both sets; 0 for no bridge. By default, a bridge is
        built if a classifier has a held-out area under the curve above 0.99.
      numerator_weights: a weight per row, [N], at least 0.
      denominator_weights: the same, [M].
      groups: labels of the rows of both sets, [N] and [M]. Rows with one label, such as those of
        one subject, are kept in one fold and count as one in standard errors.
      options: how to train.

    Raises:
      TypeError: for a missing key, or a network that is neither of the two.
      ValueError: for arguments that cannot be used, for sets that differ in a constant, and if
        training diverges.
    """
    key, rng = _key_and_generator("fit_ratio", key, denominator)
    first = real_examples("numerator", numerator, _MIN_EXAMPLES)
    rows = first, real_examples("denominator", denominator, _MIN_EXAMPLES)
    if rows[0].shape[1:] != rows[1].shape[1:]:
        raise ValueError(
            "numerator and denominator must have the same columns, got shapes "
            f"{rows[0].shape} and {rows[1].shape}"
        )
    for name, one, other in (("numerator", *rows), ("denominator", *rows[::-1])):
        constant = (one == one[0]).all(axis=0)
        if absent := int(np.sum(constant & ~(other == one[0]).any(axis=0))):
            raise ValueError(
                f"{absent} of {one[0].size} columns are constant in the {name}, with values that "
                "the other set does not have, so there is no density ratio; remove these columns"
            )
    sizes = len(rows[0]), len(rows[1])
    names = "numerator_weights", "denominator_weights"
    weights = map(_weights, names, (numerator_weights, denominator_weights), sizes)
    top, bottom = map(Side, rows, weights, *_groups_and_folds(rng, groups, sizes))
    problem = _Problem(key, rng, (top, bottom), np.ones(first.shape[1:], bool), network, options)
    return _fit(problem, num_waymarks, groups is None)


def mutual_information(
    key: Array,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    network: Network | nn.Module | None = None,
    num_waymarks: int | None = None,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    options: Options = training.DEFAULTS,
) -> MutualInformation:
    """Estimates the mutual information `E[log p(x, y) / (p(x) p(y))]` of paired samples.

    Row `i` of `x`, [N, ...], belongs to row `i` of `y`, [N, ...]; `weights` and `groups` are of
    these pairs, [N]. The other arguments and errors are those of `fit_ratio`, for a denominator of
    pairs whose `y` comes from another row. Networks see `[x, y]`, and a bridge mixes only `y`.

    Raises:
      ValueError: also for an infinite information, if a linear combination of the columns of `x` is
        one of `y`, or a column a monotone map.
    """
    key, rng = _key_and_generator("mutual_information", key, y)
    xs, ys = (base.flat(real_examples(*given, _MIN_EXAMPLES)) for given in (("x", x), ("y", y)))
    num = len(xs)
    if num != len(ys):
        raise ValueError(f"x and y must be pairs, one y per x, got {num} and {len(ys)}")
    refuse_functions(xs, ys)
    weight = _weights("weights", weights, num)
    (group,), (fold,) = _groups_and_folds(rng, None if groups is None else (groups,), (num,))
    copies = max(min(_MAX_COPIES, _MAX_EXCHANGED // num), 1)
    rows = np.tile(np.arange(num), copies)
    others = rows.copy()
    for copy in others.reshape(copies, num):  # Other rows of the same fold.
        for index in range(NUM_FOLDS):
            chosen = rng.permutation(np.flatnonzero(fold == index))
            copy[chosen] = np.roll(chosen, 1)
    top = np.concatenate([xs, ys], axis=1)
    mixed = np.arange(top.shape[1]) >= xs.shape[1]
    product = weight[rows] * weight[others]
    exchanged = np.where(mixed, top[others], top[rows])
    bottom = Side(exchanged, product / product.sum(), group[rows], fold[rows])
    sides = Side(top, weight, group, fold), bottom
    problem = _Problem(key, rng, sides, mixed, network, options)
    ratio = _fit(problem, num_waymarks, groups is None)
    return MutualInformation(*ratio.divergence("kl"), ratio)


def _key_and_generator(name: str, key: Array, last: Any) -> tuple[Array, np.random.Generator]:
    """Returns the typed key, and NumPy's generator of folds and permutations for it."""
    if last is None:
        raise TypeError(f"{name} needs a key first, such as jax.random.key(0), and two arrays")
    key = _keys.typed(key)
    seed = jax.random.key_data(jax.random.fold_in(key, 0))
    return key, np.random.default_rng(np.asarray(seed))


def _weights(name: str, values: ArrayLike | None, num: int) -> np.ndarray:
    """Returns weights with the sum 1, [N]."""
    weights = np.ones(num) if values is None else np.asarray(values, np.float64)
    if weights.shape != (num,):
        raise ValueError(f"{name} must be one number per row, [{num}], got shape {weights.shape}")
    if not np.isfinite(weights).all() or weights.min() < 0.0:
        raise ValueError(
            f"{name} must be finite and at least 0: a classifier with negative weights has no "
            "minimum of its loss. Subtract the rows with negative weights as a set of their own"
        )
    if np.count_nonzero(weights) < _MIN_EXAMPLES:
        raise ValueError(f"{name} must be above 0 for at least {_MIN_EXAMPLES} rows")
    return np.asarray(weights / weights.sum())


def _groups_and_folds(rng: np.random.Generator, labels: Any, sizes: tuple[int, ...]) -> Any:
    """Returns numbers of the rows' groups, and folds that divide sets equally, but no group."""
    if labels is None:
        folds = tuple(rng.permutation(size) % NUM_FOLDS for size in sizes)
        return tuple(np.arange(size) for size in sizes), folds
    given = [np.asarray(part) for part in labels]
    shapes = [part.shape for part in given]
    if shapes != [(size,) for size in sizes]:
        raise ValueError(f"groups must be one label per row, {list(sizes)}, got shapes {shapes}")
    if min(len(np.unique(part)) for part in given) < NUM_FOLDS:
        raise ValueError(f"groups must have at least {NUM_FOLDS} labels in each set")
    numbers = np.unique(np.concatenate(given), return_inverse=True)[1]
    groups = tuple(np.split(numbers, np.cumsum(sizes)[:-1]))
    counts = np.stack([np.bincount(group, minlength=numbers.max() + 1) for group in groups])
    shares = counts / counts.sum(axis=1, keepdims=True)
    filled, fold = np.zeros((len(groups), NUM_FOLDS)), np.zeros(counts.shape[1], int)
    # Large groups first, each into the emptiest fold.
    for label in np.argsort(-shares.sum(axis=0) - 1e-9 * rng.random(counts.shape[1])):
        fold[label] = np.argmin(shares[:, label] @ filled + 1e-12 * rng.random(NUM_FOLDS))
        filled[:, fold[label]] += shares[:, label]
    return groups, tuple(fold[group] for group in groups)


def _fit(problem: _Problem, num_waymarks: int | None, exchangeable: bool) -> DensityRatio:
    """Fits a ratio to checked arrays; rows that are `exchangeable` are permuted for the p-value."""
    if num_waymarks is not None and not 0 <= num_waymarks <= _MAX_WAYMARKS:
        raise ValueError(f"num_waymarks must be from 0 to {_MAX_WAYMARKS}, got {num_waymarks}")
    for name, value in problem.options._asdict().items():
        if value is not None:
            check_number(name, value, above_zero=True)
    size = problem.mixed.size
    if problem.network is None:
        width = 64 if min(len(side.rows) for side in problem.sides) < 4_000 else 128
        trunk = Trunk((min(max(4 * size, width), 1024), width), squares=size <= _MAX_SQUARED)
        problem = problem._replace(network=trunk)
    mapped = []
    for columns in base.plain_and_ranked(problem.sides):
        top, bottom = (side._replace(rows=np.asarray(columns(side.rows))) for side in problem.sides)
        mapped.append(problem._replace(sides=(top, bottom), columns=columns))
    if num_waymarks:
        found = _bridged(mapped[0], num_waymarks)
    else:
        limit = _MIN_BRIDGED_AUC if num_waymarks is None else np.inf
        # Squares of a few large values would make the ratio of heavy tails; rare ink is no tail.
        far = max(float(np.abs(side.rows).max()) for side in mapped[0].sides)
        most = sum(len(side.rows) for side in problem.sides) ** 0.5  # A value is at most as far.
        heavy = size <= _MAX_SQUARED and far > min(_HEAVY, 0.7 * most)
        bases = [_residual(one, base.fit(one.sides), 0) for one in mapped[int(heavy) :]]
        found = max(bases, key=lambda one: _gain(one.scores).value)
        if found.aucs[0] <= limit:
            one, starts = mapped[found.columns.knots is not None], [found]
            # Of many columns, a network alone may be better; without a gain the ratio would be 1.
            if size > _MAX_SQUARED and found.model.offset.linear.any():
                nothing = jax.tree.map(jnp.zeros_like, found.model.offset)
                starts.append(_residual(one, nothing, 0))
            grown = [_residual(one, s.model.offset, one.options.num_steps) for s in starts]
            found = max(map(_shrunk, starts, grown), key=lambda r: _gain(r.scores).value or -np.inf)
        found = _bridged(mapped[0], None) if found.aucs[0] > limit else _with_constant(found)
    gain = _gain(found.scores)
    p_value = float(norm.sf(gain.value / max(gain.standard_error, 1e-12)))
    if exchangeable and all(s.weight.min() == s.weight.max() for s in problem.sides):
        ranked = [base.flat(side.rows) for side in mapped[1].sides]
        if problem.mixed.all():
            x = np.repeat([[1.0], [0.0]], [len(x) for x in ranked], axis=0)
            y = np.concatenate(ranked)
        else:
            x, y = ranked[0][:, ~problem.mixed], ranked[0][:, problem.mixed]
        # Most false alarms are left to the exact test; that of the fitted ratio has few of its own.
        p_value = min(equality.independence(problem.rng, x, y) / 0.8, p_value / 0.2, 1.0)
    return dataclasses.replace(found, p_value=p_value)


def _gain(after: tuple[Scores, Scores], before: tuple[Scores, Scores] | None = None) -> Estimate:
    """Returns by how much the logistic loss is lower than before (or than of the ratio 1)."""
    gains = []
    for index, sign in enumerate((-1.0, 1.0)):
        old = 0.0 if before is None else sign * before[index].log_ratio
        gains.append(np.logaddexp(0.0, old) - np.logaddexp(0.0, sign * after[index].log_ratio))
    return total(after, gains)


def _shrunk(start: DensityRatio, full: DensityRatio) -> DensityRatio:
    """Returns the share `z^2 / (1 + z^2)` of the network in `full`, where its gain has z-score `z`.

    This share has the smallest mean squared error; without a gain it is 0.
    """
    gain = _gain(full.scores, start.scores)
    score = max(gain.value / max(gain.standard_error, 1e-12), 0.0)
    share = score**2 / (1.0 + score**2)
    both = zip(start.scores, full.scores, strict=True)
    mixed = [(1.0 - share) * old.log_ratio + share * new.log_ratio for old, new in both]
    top, bottom = (s._replace(log_ratio=m) for s, m in zip(full.scores, mixed, strict=True))
    model = dataclasses.replace(full.model, share=share * full.model.share)
    return dataclasses.replace(full, scores=(top, bottom), model=model) if share else start


def _with_constant(found: DensityRatio) -> DensityRatio:
    """Adds the constant of the lowest held-out loss, as in Bennett's method (1976).

    The networks know the rows of the other folds, so that new ones of the numerator seem unlikely.
    """
    top, bottom = found.scores

    def loss(constant: float) -> Any:  # That of separable sets is flat.
        upper = top.weight @ np.logaddexp(0.0, -top.log_ratio - constant)
        lower = bottom.weight @ np.logaddexp(0.0, bottom.log_ratio + constant)
        return upper + lower + 1e-6 * constant**2

    constant = minimize_scalar(loss, bounds=(-5.0, 5.0), method="bounded").x
    scores = tuple(s._replace(log_ratio=s.log_ratio + constant) for s in found.scores)
    offset = found.model.offset._replace(constant=found.model.offset.constant + constant)
    model = dataclasses.replace(found.model, offset=offset)
    return dataclasses.replace(found, scores=(scores[0], scores[1]), model=model)


def _residual(
    mapped: _Problem,
    offset: base.Quadratic,
    num_steps: int,
    positions: tuple[float, ...] = (0.0, 1.0),
    num_folds: int = NUM_FOLDS,
) -> DensityRatio:
    """Adds a network to the log-ratio `offset` of each of the first folds, trained without it."""
    held_out = jnp.stack([_held_out(mapped, index, positions) for index in range(num_folds)])
    heads, params = None, None
    if num_steps:
        options = mapped.options._replace(num_steps=num_steps)
        # Partners of pairs are drawn again each time.
        sides = mapped.sides if mapped.mixed.all() else 2 * mapped.sides[:1]
        rows = tuple(jnp.asarray(side.rows) for side in sides)
        shares = tuple(
            jnp.asarray([np.cumsum(side.without(fold)) for fold in range(num_folds)], jnp.float32)
            for side in sides
        )
        heads = training.with_heads(mapped.network, len(positions) - 1, rows[0][:2])
        keys = jax.random.split(jax.random.fold_in(mapped.key, 1), (2, num_folds))
        fixed = held_out, offset, jnp.asarray(mapped.mixed), jnp.asarray(positions)
        params, loss = training.train(heads, options, keys, rows, shares, *fixed)
        if not np.isfinite(loss):
            raise ValueError(
                "training diverged: the held-out loss was never finite; lower the learning rate "
                "with options=fdrl.ratio.Options(learning_rate=...)"
            )
    model = training.Model(heads, offset, params, np.ones(num_folds, np.float32))
    scores = []
    for side in mapped.sides:
        values = np.asarray(training.fold_log_ratios(model, jnp.asarray(side.rows)))
        own = values[np.minimum(side.fold, num_folds - 1), np.arange(len(side.fold))]
        # The fit knows the rows of the other folds.
        weight = side.weight * (side.fold < num_folds)
        scores.append(Scores(own.astype(float), weight / weight.sum(), side.group))
    outputs = jax.vmap(training.Model.adjacent)(model, held_out)
    pairs = zip(*(np.asarray(part).swapaxes(0, 1) for part in outputs), strict=True)
    aucs = [float(np.mean([*map(area_under_curve, *pair)])) for pair in pairs]
    return DensityRatio((scores[0], scores[1]), mapped.columns, model, tuple(aucs), positions)


def _held_out(mapped: _Problem, index: int, positions: tuple[float, ...]) -> Array:
    """Returns fixed examples of each waymark from the rows of a fold, [H + 1, B, ...]."""
    size = min(max(max(np.bincount(side.fold)) for side in mapped.sides), _MAX_HELD_OUT)
    chosen = []
    for number, side in enumerate(mapped.sides):
        total = np.cumsum(side.weight * (side.fold == index))
        at = (np.arange(size) + 0.5) / size * total[-1]
        rows = np.minimum(np.searchsorted(total, at, side="right"), len(total) - 1)
        # Random partners make waymarks of all pairs.
        order = np.random.default_rng(index + 7 * number).permutation(size)
        chosen.append(jnp.asarray(side.rows[rows[order]]))
    top, bottom = chosen
    return training.waymarks(top, bottom, jnp.asarray(mapped.mixed), jnp.asarray(positions))


def _bridged(mapped: _Problem, num_waymarks: int | None) -> DensityRatio:
    """Trains one head per pair of adjacent waymarks; without a number, finds them."""
    most = mapped.options.num_steps
    positions = tuple(np.linspace(0.0, 1.0, (num_waymarks or 1) + 2).tolist())
    # Gaussians show most of the waymarks that are needed, short fits more, the full fit a few.
    for budget in (most,) if num_waymarks else (0, max(most // 4, 1), most):
        refined = positions
        while True:
            positions = refined
            offset = training.gaussians(mapped.sides, mapped.mixed.ravel(), jnp.asarray(positions))
            found = _residual(mapped, offset, budget, positions, num_folds=1)
            pairs = zip(positions[:-1], positions[1:], found.aucs, strict=True)
            middles = {(a + b) / 2 for a, b, auc in pairs if auc > _MAX_AUC}
            refined = tuple(sorted({*positions, *middles}))
            if num_waymarks or refined == positions or len(refined) > _MAX_WAYMARKS + 2:
                break
    return found
