"""Fits of density ratios: closed forms, contracts over losses, bridges and networks, bad input."""

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
from fdrl_jax import bregman, divergences
from fdrl_jax.ratio import Network, Quadratic, Trunk
from fdrl_jax.ratio.bridges import LAST, Samples, adjacent, moments, refine, spread, waymarks
from fdrl_jax.ratio.network import to_log_ratio
from fdrl_jax.ratio.result import _balanced, _calibration, area_under_curve

KEY = jax.random.key(0)
SHIFT = 0.8
SMALL = {"network": Trunk((32,)), "num_steps": 200, "learning_rate": 1e-2}


@functools.cache
def gaussians(num=2_000):
    """Samples of N(SHIFT, I) and N(0, I) in two dimensions."""
    rng = np.random.default_rng(0)
    return rng.normal(SHIFT, 1.0, (num, 2)), rng.normal(0.0, 1.0, (num, 2))


def true_log_ratio(x):
    return SHIFT * x.sum(axis=1) - SHIFT**2


@functools.cache
def fitted(loss="lr", bridge="none"):
    num_waymarks = None if bridge == "none" else 2
    return fdrl.fit_ratio(
        KEY, *gaussians(), loss=loss, bridge=bridge, num_waymarks=num_waymarks, **SMALL
    )


@pytest.mark.parametrize("bridge", ["none", "mixing"])
@pytest.mark.parametrize("loss", bregman.REGISTRY)
def test_every_loss_and_bridge_finds_the_ratio_of_gaussians(loss, bridge):
    ratio = fitted(loss, bridge)
    x = np.random.default_rng(1).normal(SHIFT / 2, 0.8, (500, 2))
    error = np.asarray(ratio.log_ratio(x)) - true_log_ratio(x)
    assert np.mean(np.abs(error)) < 0.5
    assert np.corrcoef(ratio.log_ratio(x), true_log_ratio(x))[0, 1] > 0.95
    assert len(ratio.aucs) == len(ratio.waymarks) - 1 == (1 if bridge == "none" else 3)


def test_swapping_the_sets_changes_the_sign():
    swapped = fdrl.fit_ratio(KEY, *gaussians()[::-1], bridge="none", **SMALL)
    x = gaussians()[0][:200]
    np.testing.assert_allclose(swapped.log_ratio(x), -true_log_ratio(x), atol=1.0)


def test_a_ratio_does_not_depend_on_the_scale_of_features():
    top, bottom = (1e4 * x + 3e5 for x in gaussians())
    scaled = fdrl.fit_ratio(KEY, top, bottom, bridge="none", **SMALL)
    np.testing.assert_allclose(
        scaled.log_ratio(top[:50]), fitted().log_ratio(gaussians()[0][:50]), atol=0.05
    )


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("kl", SHIFT**2),
        ("reverse_kl", SHIFT**2),
        ("hellinger", 2.0 - 2.0 * np.exp(-(SHIFT**2) / 4.0)),
    ],
)
def test_divergences_have_their_closed_forms(name, truth):
    value, error = fitted().divergence(name)
    assert abs(value - truth) < 4.0 * error + 0.05
    assert 0.0 < error < 0.1


def test_the_balanced_form_is_the_divergence_for_every_registered_one():
    x = np.random.default_rng(2).normal(size=(2, 200_000, 1)) * 0.5 + [[[0.5]], [[0.0]]]
    log_r = 2.0 * x[..., 0] - 0.5
    ratio = fitted()

    class Known(type(ratio)):
        def log_ratio(self, x):
            return x

    known = Known(**{name: getattr(ratio, name) for name in ratio.__dataclass_fields__})
    for divergence in divergences.REGISTRY.values():
        direct = float(np.mean(divergence.f(jnp.exp(log_r[1]))))
        value, error = known.divergence(divergence, *log_r)
        assert value == pytest.approx(direct, abs=0.1 + 4 * error), divergence.name


