"""Fits of density ratios: closed forms, contracts over networks, evidence, and bad input."""

import dataclasses
import functools
import pickle

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
from fdrl_jax.ratio import Network, Options, Trunk, base, fit, training
from fdrl_jax.ratio.equality import independence, smallest_kl
from fdrl_jax.ratio.result import Estimate, Scores, area_under_curve
from fdrl_jax.ratio.training import LAST, refine, spread, waymarks

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


def with_scores(ratio, top, bottom):
    """The ratio with other log-ratios of its rows."""
    scores = [
        s._replace(log_ratio=np.asarray(values, np.float64))
        for s, values in zip(ratio.scores, (top, bottom), strict=True)
    ]
    return dataclasses.replace(ratio, scores=tuple(scores))


# The ratio of easy sets is found.


@pytest.mark.parametrize(
    ("num", "shift", "limit"),
    [
        (200, -0.5, 0.25),
        pytest.param(200, 0.5, 0.25, marks=pytest.mark.slow),
        pytest.param(1_000, 0.5, 0.12, marks=pytest.mark.slow),
    ],
)
def test_an_easy_shift_is_found_with_default_arguments(num, shift, limit):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sets = rng.normal(shift, 1.0, num), rng.normal(0.0, 1.0, num)
        ratio = fdrl.fit_ratio(jax.random.key(seed), *sets)
        check = ratio.check()
        assert check.trusted, check.verdict
        x = np.concatenate(sets)
        assert np.mean(np.abs(ratio.log_ratio(x) - (shift * x - 0.125))) < limit
        weights = ratio.weights()
        assert np.mean(weights * sets[1]) == pytest.approx(shift, abs=4.0 / num**0.5)


def test_equal_sets_are_not_enough_evidence_and_their_ratio_is_near_one():
    x = gaussians()[1]
    ratio = fdrl.fit_ratio(KEY, x[:1_000], x[1_000:], **SMALL)
    check = ratio.check()
    assert check.p_value > 0.05
    assert not check.trusted
    assert "not enough evidence to distinguish" in check.verdict
    assert "smallest KL that would show 0.0" in check.verdict
    assert np.abs(ratio.log_ratio(x)).mean() < 0.1
    assert np.any(ratio.log_ratio(x) != 0.0)
    assert ratio.divergence("kl").standard_error > 0.0


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


@pytest.mark.parametrize(
    ("name", "truth"),
    [("kl", SHIFT**2), ("reverse_kl", SHIFT**2), ("hellinger", 2 - 2 * np.exp(-(SHIFT**2) / 4))],
)
def test_divergences_have_their_closed_forms(name, truth):
    value, error = fitted().divergence(name)
    assert abs(value - truth) < 4.0 * error + 0.02
    assert 0.0 < error < 0.1


def test_the_balanced_form_is_the_divergence_for_every_registered_one():
    x = np.random.default_rng(2).normal(size=(2, 200_000)) * 0.5 + [[0.5], [0.0]]
    scores = [Scores(2.0 * v - 0.5, np.full(len(v), 1 / len(v)), np.arange(len(v))) for v in x]
    known = dataclasses.replace(fitted(), scores=tuple(scores))
    for divergence in divergences.REGISTRY.values():
        direct = float(np.mean(divergence.f(jnp.exp(2.0 * x[1] - 0.5))))
        value, error = known.divergence(divergence)
        assert value == pytest.approx(direct, abs=0.1 + 4 * error), divergence.name


def test_weights_move_the_mean_of_the_denominator_to_that_of_the_numerator():
    ratio, bottom = fitted(), gaussians()[1]
    exact = np.exp(true_log_ratio(bottom))
    for weights in (np.asarray(ratio.weights(bottom)), np.asarray(ratio.weights())):
        assert weights.mean() == pytest.approx(1.0, abs=1e-4)
        np.testing.assert_allclose((weights[:, None] * bottom).mean(axis=0), SHIFT, atol=0.15)
    expected = exact.sum() ** 2 / np.sum(exact**2)
    assert ratio.effective_sample_size(bottom) == pytest.approx(expected, rel=0.3)


def test_the_relative_ratio_is_bounded():
    x = np.float32(5.0 * gaussians()[0][:100])
    r = np.exp(np.asarray(fitted().log_ratio(x), np.float64))
    relative = np.exp(fitted().log_ratio(x, alpha=0.2))
    np.testing.assert_allclose(relative, r / (0.2 * r + 0.8), rtol=1e-3)


# Weights and groups of rows.


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


