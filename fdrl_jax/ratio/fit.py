"""Fits a density ratio to two arrays, or to pairs for their mutual information."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from scipy.stats import norm, rankdata

from fdrl_jax import _keys
from fdrl_jax._checks import check_number
from fdrl_jax.ratio import base, equality, training
from fdrl_jax.ratio.base import NUM_FOLDS, Pair
from fdrl_jax.ratio.result import DensityRatio, Estimate, Scores, area_under_curve, total
from fdrl_jax.ratio.training import Network, Options, Trunk

__all__ = ["MutualInformation", "fit_ratio", "mutual_information"]
__dir__ = __all__.copy

Array = jax.Array

_MIN_EXAMPLES = 20
_MAX_WAYMARKS = 32
_MAX_AUC = 0.9  # Pairs of waymarks with more get another one between them.
_MAX_HELD_OUT = 4096  # Examples of each waymark and fold for early stopping.
# Below it a single classifier had smaller errors than a bridge, see docs/ratios.md.
_MIN_BRIDGED_AUC = 0.99
_HEAVY = 12.0  # Standard deviations of a value that no light tail has.
_MAX_COPIES, _MAX_EXCHANGED = 8, 40_000  # Of pairs with exchanged partners.
_SEEN = 1e-12  # Of one minus a squared correlation: that of float32's rounding is smaller.


class MutualInformation(NamedTuple):
    """A plug-in estimate of `I(x; y)` in nats, neither an upper nor a lower bound.

    It is the KL divergence of `ratio`, `p(x, y) / (p(x) p(y))` of the columns `[x, y]`, and its
    standard error, over pairs.
    """

    value: float
    standard_error: float
    ratio: DensityRatio


class _Problem(NamedTuple):
    """What is fitted, and how; pairs are for numerator and denominator."""

    key: Array
    rng: np.random.Generator  # Of folds and permutations.
    rows: Pair  # [N, ...] and [M, ...].
    weights: Pair  # With the sum 1.
    groups: Pair  # For standard errors; numbers.
    folds: Pair
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
      network: a Flax Linen module or a `Network(init, apply)` of mapped columns, with one number
        per example as output, [B], or features, [B, F], which get a linear layer per pair of
        waymarks. By default, a perceptron with two hidden layers.
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
    rows = _array("numerator", numerator), _array("denominator", denominator)
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
    top = _weights("numerator_weights", numerator_weights, len(rows[0]))
    bottom = _weights("denominator_weights", denominator_weights, len(rows[1]))
    mixed = np.ones(rows[0].shape[1:], bool)
    numbers, folds = _groups_and_folds(rng, groups, (len(top), len(bottom)))
    problem = _Problem(key, rng, rows, (top, bottom), numbers, folds, mixed, network, options)
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
    xs, ys = _array("x", x), _array("y", y)
    num = len(xs)
    if num != len(ys):
        raise ValueError(f"x and y must be pairs, one y per x, got {num} and {len(ys)}")
    xs, ys = xs.reshape(num, -1), ys.reshape(num, -1)
    ranks = rankdata(xs, axis=0), rankdata(ys, axis=0)
    if max(_correlation(xs, ys), _correlation(*ranks)) > 1.0 - _SEEN:
        raise ValueError(
            "a column or linear combination of columns is the same in x and y, or a monotone map, "
            "so their mutual information is infinite; remove it, or add the noise of measurement"
        )
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
    sets = top, np.where(mixed, top[others], top[rows])
    product = weight[rows] * weight[others]
    both = weight, product / product.sum()
    numbers, folds = (group, group[rows]), (fold, fold[rows])
    problem = _Problem(key, rng, sets, both, numbers, folds, mixed, network, options)
    ratio = _fit(problem, num_waymarks, groups is None)
    return MutualInformation(*ratio.divergence("kl"), ratio)


def _key_and_generator(name: str, key: Array, last: Any) -> tuple[Array, np.random.Generator]:
    """Returns the typed key, and NumPy's generator of folds and permutations for it."""
    if last is None:
        raise TypeError(f"{name} needs a key first, such as jax.random.key(0), and two arrays")
    key = _keys.typed(key)
    seed = jax.random.key_data(jax.random.fold_in(key, 0))
    return key, np.random.default_rng(np.asarray(seed))