def test_the_error_of_a_divergence_is_that_of_a_bootstrap():
    log_r = np.asarray(fitted().log_ratio(gaussians()[0][:400]))
    rng = np.random.default_rng(0)
    means = [rng.choice(log_r, len(log_r)).mean() for _ in range(2_000)]
    error = fitted().divergence("kl", gaussians()[0][:400]).standard_error
    assert error == pytest.approx(np.std(means), rel=0.1)


def test_weights_move_the_mean_of_the_denominator_to_that_of_the_numerator():
    ratio, bottom = fitted(), gaussians()[1]
    weights = np.asarray(ratio.weights(bottom))
    assert weights.mean() == pytest.approx(1.0, abs=1e-4)
    np.testing.assert_allclose((weights[:, None] * bottom).mean(axis=0), SHIFT, atol=0.15)
    truncated = np.asarray(ratio.weights(bottom, truncate=2.0))
    assert truncated.mean() == pytest.approx(1.0, abs=1e-4)
    assert truncated.max() < weights.max()
    exact = np.exp(true_log_ratio(bottom))
    expected = exact.sum() ** 2 / np.sum(exact**2)
    assert ratio.effective_sample_size(bottom) == pytest.approx(expected, rel=0.3)


def test_importance_weights_are_those_of_the_ratio():
    weights = fdrl.importance_weights(KEY, *gaussians(), truncate=3.0, bridge="none", **SMALL)
    np.testing.assert_allclose(
        weights, fitted().weights(gaussians()[1], truncate=3.0), rtol=1e-4, atol=1e-5
    )


def test_a_good_ratio_is_trusted():
    check = fitted().check(KEY)
    assert check.trusted
    assert "passes all checks" in check.verdict
    assert abs(check.mean_ratio.value - 1.0) < 0.2
    assert check.auc == pytest.approx(0.788, abs=0.05)  # Phi(SHIFT): the distance is sqrt(2) SHIFT.
    assert check.reweighted_auc < 0.6
    seen = np.isfinite(check.predicted)
    np.testing.assert_allclose(check.predicted[seen], check.observed[seen], atol=0.2)


@pytest.mark.parametrize(
    ("factor", "reason"), [(-1.0, "must be positive"), (0.2, "probabilities are off")]
)
def test_a_wrong_ratio_is_not_trusted(factor, reason):
    ratio = fitted()
    params = ratio.params | {name: factor * ratio.params[name] for name in ("kernel", "bias")}
    check = dataclasses.replace(ratio, params=params).check(KEY)
    assert not check.trusted
    assert reason in check.verdict


def test_equal_distributions_have_the_ratio_one_and_it_is_said():
    x = gaussians()[1]
    ratio = fdrl.fit_ratio(KEY, x[:1_000], x[1_000:], bridge="none", **SMALL)
    assert not ratio.differs
    np.testing.assert_array_equal(ratio.log_ratio(x[:5]), 0.0)
    assert "cannot be distinguished" in ratio.check(KEY).verdict
    assert ratio.divergence("kl") == (0.0, 0.0)


def test_separable_sets_are_finite_not_trusted_and_a_bridge_is_suggested():
    top, bottom = gaussians()
    ratio = fdrl.fit_ratio(KEY, top + 50.0, bottom, bridge="none", **SMALL)
    assert np.isfinite(ratio.log_ratio(top + 50.0)).all()
    check = ratio.check(KEY)
    assert not check.trusted
    assert "bridge='mixing'" in check.verdict


def test_waymarks_are_added_only_where_sets_are_separable():
    top, bottom = gaussians()
    near = fdrl.fit_ratio(KEY, top, bottom, **SMALL)
    assert near.waymarks == (0.0, 1.0)
    rng = np.random.default_rng(0)
    narrow = 0.05 * rng.normal(size=(2_000, 2))
    far = fdrl.fit_ratio(KEY, narrow, bottom, **(SMALL | {"num_steps": 200}))
    assert len(far.waymarks) > 2
    truth = 2 * (np.log(1 / 0.05) - 0.5 + 0.5 * 0.05**2)
    assert far.divergence("kl").value == pytest.approx(truth, rel=0.35)


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.silu(nn.Dense(32)(x)))[:, 0]


