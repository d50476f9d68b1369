"""Fits of density ratios: closed forms, contracts over networks, evidence, and bad input."""

import dataclasses
import functools
import pickle
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from scipy import sparse
from scipy.special import expit
from scipy.stats import norm

import fdrl_jax as fdrl
from fdrl_jax import divergences
from fdrl_jax.ratio import Network, Options, Trunk, training
from fdrl_jax.ratio.equality import independence, smallest_kl
from fdrl_jax.ratio.result import Scores

SLOW = pytest.mark.slow
KEY = jax.random.key(0)
SHIFT = 0.8
SMALL = {"network": Trunk((16,)), "options": Options(num_steps=100, learning_rate=1e-2)}
FEW = {"network": Trunk((4,)), "options": Options(num_steps=2)}


def gaussians(num=2_000, shift=SHIFT, seed=0):
    """Samples of N(shift, I) and N(0, I) in two dimensions."""
    rng = np.random.default_rng(seed)
    return rng.normal(shift, 1.0, (num, 2)), rng.normal(0.0, 1.0, (num, 2))


def correlated(rho, *shape, seed=0):
    """Standard normal pairs."""
    x, noise = np.random.default_rng(seed).normal(size=(2, *shape))
    return x, rho * x + (1.0 - rho**2) ** 0.5 * noise


A, B = gaussians(100)


@functools.cache
def fitted(shift=SHIFT, num_waymarks=0):
    return fdrl.fit_ratio(KEY, *gaussians(shift=shift), num_waymarks=num_waymarks, **SMALL)


def with_scores(ratio, *log_ratios):
    """The ratio with other rows, by their log-ratios."""
    rows = ((np.float64(v), np.full(len(v), 1 / len(v)), np.arange(len(v))) for v in log_ratios)
    return dataclasses.replace(ratio, scores=tuple(Scores(*row) for row in rows))


@pytest.mark.parametrize("num", [200, pytest.param(1_000, marks=SLOW)])
def test_an_easy_shift_is_found_with_default_arguments(num):
    for seed, shift in enumerate((-0.5, 0.5, -0.5)):
        sets = [x[:, 0] for x in gaussians(num, shift, seed)]
        ratio = fdrl.fit_ratio(jax.random.key(seed), *sets)
        assert ratio.check().trusted, ratio.check().verdict
        assert ratio.waymarks == (0.0, 1.0)
        x = np.concatenate(sets)
        assert np.mean(np.abs(ratio.log_ratio(x) - (shift * x - 0.125))) < 3.6 / num**0.5
        assert np.mean(ratio.weights() * sets[1]) == pytest.approx(shift, abs=4.0 / num**0.5)


def test_heavy_tails_and_scales_do_not_matter():
    rng = np.random.default_rng(0)
    top, bottom = rng.standard_cauchy((2, 1_000)) + np.array([[1.0], [0.0]])
    x = np.concatenate([top, bottom])
    error = fdrl.fit_ratio(KEY, top, bottom).log_ratio(x) - np.log((1 + x**2) / (1 + (x - 1) ** 2))
    assert np.mean(np.abs(error)) < 0.15
    for seed in (5, 8, 11):  # No value of a few rows is many standard deviations from the mean.
        few = np.random.default_rng(seed).standard_cauchy((2, 50, 5))
        assert np.mean(np.abs(fdrl.fit_ratio(KEY, *few, **FEW).log_ratio(few[0]))) < 0.1
    far = [1e4 * x + 3e5 for x in gaussians()]
    scaled = fdrl.fit_ratio(KEY, *far, **SMALL).log_ratio(far[0][:50])
    np.testing.assert_allclose(scaled, fitted().log_ratio(gaussians()[0][:50]), atol=0.05)


def test_divergences_and_the_figures_of_a_check_have_their_closed_forms():
    kl, hellinger = SHIFT**2, 2 - 2 * np.exp(-(SHIFT**2) / 4)
    for name, truth in (("kl", kl), ("reverse_kl", kl), ("hellinger", hellinger)):
        value, error = fitted().divergence(name)
        assert abs(value - truth) < 4.0 * error + 0.02
        assert 0.0 < error < 0.1
    check = fitted().check()
    for figure in (check.mean_ratio, check.slope):
        assert figure.value == pytest.approx(1.0, abs=4.0 * figure.standard_error)
    assert check.auc == pytest.approx(norm.cdf(SHIFT), abs=0.03)
    assert with_scores(fitted(), *np.zeros((2, 8))).check().auc == 0.5  # Ties count half.
    assert str(fitted()).startswith("Density ratio of 2,000 over 2,000 rows with 2 columns: KL 0.")