def test_rows_of_a_group_are_in_one_fold_and_count_as_one():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 25), np.repeat(np.arange(40, 80), 25)
    folds = fit.assign_folds(rng, (1_000, 1_000), groups)
    for labels, part in zip(groups, folds, strict=True):
        assert all(len(set(part[labels == label])) == 1 for label in set(labels))
        assert np.bincount(part).tolist() == [200] * 5
    found = []
    for seed in range(10):  # Subjects differ, the sets do not.
        rng = np.random.default_rng(seed)
        sets = [np.repeat(rng.normal(size=40), 25) + 0.1 * rng.normal(size=1_000) for _ in "ab"]
        found.append(fdrl.fit_ratio(KEY, *sets, groups=groups, **FEW).p_value <= 0.05)
    assert sum(found) <= 3
    assert fdrl.fit_ratio(KEY, *sets, **FEW).p_value < 0.05


# The check.


def test_a_good_ratio_is_trusted_and_says_so_in_a_sentence():
    check = fitted().check()
    assert check.trusted
    assert check.usable
    assert "passes all checks" in check.verdict
    assert abs(check.mean_ratio.value - 1.0) < 4.0 * check.mean_ratio.standard_error
    assert check.auc.value == pytest.approx(norm.cdf(SHIFT), abs=0.03)
    assert check.slope.value == pytest.approx(1.0, abs=4.0 * check.slope.standard_error)
    text = str(fitted())
    assert text.startswith("Density ratio of 2,000 over 2,000 rows with 2 columns: KL 0.")
    assert len(text) < 250


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v: 3.0 * v, "claims too much"),
        (lambda v: 0.4 * v, "claims too little"),
        (lambda v: -v, "must be positive"),
        (lambda v: v - 1.0, "its mean over the denominator"),
    ],
)
def test_a_wrong_ratio_is_not_trusted(change, reason):
    ratio = fitted()
    check = with_scores(ratio, *(change(s.log_ratio) for s in ratio.scores)).check()
    assert not check.trusted
    assert not check.usable
    assert reason in check.verdict


def test_the_true_ratio_is_refused_at_most_once_in_twenty_at_200_rows():
    refused, ratio = 0, fdrl.fit_ratio(KEY, *gaussians(200), **FEW)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        top, bottom = rng.normal(0.5, 1.0, 200), rng.normal(0.0, 1.0, 200)
        refused += not with_scores(ratio, 0.5 * top - 0.125, 0.5 * bottom - 0.125).check().trusted
    assert refused <= 2


def test_weights_that_are_worth_few_rows_are_not_usable_although_the_ratio_is_right():
    rng = np.random.default_rng(0)
    sets = rng.normal(2.2, 1.0, (500, 1)), rng.normal(0.0, 1.0, (500, 1))
    check = fdrl.fit_ratio(KEY, *sets, num_waymarks=0, **SMALL).check()
    assert check.trusted, check.verdict
    assert not check.usable
    assert "Do not use its weights" in check.verdict


def test_separable_sets_are_not_trusted_without_a_bridge():
    top, bottom = gaussians()
    ratio = fdrl.fit_ratio(KEY, top + 50.0, bottom, num_waymarks=0, **SMALL)
    assert np.isfinite(ratio.log_ratio(top + 50.0)).all()
    check = ratio.check()
    assert not check.trusted
    assert "leave num_waymarks out" in check.verdict


# The test of equality.


def of_sets(rng, top, bottom):
    is_top = np.repeat([1.0, 0.0], [len(top), len(bottom)])[:, None]
    return independence(rng, is_top, np.concatenate([top, bottom]))


@pytest.mark.slow
def test_false_alarms_are_as_many_as_announced():
    p = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(70, 3)), rng.integers(0, 3, (70, 3)), rng.standard_cauchy((70, 3))
        p += [of_sets(rng, part[:40], part[40:]) for part in x]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.08


def test_dependence_is_found_and_independence_is_not():
    p = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(2, 100, 2))
        p.append(independence(rng, x, y))
        assert independence(rng, x, x**2 + 0.5 * y) <= 0.01
    assert np.mean(np.array(p) <= 0.05) <= 0.15


def test_the_smallest_kl_is_found_in_four_of_five_cases():
    kl, found = smallest_kl((100, 100), 2), 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        top, bottom = rng.normal(size=(2, 100, 2))
        found += of_sets(rng, top + np.array([(2 * kl) ** 0.5, 0.0]), bottom) <= 0.05
    assert 36 <= found <= 57


# Bridges.


@pytest.mark.slow
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


