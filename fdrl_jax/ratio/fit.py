"""Fits a density ratio to two arrays, or to pairs for their mutual information."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.stats import norm

from fdrl_jax import _keys
from fdrl_jax.ratio import base, training
from fdrl_jax.ratio.base import NUM_FOLDS, Pair
from fdrl_jax.ratio.result import (
    DensityRatio,
    Estimate,
    Scores,
    area_under_curve,
    check_columns,
    column_names,
    mean_of,
    row_log_ratios,
)
from fdrl_jax.ratio.training import DEFAULTS, LAST, Gaussians, Heads, Options, SupportsNetwork

__all__ = ["MutualInformation", "assign_folds", "fit_ratio", "mutual_information"]
__dir__ = __all__.copy

Array = jax.Array

_MIN_EXAMPLES = 20
_MAX_WAYMARKS = 32
# Below it a single classifier had smaller errors than a bridge, see docs/ratios.md.
_MIN_BRIDGED_AUC = 0.99
_HEAVY = 12.0  # Standard deviations of a value that no light tail has.
_MAX_COPIES, _MAX_EXCHANGED = 2, 20_000  # Of pairs with exchanged partners.


class MutualInformation(NamedTuple):
    """An estimate of `I(x; y)`.

    Attributes:
      value: the mean of `log r` over all pairs, each by a fit without it, in nats: a plug-in
        estimate, neither an upper nor a lower bound.
      standard_error: over pairs; the error of the ratio is not included.
      ratio: `r(x, y) = p(x, y) / (p(x) p(y))`, of the concatenated columns of a pair, [B, Dx + Dy].
    """

    value: float
    standard_error: float
    ratio: DensityRatio


class _Problem(NamedTuple):
    """What is fitted, and how; pairs are for numerator and denominator."""

    key: Array
    rows: Pair  # [N, ...] and [M, ...].
    weights: Pair  # With the sum 1.
    folds: Pair
    groups: Pair  # For standard errors; numbers.
    mixed: np.ndarray  # Which columns differ between the sets, [...].
    network: Any  # `SupportsNetwork`, or `None` for the default.
    options: Options
    names: tuple[str, ...] = ()
    columns: Any = None  # `Columns`, once the rows are mapped.


def fit_ratio(
    key: Array,
    numerator: ArrayLike,
    denominator: ArrayLike | None = None,
    *,
    network: SupportsNetwork | None = None,
    num_waymarks: int | None = None,
    numerator_weights: ArrayLike | None = None,
    denominator_weights: ArrayLike | None = None,
    groups: tuple[ArrayLike, ArrayLike] | None = None,
    options: Options = DEFAULTS,
) -> DensityRatio:
    """Estimates `r(x) = numerator(x) / denominator(x)` from samples of both densities.

    The page "Density ratios" says how.

    Args:
      key: a key.
      numerator: samples of the numerator, [N, ...], at least 20.
      denominator: samples of the denominator, [M, ...], at least 20, with the same columns.
      network: a Flax Linen module or a `Network(init, apply)` of mapped columns, with one number
        per example as output, [B], or features, [B, F], which get a linear layer per pair of
        waymarks. By default, a perceptron with two hidden layers.
      num_waymarks: number of waymarks between both sets; 0 for no bridge. By default, a bridge is
        built if a classifier has a held-out area under the curve above 0.99.
      numerator_weights: a weight per row, [N], at least 0.
      denominator_weights: the same for the denominator, [M].
      groups: labels of the rows of both sets, [N] and [M]. Rows with one label, such as those of
        one subject, are kept in one fold and count as one in standard errors.
      options: how to train.

    Raises:
      TypeError: for a missing key, or a network that is neither of the two.
      ValueError: for arrays, weights, groups, networks or options that cannot be used, for sets
        that differ in a constant, and if training diverges.

    Reference: Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
    """
    if denominator is None:
        raise TypeError("fit_ratio needs a key first: fit_ratio(jax.random.key(0), top, bottom)")
    rows = _array("numerator", numerator), _array("denominator", denominator)
    names = column_names(numerator), column_names(denominator)
    check_columns({"numerator": names[0], "denominator": names[1]})
    if rows[0].shape[1:] != rows[1].shape[1:]:
        raise ValueError(
            "numerator and denominator must have the same columns, got shapes "
            f"{rows[0].shape} and {rows[1].shape}"
        )
    a, b = (x.reshape(len(x), -1) for x in rows)
    for name, one, other in (("numerator", a, b), ("denominator", b, a)):
        constant = (one == one[0]).all(axis=0)
        if absent := int(np.sum(constant & ~(other == one[0]).any(axis=0))):
            raise ValueError(
                f"{absent} of {one.shape[1]} columns are constant in the {name}, with values that "
                "the other set does not have, so there is no density ratio; remove these columns"
            )
    n, m = len(a), len(b)
    weights = (
        _weights("numerator_weights", numerator_weights, n),
        _weights("denominator_weights", denominator_weights, m),
    )
    key, rng = _key_and_generator(key)
    labels = None
    if groups is not None:
        given: list[np.ndarray] = [np.asarray(groups[0]), np.asarray(groups[1])]
        if [part.shape for part in given] != [(n,), (m,)]:
            raise ValueError(
                f"groups must be one label per row of both sets, [{n}] and [{m}], got shapes "
                f"{' and '.join(str(part.shape) for part in given)}"
            )
        numbers = np.unique(np.concatenate(given), return_inverse=True)[1]
        labels = numbers[:n], numbers[n:]
    folds = assign_folds(rng, (n, m), labels)
    weighted = any(w.min() != w.max() for w in weights)

    def p_value(top: np.ndarray, bottom: np.ndarray) -> float:
        return base.two_sample(rng, top, bottom, weights if weighted else None, labels)

    both, group = (folds[:n], folds[n:]), labels or (np.arange(n), np.arange(m))
    mixed = np.ones(rows[0].shape[1:], bool)
    problem = _Problem(
        key, rows, weights, both, group, mixed, network, options, names[0] or names[1]
    )
    return _fit(problem, num_waymarks, p_value)


def mutual_information(
    key: Array,
    x: ArrayLike,
    y: ArrayLike | None = None,
    *,
    network: SupportsNetwork | None = None,
    num_waymarks: int | None = None,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    options: Options = DEFAULTS,
) -> MutualInformation:
    """Estimates the mutual information `E[log p(x, y) / (p(x) p(y))]` of paired samples.

    The numerator is the pairs. The denominator is pairs whose `y` comes from another row, drawn
    again in each training step. A bridge mixes only `y`.

    Args:
      key: a key.
      x: samples of `x`, [N, ...], at least 20.
      y: samples of `y`, [N, ...], in the same order.
      network: see `fit_ratio`, as for the others; its input is `[x, y]`, [B, Dx + Dy].
      num_waymarks: number of waymarks.
      weights: a weight per pair, [N], at least 0.
      groups: a label per pair, [N].
      options: how to train.

    Raises:
      TypeError, ValueError: see `fit_ratio`; also unless there is one `y` per `x`.

    Reference: Belghazi et al., "Mutual Information Neural Estimation", ICML 2018 (exchanged
    partners).
    """
    if y is None:
        raise TypeError("mutual_information needs a key first, such as jax.random.key(0)")
    xs, ys = _array("x", x), _array("y", y)
    if len(xs) != len(ys):
        raise ValueError(f"x and y must be pairs, one y per x, got {len(xs)} and {len(ys)}")
    num = len(xs)
    xs, ys = xs.reshape(num, -1), ys.reshape(num, -1)
    key, rng = _key_and_generator(key)
    weight, group = _weights("weights", weights, num), np.arange(num)
    if groups is not None:
        group = np.unique(np.asarray(groups), return_inverse=True)[1]
        if group.shape != (num,):
            raise ValueError(f"groups must be one label per pair, [{num}], got {group.shape}")
    folds = assign_folds(rng, (num,), None if groups is None else (group,))
    copies = max(min(_MAX_COPIES, _MAX_EXCHANGED // num), 1)
    exchanged = np.tile(np.arange(num), (copies, 1))  # Other rows of the same fold.
    for copy in exchanged:
        for index in range(NUM_FOLDS):
            rows = rng.permutation(np.flatnonzero(folds == index))
            copy[rows] = np.roll(rows, 1)
    columns, partners = xs.shape[1], exchanged.reshape(-1)
    bottom = np.concatenate([np.tile(xs, (copies, 1)), ys[partners]], axis=1)
    both = np.tile(weight, copies) * weight[partners]

    def p_value(top: np.ndarray, _: np.ndarray) -> float:
        if weights is not None or groups is not None:
            return 1.0  # Rows cannot be permuted; the fitted ratio decides.
        return base.independence(rng, top[:, :columns], top[:, columns:])

    sets = np.concatenate([xs, ys], axis=1), bottom
    of_weights = weight, both / both.sum()
    of_folds, of_groups = (folds, np.tile(folds, copies)), (group, np.tile(group, copies))
    mixed = np.arange(sets[0].shape[1]) >= columns
    problem = _Problem(key, sets, of_weights, of_folds, of_groups, mixed, network, options)
    ratio = _fit(problem, num_waymarks, p_value)
    return MutualInformation(*ratio.divergence("kl"), ratio)


def _key_and_generator(key: Array) -> tuple[Array, np.random.Generator]:
    """Returns the typed key, and NumPy's generator of folds and permutations for it."""
    key = _keys.typed(key)
    seed = np.asarray(jax.random.key_data(jax.random.fold_in(key, 0))).tolist()
    return key, np.random.default_rng(seed)


