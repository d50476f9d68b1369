"""Fits a density ratio to two arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.stats import norm

from fdrl_jax import _keys
from fdrl_jax.ratio import base, bridges, evidence, training
from fdrl_jax.ratio.base import Columns, Sets
from fdrl_jax.ratio.bridges import LAST, Gaussians
from fdrl_jax.ratio.network import Heads, SupportsNetwork, default_trunk, with_heads
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
from fdrl_jax.ratio.training import DEFAULTS, Inputs, Options, Task

__all__ = [
    "NUM_FOLDS",
    "Problem",
    "assign_folds",
    "checked_array",
    "checked_weights",
    "fit",
    "fit_ratio",
    "generator",
]
__dir__ = __all__.copy

Array = jax.Array

MIN_EXAMPLES = 20
NUM_FOLDS = 5
MAX_WAYMARKS = 32
# Below it a single classifier had smaller errors than a bridge, see docs/ratios.md.
_MIN_BRIDGED_AUC = 0.99
_HEAVY = 12.0  # Standard deviations of a value that no light tail has.


class Problem(NamedTuple):
    """What is compared.

    Attributes:
      sets: the rows, their weights and folds.
      groups: of the rows, for standard errors; numbers.
      mixed: which columns differ between the sets, [...]; others are copied from the numerator.
      p_value: from normal scores of both sets, [N, D] and [M, D].
      columns: names of the columns, if there are any.
    """

    sets: Sets
    groups: tuple[np.ndarray, np.ndarray]
    mixed: np.ndarray
    p_value: Callable[[np.ndarray, np.ndarray], float]
    columns: tuple[str, ...] = ()

    @property
    def drawn(self) -> Sets:
        """The rows from which batches are drawn: for pairs, partners are drawn again each time."""
        if self.mixed.all():
            return self.sets
        return Sets(*((part[0], part[0]) for part in self.sets))


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

    A ridge logistic regression on columns, squares and products is the base; a network learns what
    it misses and is kept only if the held-out loss improves. Both are fitted in five folds, so that
    every row has a ratio that was not fitted to it. Columns are standardised, or mapped to normal
    scores by their ranks if that has the lower held-out loss.

    If the sets are separated perfectly, their ratio is unknown to any classifier. Then a bridge of
    waymarks `p_0 = numerator, p_1, ..., p_H = denominator` connects them: mixtures of their
    examples. The network learns `log p_h / p_{h+1}` for each adjacent pair, once, with a fifth of
    the rows held out, and the logarithms add up.

    Args:
      key: a key.
      numerator: samples of the numerator, [N, ...], at least 20.
      denominator: samples of the denominator, [M, ...], at least 20, with the same columns.
      network: a Flax Linen module or a `Network(init, apply)`, with one number per example as
        output, [B], or features, [B, F], which get a linear layer per pair of waymarks. Its inputs
        are the mapped columns. By default, a perceptron with two hidden layers.
      num_waymarks: number of waymarks between both sets; 0 for no bridge. By default, a bridge is
        built if a classifier has a held-out area under the curve above 0.99.
      numerator_weights: a weight per row, [N], at least 0.
      denominator_weights: the same for the denominator, [M].
      groups: labels of the rows of both sets, [N] and [M]. Rows with one label, such as those of
        one subject, are kept in one fold and count as one in standard errors.
      options: how to train.

    Returns:
      The ratio.

    Raises:
      TypeError: for a missing key, or a network that is neither of the two.
      ValueError: for arrays with different columns, less than 20 examples or values that are masked
        or not finite, for options out of range, for sets that differ in a constant, and if training
        diverges.

    Reference: Rhodes, Xu and Gutmann, "Telescoping Density-Ratio Estimation", NeurIPS 2020.
    """
    if denominator is None:
        raise TypeError(
            "fit_ratio needs a key first: fit_ratio(jax.random.key(0), numerator, denominator)"
        )
    rows = checked_array("numerator", numerator), checked_array("denominator", denominator)
    names = column_names(numerator), column_names(denominator)
    check_columns({"numerator": names[0], "denominator": names[1]})
    if rows[0].shape[1:] != rows[1].shape[1:]:
        raise ValueError(
            "numerator and denominator must have the same columns, got shapes "
            f"{rows[0].shape} and {rows[1].shape}"
        )
    _check_constants(*rows)
    weights = (
        checked_weights("numerator_weights", numerator_weights, len(rows[0])),
        checked_weights("denominator_weights", denominator_weights, len(rows[1])),
    )
    rng = generator(key)
    labels = None if groups is None else _numbered(groups, rows)
    folds = assign_folds(rng, (len(rows[0]), len(rows[1])), labels)
    weighted = any(w.min() != w.max() for w in weights)

    def p_value(top: np.ndarray, bottom: np.ndarray) -> float:
        return evidence.two_sample(rng, top, bottom, weights if weighted else None, labels)

    singles = np.arange(len(rows[0])), np.arange(len(rows[1]))
    problem = Problem(
        Sets(rows, weights, (folds[: len(rows[0])], folds[len(rows[0]) :])),
        labels or singles,
        np.ones(rows[0].shape[1:], bool),
        p_value,
        names[0] or names[1],
    )
    return fit(key, problem, network, num_waymarks, options)