def nnx_network():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(2, 32, rngs=rngs)
            self.out = nnx.Linear(32, 1, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.silu(self.hidden(x)))[:, 0]

    graph, params = nnx.split(Net(nnx.Rngs(0)))
    return Network(lambda key, x: params, lambda params, x: nnx.merge(graph, params)(x))


def partitioned_network():
    """A pytree of arrays and a function of one example, as of `equinox.partition`."""
    k1, k2 = jax.random.split(KEY)
    arrays = {"w": 0.5 * jax.random.normal(k1, (2, 32)), "v": 0.1 * jax.random.normal(k2, (32,))}

    def model(arrays, point):
        return jax.nn.silu(point @ arrays["w"]) @ arrays["v"]

    return Network(lambda key, x: arrays, jax.vmap(model, (None, 0)))


@pytest.mark.parametrize(
    "make",
    [
        Dense,
        nnx_network,
        partitioned_network,
        Quadratic,
        lambda: Network(lambda key, x: jnp.zeros(3), lambda p, x: x @ p[:2] + p[2]),
    ],
)
def test_networks_of_any_library_work_with_waymarks(make):
    options = SMALL | {"network": make(), "num_waymarks": 1}
    ratio = fdrl.fit_ratio(KEY, *gaussians(), **options)
    x = gaussians()[0][:200]
    assert np.corrcoef(ratio.log_ratio(x), true_log_ratio(x))[0, 1] > 0.97


@pytest.mark.parametrize(
    ("stds", "means"), [((0.05, 1.0), (0.0, 0.0)), ((1.0, 1.0), (-4.0, 4.0))], ids=["scale", "gap"]
)
def test_a_bridge_crosses_a_chasm(stds, means):
    rng = np.random.default_rng(0)
    sets = [rng.normal(mean, std, 3_000) for mean, std in zip(means, stds, strict=True)]
    ratio = fdrl.fit_ratio(KEY, *sets, num_waymarks=7, **SMALL)
    x = np.concatenate([values[:200] for values in sets])
    upper, lower = (norm.logpdf(x, mean, std) for mean, std in zip(means, stds, strict=True))
    np.testing.assert_allclose(ratio.log_ratio(x), upper - lower, rtol=0.1, atol=2.0)


def test_images_and_numbers_are_accepted():
    rng = np.random.default_rng(0)
    sets = rng.normal(0.5, 1, (200, 2, 2, 1)), rng.normal(size=(200, 2, 2, 1))
    images = fdrl.fit_ratio(KEY, *sets, num_waymarks=1, **SMALL)
    assert images.log_ratio(np.zeros((2, 2, 2, 1))).shape == (2,)
    sets = rng.normal(1, 1, 500), rng.normal(0, 1, 500)
    numbers = fdrl.fit_ratio(KEY, *sets, bridge="none", **SMALL)
    low, high = numbers.log_ratio(np.array([-1.0, 2.0]))
    assert low < 0 < high


def test_a_ratio_works_under_jit_and_grad_and_is_a_pytree():
    ratio = fitted()
    x = jnp.asarray(gaussians()[0][:3])
    compiled = jax.jit(lambda r, x: r.log_ratio(x))(ratio, x)
    np.testing.assert_allclose(compiled, ratio.log_ratio(x), rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda x: ratio.log_ratio(x).sum())(x)
    np.testing.assert_allclose(slope, SHIFT, atol=0.5)


def test_a_pickled_ratio_has_the_same_values():
    x = gaussians()[0][:5]
    for ratio in (fitted(), fitted("lsif"), fitted(bridge="mixing")):
        stored = pickle.loads(pickle.dumps(ratio))
        assert stored.loss is ratio.loss
        np.testing.assert_array_equal(stored.log_ratio(x), ratio.log_ratio(x))
    own = bregman.LR._replace(name="own", g=None, g_prime=None, real_term=None, flowed_term=None)
    assert pickle.loads(pickle.dumps(own)) == own