def test_the_constant_has_the_lowest_held_out_loss():
    top, bottom = (s.log_ratio for s in fdrl.fit_ratio(KEY, A, B, **FEW).scores)
    assert np.mean(expit(-top)) == pytest.approx(np.mean(expit(bottom)), abs=1e-4)  # Its slope.


def test_the_balanced_form_is_the_divergence_for_every_registered_one():
    x = np.random.default_rng(2).normal(size=(2, 200_000)) * 0.5 + [[0.5], [0.0]]
    known = with_scores(fitted(), *(2.0 * x - 0.5))
    for divergence in divergences.REGISTRY.values():
        direct = float(np.mean(divergence.f(jnp.exp(2.0 * x[1] - 0.5))))
        value, error = known.divergence(divergence)
        assert value == pytest.approx(direct, abs=0.1 + 4 * error), divergence.name


def test_weights_move_the_mean_of_the_denominator_to_that_of_the_numerator():
    ratio, bottom = fitted(), gaussians()[1]
    for weights in (np.asarray(ratio.weights(bottom)), np.asarray(ratio.weights())):
        assert weights.mean() == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_allclose((weights[:, None] * bottom).mean(axis=0), SHIFT, atol=0.15)
    exact = np.exp(SHIFT * bottom.sum(axis=1))
    expected = exact.sum() ** 2 / np.sum(exact**2)
    assert ratio.effective_sample_size(bottom) == pytest.approx(expected, rel=0.3)
    r = np.exp(np.asarray(ratio.log_ratio(5.0 * bottom), np.float64))
    relative = np.exp(ratio.log_ratio(5.0 * bottom, alpha=0.2))  # At most 5.
    np.testing.assert_allclose(relative, r / (0.2 * r + 0.8), rtol=1e-3)


def test_weights_of_rows_are_those_of_repeated_rows():
    top, bottom = correlated(0.0, 3_000)
    tilt = np.exp(0.7 * top)  # N(0, 1) becomes N(0.7, 1).
    ratio = fdrl.fit_ratio(KEY, top, bottom, numerator_weights=tilt, **SMALL)
    x = np.linspace(-2.0, 2.0, 9)
    np.testing.assert_allclose(ratio.log_ratio(x), 0.7 * x - 0.245, atol=0.3)
    assert ratio.check().p_value < 0.001
    out = fdrl.fit_ratio(KEY, bottom, top, denominator_weights=tilt, **SMALL).weights()
    assert np.average(top, weights=out) == pytest.approx(0.0, abs=0.1)


def test_rows_of_a_group_count_as_one():
    groups, found = (np.repeat(np.arange(40), 25), np.repeat(np.arange(40, 80), 25)), []
    for seed in range(10):  # Subjects differ, the sets do not.
        rng = np.random.default_rng(seed)
        sets = [np.repeat(rng.normal(size=40), 25) + 0.1 * rng.normal(size=1_000) for _ in "ab"]
        found.append(fdrl.fit_ratio(KEY, *sets, groups=groups, **FEW).p_value <= 0.05)
    assert sum(found) <= 3
    assert fdrl.fit_ratio(KEY, *sets, **FEW).p_value < 0.05


@pytest.mark.parametrize(
    ("shift", "slope", "constant", "trusted", "usable", "words"),
    [
        (SHIFT, 1.0, 0.0, True, True, "passes all checks"),
        (2.0, 1.0, 0.0, True, False, "Do not use its weights, worth"),
        (50.0, 1.0, 0.0, False, False, "leave num_waymarks out"),
        (0.0, 1.0, 0.0, False, False, "smallest KL that would show 0.0"),
        (SHIFT, 3.0, 0.0, False, False, "claims too much"),
        (SHIFT, 0.4, 0.0, False, False, "claims too little"),
        (SHIFT, -1.0, 0.0, False, False, "must be positive"),
        (SHIFT, 1.0, -1.0, False, False, "its mean over the denominator"),
    ],
)
def test_the_verdict_on_a_ratio(shift, slope, constant, trusted, usable, words):
    ratio = fitted(shift)
    assert np.isfinite(ratio.log_ratio(np.zeros((1, 2)))).all()
    changed = (slope * s.log_ratio[::5] + constant for s in ratio.scores)
    check = with_scores(ratio, *changed).check()
    assert (check.trusted, check.usable) == (trusted, usable), check.verdict
    assert words in check.verdict


