"""FDRL improves the samples of a generator: flow matching that is sampled with very few steps.

Run: taskset -c 0 python -m benchmarks.peers.improve --data=MNIST.zip --seconds=180 --seeds 1 2
Flow matching trains for a number of CPU seconds and draws samples with four evaluations of its
network. FDRL then trains for as long, with these samples as the start of its flow; they are paired
with nothing. The table has the figures of the judge for both and for real images. Half of the
generator's samples are starts in training; the figures are of the other half.
--samples=FILE.npz also writes the generator's samples to FILE_SEED.npz, for `data.source_dir` of a
run.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import data, methods, race
from benchmarks.peers.__main__ import set_flags
from benchmarks.peers.data import Images
from benchmarks.peers.methods import Contestant
from experiments.data.decode import to_unit
from experiments.errors import UserError
from fdrl_jax import priors
from fdrl_jax.priors import Batch
from fdrl_jax.training import rng, samplers, state
from fdrl_jax.training.problem import Constants, FlowParams

_NUM_EVALUATIONS = 4
_NUM_STEPS, _NUM_REFINE_STEPS, _STEP_SIZE = 12, 6, 3.2


def main() -> None:
    """Trains both for each seed, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="zip of images")
    parser.add_argument("--seconds", type=float, default=180.0, help="CPU seconds of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--num_samples", type=int, default=4_000, help="of the generator")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/peers"), help="folder of the judge"
    )
    parser.add_argument("--samples", type=Path, help="file for the generator's samples")
    arguments = parser.parse_args()
    if arguments.num_samples < 500 or arguments.num_samples % 500:
        parser.error("--num_samples must be a multiple of 500")
    try:
        set_flags(arguments.precision)
        images = data.load(arguments.data)
    except (OSError, UserError, ValueError) as error:
        parser.error(str(error))
    print("| seed | | training, CPU s | Fréchet | top probability | class shares |")
    print("|---|---|---|---|---|---|", flush=True)
    for seed in arguments.seeds:
        for name, seconds, found in improve(images, seed, arguments):
            shares = f"{found['min_share']:.1%} to {found['max_share']:.1%}"
            figures = f"{found['frechet']:.3g} | {found['top_probability']:.3f} | {shares}"
            print(f"| {seed} | {name} | {seconds:g} | {figures} |", flush=True)


def improve(
    images: data.Split, seed: int, arguments: argparse.Namespace
) -> list[tuple[str, float, dict[str, float]]]:
    """Returns the figures of the generator, of FDRL from its samples, and of real images."""
    dtype, key = jnp.dtype(arguments.precision), rng.root_key(seed)
    settings = methods.defaults(images.contestants.pixels.shape[1:], arguments.seconds)
    few = settings["flow_matching"] | {"evaluations": [_NUM_EVALUATIONS]}
    rival = methods.build("flow_matching", images.contestants, few, seed=seed, dtype=dtype)
    trained, _ = race.train(rival, few["learning_rate"], key, arguments.seconds)
    generated = _drawn(rival, trained.ema_variables, key, arguments.num_samples)
    if arguments.samples:
        np.savez(arguments.samples.with_stem(f"{arguments.samples.stem}_{seed}"), arr_0=generated)
    starts, fresh = np.split(generated, 2)
    ours = from_samples(images.contestants, starts, settings["fdrl"], seed, dtype)
    state_of_ours, _ = race.train(ours, settings["fdrl"]["learning_rate"], key, arguments.seconds)
    # New samples of the generator, which training never saw, take the place of the starts.
    constants = ours.constants._replace(prior=jnp.asarray(to_unit(fresh)))
    improved = _drawn(
        ours._replace(constants=constants), state_of_ours.ema_variables, key, len(fresh)
    )
    run = race.Run(arguments.data.stem, "", {}, seed, 0.0, len(fresh), arguments.precision)
    judge = race.open_judge(run, images, arguments.cache)
    return [
        ("flow matching, 4 evaluations", arguments.seconds, judge.figures(fresh)),
        ("FDRL from these samples", 2 * arguments.seconds, judge.figures(improved)),
        ("real images", 0.0, judge.figures(*race.real_images(run, images))),
    ]


def from_samples(
    images: Images, starts: np.ndarray, settings: dict[str, Any], seed: int, dtype: Any
) -> Contestant:
    """Builds FDRL whose flow starts from a generator's samples, [N, H, W, C] uint8."""
    problem = methods.fdrl_problem(
        network := methods.make_critic(settings, dtype),
        FlowParams(_NUM_STEPS, _STEP_SIZE, settings["noise_scale"], _NUM_REFINE_STEPS),
        priors.batch("source", settings["dequantisation"]),
    )
    stored = jnp.asarray(to_unit(starts))

    def draw(arrays: Images, _: Any, key: jax.Array, positions: jax.Array) -> Batch:
        batch = data.draw(arrays, key, positions, flip=settings["flip"])
        # Another key than that of the data, so that starts are paired with nothing.
        chosen = data.random_rows(jax.random.fold_in(key, 1), positions, len(stored))
        return {**batch, "source": stored[chosen]}

    sample = samplers.make_sampler(problem)

    def sampler(key: jax.Array, variables: Any, constants: Constants, at: jax.Array) -> jax.Array:
        batch = {"position": at, "source": constants.prior[at]}
        return sample(key, variables, constants, batch).refined

    key = rng.stream_key(rng.root_key(seed), rng.Stream.INIT)
    variables = jax.jit(network.init)(key, jnp.zeros((1, *starts.shape[1:])))
    return Contestant(
        Constants(jax.tree.map(jnp.asarray, images), ()),
        state.create(variables, methods.make_optimizer(settings)),
        methods.fdrl_train_step(problem, settings, draw),
        {_NUM_STEPS + _NUM_REFINE_STEPS: sampler},
    )


def _drawn(contestant: Contestant, variables: Any, key: jax.Array, num: int) -> np.ndarray:
    (sampler,) = contestant.samplers.values()
    return race.draw_samples(jax.jit(sampler), (key, variables, contestant.constants), num)


if __name__ == "__main__":
    main()
