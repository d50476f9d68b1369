"""Bregman losses: their minimiser is the density ratio of flowed samples over data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fdrl_jax as fdrl
from fdrl_jax import bregman, divergences
from fdrl_jax.bregman import REGISTRY

RATIOS = np.geomspace(0.02, 50.0, 61).astype(np.float32)

each_loss = pytest.mark.parametrize("loss", REGISTRY.values(), ids=lambda loss: loss.name)
losses_of_log_ratios = pytest.mark.parametrize("loss", [bregman.LR, bregman.UKL], ids=["lr", "ukl"])


def to_output(loss, ratio):
    """The output of an exact network."""
    return np.log(ratio) if loss.output == "log_ratio" else ratio


def value(loss, out_real, out_flowed):
    return bregman.loss(loss, out_real, out_flowed)[0]


@each_loss
def test_g_is_convex_and_g_prime_is_its_derivative(loss):
    g_prime = jax.vmap(jax.grad(loss.g))(RATIOS)

    np.testing.assert_allclose(loss.g_prime(RATIOS), g_prime, rtol=1e-4, atol=1e-5)
    assert np.all(np.diff(g_prime) > 0)


@each_loss
def test_the_loss_is_its_definition_up_to_a_constant(loss):
    def definition(real, flowed):
        return np.mean(loss.g_prime(real) * real - loss.g(real)) - np.mean(loss.g_prime(flowed))

    pairs = np.exp(np.random.default_rng(0).uniform(-2.0, 2.0, (20, 2, 8))).astype(np.float32)
    constants = [
        float(value(loss, to_output(loss, real), to_output(loss, flowed)))
        - definition(real, flowed)
        for real, flowed in pairs
    ]

    np.testing.assert_allclose(constants, constants[0], atol=2e-5)


@each_loss
def test_the_true_ratio_of_discrete_distributions_is_the_minimiser(loss):
    states_of_p = np.repeat([0, 1, 2, 3], [1, 2, 5, 8])
    states_of_q = np.repeat([0, 1, 2, 3], [6, 6, 3, 1])
    ratio = np.bincount(states_of_q) / np.bincount(states_of_p)
    truth = jnp.asarray(to_output(loss, ratio), jnp.float32)

    @jax.jit
    def risk(table):
        return value(loss, table[states_of_p], table[states_of_q])

    np.testing.assert_allclose(jax.grad(risk)(truth), 0.0, atol=1e-7)
    assert np.all(np.linalg.eigvalsh(jax.hessian(risk)(truth)) > 1e-3)
    for direction in np.eye(4, dtype=np.float32):
        for step in (-0.5, 0.5):
            assert risk(truth + step * direction) > risk(truth)


@losses_of_log_ratios
def test_outputs_of_sixty_either_way_give_finite_losses_and_gradients(loss):
    out = jnp.array([-60.0, 60.0])
    gradients = jax.grad(lambda real, flowed: value(loss, real, flowed), argnums=(0, 1))(out, out)

    assert np.isfinite(value(loss, out, out))
    assert np.all(np.isfinite(gradients))


def test_the_loss_of_ukl_and_what_adam_makes_of_its_gradient_are_finite_for_any_log_ratio():
    out = jnp.array([-1e4, 0.0, 39.9, 40.1, 100.0, 1e4])

    def loss(out):
        return value(bregman.UKL, out, jnp.zeros(1))

    gradients = jax.grad(loss)(out)
    update, _ = (adam := optax.adam(0.1)).update(gradients, adam.init(out))

    assert np.isfinite(loss(out))
    assert np.all(np.isfinite(np.square(gradients)))
    np.testing.assert_allclose(update[1:], -0.1, rtol=1e-5)
    np.testing.assert_array_equal(bregman.UKL.real_term(out[:3]), jnp.exp(out[:3]))
    np.testing.assert_array_equal(6 * gradients[:3], 6 * (jnp.exp(out[:3]) / 6))


def test_the_loss_of_lr_is_linear_in_outputs_that_are_badly_wrong_and_vanishes_in_right_ones():
    far = jnp.array([1e4])

    assert value(bregman.LR, far, far) == 1e4
    assert value(bregman.LR, -far, -far) == 1e4
    assert value(bregman.LR, -far, far) == 0.0


@each_loss
def test_metrics_are_the_mean_outputs_and_ratios_on_data_and_on_flowed_samples(loss):
    real, flowed = np.float32([0.5, 2.0, 3.5]), np.float32([4.0, 1.0, 1.0])
    out_real, out_flowed = to_output(loss, real), to_output(loss, flowed)

    scalar, metrics = bregman.loss(loss, out_real, out_flowed)

    assert metrics["loss"] == scalar
    assert scalar.shape == ()
    expected = {
        "output_real": out_real.mean(),
        "output_flowed": out_flowed.mean(),
        "ratio_real": 2.0,
        "ratio_flowed": 2.0,
    }
    assert {*metrics} == {"loss", *expected}
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=1e-6, err_msg=name)


KL_JS = divergences.combine([1.0, 1.0], ["kl", "js"])
TWO_PEARSON = divergences.combine([2.0], ["pearson"])


@each_loss
@pytest.mark.parametrize(
    "divergence",
    [*map(divergences.get, [*divergences.REGISTRY, "alpha(2)"]), KL_JS, TWO_PEARSON],
    ids=lambda d: d.name,
)
def test_a_loss_for_the_ratio_works_with_pearson_and_a_loss_for_log_ratios_with_all(
    loss, divergence
):
    if loss.output == "log_ratio" or divergence.name in ("pearson", "alpha(2)", "2*pearson"):
        bregman.check_pair(loss, divergence)
        fdrl.first_variation(jnp.ravel, divergence, output=loss.output)
        return
    with pytest.raises(ValueError, match="trains an unconstrained ratio") as error:
        bregman.check_pair(loss, divergence)
    for word in ("'lsif'", "'pearson'", "'lr'", "'ukl'", repr(divergence.name)):
        assert word in str(error.value)


@each_loss
def test_get_returns_a_loss_by_name_and_a_loss_unchanged(loss):
    assert bregman.get(loss.name) is loss
    own = loss._replace(name="own")
    assert bregman.get(own) is own


@pytest.mark.parametrize(
    ("name", "hint"),
    [("lsf", "; did you mean 'lsif'"), ("LR", "; did you mean 'lr'"), ("w1", r"\.")],
)
def test_an_unknown_name_is_an_error_with_the_allowed_names_and_a_suggestion(name, hint):
    with pytest.raises(ValueError, match=rf"'{name}'{hint}.* Allowed: lsif, lr, ukl$"):
        bregman.get(name)
