"""The sampler: algorithm 2, where sample i depends only on (seed, i)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import small_problem

import fdrl_jax as fdrl
from fdrl_jax.training import rng, samplers

VARIABLES, KEY = small_problem.initial_variables(), rng.root_key(0)


@functools.cache
def compiled(path=False):
    make = samplers.make_path_sampler if path else samplers.make_sampler
    return jax.jit(make(small_problem.problem()))


def sample(positions, seed=0, **options):
    batch = {"position": jnp.asarray(positions)}
    return compiled(**options)(rng.root_key(seed), VARIABLES, small_problem.CONSTANTS, batch)


def test_samples_are_prior_samples_after_k_and_after_k_plus_kappa_steps_of_the_flow():
    stages = sample(jnp.arange(6))
    potential = small_problem.problem().potential(VARIABLES)
    root = rng.stream_key(jax.random.key(0), rng.Stream.SAMPLE)
    keys = rng.example_keys(root, rng.Stream.FLOW, jnp.arange(6))

    for stage, num_steps in ((stages.bridged, 4), (stages.refined, 6)):
        expected = fdrl.flow(
            keys, stages.prior, potential, num_steps=num_steps, step_size=0.1, noise_scale=0.2
        )
        np.testing.assert_allclose(stage, expected, atol=1e-6)


def test_a_sample_does_not_depend_on_the_batch_around_it():
    whole, part = sample(jnp.arange(20)), sample([13, 4])

    for of_whole, of_part in zip(whole, part, strict=True):
        np.testing.assert_allclose(of_part, of_whole[jnp.array([13, 4])], rtol=1e-6, atol=1e-6)
        assert len(np.unique(of_whole)) == of_whole.size


def test_paths_are_those_of_the_same_samples():
    stages, path = sample(jnp.arange(6)), sample(jnp.arange(6), path=True)

    assert path.shape == (7, 6, 2)
    for k, stage in ((0, stages.prior), (4, stages.bridged), (6, stages.refined)):
        np.testing.assert_allclose(path[k], stage, atol=1e-6)


def test_a_flow_in_segments_passes_through_the_same_samples():
    path, positions = sample(jnp.arange(6), path=True), {"position": jnp.arange(6)}
    traces = []

    def advance(*arguments):
        traces.append(1)
        return samplers.make_segment(small_problem.problem(), num_steps=2)(*arguments)

    start = samplers.make_start_sampler(small_problem.problem())
    x = jax.jit(start)(KEY, VARIABLES, small_problem.CONSTANTS, positions)
    advance = jax.jit(advance)
    for first_step in (0, 2, 4):
        np.testing.assert_allclose(x, path[first_step], atol=1e-6)
        x = advance(KEY, VARIABLES, small_problem.CONSTANTS, {**positions, "x": x}, first_step)
    np.testing.assert_allclose(x, path[6], atol=1e-6)
    assert len(traces) == 1


def test_samples_do_not_start_where_training_with_the_same_seed_starts():
    keys = rng.example_keys(jax.random.key(0), rng.Stream.PRIOR, jnp.arange(20))
    of_training = small_problem.PRIOR.sample(small_problem.CONSTANTS.prior, keys, {})

    assert not np.any(np.isin(sample(jnp.arange(20)).prior, of_training))


def test_another_seed_compiles_nothing_and_several_seeds_draw_at_once_under_vmap():
    traces = []

    def sampler(*arguments):
        traces.append(1)
        return samplers.make_sampler(small_problem.problem())(*arguments)

    run = jax.jit(sampler)
    batch = {"position": jnp.arange(5)}
    each = [run(rng.root_key(i), VARIABLES, small_problem.CONSTANTS, batch) for i in range(3)]
    assert len(traces) == 1
    assert np.all(each[0].refined != each[1].refined)

    keys = jax.vmap(rng.root_key)(jnp.arange(3))
    together = jax.vmap(lambda key: sampler(key, VARIABLES, small_problem.CONSTANTS, batch))(keys)
    for i, alone in enumerate(each):
        np.testing.assert_allclose(together.refined[i], alone.refined, rtol=1e-5, atol=1e-6)


def test_a_path_is_not_stored_twice_in_memory():
    compiled_path = jax.jit(
        samplers.make_path_sampler(small_problem.problem(num_steps=300, noise_scale=0.1))
    )
    batch = {"position": jax.ShapeDtypeStruct((200,), jnp.int32)}
    program = compiled_path.lower(KEY, VARIABLES, small_problem.CONSTANTS, batch).compile()

    memory = program.memory_analysis()

    assert memory.output_size_in_bytes >= 303 * 200 * 2 * 4
    assert memory.temp_size_in_bytes < 0.2 * memory.output_size_in_bytes
