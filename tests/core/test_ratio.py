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


@functools.cache
def gaussians(num=2_000):
    """Samples of N(SHIFT, I) and N(0, I) in two dimensions."""
    rng = np.random.default_rng(0)
    return rng.normal(SHIFT, 1.0, (num, 2)), rng.normal(0.0, 1.0, (num, 2))


def true_log_ratio(x):
    return SHIFT * x.sum(axis=1) - SHIFT**2


@functools.cache
def fitted():
    return fdrl.fit_ratio(KEY, *gaussians(), **SMALL)


@functools.cache
def bridged():
    return fdrl.fit_ratio(KEY, *gaussians(), num_waymarks=1, **SMALL)


def with_scores(*log_ratios):
    """The fitted ratio with other rows, by their log-ratios."""
    rows = ((np.float64(v), np.full(len(v), 1 / len(v)), np.arange(len(v))) for v in log_ratios)
    return dataclasses.replace(fitted(), scores=tuple(Scores(*row) for row in rows))


@pytest.mark.parametrize(
    ("num", "shift"), [(200, -0.5), *(pytest.param(n, 0.5, marks=SLOW) for n in (200, 1_000))]
)
def test_an_easy_shift_is_found_with_default_arguments(num, shift):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sets = rng.normal(shift, 1.0, num), rng.normal(0.0, 1.0, num)
        ratio = fdrl.fit_ratio(jax.random.key(seed), *sets)
        assert ratio.check().trusted, ratio.check().verdict
        x = np.concatenate(sets)
        assert np.mean(np.abs(ratio.log_ratio(x) - (shift * x - 0.125))) < 3.6 / num**0.5
        assert np.mean(ratio.weights() * sets[1]) == pytest.approx(shift, abs=4.0 / num**0.5)


def test_heavy_tails_and_scales_do_not_matter():
    rng = np.random.default_rng(0)
    top, bottom = rng.standard_cauchy((2, 1_000)) + np.array([[1.0], [0.0]])
    ratio = fdrl.fit_ratio(KEY, top, bottom)
    x = np.concatenate([top, bottom])
    error = ratio.log_ratio(x) - np.log((1 + x**2) / (1 + (x - 1) ** 2))
    assert np.mean(np.abs(error)) < 0.15
    far = [1e4 * x + 3e5 for x in gaussians()]
    scaled = fdrl.fit_ratio(KEY, *far, **SMALL)
    np.testing.assert_allclose(
        scaled.log_ratio(far[0][:50]), fitted().log_ratio(gaussians()[0][:50]), atol=0.05
    )


def test_divergences_have_their_closed_forms():
    kl, hellinger = SHIFT**2, 2 - 2 * np.exp(-(SHIFT**2) / 4)
    for name, truth in (("kl", kl), ("reverse_kl", kl), ("hellinger", hellinger)):
        value, error = fitted().divergence(name)
        assert abs(value - truth) < 4.0 * error + 0.02
        assert 0.0 < error < 0.1


def test_the_balanced_form_is_the_divergence_for_every_registered_one():
    x = np.random.default_rng(2).normal(size=(2, 200_000)) * 0.5 + [[0.5], [0.0]]
    known = with_scores(*(2.0 * x - 0.5))
    for divergence in divergences.REGISTRY.values():
        direct = float(np.mean(divergence.f(jnp.exp(2.0 * x[1] - 0.5))))
        value, error = known.divergence(divergence)
        assert value == pytest.approx(direct, abs=0.1 + 4 * error), divergence.name


def test_weights_move_the_mean_of_the_denominator_to_that_of_the_numerator():
    ratio, bottom = fitted(), gaussians()[1]
    for weights in (np.asarray(ratio.weights(bottom)), np.asarray(ratio.weights())):
        assert weights.mean() == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_allclose((weights[:, None] * bottom).mean(axis=0), SHIFT, atol=0.15)
    exact = np.exp(true_log_ratio(bottom))
    expected = exact.sum() ** 2 / np.sum(exact**2)
    assert ratio.effective_sample_size(bottom) == pytest.approx(expected, rel=0.3)
    r = np.exp(np.asarray(ratio.log_ratio(5.0 * bottom), np.float64))
    relative = np.exp(ratio.log_ratio(5.0 * bottom, alpha=0.2))  # At most 5.
    np.testing.assert_allclose(relative, r / (0.2 * r + 0.8), rtol=1e-3)


def test_weights_of_rows_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    top, bottom = rng.normal(0.0, 1.0, (2, 3_000, 1))
    tilt = np.exp(0.7 * top[:, 0])  # N(0, 1) becomes N(0.7, 1).
    ratio = fdrl.fit_ratio(KEY, top, bottom, numerator_weights=tilt, **SMALL)
    x = np.linspace(-2.0, 2.0, 9)[:, None]
    np.testing.assert_allclose(ratio.log_ratio(x), 0.7 * x[:, 0] - 0.245, atol=0.3)
    assert ratio.check().p_value < 0.001
    out = fdrl.fit_ratio(KEY, bottom, top, denominator_weights=tilt, **SMALL).weights()
    assert np.average(top[:, 0], weights=out) == pytest.approx(0.0, abs=0.1)


