"""Options of the training step: skipped batches, several seeds, optimizers, ramp of the average."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import small_problem

from fdrl_jax.training import rng, steps

CONSTANTS, KEY = small_problem.CONSTANTS, small_problem.KEY


def test_a_step_may_skip_batches():
    step, state = jax.jit(small_problem.train_step()), small_problem.initial_state()
    repeated = jax.jit(steps.repeat_steps(small_problem.train_step(), 5))
    later = state._replace(step=jnp.int32(2))

    _, offset = step(KEY, state, CONSTANTS, None, 2)
    _, expected = step(KEY, later, CONSTANTS, None)

    chex.assert_trees_all_equal(offset, expected)
    assert offset["loss"] != step(KEY, state, CONSTANTS, None)[1]["loss"]
    _, history = repeated(KEY, state, CONSTANTS, None, 1, 2)
    np.testing.assert_allclose(history["loss"][0], expected["loss"], rtol=1e-6)


def test_several_seeds_train_at_once_under_vmap_as_they_do_one_by_one():
    keys = jax.vmap(rng.root_key)(jnp.arange(3))
    run = steps.repeat_steps(small_problem.train_step(), 4)
    start = small_problem.initial_state()

    together, _ = jax.jit(jax.vmap(lambda key: run(key, start, CONSTANTS, None, 4)))(keys)

    for i, key in enumerate(keys):
        alone, _ = jax.jit(run)(key, start, CONSTANTS, None, 4)
        chex.assert_trees_all_close(
            jax.tree.map(lambda a, i=i: a[i], together), alone, rtol=1e-4, atol=1e-5
        )


def test_a_train_step_gives_the_loss_to_an_optimizer_that_needs_it():
    optimizer = optax.chain(
        optax.sgd(0.0),
        optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.0, atol=1e3),
    )
    run = jax.jit(steps.repeat_steps(small_problem.train_step(optimizer=optimizer), 6))

    end, _ = run(KEY, small_problem.initial_state(optimizer), CONSTANTS, None, 6)

    assert optax.tree.get(end.opt_state, "scale") < 1.0


def test_the_ramp_of_the_average_is_an_option_of_the_step():
    before = small_problem.initial_variables()["params"]

    after, _ = jax.jit(small_problem.train_step(ema_ramp=True))(
        KEY, small_problem.initial_state(), CONSTANTS
    )

    expected = jax.tree.map(lambda e, p: 0.1 * e + 0.9 * p, before, after.variables["params"])
    chex.assert_trees_all_close(after.ema_variables["params"], expected, rtol=1e-5)