def generator(key: Array) -> np.random.Generator:
    """Returns NumPy's generator of folds and permutations for a key."""
    key = jax.random.fold_in(_keys.typed(key), 0)
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())


def checked_array(name: str, values: ArrayLike) -> np.ndarray:
    """Returns finite values in floating point, [N, ...]; numbers per example become [N, 1]."""
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
    if np.abs(array).max() > 1e30:
        raise ValueError(f"{name} has values above 1e30, whose squares overflow; rescale them")
    return array


def checked_weights(name: str, values: ArrayLike | None, num: int) -> np.ndarray:
    """Returns weights with the sum 1, [N]."""
    weights = np.ones(num) if values is None else np.asarray(values, np.float64)
    if weights.shape != (num,):
        raise ValueError(f"{name} must be one number per row, [{num}], got shape {weights.shape}")
    if not np.isfinite(weights).all() or weights.min() < 0.0:
        raise ValueError(
            f"{name} must be finite and at least 0: a classifier with negative weights has no "
            "minimum of its loss. Subtract the rows with negative weights as a set of their own"
        )
    if np.count_nonzero(weights) < MIN_EXAMPLES:
        raise ValueError(f"{name} must be above 0 for at least {MIN_EXAMPLES} rows")
    out: np.ndarray = weights / weights.sum()
    return out


def _check_constants(top: np.ndarray, bottom: np.ndarray) -> None:
    """Refuses columns that are constant in a set and have no, or few, such values in the other."""
    a, b = (x.reshape(len(x), -1) for x in (top, bottom))
    for name, one, other in (("numerator", a, b), ("denominator", b, a)):
        constant = (one == one[0]).all(axis=0)
        if absent := int(np.sum(constant & ~(other == one[0]).any(axis=0))):
            raise ValueError(
                f"{absent} of {one.shape[1]} columns are constant in the {name}, with values that "
                "the other set does not have, so there is no density ratio; remove these columns"
            )