def test_rows_of_a_group_count_as_one():
    groups, found = (np.repeat(np.arange(40), 25), np.repeat(np.arange(40, 80), 25)), []
    for seed in range(10):  # Subjects differ, the sets do not.
        rng = np.random.default_rng(seed)
        sets = [np.repeat(rng.normal(size=40), 25) + 0.1 * rng.normal(size=1_000) for _ in "ab"]
        found.append(fdrl.fit_ratio(KEY, *sets, groups=groups, **FEW).p_value <= 0.05)
    assert sum(found) <= 3
    assert fdrl.fit_ratio(KEY, *sets, **FEW).p_value < 0.05


def changed(change):
    """The fitted ratio with changed log-ratios of its rows."""
    return with_scores(*(change(s.log_ratio) for s in fitted().scores))


@functools.cache
def shifted(shift, num):
    """A fit without a bridge to sets with different means."""
    rng = np.random.default_rng(0)
    sets = rng.normal(shift, 1.0, (num, 1)), rng.normal(0.0, 1.0, (num, 1))
    return fdrl.fit_ratio(KEY, *sets, num_waymarks=0, **SMALL)


@pytest.mark.parametrize(
    ("make", "trusted", "usable", "words"),
    [
        (fitted, True, True, "passes all checks"),
        (lambda: shifted(2.2, 500), True, False, "Do not use its weights, worth"),
        (lambda: shifted(50.0, 500), False, False, "leave num_waymarks out"),
        (lambda: shifted(0.0, 1_000), False, False, "smallest KL that would show 0.0"),
        (lambda: changed(lambda v: 3.0 * v), False, False, "claims too much"),
        (lambda: changed(lambda v: 0.4 * v), False, False, "claims too little"),
        (lambda: changed(lambda v: -v), False, False, "must be positive"),
        (lambda: changed(lambda v: v - 1.0), False, False, "its mean over the denominator"),
    ],
)
def test_the_verdict_on_a_ratio(make, trusted, usable, words):
    ratio = make()
    check = ratio.check()
    assert (check.trusted, check.usable) == (trusted, usable), check.verdict
    assert words in check.verdict
    assert np.isfinite(ratio.log_ratio(np.zeros((1, ratio.columns.shift.size)))).all()


def test_the_figures_of_a_check_and_the_sentence_of_a_ratio():
    check = fitted().check()
    assert abs(check.mean_ratio.value - 1.0) < 4.0 * check.mean_ratio.standard_error
    assert check.auc == pytest.approx(norm.cdf(SHIFT), abs=0.03)
    assert check.slope.value == pytest.approx(1.0, abs=4.0 * check.slope.standard_error)
    assert changed(np.zeros_like).check().auc == pytest.approx(0.5)  # Ties count half.
    text = str(fitted())
    assert text.startswith("Density ratio of 2,000 over 2,000 rows with 2 columns: KL 0.")
    assert len(text) < 250


def test_the_ratio_of_equal_sets_is_near_one_but_not_set_to_one():
    ratio, x = shifted(0.0, 1_000), np.linspace(-2.0, 2.0, 9)
    assert ratio.p_value > 0.05
    assert np.abs(ratio.log_ratio(x)).mean() < 0.1
    assert np.any(ratio.log_ratio(x) != 0.0)
    assert ratio.divergence("kl").standard_error > 0.0


def test_the_true_ratio_is_refused_at_most_once_in_twenty_at_200_rows():
    refused = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        top, bottom = rng.normal(0.5, 1.0, 200), rng.normal(0.0, 1.0, 200)
        refused += not with_scores(0.5 * top - 0.125, 0.5 * bottom - 0.125).check().trusted
    assert refused <= 2


def of_sets(rng, top, bottom):
    is_top = np.repeat([1.0, 0.0], [len(top), len(bottom)])[:, None]
    return independence(rng, is_top, np.concatenate([top, bottom]))


@SLOW
def test_false_alarms_are_as_many_as_announced():
    p = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(70, 3)), rng.integers(0, 3, (70, 3)), rng.standard_cauchy((70, 3))
        p += [of_sets(rng, part[:40], part[40:]) for part in x]
        p.append(independence(rng, x[0], x[1]))
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.08


def test_the_smallest_kl_is_found_in_four_of_five_cases_and_dependence_in_all():
    kl, found = smallest_kl((100, 100), 2), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        top, bottom = rng.normal(size=(2, 100, 2))
        found += of_sets(rng, top + np.array([(2 * kl) ** 0.5, 0.0]), bottom) <= 0.05
        assert independence(rng, top, top**2 + 0.5 * bottom) <= 0.01
    assert 36 <= found <= 57