def test_the_ratio_of_equal_sets_is_near_one_but_not_set_to_one():
    assert 0.0 < np.abs(fitted(0.0).log_ratio(B)).mean() < 0.1


def test_the_true_ratio_is_refused_at_most_once_in_twenty_at_200_rows():
    refused = 0
    for seed in range(40):
        true = (0.5 * x[:, 0] - 0.125 for x in gaussians(200, 0.5, seed))
        refused += not with_scores(fitted(), *true).check().trusted
    assert refused <= 2


@SLOW
def test_false_alarms_are_as_many_as_announced():
    p, is_top = [], np.repeat([[1.0], [0.0]], [40, 30], axis=0)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(70, 3)), rng.integers(0, 3, (70, 3)), rng.standard_cauchy((70, 3))
        p += [independence(rng, is_top, part) for part in x]
        p.append(independence(rng, x[0], x[1]))
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.08


def test_the_smallest_kl_is_found_in_four_of_five_cases_and_dependence_in_all():
    kl, found, is_top = smallest_kl((100, 100), 2), 0, np.repeat([[1.0], [0.0]], 100, axis=0)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        top, bottom = rng.normal(size=(2, 100, 2))
        moved = top + np.array([(2 * kl) ** 0.5, 0.0])
        found += independence(rng, is_top, np.concatenate([moved, bottom])) <= 0.05
        assert independence(rng, top, top**2 + 0.5 * bottom) <= 0.01
    assert 36 <= found <= 57


@SLOW
@pytest.mark.parametrize(
    ("top", "bottom", "num_waymarks"), [(norm(0, 0.05), norm(), 7), (norm(-4), norm(4), None)]
)
def test_a_bridge_crosses_a_chasm(top, bottom, num_waymarks):
    sets = [part.rvs(3_000, seed) for seed, part in enumerate((top, bottom))]
    ratio = fdrl.fit_ratio(KEY, *sets, num_waymarks=num_waymarks, **SMALL)
    x = np.concatenate(sets)[::15]
    np.testing.assert_allclose(ratio.log_ratio(x), top.logpdf(x) - bottom.logpdf(x), 0.1, 2.0)
    assert len(ratio.waymarks) > 2


def test_a_bridge_is_exact_for_correlated_gaussians():
    x, y = correlated(0.8, 2_000, 4)
    found = fdrl.mutual_information(KEY, x, y, num_waymarks=1, **FEW)
    truth = np.sum(norm.logpdf(y, 0.8 * x, 0.6) - norm.logpdf(y), axis=1)
    held_out = found.ratio.scores[0].weight > 0
    assert np.sum(held_out) == 400  # The fit knows the others.
    assert found.value == pytest.approx(truth[held_out].mean(), abs=0.1)


LINEN = nn.Sequential((nn.Dense(16), nn.silu, nn.Dense(1), jnp.ravel))
GRAPH, PARAMS = nnx.split(nnx.Linear(2, 16, rngs=nnx.Rngs(0)))
OF_NNX = Network(lambda key, x: PARAMS, lambda params, x: nnx.silu(nnx.merge(GRAPH, params)(x)))


@SLOW
@pytest.mark.parametrize(("network", "share"), [(None, 0.33), (LINEN, 0.75), (OF_NNX, 0.75)])
def test_networks_of_any_library_find_what_the_regression_misses(network, share):
    rng, std = np.random.default_rng(0), 4.25**0.5  # Two modes, with the moments of the other set.
    modes = rng.normal(2.0 * rng.choice([-1.0, 1.0], 2_000), 0.5)
    x = np.concatenate([modes, rng.normal(0.0, std, 2_000)])
    points = np.stack([x, rng.normal(size=4_000)], axis=1)
    ratio = fdrl.fit_ratio(KEY, *np.split(points, 2), network=network)
    assert ratio.model.heads is not None
    truth = np.log(0.5 * norm.pdf(x, 2, 0.5) + 0.5 * norm.pdf(x, -2, 0.5)) - norm.logpdf(x, 0, std)
    assert np.mean(np.abs(ratio.log_ratio(points) - truth)) < share * np.mean(np.abs(truth))
    bridge = fdrl.fit_ratio(KEY, *gaussians(), network=network, num_waymarks=1)
    assert np.corrcoef(bridge.log_ratio(A), A.sum(axis=1))[0, 1] > 0.97