def _array(name: str, values: Any) -> np.ndarray:
    """Returns finite values in floating point, [N, ...]; numbers per example become [N, 1]."""
    base.refuse_frame(name, values)
    if np.ma.is_masked(values):  # NumPy would use what the mask hides.
        raise ValueError(f"{name} has masked values; remove or impute them")
    if hasattr(values, "toarray"):
        raise ValueError(f"{name} must be an array; convert a sparse matrix with toarray()")
    array = np.asarray(values)
    try:
        if array.dtype.kind in "USMmc":
            raise ValueError(f"got {array.dtype}")
        array = array.astype(np.float64 if array.dtype == object else array.dtype)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be real numbers: {error}") from error
    array = array.astype(np.promote_types(array.dtype, np.float32))
    array = array[:, None] if array.ndim == 1 else array
    if array.ndim == 0 or len(array) < _MIN_EXAMPLES or array[0].size == 0:
        raise ValueError(
            f"{name} must have at least {_MIN_EXAMPLES} examples, [N, ...], got shape "
            f"{np.shape(values)}"
        )
    good = (np.abs(array) <= 1e30).reshape(len(array), -1).all(axis=1)
    if not good.all():
        raise ValueError(
            f"{name} has values that are not finite (NaN or infinite) or above 1e30 (their squares "
            f"overflow) in {np.sum(~good)} of {len(array)} examples; remove, impute or rescale them"
        )
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


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the largest squared correlation of combinations of columns without repeated values.

    Copies of columns with few values have a finite mutual information.
    """
    bases = []
    for values in (x, y):
        columns = [c - c.mean() for c in values.astype(float).T if len(np.unique(c)) > 0.9 * len(c)]
        scaled = np.reshape([c / np.abs(c).max() for c in columns], (-1, len(values)))
        _, lengths, vectors = np.linalg.svd(scaled, full_matrices=False)
        bases.append(vectors[lengths > 1e-6 * lengths.max(initial=0.0)])
    product = bases[0] @ bases[1].T
    if min(product.shape) == 0 or sum(product.shape) >= len(x):
        return 0.0
    return float(np.linalg.norm(product, 2) ** 2)


def _fit(problem: _Problem, num_waymarks: int | None, exchangeable: bool) -> DensityRatio:
    """Fits a ratio to checked arrays; rows that are `exchangeable` are permuted for the p-value."""
    if num_waymarks is not None and not 0 <= num_waymarks <= _MAX_WAYMARKS:
        raise ValueError(f"num_waymarks must be from 0 to {_MAX_WAYMARKS}, got {num_waymarks}")
    for name, value in problem.options._asdict().items():
        if value is not None:
            check_number(name, value, above_zero=True)
    if problem.network is None:
        size, width = problem.mixed.size, 64 if min(map(len, problem.rows)) < 4_000 else 128
        trunk = Trunk((min(max(4 * size, width), 1024), width), squares=size <= 100)
        problem = problem._replace(network=trunk)
    mapped = []
    for columns in base.plain_and_ranked(problem.rows, problem.weights):
        plain = [jnp.asarray(columns.standardised(x), jnp.float32) for x in problem.rows]
        rows = np.asarray(columns.normalised(plain[0])), np.asarray(columns.normalised(plain[1]))
        mapped.append(problem._replace(rows=rows, columns=columns))
    if num_waymarks:
        found = _bridged(mapped[0], num_waymarks)
    else:
        limit = _MIN_BRIDGED_AUC if num_waymarks is None else np.inf
        # Squares of a few large values would make the ratio of heavy tails.
        heavy = max(np.abs(x).max() for x in mapped[0].rows) > _HEAVY
        tried = mapped[1:] if heavy else mapped
        fits = [base.fit(one.rows, one.weights, one.folds) for one in tried]
        bases = [_residual(one, fit, 0) for one, fit in zip(tried, fits, strict=True)]
        found = max(bases, key=lambda one: _gain(one.scores).value)
        if found.aucs[0] <= limit:
            one = mapped[0] if found.columns.knots is None else mapped[1]
            found = _shrunk(found, _residual(one, found.model.offset, one.options.num_steps))
        if found.aucs[0] > limit:
            found = _bridged(mapped[0], None)
    gain = _gain(found.scores)
    p_value = float(norm.sf(gain.value / max(gain.standard_error, 1e-12)))
    if exchangeable and all(w.min() == w.max() for w in problem.weights):
        flat = [x.reshape(len(x), -1) for x in mapped[1].rows]
        if problem.mixed.all():
            pairs = np.repeat([[1.0], [0.0]], [len(x) for x in flat], axis=0), np.concatenate(flat)
        else:
            pairs = flat[0][:, ~problem.mixed], flat[0][:, problem.mixed]
        # Most false alarms are left to the exact test; that of the fitted ratio has few of its own.
        p_value = min(equality.independence(problem.rng, *pairs) / 0.8, p_value / 0.2, 1.0)
    return dataclasses.replace(found, p_value=p_value)


def _gain(after: tuple[Scores, Scores], before: tuple[Scores, Scores] | None = None) -> Estimate:
    """Returns by how much the logistic loss is lower than before (or than of the ratio 1)."""
    gains = []
    for index, sign in enumerate((-1.0, 1.0)):
        old = 0.0 if before is None else sign * before[index].log_ratio
        gains.append(np.logaddexp(0.0, old) - np.logaddexp(0.0, sign * after[index].log_ratio))
    return total(after, gains)


def _shrunk(base: DensityRatio, full: DensityRatio) -> DensityRatio:
    """Returns the part `z^2 / (1 + z^2)` of the way from one fit to another, whose gain has z-score z.

    This share of an estimate has the smallest mean squared error; without a gain it is 0.
    """
    gain = _gain(full.scores, base.scores)
    score = max(gain.value / max(gain.standard_error, 1e-12), 0.0)
    share = score**2 / (1.0 + score**2)
    if share == 0.0:
        return base
    scores = [
        after._replace(log_ratio=before.log_ratio + share * (after.log_ratio - before.log_ratio))
        for before, after in zip(base.scores, full.scores, strict=True)
    ]
    model = dataclasses.replace(full.model, share=share * full.model.share)
    return dataclasses.replace(full, scores=tuple(scores), model=model)


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
        sides = (0, 1) if mapped.mixed.all() else (0, 0)  # Partners are drawn again each time.
        rows, shares = tuple(jnp.asarray(mapped.rows[side]) for side in sides), []
        for side in sides:
            kept = [mapped.weights[side] * (mapped.folds[side] != f) for f in range(num_folds)]
            shares.append(jnp.asarray([np.cumsum(w) / w.sum() for w in kept], jnp.float32))
        heads = training.with_heads(mapped.network, len(positions) - 1, rows[0][:2])
        keys = jax.random.split(jax.random.fold_in(mapped.key, 1), (2, num_folds))
        fixed = held_out, offset, jnp.asarray(mapped.mixed), jnp.asarray(positions)
        params, loss = training.train(heads, options, keys, rows, tuple(shares), *fixed)
        if not np.isfinite(loss):
            raise ValueError(
                "training diverged: the held-out loss was never finite; lower the learning rate "
                "with options=fdrl.ratio.Options(learning_rate=...)"
            )
    model = training.Model(heads, offset, params, np.ones(num_folds, np.float32))
    values = [np.zeros(len(x)) for x in mapped.rows]
    aucs = np.zeros(len(positions) - 1)
    for index in range(num_folds):
        of_fold = jax.tree.map(lambda a, i=index: a[i], model)
        for x, folds, log_ratio in zip(mapped.rows, mapped.folds, values, strict=True):
            chosen = np.flatnonzero(folds == index)
            # All folds have one length, so that there is one compiled program.
            padded = x[np.resize(chosen, max(np.bincount(folds)))]
            log_ratio[chosen] = training.row_log_ratios(of_fold, padded)[: len(chosen)]
        for pair, (upper, lower) in enumerate(zip(*of_fold.adjacent(held_out[index]), strict=True)):
            aucs[pair] += area_under_curve(np.asarray(upper), np.asarray(lower)) / num_folds
    # The fit knows the rows of the other folds.
    weights = [w * (f < num_folds) for w, f in zip(mapped.weights, mapped.folds, strict=True)]
    parts = zip(values, weights, mapped.groups, strict=True)
    top, bottom = (Scores(value, w / w.sum(), group) for value, w, group in parts)
    return DensityRatio((top, bottom), mapped.columns, model, tuple(aucs.tolist()), positions)


def _held_out(mapped: _Problem, index: int, positions: tuple[float, ...]) -> Array:
    """Returns fixed examples of each waymark from the rows of a fold, [H + 1, B, ...]."""
    size = min(max(max(np.bincount(f)) for f in mapped.folds), _MAX_HELD_OUT)
    chosen = []
    for number, (x, w, f) in enumerate(zip(mapped.rows, mapped.weights, mapped.folds, strict=True)):
        total = np.cumsum(w * (f == index))
        at = (np.arange(size) + 0.5) / size * total[-1]
        rows = np.minimum(np.searchsorted(total, at, side="right"), len(total) - 1)
        # Random partners make waymarks of all pairs.
        order = np.random.default_rng(index + 7 * number).permutation(size)
        chosen.append(jnp.asarray(x[rows[order]]))
    top, bottom = chosen
    return training.waymarks(top, bottom, jnp.asarray(mapped.mixed), jnp.asarray(positions))


def _bridged(mapped: _Problem, num_waymarks: int | None) -> DensityRatio:
    """Trains one head per pair of adjacent waymarks; without a number, finds them."""
    kept = [w * (f != 0) for w, f in zip(mapped.weights, mapped.folds, strict=True)]
    weights, mixed = (kept[0] / kept[0].sum(), kept[1] / kept[1].sum()), mapped.mixed.ravel()
    most = mapped.options.num_steps
    positions = tuple(np.linspace(0.0, 1.0, (num_waymarks or 1) + 2).tolist())
    # Gaussians show most of the waymarks that are needed, short fits more, the full fit a few.
    for budget in (most,) if num_waymarks else (0, max(most // 4, 1), most):
        refined = positions
        while True:
            positions = refined
            offset = training.gaussians(mapped.rows, weights, mixed, jnp.asarray(positions))
            found = _residual(mapped, offset, budget, positions, num_folds=1)
            pairs = zip(positions[:-1], positions[1:], found.aucs, strict=True)
            middles = {(a + b) / 2 for a, b, auc in pairs if auc > _MAX_AUC}
            refined = tuple(sorted({*positions, *middles}))
            if num_waymarks or refined == positions or len(refined) > _MAX_WAYMARKS + 2:
                break
    return found