@SLOW
@pytest.mark.parametrize(
    ("stds", "means", "num_waymarks"),
    [((0.05, 1.0), (0.0, 0.0), 7), ((1.0, 1.0), (-4.0, 4.0), None)],
)
def test_a_bridge_crosses_a_chasm(stds, means, num_waymarks):
    rng = np.random.default_rng(0)
    sets = [rng.normal(mean, std, 3_000) for mean, std in zip(means, stds, strict=True)]
    ratio = fdrl.fit_ratio(KEY, *sets, num_waymarks=num_waymarks, **SMALL)
    x = np.concatenate([values[:200] for values in sets])
    upper, lower = (norm.logpdf(x, mean, std) for mean, std in zip(means, stds, strict=True))
    np.testing.assert_allclose(ratio.log_ratio(x), upper - lower, rtol=0.1, atol=2.0)
    assert len(ratio.waymarks) > 2
    assert fitted().waymarks == (0.0, 1.0)
    assert np.sum(ratio.scores[0].weight > 0) == 600  # Only these rows were held out.


def test_a_bridge_is_exact_for_correlated_gaussians():
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 2_000, 4))
    y = 0.8 * x + 0.6 * noise
    found = fdrl.mutual_information(KEY, x, y, num_waymarks=1, **FEW)
    truth = np.sum(norm.logpdf(y, 0.8 * x, 0.6) - norm.logpdf(y), axis=1)
    held_out = found.ratio.scores[0].weight > 0
    assert found.value == pytest.approx(truth[held_out].mean(), abs=0.1)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.silu(nn.Dense(16)(x)))[:, 0]


GRAPH, PARAMS = nnx.split(nnx.Linear(2, 16, rngs=nnx.Rngs(0)))
OF_NNX = Network(lambda key, x: PARAMS, lambda params, x: nnx.silu(nnx.merge(GRAPH, params)(x)))
OF_ARRAYS = Network(lambda key, x: jnp.zeros(2), lambda params, x: x @ params)


@SLOW
@pytest.mark.parametrize("network", [Dense(), OF_NNX, OF_ARRAYS], ids=["linen", "nnx", "arrays"])
@pytest.mark.parametrize("num_waymarks", [0, 1])
def test_networks_of_any_library_work(network, num_waymarks):
    more = {"network": network, "options": Options(num_steps=400, learning_rate=1e-2)}
    ratio = fdrl.fit_ratio(KEY, *gaussians(), num_waymarks=num_waymarks, **more)
    x = gaussians()[0][:200]
    assert np.corrcoef(ratio.log_ratio(x), true_log_ratio(x))[0, 1] > 0.97


@SLOW
def test_a_network_finds_what_the_regression_misses():
    rng, std = np.random.default_rng(0), 4.25**0.5  # Two modes, with the moments of the other set.
    modes = rng.normal(2.0 * rng.choice([-1.0, 1.0], 2_000), 0.5) / std
    top, bottom = np.stack([modes, rng.normal(size=2_000)], axis=1), gaussians()[1]
    ratio = fdrl.fit_ratio(KEY, top, bottom)
    assert ratio.model.heads is not None
    points = np.concatenate([top, bottom])
    x = std * points[:, 0]
    truth = np.log(0.5 * norm.pdf(x, 2, 0.5) + 0.5 * norm.pdf(x, -2, 0.5)) - norm.logpdf(x, 0, std)
    assert np.mean(np.abs(ratio.log_ratio(points) - truth)) < np.mean(np.abs(truth)) / 3


@pytest.mark.parametrize("make", [fitted, bridged])
def test_a_ratio_works_under_jit_and_grad_and_in_a_pickle(make):
    ratio = make()
    x = jnp.asarray(gaussians()[0][:3], jnp.float32)
    compiled = jax.jit(lambda r, x: r.log_ratio(x))(ratio, x)
    np.testing.assert_allclose(compiled, ratio.log_ratio(x), rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda x: ratio.log_ratio(x).sum())(x)
    np.testing.assert_allclose(slope, SHIFT, atol=0.5)
    stored = pickle.loads(pickle.dumps(ratio))
    np.testing.assert_array_equal(stored.log_ratio(x), ratio.log_ratio(x))


def test_a_second_fit_of_the_same_shapes_compiles_nothing():
    fdrl.fit_ratio(KEY, *gaussians(300))
    before = training.train._cache_size()
    second = fdrl.fit_ratio(jax.random.key(1), *(x + 0.1 for x in gaussians(300)))
    assert training.train._cache_size() == before > 0
    assert second.p_value < 0.05