def test_of_many_columns_a_network_may_stand_alone(monkeypatch):
    monkeypatch.setattr("fdrl_jax.ratio.fit._MAX_SQUARED", 1)  # Two columns are many.
    board = Network(lambda key, x: jnp.zeros(1), lambda w, x: w * jnp.sin(3.0 * x).prod(axis=1))
    top, bottom = np.random.default_rng(0).normal(size=(2, 2_000, 2))
    white = top[np.sin(3.0 * top).prod(axis=1) > 0.0]
    found, nothing = (
        fdrl.fit_ratio(KEY, x, bottom, network=board, options=SMALL["options"])
        for x in (white, top)
    )
    assert not np.any(found.model.offset.linear)
    assert np.corrcoef(found.log_ratio(bottom), np.sin(3.0 * bottom).prod(axis=1))[0, 1] > 0.9
    assert np.any(nothing.model.offset.linear)  # Not the ratio 1.


@pytest.mark.parametrize("num_waymarks", [0, 1])
def test_a_ratio_works_under_jit_and_grad_in_a_pickle_and_at_special_points(num_waymarks):
    ratio, x = fitted(SHIFT, num_waymarks), jnp.asarray(A[:3], jnp.float32)
    compiled = jax.jit(lambda r, x: r.log_ratio(x))(ratio, x)
    np.testing.assert_allclose(compiled, ratio.log_ratio(x), rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda x: ratio.log_ratio(x).sum())(x)
    np.testing.assert_allclose(slope, SHIFT, atol=0.5)
    off = ratio._of_folds(gaussians()[0]) - ratio.scores[0].log_ratio  # That of a fold.
    np.testing.assert_allclose(np.abs(off).min(axis=0), 0.0, atol=1e-4)
    stored = pickle.loads(pickle.dumps(ratio))
    np.testing.assert_array_equal(stored.log_ratio(x), ratio.log_ratio(x))
    assert np.all((ratio.standard_error(x) > 0.0) == (num_waymarks == 0))
    assert np.isnan(ratio.log_ratio(np.array([[np.nan, 0.0]]))).all()
    assert ratio.log_ratio(np.zeros((0, 2))).shape == (0,)
    many = ratio.log_ratio(np.tile(x, (3_000, 1)))
    np.testing.assert_allclose(many.reshape(3_000, 3)[-1], ratio.log_ratio(x), rtol=1e-4, atol=1e-5)


def test_a_fit_follows_its_key_and_others_of_the_same_shapes_compile_nothing():
    first, again = (fdrl.fit_ratio(KEY, *gaussians(300)).log_ratio(A) for _ in range(2))
    np.testing.assert_array_equal(again, first)
    before = training.train._cache_size()
    assert np.any(fdrl.fit_ratio(jax.random.key(1), *gaussians(300)).log_ratio(A) != first)
    fdrl.fit_ratio(KEY, *gaussians(300, seed=1))
    assert training.train._cache_size() == before > 0


@SLOW
def test_special_columns():
    constant = [np.c_[x, np.full(100, 7.0)] for x in (A, B)]
    log_ratio = fdrl.fit_ratio(KEY, *constant, **FEW).log_ratio
    np.testing.assert_array_equal(log_ratio(constant[0] + [0, 0, 100]), log_ratio(constant[0]))
    late = [(1.7e12 + 86_400_000 * x).astype(np.int64) for x in gaussians(300)]
    assert np.std(fdrl.fit_ratio(KEY, *late, **FEW).log_ratio(late[0][:9])) > 0.1
    images = [x.reshape(-1, 2, 2, 1) for x in gaussians(200)]
    for num_waymarks in (0, 1):
        ratio = fdrl.fit_ratio(KEY, *images, num_waymarks=num_waymarks, **FEW)
        assert ratio.log_ratio(np.zeros((2, 2, 2, 1))).shape == (2,)
    with jax.enable_x64(True):
        assert np.isfinite(fdrl.fit_ratio(KEY, A, B, **FEW).log_ratio(A)).all()