def test_far_points_keep_their_learnt_ratio():
    of_x = Network(lambda key, x: jnp.ones(1), lambda params, x: params * x[:, 0])
    ratio = fdrl.fit_ratio(KEY, *gaussians(100), network=of_x, bridge="none", num_steps=1)
    ratio = dataclasses.replace(ratio, differs=True, mean=jnp.zeros(2), inverse_std=jnp.ones(2))
    x = np.array([[1e5, 0.0], [2.0**33, 0.0]], np.float32)
    np.testing.assert_allclose(ratio.log_ratio(x) / ratio.log_ratio(x / 2**17), 2.0**17, rtol=1e-5)


@pytest.mark.parametrize("sizes", [(40, 40), (40, 2_000), (2_000, 40)])
def test_the_calibration_of_the_true_ratio_is_accepted_at_all_sizes(sizes):
    rng, num_wrong = np.random.default_rng(1), 0
    for _ in range(50):
        top, bottom = rng.normal(0.5, 1.0, sizes[0]), rng.normal(-0.5, 1.0, sizes[1])
        num_wrong += _calibration(top, bottom)[2] > 0.05  # Here, log r(x) is x.
    assert num_wrong <= 6


def test_a_divergence_of_separated_sets_is_finite():
    top, bottom = (np.linspace(a, b, 50) for a, b in ((50.0, 79.0), (-79.0, -50.0)))
    for divergence in (divergences.PEARSON, divergences.get("js")):
        terms = [_balanced(divergence, log_r) for log_r in (top, bottom)]
        assert all(np.isfinite(term).all() for term in terms)


def test_large_inputs_are_evaluated_in_parts_with_the_same_result():
    x = np.tile(gaussians()[0][:3], (3_000, 1))
    values = fitted().log_ratio(x).reshape(-1, 3)
    np.testing.assert_allclose(values[-1], fitted().log_ratio(x[:3]), rtol=1e-4, atol=1e-5)


def test_observed_training_equals_unobserved_training():
    seen = []
    ratio = fdrl.fit_ratio(
        KEY, *gaussians(), bridge="none", observe=lambda *args: seen.append(args), **SMALL
    )
    assert [step for step, _, _ in seen] == list(range(10, 10 * len(seen) + 1, 10))
    assert {total for _, total, _ in seen} == {200}
    assert seen[-1][2] < seen[0][2]
    x = gaussians()[0][:20]
    np.testing.assert_allclose(ratio.log_ratio(x), fitted().log_ratio(x), rtol=1e-3, atol=1e-4)


def test_training_stops_early_when_the_held_out_loss_grows():
    rng = np.random.default_rng(0)
    sets = rng.normal(0.5, 1, (40, 10)), rng.normal(0, 1, (40, 10))
    ratio = fdrl.fit_ratio(KEY, *sets, bridge="none", num_steps=2_000, network=Trunk((64,)))
    assert ratio.num_steps < 2_000


def test_mutual_information_of_correlated_gaussians():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5_000, 2))
    y = 0.8 * x + 0.6 * rng.normal(size=(5_000, 2))
    estimate = fdrl.mutual_information(KEY, x, y, **(SMALL | {"num_steps": 600}))
    truth = -2 * 0.5 * np.log(1 - 0.8**2)
    assert estimate.value == pytest.approx(truth, abs=0.12)
    assert 0.0 < estimate.standard_error < 0.1
    pair = np.concatenate([x[:4], y[:4]], axis=1)
    assert estimate.ratio.log_ratio(pair).shape == (4,)


def test_mutual_information_of_independent_samples_is_zero():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 2_000))
    assert fdrl.mutual_information(KEY, x, y, **SMALL).value == 0.0


# The parts.