def test_values_of_special_points():
    ratio = fitted()
    assert np.isnan(ratio.log_ratio(np.array([[np.nan, 0.0]]))).all()
    assert ratio.log_ratio(np.zeros((0, 2))).shape == (0,)
    many = np.tile(gaussians()[0][:3], (3_000, 1))
    np.testing.assert_allclose(
        ratio.log_ratio(many).reshape(-1, 3)[-1], ratio.log_ratio(many[:3]), rtol=1e-4, atol=1e-5
    )


@SLOW
def test_special_columns():
    constant = [np.concatenate([x, np.full((len(x), 1), 7.0)], axis=1) for x in gaussians(100)]
    of_two = fdrl.fit_ratio(KEY, *constant, **FEW)
    moved = constant[0] + np.array([0.0, 0.0, 100.0])
    np.testing.assert_array_equal(of_two.log_ratio(moved), of_two.log_ratio(constant[0]))
    late = [(1.7e12 + 86_400_000 * x).astype(np.int64) for x in gaussians(300)]
    assert np.std(fdrl.fit_ratio(KEY, *late, **FEW).log_ratio(late[0][:9])) > 0.1
    images = [x.reshape(-1, 2, 2, 1) for x in gaussians(200)]
    for num_waymarks in (0, 1):
        ratio = fdrl.fit_ratio(KEY, *images, num_waymarks=num_waymarks, **FEW)
        assert ratio.log_ratio(np.zeros((2, 2, 2, 1))).shape == (2,)
    with jax.enable_x64(True):
        again = fdrl.fit_ratio(jax.random.key(0), *gaussians(100), **FEW)
        assert np.isfinite(again.log_ratio(gaussians(100)[0])).all()


def test_mutual_information_of_gaussians_and_of_monotone_maps_of_them():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2_000, 1))
    y = 0.8 * x + 0.6 * rng.normal(size=(2_000, 1))
    truth = -0.5 * np.log(1 - 0.8**2)
    for f in (lambda v: v, lambda v: np.exp(3.0 * v)):
        estimate = fdrl.mutual_information(KEY, f(x), f(y), **SMALL)
        assert estimate.value == pytest.approx(truth, abs=0.08)
        assert 0.0 < estimate.standard_error < 0.05
    assert estimate.ratio.log_ratio(np.concatenate([x[:4], y[:4]], axis=1)).shape == (4,)


def test_mutual_information_of_few_rows_is_not_zero_and_of_independent_ones_nearly():
    found, equal = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        x, noise = rng.normal(size=(2, 300))
        y = 0.5 * x + 0.75**0.5 * noise
        found.append(fdrl.mutual_information(KEY, x, y, **FEW).value)
        estimate = fdrl.mutual_information(KEY, x, noise, groups=np.arange(300), **FEW)
        equal.append(estimate.value)
    assert np.mean(found) == pytest.approx(0.144, abs=0.04)
    assert np.abs(equal).max() < 0.03


A, B = gaussians(100)


def fit_of(top=A, bottom=B, key=KEY, **options):
    """A fit that is to fail."""
    return lambda: fdrl.fit_ratio(key, top, bottom, **options)


ONES, TEXTS = np.ones((100, 1)), np.full((60, 2), "a")
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
    (fit_of(np.c_[A, 0 * ONES], np.c_[B, ONES]), ValueError, "no density ratio"),
    (fit_of(np.ma.masked_greater(A, 1.0)), ValueError, "masked values"),
    (fit_of(A, sparse.csr_array(B)), ValueError, r"with toarray\(\)"),
    (fit_of(TEXTS), ValueError, "must be real numbers"),
    (fit_of(TEXTS.astype(object)), ValueError, "real numbers"),
    (fit_of(SimpleNamespace(columns=[])), ValueError, "RatioEstimator takes data frames"),
    (fit_of(numerator_weights=-np.ones(100)), ValueError, "at least 0: .* has no minimum"),
    (fit_of(denominator_weights=np.ones(99)), ValueError, r"one number per row, \[100\]"),
    (fit_of(groups=(HUNDRED, HUNDRED[1:])), ValueError, "one label per row"),
    (fit_of(groups=(HUNDRED, 0 * HUNDRED)), ValueError, "at least 5 labels"),
    (fit_of(network=lambda x: x), TypeError, r"Network\(init, apply\)"),
    (fit_of(network=nn.Dense(1)), ValueError, r"drop the last axis: `\[:, 0\]`"),
    (fit_of(network=nn.BatchNorm(use_running_average=True)), ValueError, "only 'params' are"),
    (fit_of(network=NAN), ValueError, "training diverged"),
    (fit_of(num_waymarks=33), ValueError, "from 0 to 32, got 33"),
    (fit_of(options=Options(num_steps=0)), ValueError, "num_steps must"),
    (fit_of(options=Options(learning_rate=-1.0)), ValueError, "learning_rate must"),
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