def test_waymarks_start_at_the_numerator_and_end_at_the_denominator():
    top, bottom = jnp.ones((4, 2)), jnp.arange(8.0).reshape(4, 2)
    marks = waymarks(top, bottom, jnp.array([True, False]), jnp.array([0, LAST // 2, LAST]))
    np.testing.assert_allclose(marks[0], top)
    np.testing.assert_array_equal(marks[-1, :, 0], bottom[:, 0])
    np.testing.assert_allclose(marks[1, :, 0], (1.0 + bottom[:, 0]) / 2**0.5, rtol=1e-5)
    np.testing.assert_array_equal(marks[..., 1], 1.0)  # Copied from the numerator.
    assert refine((0, 8, 16), np.array([0.95, 0.7])) == (0, 4, 8, 16)
    assert spread(3) == (0, 256, 512, 768, 1024)


# Networks.


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.silu(nn.Dense(16)(x)))[:, 0]


def nnx_network():
    graph, params = nnx.split(nnx.Linear(2, 16, rngs=nnx.Rngs(0)))
    return Network(lambda key, x: params, lambda p, x: nnx.silu(nnx.merge(graph, p)(x)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [Dense, nnx_network, lambda: Network(lambda k, x: jnp.zeros(2), lambda p, x: x @ p)]
)
@pytest.mark.parametrize("num_waymarks", [0, 1])
def test_networks_of_any_library_work(make, num_waymarks):
    options = Options(num_steps=400, learning_rate=1e-2)
    ratio = fdrl.fit_ratio(
        KEY, *gaussians(), num_waymarks=num_waymarks, network=make(), options=options
    )
    x = gaussians()[0][:200]
    assert np.corrcoef(ratio.log_ratio(x), true_log_ratio(x))[0, 1] > 0.97


@pytest.mark.slow
def test_a_network_finds_what_the_regression_misses():
    rng = np.random.default_rng(0)
    sign = rng.choice([-1.0, 1.0], 2_000)
    modes = np.stack([2.0 * sign + 0.5 * rng.normal(size=2_000), rng.normal(size=2_000)], axis=1)
    modes = (modes - modes.mean(axis=0)) / modes.std(axis=0)
    ratio = fdrl.fit_ratio(KEY, modes, gaussians()[1])
    assert ratio.heads is not None
    std = (4.0 + 0.25) ** 0.5
    points = np.concatenate([modes, gaussians()[1]])
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
    before = training._run._cache_size()
    second = fdrl.fit_ratio(jax.random.key(1), *(x + 0.1 for x in gaussians(300)))
    assert training._run._cache_size() == before > 0
    assert second.p_value < 0.05


def test_values_of_special_points():
    ratio = fitted()
    assert np.isnan(ratio.log_ratio(np.array([[np.nan, 0.0]]))).all()
    assert ratio.log_ratio(np.zeros((0, 2))).shape == (0,)
    many = np.tile(gaussians()[0][:3], (3_000, 1))
    np.testing.assert_allclose(
        ratio.log_ratio(many).reshape(-1, 3)[-1], ratio.log_ratio(many[:3]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.slow
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


# Mutual information.


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


# Errors.


class Frame:
    """A data frame, as far as the library looks at it."""

    columns = ("a", "b")


def fit_of(top=None, bottom=None, key=KEY, **options):
    """A fit that is to fail."""
    top, bottom = (
        x if y is None else y for x, y in zip(gaussians(100), (top, bottom), strict=True)
    )
    return lambda: fdrl.fit_ratio(key, top, bottom, **options)


A, B = gaussians(100)
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
    (fit_of(1e200 * A), ValueError, "numerator has values above 1e30"),
    (fit_of(np.c_[A, 0 * ONES], np.c_[B, ONES]), ValueError, "no density ratio"),
    (fit_of(np.ma.masked_greater(A, 1.0)), ValueError, "masked values"),
    (fit_of(A, sparse.csr_array(B)), ValueError, r"with toarray\(\)"),
    (fit_of(TEXTS), ValueError, "must be real numbers"),
    (fit_of(TEXTS.astype(object)), ValueError, "real numbers"),
    (fit_of(Frame()), ValueError, "RatioEstimator takes data frames"),
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


def test_the_area_under_the_curve_counts_ties_half_and_weights():
    assert area_under_curve([1.0, 2.0], [0.0, 2.0]) == pytest.approx(0.625)
    assert area_under_curve([1.0, 2.0], [0.0, 2.0], [1.0, 0.0], [0.5, 0.5]) == pytest.approx(0.5)
    assert Estimate(2.0, 0.1).outside(0.5, 1.5)
    assert not Estimate(2.0, 0.3).outside(0.5, 1.5)


def test_the_regression_is_exact_for_gaussians_and_ranks_are_normal():
    rng = np.random.default_rng(0)
    rows = rng.normal([1.0, 0.0], [1.0, 2.0], (4_000, 2)), rng.normal(size=(4_000, 2))
    weights, folds = (np.full(4_000, 1 / 4_000),) * 2, (np.arange(4_000) % 5,) * 2
    _, ranked = base.plain_and_ranked(rows, weights)
    quadratic = base.Quadratic(*(part[0] for part in base.fit(rows, weights, folds)))
    found = quadratic(rows[0])[:, 0]
    truth = norm.logpdf(rows[0], [1, 0], [1, 2]).sum(1) - norm.logpdf(rows[0]).sum(1)
    assert np.mean(np.abs(found - truth)) < 0.1
    scores = np.concatenate([ranked.normalised(jnp.float32(ranked.standardised(x))) for x in rows])
    np.testing.assert_allclose(scores.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(scores.std(axis=0), 1.0, atol=0.05)