def test_waymarks_start_at_the_numerator_and_end_at_the_denominator():
    top, bottom = jnp.ones((4, 2)), jnp.arange(10.0).reshape(5, 2)
    samples = Samples(top, bottom, jnp.array([True, False]))
    rows, shift = jnp.arange(4), jnp.ones(4, int)
    marks = waymarks(samples, jnp.array([0, LAST // 2, LAST]), rows, shift)
    np.testing.assert_allclose(marks[0], top)
    np.testing.assert_array_equal(marks[-1, :, 0], bottom[1:, 0])
    np.testing.assert_allclose(marks[1, :, 0], (1.0 + bottom[1:, 0]) / 2**0.5, rtol=1e-5)
    np.testing.assert_array_equal(marks[..., 1], 1.0)  # Copied from the numerator.


def test_gaussians_of_waymarks_have_their_moments_and_none_without_waymarks():
    rng = np.random.default_rng(0)
    top, bottom = rng.normal(1.0, 0.1, (40_000, 2)), rng.normal(-1.0, 2.0, (40_000, 2))
    samples = Samples(jnp.asarray(top), jnp.asarray(bottom), jnp.array([True, False]))
    positions, rows = jnp.asarray(spread(1)), jnp.arange(40_000)
    marks = waymarks(samples, positions, rows, jnp.ones_like(rows))
    found = moments(samples, positions)
    np.testing.assert_allclose(found.mean[:, 0], marks[..., 0].mean(axis=1), atol=0.01)
    np.testing.assert_allclose(found.variance[:, 0], marks[..., 0].var(axis=1), rtol=0.02)
    # The second feature is the same in all waymarks.
    np.testing.assert_array_equal(found.variance[:, 1], 1.0)
    upper, lower = adjacent(moments(samples, jnp.array([0, LAST])), marks[::2])
    np.testing.assert_array_equal([upper, lower], 0.0)


def test_only_pairs_that_are_far_apart_are_divided():
    assert refine((0, 8, 16), np.array([0.95, 0.7]), 0.9) == (0, 4, 8, 16)
    assert refine((0, 1, 2), np.array([0.95, 0.95]), 0.9) == (0, 1, 2)
    assert spread(3) == (0, 256, 512, 768, 1024)


def test_the_ratio_of_lsif_is_positive_and_starts_at_one():
    out = jnp.array([0.0, -5.0, -30.0, 5.0])
    expected = np.log(np.logaddexp(0.0, np.asarray(out, np.float64) + np.log(np.e - 1.0)))
    np.testing.assert_allclose(to_log_ratio(bregman.LSIF, out), expected, rtol=1e-4, atol=1e-6)
    slope = jax.vmap(jax.grad(lambda o: to_log_ratio(bregman.LSIF, o)))(out)
    assert np.isfinite(slope).all()


def test_the_area_under_the_curve_counts_ties_half():
    assert area_under_curve([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert area_under_curve([1.0, 1.0], [1.0]) == 0.5
    assert area_under_curve([0.0], [1.0, -1.0]) == 0.5


# Bad input.


def bad_sets():
    top, bottom = gaussians(100)
    nan = top.copy()
    nan[3, 1] = np.nan
    return {
        "same features": (top, bottom[:, :1]),
        "at least 20 examples": (top[:19], bottom),
        "numerator has values that are not finite": (nan, bottom),
        "denominator has values that are not finite": (top, nan * np.inf),
    }


@pytest.mark.parametrize("message", bad_sets())
def test_bad_sets_are_an_error(message):
    with pytest.raises(ValueError, match=message):
        fdrl.fit_ratio(KEY, *bad_sets()[message])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bridge": "mixin"}, "did you mean 'mixing'"),
        ({"loss": "lsf"}, "did you mean 'lsif'"),
        ({"bridge": "none", "num_waymarks": 3}, "num_waymarks must be"),
        ({"num_waymarks": 99}, "from 0 to 32"),
        ({"max_auc": 0.4}, "max_auc must be"),
        ({"held_out_fraction": 0.0}, "held_out_fraction must be"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"learning_rate": -1e-3}, "learning_rate must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"bridge": None}, "unknown bridge None; did you mean 'none'"),
        ({"loss": None}, "unknown Bregman loss None. Allowed: lsif, lr, ukl"),
        ({"network": Network(lambda k, x: jnp.zeros(2), lambda p, x: (x @ p)[:, None])}, "drop"),
        ({"network": Network(lambda k, x: jnp.zeros(2, int), lambda p, x: x @ p)}, "floating"),
        ({"network": nn.BatchNorm(use_running_average=False)}, "only 'params' are trained"),
    ],
)
def test_bad_options_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        fdrl.fit_ratio(KEY, *gaussians(100), **options)


def test_a_network_without_init_and_apply_is_an_error_that_says_how_to_wrap_it():
    with pytest.raises(TypeError, match=r"wrap it as fdrl.ratio.Network\(init, apply\)"):
        fdrl.fit_ratio(KEY, *gaussians(100), network=lambda x: x.sum(-1))


def test_a_seed_in_place_of_a_key_is_an_error():
    with pytest.raises(TypeError, match="must be a JAX key"):
        fdrl.fit_ratio(0, *gaussians(100))


def test_points_with_other_features_are_an_error():
    with pytest.raises(ValueError, match=r"features of the fit, \[B, 2\]"):
        fitted().log_ratio(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="truncate must be above 0"):
        fitted().weights(gaussians()[1], truncate=0.0)


def test_x_and_y_that_are_not_pairs_are_an_error():
    with pytest.raises(ValueError, match="one y per x, got 100 and 99"):
        fdrl.mutual_information(KEY, gaussians(100)[0], gaussians(100)[0][:99])


def test_constant_features_are_ignored():
    sets = [np.concatenate([x, np.full((len(x), 1), 7.0)], axis=1) for x in gaussians()]
    ratio = fdrl.fit_ratio(KEY, *sets, bridge="none", **SMALL)
    moved = sets[0][:50] + np.array([0.0, 0.0, 100.0])
    np.testing.assert_array_equal(ratio.log_ratio(moved), ratio.log_ratio(sets[0][:50]))


def test_a_feature_that_is_constant_in_one_set_only_is_a_warning():
    top, bottom = (x.copy() for x in gaussians(100))
    top[:, 0] = 0.0
    with pytest.warns(UserWarning, match="1 of 2 features are constant in one set"):
        fdrl.fit_ratio(KEY, top, bottom, bridge="none", **(SMALL | {"num_steps": 2}))


def test_a_feature_that_varies_too_little_to_be_used_is_a_warning():
    late, early = (1.7e9 + x for x in gaussians(100))  # Seconds since 1970.
    with pytest.warns(UserWarning, match="2 of 2 features vary by less than 1e-5"):
        fdrl.fit_ratio(KEY, late, early, bridge="none", **(SMALL | {"num_steps": 2}))


@pytest.mark.filterwarnings("error")
def test_a_feature_that_is_constant_up_to_rounding_causes_no_warning():
    sets = [np.c_[x, 1.0 + 1e-16 * np.arange(len(x)) % 5e-16] for x in gaussians(100)]
    fdrl.fit_ratio(KEY, *sets, bridge="none", **(SMALL | {"num_steps": 2}))


def test_diverging_training_is_an_error():
    network = Network(lambda k, x: jnp.zeros(2), lambda p, x: x @ p + jnp.nan)
    with pytest.raises(ValueError, match="training diverged"):
        fdrl.fit_ratio(KEY, *gaussians(100), network=network, bridge="none", num_steps=20)


def test_examples_that_are_repeated_are_no_evidence_of_a_difference():
    options = SMALL | {"num_steps": 300, "learning_rate": 5e-3, "bridge": "none"}
    differing = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        few, many = rng.normal(size=(100, 2)), rng.normal(size=(20_000, 2))
        differing += fdrl.fit_ratio(jax.random.key(seed), few, many, **options).differs
    assert differing <= 2


def test_large_integers_are_the_numbers_that_they_are():
    rng = np.random.default_rng(0)
    upper, lower = (
        (1.7e12 + 86_400_000 * rng.normal(mean, size=(500, 2))).astype(np.int64)
        for mean in (SHIFT, 0.0)
    )
    ratio = fdrl.fit_ratio(KEY, upper, lower, bridge="none", **SMALL)
    expected = ratio.log_ratio(upper[:9].astype(np.float64))
    np.testing.assert_allclose(ratio.log_ratio(upper[:9]), expected, rtol=1e-5)
    assert np.std(expected) > 0.1


def test_a_ratio_is_fitted_where_jax_computes_in_float64():
    upper, lower = gaussians()
    with jax.enable_x64(True):
        ratio = fdrl.fit_ratio(jax.random.key(0), upper[:200], lower[:200], num_steps=20)
        assert np.isfinite(ratio.log_ratio(upper[:5])).all()


def test_the_verdict_on_few_examples_says_that_reweighting_was_not_checked():
    rng = np.random.default_rng(0)
    few = rng.normal(SHIFT, size=(100, 2)), rng.normal(size=(100, 2))
    check = fdrl.fit_ratio(KEY, *few, num_steps=500, bridge="none").check(jax.random.key(1))
    assert np.isnan(check.reweighted_auc)
    assert "too few to check it by reweighting" in check.verdict
    assert "all checks" not in check.verdict


def test_columns_of_several_types_are_numbers_and_texts_are_refused():
    numbers = np.random.default_rng(0).normal(size=(60, 1))
    mixed = np.concatenate([numbers.astype(object), (numbers > 0).astype(object)], axis=1)
    ratio = fdrl.fit_ratio(KEY, mixed, mixed, **(SMALL | {"num_steps": 2}))
    assert np.isfinite(ratio.log_ratio(mixed)).all()
    for texts in (np.full((60, 2), "a"), np.full((60, 2), "a", object)):
        with pytest.raises(ValueError, match="numerator must be real numbers"):
            fdrl.fit_ratio(KEY, texts, mixed, **SMALL)


class Frame:
    """A data frame, as far as the library uses it."""

    def __init__(self, values, columns):
        self.values, self.columns = values, columns

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype)


def test_columns_in_another_order_masked_values_and_sparse_matrices_are_an_error():
    top, bottom = gaussians(100)
    with pytest.raises(ValueError, match="same columns in the same order, got a, b and b, a"):
        fdrl.fit_ratio(KEY, Frame(top, ["a", "b"]), Frame(bottom, ["b", "a"]), **SMALL)
    with pytest.raises(ValueError, match="numerator has masked values"):
        fdrl.fit_ratio(KEY, np.ma.masked_greater(top, 1.0), bottom, **SMALL)
    with pytest.raises(ValueError, match=r"denominator must be an array; .* with toarray\(\)"):
        fdrl.fit_ratio(KEY, top, sparse.csr_array(bottom), **SMALL)
    same = Frame(top, ["a", "b"]), Frame(bottom, ["a", "b"])
    options = SMALL | {"num_steps": 2, "bridge": "none"}
    for sets in (same, (same[0], bottom)):
        ratio = fdrl.fit_ratio(KEY, *sets, **options)
        assert ratio.log_ratio(same[1]).shape == ratio.log_ratio(bottom).shape == (100,)
        with pytest.raises(ValueError, match=r"the fit and x must have .* got a, b and b, a"):
            ratio.weights(Frame(bottom, ["b", "a"]))


def test_no_examples_have_no_ratios():
    ratio = fitted()
    assert ratio.differs
    assert ratio.log_ratio(np.zeros((0, 2))).shape == (0,)
    with pytest.raises(ValueError, match="needs examples of both sets, got 0 of the numerator"):
        ratio.divergence("kl", numerator=np.zeros((0, 2)))