def _array(name: str, values: ArrayLike) -> np.ndarray:
    """Returns finite values in floating point, [N, ...]; numbers per example become [N, 1]."""
    if np.ma.is_masked(values):  # NumPy would use what the mask hides.
        raise ValueError(f"{name} has masked values; remove or impute them")
    if hasattr(values, "toarray"):
        raise ValueError(f"{name} must be an array; convert a sparse matrix with toarray()")
    array = np.asarray(values)
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim == 0 or len(array) < _MIN_EXAMPLES or array[0].size == 0:
        raise ValueError(
            f"{name} must have at least {_MIN_EXAMPLES} examples, [N, ...], got shape "
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
    if np.abs(array).max() > 1e30:
        raise ValueError(f"{name} has values above 1e30, whose squares overflow; rescale them")
    return array


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
    out: np.ndarray = weights / weights.sum()
    return out


def assign_folds(
    rng: np.random.Generator, sizes: tuple[int, ...], groups: tuple[np.ndarray, ...] | None
) -> np.ndarray:
    """Returns a fold per row of all sets, which are divided equally; groups are not divided."""
    if groups is None:
        return np.concatenate([rng.permutation(size) % NUM_FOLDS for size in sizes])
    if min(len(np.unique(labels)) for labels in groups) < NUM_FOLDS:
        raise ValueError(f"groups must have at least {NUM_FOLDS} labels in each set")
    counts = np.stack([np.bincount(g, minlength=max(map(max, groups)) + 1) for g in groups])
    shares = counts / counts.sum(axis=1, keepdims=True)
    filled, fold = np.zeros((len(groups), NUM_FOLDS)), np.zeros(counts.shape[1], int)
    # Large groups first, each into the emptiest fold.
    for label in np.argsort(-shares.sum(axis=0) - 1e-9 * rng.random(counts.shape[1])):
        fold[label] = np.argmin(shares[:, label] @ filled + 1e-12 * rng.random(NUM_FOLDS))
        filled[:, fold[label]] += shares[:, label]
    out: np.ndarray = fold[np.concatenate(groups)]
    return out


def _fit(
    problem: _Problem,
    num_waymarks: int | None,
    p_value: Callable[[np.ndarray, np.ndarray], float],
) -> DensityRatio:
    """Fits a ratio to checked arrays; `p_value` is that of their normal scores, [N or M, D]."""
    if num_waymarks is not None and not 0 <= num_waymarks <= _MAX_WAYMARKS:
        raise ValueError(f"num_waymarks must be from 0 to {_MAX_WAYMARKS}, got {num_waymarks}")
    for name in ("num_steps", "batch_size"):
        if (value := getattr(problem.options, name)) is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0.0 < (rate := problem.options.learning_rate) < np.inf:
        raise ValueError(f"learning_rate must be above 0 and finite, got {rate}")
    if problem.network is None:
        trunk = training.default_trunk(problem.mixed.size, min(map(len, problem.rows)))
        problem = problem._replace(network=trunk)
    mapped = []
    for columns in base.plain_and_ranked(problem.rows, problem.weights):
        plain = [jnp.asarray(columns.standardised(x), jnp.float32) for x in problem.rows]
        rows = np.asarray(columns.normalised(plain[0])), np.asarray(columns.normalised(plain[1]))
        mapped.append(problem._replace(rows=rows, columns=columns))
    if num_waymarks:
        found = _bridged(mapped[0], training.spread(num_waymarks))
    else:
        limit = _MIN_BRIDGED_AUC if num_waymarks is None else np.inf
        fits = [_regression(one) for one in mapped]
        found = _lowest(fits)
        if found.aucs[0] <= limit:
            heavy = max(np.abs(x).max() for x in mapped[0].rows) > _HEAVY
            both = zip(mapped, fits, strict=True)
            residuals = [_residual(of_map, fit) for of_map, fit in both if heavy or fit is found]
            found = _lowest([found, *residuals])
        if found.aucs[0] > limit:
            found = _bridged(mapped[0], None)
    # Most false alarms are left to the exact test; that of the fitted ratio has few of its own.
    gain = _gain(None, found.scores)
    of_scores = float(norm.sf(gain.value / max(gain.standard_error, 1e-12)))
    flat = [x.reshape(len(x), -1) for x in mapped[-1].rows]
    of_both = min(p_value(flat[0], flat[1]) / 0.8, of_scores / 0.2, 1.0)
    return dataclasses.replace(found, p_value=of_both, names=problem.names)


def _scores(problem: _Problem, values: Pair, part: int | None = None) -> tuple[Scores, Scores]:
    """Returns scores with the weights of the rows; 0 for rows outside of a fold, if it is given."""
    found = []
    for number, log_ratio in enumerate(values):
        weight = problem.weights[number]
        if part is not None:
            weight = weight * (problem.folds[number] == part)
            weight = weight / weight.sum()
        found.append(Scores(np.asarray(log_ratio, np.float64), weight, problem.groups[number]))
    return found[0], found[1]


def _gain(before: tuple[Scores, Scores] | None, after: tuple[Scores, Scores]) -> Estimate:
    """Returns by how much the logistic loss is lower than before (or than of the ratio 1)."""
    estimates = []
    for index, sign in enumerate((-1.0, 1.0)):
        old = 0.0 if before is None else before[index].log_ratio
        gains = np.logaddexp(0.0, sign * old) - np.logaddexp(0.0, sign * after[index].log_ratio)
        estimates.append(mean_of(gains, after[index]))
    error = np.hypot(estimates[0].standard_error, estimates[1].standard_error)
    return Estimate(estimates[0].value + estimates[1].value, float(error))


def _lowest(fits: list[DensityRatio]) -> DensityRatio:
    """Returns the first fit, unless a later one has a loss that is lower by its standard error."""
    best = fits[0]
    for other in fits[1:]:
        gain = _gain(best.scores, other.scores)
        if gain.value > gain.standard_error:
            best = other
    return best


def _auc(scores: tuple[Scores, Scores]) -> float:
    top, bottom = scores
    return area_under_curve(top.log_ratio, bottom.log_ratio, top.weight, bottom.weight)


def _regression(mapped: _Problem) -> DensityRatio:
    quadratic, values = base.fit(mapped.rows, mapped.weights, mapped.folds)
    scores = _scores(mapped, values)
    offset = base.Quadratic(*(jnp.float32(part) for part in quadratic))
    return DensityRatio(scores, mapped.columns, offset, (_auc(scores),))


def _residual(mapped: _Problem, found: DensityRatio) -> DensityRatio:
    """Trains a network on top of a regression, one per fold."""
    heads, state = _train(mapped, NUM_FOLDS, (0, LAST), found.offset)
    values = []
    for rows, folds in zip(mapped.rows, mapped.folds, strict=True):
        log_ratio = np.zeros(len(rows))
        length = max(np.bincount(folds))
        for index in range(NUM_FOLDS):
            held_out = np.flatnonzero(folds == index)
            of_fold = jax.tree.map(lambda a, i=index: a[i], (found.offset, state.best))
            # All folds have one length, so that there is one compiled program.
            x = rows[np.resize(held_out, length)]
            log_ratio[held_out] = row_log_ratios(heads, *of_fold, x)[: len(held_out)]
        values.append(log_ratio)
    scores, steps = _scores(mapped, (values[0], values[1])), int(state.step)
    fitted = {"heads": heads, "params": state.best, "num_steps": steps}
    return dataclasses.replace(found, scores=scores, aucs=(_auc(scores),), **fitted)


def _train(
    mapped: _Problem,
    num_folds: int,
    positions: tuple[int, ...],
    offset: base.Quadratic | Gaussians,
) -> tuple[Heads, training.State]:
    """Trains a network for each of the first folds, without the rows of this fold."""
    sides = (0, 1) if mapped.mixed.all() else (0, 0)  # Partners are drawn again each time.
    rows = tuple(jnp.asarray(mapped.rows[side]) for side in sides)
    heads = training.with_heads(mapped.network, len(positions) - 1, rows[0][:2])
    marks, mixed = jnp.asarray(positions), jnp.asarray(mapped.mixed)
    shares = []
    for side in sides:
        kept = [mapped.weights[side] * (mapped.folds[side] != index) for index in range(num_folds)]
        shares.append(jnp.asarray([np.cumsum(w) / w.sum() for w in kept], jnp.float32))
    num_rows, options = min(map(len, rows)), mapped.options
    batch_size = options.batch_size or (128 if num_rows < 4_000 else 256)
    # A network overfits a few hundred examples within tens of steps.
    per_round = options.num_steps // (20 if num_rows >= 4_000 else 40)
    round_steps = max(min(per_round, 8 * num_rows // batch_size), 1)
    train_key, init_key = jax.random.split(jax.random.fold_in(mapped.key, 1))
    keys = jax.random.split(train_key, num_folds)
    held_out = jnp.stack([_held_out(mapped, index, marks) for index in range(num_folds)])
    inputs = training.Inputs(keys, rows, tuple(shares), held_out, offset, mixed, marks)
    return heads, training.train(heads, options, batch_size, round_steps, inputs, init_key)


def _held_out(mapped: _Problem, index: int, marks: Array) -> Array:
    """Returns fixed examples of each waymark from the rows of a fold, [H + 1, B, ...]."""
    size = min(max(max(np.bincount(f)) for f in mapped.folds), training.MAX_HELD_OUT)
    chosen = []
    for number in range(2):
        total = np.cumsum(mapped.weights[number] * (mapped.folds[number] == index))
        at = (np.arange(size) + 0.5) / size * total[-1]
        rows = np.minimum(np.searchsorted(total, at, side="right"), len(total) - 1)
        # Random partners make waymarks of all pairs.
        order = np.random.default_rng(index + 7 * number).permutation(size)
        chosen.append(jnp.asarray(mapped.rows[number][rows[order]]))
    return training.waymarks(chosen[0], chosen[1], jnp.asarray(mapped.mixed), marks)


def _bridged(mapped: _Problem, positions: tuple[int, ...] | None) -> DensityRatio:
    """Trains one head per pair of adjacent waymarks; without positions, finds them.

    Gaussians show most of the waymarks that are needed, short fits more, and the full fit may still
    find a few.
    """
    rows = tuple(map(jnp.asarray, mapped.rows))
    weights = [w * (f != 0) for w, f in zip(mapped.weights, mapped.folds, strict=True)]
    shares = tuple(jnp.asarray(w / w.sum(), jnp.float32) for w in weights)

    def gaussians(positions: tuple[int, ...]) -> Gaussians:
        marks, mixed = jnp.asarray(positions), jnp.asarray(mapped.mixed)
        found = training.moments(rows, shares, mixed, marks)
        return Gaussians(found.mean[None], found.variance[None])

    def held_out(positions: tuple[int, ...]) -> Array:
        return _held_out(mapped, 0, jnp.asarray(positions))

    def aucs(scores: tuple[Array, Array]) -> list[float]:
        return [area_under_curve(*pair) for pair in zip(*map(np.asarray, scores), strict=True)]

    def full(positions: tuple[int, ...], num_steps: int) -> tuple[Any, list[float]]:
        offset = gaussians(positions)
        options = mapped.options._replace(num_steps=num_steps)
        heads, state = _train(mapped._replace(options=options), 1, positions, offset)
        of_fold = jax.tree.map(lambda a: a[0], (state.best, offset))
        return (heads, state), aucs(training.scores(heads, *of_fold, held_out(positions)))

    num_steps = mapped.options.num_steps
    if positions is not None:
        found, separated = full(positions, num_steps)
    else:
        positions, refined = (), training.spread(1)
        while positions != refined and len(refined) <= _MAX_WAYMARKS + 2:
            positions = refined
            one = jax.tree.map(lambda a: a[0], gaussians(positions))
            refined = training.refine(positions, aucs(one.adjacent(held_out(positions))))
        for budget in (max(num_steps // 4, 1), num_steps):
            while True:
                found, separated = full(positions, budget)
                refined = training.refine(positions, separated)
                if refined == positions or len(refined) > _MAX_WAYMARKS + 2:
                    break
                positions = refined
    heads, state = found
    ends = jax.tree.map(lambda a: a[:, jnp.array([0, -1])], gaussians(positions))
    of_fold = jax.tree.map(lambda a: a[0], (ends, state.best))
    values = [np.asarray(row_log_ratios(heads, *of_fold, x)) for x in mapped.rows]
    return DensityRatio(
        _scores(mapped, (values[0], values[1]), part=0),
        mapped.columns,
        ends,
        tuple(separated),
        heads=heads,
        params=state.best,
        waymarks=tuple(p / LAST for p in positions),
        num_steps=int(state.step),
    )
