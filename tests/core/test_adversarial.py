"""The attack against its closed form for linear classifiers, and the effect of training with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fdrl_jax.training import adversarial, rng, state
from fdrl_jax.training.adversarial import Attack
from fdrl_jax.training.problem import Constants

X = 0.3 * jax.random.normal(jax.random.key(0), (6, 2, 3))
LABELS = jnp.array([0, 1, 0, 1, 1, 0])
WEIGHTS = jax.random.normal(jax.random.key(1), (2, 3))


def linear(x):
    """Logits whose difference is linear, so the worst perturbation is along the weights."""
    return jnp.stack([jnp.zeros(len(x)), jnp.sum(WEIGHTS * x, (1, 2))], axis=-1)


def test_the_worst_perturbation_of_a_linear_classifier_is_found_on_the_ball():
    attack = Attack(0.5, 0.2, 5, bounds=(-jnp.inf, jnp.inf))
    moved = adversarial.perturb(linear, X, LABELS, attack)

    sign = jnp.where(LABELS == 0, 1.0, -1.0)[:, None, None]
    expected = X + 0.5 * sign * WEIGHTS / jnp.linalg.norm(WEIGHTS)
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_attacked_images_stay_in_the_ball_and_in_the_range_of_pixels():
    x = jnp.clip(3 * X, -1.0, 1.0)
    moved = adversarial.perturb(linear, x, LABELS, Attack(0.7, 0.3, 8))

    assert np.all(np.linalg.norm((moved - x).reshape(6, -1), axis=-1) <= 0.7 + 1e-5)
    assert np.all(np.abs(moved) <= 1.0)
    before, after = (adversarial.cross_entropy(linear(v), LABELS) for v in (x, moved))
    assert np.all(after > before)


def test_a_radius_of_zero_changes_nothing_and_flat_classifiers_give_no_nan():
    assert adversarial.perturb(linear, X, LABELS, Attack(0.0, 0.1, 5)) is X
    flat = adversarial.perturb(lambda x: jnp.zeros((len(x), 2)), X, LABELS, Attack(0.5, 0.1, 5))
    np.testing.assert_allclose(flat, X, atol=1e-7)


def test_no_gradient_flows_through_the_attack():
    def loss(scale):
        moved = adversarial.perturb(lambda x: scale * linear(x), X, LABELS, Attack(0.5, 0.2, 3))
        return jnp.sum(moved)

    assert jax.grad(loss)(2.0) == 0.0


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_no_gradient_reaches_the_images_with_or_without_an_attack(epsilon):
    def total(x):
        return jnp.sum(adversarial.perturb(linear, x, LABELS, Attack(epsilon, 0.2, 3)))

    np.testing.assert_array_equal(jax.grad(total)(X), np.zeros_like(X))


def draw(data, host_batch, key, positions):
    """Two features: a small one that is always right, and a large one that is right in 95%."""
    del data, host_batch
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
    labels = jax.vmap(jax.random.bernoulli)(keys).astype(jnp.int32)
    sign = 2.0 * labels - 1.0
    large = jnp.where(positions % 20 == 0, -sign, sign)
    return {"real": jnp.stack([0.05 * sign, 0.5 * large], -1), "label": labels}


def apply(variables, x):
    score = x @ variables["params"]["w"]
    return jnp.stack([-score, score], axis=-1)


@pytest.mark.parametrize(("epsilon", "follows_the_small"), [(0.0, True), (0.3, False)])
def test_training_against_an_attack_ignores_the_feature_that_an_attack_can_flip(
    epsilon, follows_the_small
):
    optimizer = optax.adam(0.2)
    step = adversarial.make_train_step(
        apply,
        attack=Attack(epsilon, 0.1, 5),
        optimizer=optimizer,
        draw=draw,
        batch_size=100,
    )
    start = state.create({"params": {"w": jnp.zeros(2)}}, optimizer)

    def body(s, _):
        return step(rng.root_key(0), s, Constants((), ()))

    end, metrics = jax.lax.scan(body, start, length=400)

    small, large = end.variables["params"]["w"] * jnp.array([0.05, 0.5])
    assert bool(small > large) == follows_the_small
    assert {*metrics} == {"loss", "accuracy", "grad_norm"}
    assert metrics["accuracy"][-1] == pytest.approx(1.0 if follows_the_small else 0.95, abs=0.06)