def test_mutual_information_of_gaussians_and_of_monotone_maps_of_them():
    x, y = correlated(0.8, 2_000, 1)
    for f in (np.positive, lambda v: np.exp(3.0 * v)):
        estimate = fdrl.mutual_information(KEY, f(x), f(y), **SMALL)
        assert estimate.value == pytest.approx(-0.5 * np.log(1 - 0.8**2), abs=0.08)
        assert 0.0 < estimate.standard_error < 0.05
    assert estimate.ratio.log_ratio(np.concatenate([x[:4], y[:4]], axis=1)).shape == (4,)


def test_mutual_information_of_few_rows_is_not_zero_and_of_independent_ones_nearly():
    for rho, groups in ((0.5, None), (0.0, np.arange(300))):
        sets = [correlated(rho, 300, seed=seed) for seed in range(5)]
        found = [fdrl.mutual_information(KEY, *xy, groups=groups, **FEW).value for xy in sets]
        assert np.mean(found) == pytest.approx(-0.5 * np.log(1 - rho**2), abs=0.04)
    assert np.abs(found).max() < 0.03


def fit_of(top=A, bottom=B, key=KEY, **options):
    return lambda: fdrl.fit_ratio(key, top, bottom, **options)


HUNDRED = np.arange(100)
NAN = Network(lambda k, x: jnp.zeros(2), lambda p, x: x @ p + jnp.nan)
BAD = [
    (lambda: fdrl.fit_ratio(A, B), TypeError, "needs a key first"),
    (lambda: fdrl.mutual_information(A, B), TypeError, "needs a key first"),
    (fit_of(key=0), TypeError, "must be a JAX key"),
    (fit_of(A[:19]), ValueError, "at least 20 examples"),
    (fit_of(A, B[:, :1]), ValueError, "same columns"),
    (fit_of(A * [np.inf, 1]), ValueError, "not finite .* in 100 of 100"),
    (fit_of(1e200 * A), ValueError, "numerator has values .* above 1e30"),
    (fit_of(A * [1.0, 0.0]), ValueError, "no density ratio"),
    (fit_of(np.ma.masked_greater(A, 1.0)), ValueError, "masked values"),
    (fit_of(A, sparse.csr_array(B)), ValueError, r"with toarray\(\)"),
    (fit_of(A.astype(str)), ValueError, "must be real numbers"),
    (fit_of(np.full((60, 2), "a", object)), ValueError, "real numbers"),
    (fit_of(SimpleNamespace(columns=[])), ValueError, "RatioEstimator takes data frames"),
    (fit_of(numerator_weights=-np.ones(100)), ValueError, "at least 0: .* has no minimum"),
    (fit_of(denominator_weights=np.ones(99)), ValueError, r"one number per row, \[100\]"),
    (fit_of(denominator_weights=HUNDRED < 19), ValueError, "above 0 for at least 20 rows"),
    (fit_of(groups=(HUNDRED, HUNDRED[1:])), ValueError, "one label per row"),
    (fit_of(groups=(HUNDRED, 0 * HUNDRED)), ValueError, "at least 5 labels"),
    (fit_of(network=lambda x: x), TypeError, r"Network\(init, apply\)"),
    (fit_of(network=nn.Dense(1)), ValueError, r"drop the last axis: `\[:, 0\]`"),
    (fit_of(network=nn.BatchNorm(use_running_average=True)), ValueError, "only 'params' are"),
    (fit_of(network=NAN), ValueError, "training diverged"),
    (fit_of(num_waymarks=33), ValueError, "from 0 to 32, got 33"),
    (fit_of(options=Options(num_steps=0)), ValueError, "num_steps must"),
    (lambda: fitted().log_ratio(np.zeros((3, 1))), ValueError, r"columns of the fit, \[B, 2\]"),
    (lambda: fitted().log_ratio(A, alpha=1.0), ValueError, "alpha must be"),
    (lambda: fitted().divergence("kll"), ValueError, "did you mean 'kl'"),
    (lambda: fdrl.mutual_information(KEY, A, B[:99]), ValueError, "one y per x, got 100 and 99"),
    (lambda: fdrl.mutual_information(KEY, A, -np.exp(A)), ValueError, "information is infinite"),
    (lambda: fdrl.mutual_information(KEY, B, np.c_[A, B.sum(1)]), ValueError, "is infinite"),
]


@pytest.mark.parametrize(("call", "kind", "message"), BAD, ids=[case[2][:30] for case in BAD])
def test_misuse_is_an_error_that_says_what_to_do(call, kind, message):
    with pytest.raises(kind, match=message):
        call()