def _numbered(
    groups: tuple[ArrayLike, ArrayLike], rows: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    labels: list[np.ndarray] = [np.asarray(groups[0]), np.asarray(groups[1])]
    sizes = len(rows[0]), len(rows[1])
    if [part.shape for part in labels] != [(size,) for size in sizes]:
        raise ValueError(
            f"groups must be one label per row of both sets, [{sizes[0]}] and [{sizes[1]}], got "
            f"shapes {' and '.join(str(part.shape) for part in labels)}"
        )
    numbers: np.ndarray = np.unique(np.concatenate(labels), return_inverse=True)[1]
    return numbers[: sizes[0]], numbers[sizes[0] :]


def assign_folds(
    rng: np.random.Generator,
    sizes: tuple[int, ...],
    groups: tuple[np.ndarray, ...] | None,
) -> np.ndarray:
    """Returns a fold per row of all sets, which are divided equally; groups are not divided."""
    if groups is None:
        return np.concatenate([rng.permutation(size) % NUM_FOLDS for size in sizes])
    for labels in groups:
        if len(np.unique(labels)) < NUM_FOLDS:
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


class Fitted(NamedTuple):
    """A fit; the attributes are those of `DensityRatio`."""

    columns: Columns
    offset: Any
    heads: Heads | None
    params: Any
    scores: tuple[Scores, Scores]
    positions: tuple[int, ...]
    aucs: np.ndarray
    num_steps: int


def fit(
    key: Array,
    problem: Problem,
    network: SupportsNetwork | None,
    num_waymarks: int | None,
    options: Options,
) -> DensityRatio:
    """Fits a ratio to checked arrays; see `fit_ratio`."""
    _check_options(num_waymarks, options)
    key = _keys.typed(key)
    sets = problem.sets
    maps = list(base.plain_and_ranked(sets))
    mapped = [_mapped(sets, columns) for columns in maps]
    if network is None:
        network = default_trunk(sets.rows[0][0].size, min(map(len, sets.rows)))
    if num_waymarks:
        fitted = _bridged(key, problem, maps[0], network, options, bridges.spread(num_waymarks))
    else:
        fits = [
            _regression(problem, *both, base.fit(both[1], NUM_FOLDS))
            for both in zip(maps, mapped, strict=True)
        ]
        fitted = _lowest(fits)
        separable = num_waymarks is None and len(fitted.aucs) and fitted.aucs[0] > _MIN_BRIDGED_AUC
        if not separable:
            heavy = max(np.abs(x).max() for x in mapped[0].rows) > _HEAVY
            residuals = [
                _residual(key, problem, one, of_map, network, options)
                for one, of_map in zip(fits, mapped, strict=True)
                if heavy or one is fitted
            ]
            fitted = _lowest([fitted, *residuals])
            separable = num_waymarks is None and fitted.aucs[0] > _MIN_BRIDGED_AUC
        if separable:
            fitted = _bridged(key, problem, maps[0], network, options, None)
    # Most false alarms are left to the exact test; that of the fitted ratio has few of its own.
    gain = _gain(None, fitted.scores)
    of_scores = float(norm.sf(gain.value / max(gain.standard_error, 1e-12)))
    flat = [x.reshape(len(x), -1) for x in mapped[-1].rows]
    p_value = min(problem.p_value(flat[0], flat[1]) / 0.8, of_scores / 0.2, 1.0)
    return DensityRatio(
        heads=fitted.heads,
        columns=fitted.columns,
        offset=fitted.offset,
        params=fitted.params,
        scores=fitted.scores,
        p_value=p_value,
        waymarks=tuple(p / LAST for p in fitted.positions),
        aucs=tuple(float(auc) for auc in fitted.aucs),
        num_steps=fitted.num_steps,
        names=problem.columns,
    )


def _mapped(sets: Sets, columns: Columns) -> Sets:
    top, bottom = (jnp.asarray(columns.standardised(x), jnp.float32) for x in sets.rows)
    rows = np.asarray(columns.normalised(top)), np.asarray(columns.normalised(bottom))
    return sets._replace(rows=rows)


def _scores(problem: Problem, values: tuple[np.ndarray, np.ndarray], part: Any = None) -> Any:
    """Returns scores with the weights of the rows; 0 for rows outside of a fold, if it is given."""
    found = []
    for number, log_ratio in enumerate(values):
        weight = problem.sets.weights[number]
        if part is not None:
            weight = weight * (problem.sets.folds[number] == part)
            weight = weight / weight.sum()
        found.append(Scores(np.asarray(log_ratio, np.float64), weight, problem.groups[number]))
    return tuple(found)


def _gain(before: tuple[Scores, Scores] | None, after: tuple[Scores, Scores]) -> Estimate:
    """Returns by how much the logistic loss is lower than before (or than of the ratio 1)."""
    estimates = []
    for index, sign in enumerate((-1.0, 1.0)):
        score = after[index]
        gains = -np.logaddexp(0.0, sign * score.log_ratio)
        gains += (
            np.log(2.0) if before is None else np.logaddexp(0.0, sign * before[index].log_ratio)
        )
        estimates.append(mean_of(gains, score))
    error = np.hypot(estimates[0].standard_error, estimates[1].standard_error)
    return Estimate(estimates[0].value + estimates[1].value, float(error))


def _lowest(fits: list[Fitted]) -> Fitted:
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


def _regression(problem: Problem, columns: Columns, mapped: Sets, found: base.Base) -> Fitted:
    scores = _scores(problem, (found.top, found.bottom))
    offset = base.Quadratic(*(jnp.float32(part) for part in found.quadratic))
    return Fitted(columns, offset, None, None, scores, (0, LAST), np.array([_auc(scores)]), 0)


def _residual(
    key: Array,
    problem: Problem,
    found: Fitted,
    mapped: Sets,
    network: SupportsNetwork,
    options: Options,
) -> Fitted:
    """Trains a network on top of a regression, one per fold."""
    heads, state = _train(
        key, problem, mapped, range(NUM_FOLDS), (0, LAST), found.offset, network, options
    )
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
    scores = _scores(problem, (values[0], values[1]))
    return found._replace(
        heads=heads,
        params=state.best,
        scores=scores,
        aucs=np.array([_auc(scores)]),
        num_steps=int(state.step),
    )


def _train(
    key: Array,
    problem: Problem,
    mapped: Sets,
    folds: range,
    positions: tuple[int, ...],
    offset: base.Quadratic | Gaussians,
    network: SupportsNetwork,
    options: Options,
) -> tuple[Heads, training.State]:
    """Trains a network per fold, each without the rows of its fold."""
    drawn = problem._replace(sets=mapped).drawn
    rows = jnp.asarray(drawn.rows[0]), jnp.asarray(drawn.rows[1])
    heads = with_heads(network, len(positions) - 1, rows[0][:2])
    marks, mixed = jnp.asarray(positions), jnp.asarray(problem.mixed)
    kept = [
        [w * (f != index) for w, f in zip(drawn.weights, drawn.folds, strict=True)]
        for index in folds
    ]
    shares = [
        jnp.asarray([np.cumsum(k[n]) / k[n].sum() for k in kept], jnp.float32) for n in (0, 1)
    ]
    num_rows = min(len(x) for x in drawn.rows)
    batch_size = options.batch_size or (128 if num_rows < 4_000 else 256)
    # A network overfits a few hundred examples within tens of steps.
    per_round = options.num_steps // (20 if num_rows >= 4_000 else 40)
    round_steps = max(min(per_round, 8 * num_rows // batch_size), 1)
    train_key, init_key = jax.random.split(jax.random.fold_in(key, 1))
    inputs = Inputs(
        jax.random.split(train_key, len(folds)),
        rows,
        (shares[0], shares[1]),
        jnp.stack([_held_out(problem, mapped, index, marks) for index in folds]),
        offset,
        mixed,
        marks,
    )
    return heads, training.train(Task(heads, options, batch_size, round_steps), inputs, init_key)


def _held_out(problem: Problem, mapped: Sets, index: int, marks: Array) -> Array:
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
    return bridges.waymarks(chosen[0], chosen[1], jnp.asarray(problem.mixed), marks)


def _bridged(
    key: Array,
    problem: Problem,
    columns: Columns,
    network: SupportsNetwork,
    options: Options,
    positions: tuple[int, ...] | None,
) -> Fitted:
    """Trains one head per pair of adjacent waymarks; without positions, finds them.

    Gaussians show most of the waymarks that are needed, short fits more, and the full fit may still
    find a few.
    """
    mapped = _mapped(problem.sets, columns)
    rows = jnp.asarray(mapped.rows[0]), jnp.asarray(mapped.rows[1])
    weights = [w * (f != 0) for w, f in zip(mapped.weights, mapped.folds, strict=True)]
    shares = [jnp.asarray(w / w.sum(), jnp.float32) for w in weights]

    def gaussians(positions: tuple[int, ...]) -> Gaussians:
        marks, mixed = jnp.asarray(positions), jnp.asarray(problem.mixed)
        found = bridges.moments(rows, (shares[0], shares[1]), mixed, marks)
        return Gaussians(found.mean[None], found.variance[None])

    def held_out(positions: tuple[int, ...]) -> Array:
        return _held_out(problem, mapped, 0, jnp.asarray(positions))

    def aucs(scores: tuple[Array, Array]) -> np.ndarray:
        pairs = zip(np.asarray(scores[0]), np.asarray(scores[1]), strict=True)
        return np.array([area_under_curve(*pair) for pair in pairs])

    def full(positions: tuple[int, ...], num_steps: int) -> tuple[Any, np.ndarray]:
        offset = gaussians(positions)
        heads, state = _train(
            key,
            problem,
            mapped,
            range(1),
            positions,
            offset,
            network,
            options._replace(num_steps=num_steps),
        )
        of_fold = jax.tree.map(lambda a: a[0], (state.best, offset))
        return (heads, state), aucs(training.scores(heads, *of_fold, held_out(positions)))

    budgets = max(options.num_steps // 4, 1), options.num_steps
    if positions is not None:
        found, separated = full(positions, options.num_steps)
    else:
        positions, refined = (), bridges.spread(1)
        while positions != refined and len(refined) <= MAX_WAYMARKS + 2:
            positions = refined
            one = jax.tree.map(lambda a: a[0], gaussians(positions))
            separated = aucs(one.adjacent(held_out(positions)))
            refined = bridges.refine(positions, separated, options.max_auc)
        for num_steps in budgets:
            while True:
                found, separated = full(positions, num_steps)
                refined = bridges.refine(positions, separated, options.max_auc)
                if refined == positions or len(refined) > MAX_WAYMARKS + 2:
                    break
                positions = refined
    heads, state = found
    ends = jax.tree.map(lambda a: a[:, jnp.array([0, -1])], gaussians(positions))
    of_fold = jax.tree.map(lambda a: a[0], (ends, state.best))
    values = [row_log_ratios(heads, *of_fold, x) for x in mapped.rows]
    scores = _scores(problem, (values[0], values[1]), part=0)
    return Fitted(columns, ends, heads, state.best, scores, positions, separated, int(state.step))


def _check_options(num_waymarks: int | None, options: Options) -> None:
    if num_waymarks is not None and not 0 <= num_waymarks <= MAX_WAYMARKS:
        raise ValueError(f"num_waymarks must be from 0 to {MAX_WAYMARKS}, got {num_waymarks}")
    for name in ("num_steps", "batch_size"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not 0.0 < options.learning_rate < np.inf:
        raise ValueError(f"learning_rate must be above 0 and finite, got {options.learning_rate}")
    if not 0.0 <= options.weight_decay < np.inf:
        raise ValueError(f"weight_decay must be at least 0 and finite, got {options.weight_decay}")
    if not 0.5 < options.max_auc < 1.0:
        raise ValueError(f"max_auc must be above 0.5 and below 1, got {options.max_auc}")
