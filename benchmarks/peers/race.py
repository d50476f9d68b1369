"""One run of the race: training for a number of CPU seconds, samples, and their figures."""

import math
import resource
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks.peers import methods
from benchmarks.peers.data import Split
from benchmarks.peers.judge import Judge, load_or_train
from benchmarks.peers.methods import Contestant, Sampler
from experiments.data.decode import to_uint8
from experiments.files import sha256_of_json
from fdrl_jax.training import rng
from fdrl_jax.training.state import TrainState

_WARMUP_STEPS, _SAMPLE_BATCH, _GRID = 100, 250, 10


class Run(NamedTuple):
    """What determines a run.

    Attributes:
      data: name of the data set.
      method: a name of `methods.defaults`.
      settings: of the method.
      seed: of the training and of the samples.
      budget: CPU seconds of the training.
      num_samples: a multiple of 250.
      precision: "float32" or "bfloat16".
    """

    data: str
    method: str
    settings: dict[str, Any]
    seed: int
    budget: float
    num_samples: int
    precision: str


def open_judge(run: Run, images: Split, cache: Path) -> Judge:
    """Returns the judge for a run, which is trained once per data set and precision."""
    file = cache / f"{run.data}-judge-{run.precision}.npz"
    return load_or_train(file, images, jnp.dtype(run.precision))


def judge_accuracy(run: Run, images: Split, cache: Path) -> float:
    """Trains the judge unless that was done before, and returns its accuracy."""
    return open_judge(run, images, cache).accuracy


def carry_out(run: Run, images: Split, cache: Path) -> dict[str, Any]:
    """Trains, draws and judges; returns the result, and writes the samples and pictures of 100."""
    key, train_images = rng.root_key(run.seed), images.contestants
    contestant = methods.build(
        run.method, train_images, run.settings, seed=run.seed, dtype=jnp.dtype(run.precision)
    )
    train_state, trained = train(contestant, run.settings["learning_rate"], key, run.budget)
    judge = open_judge(run, images, cache)
    result = run._asdict() | trained
    result |= {
        "shape": train_images.pixels.shape[1:],
        "images": len(train_images.pixels),
        "jax": jax.__version__,
        "judge_accuracy": judge.accuracy,
        "real": judge.figures(real_images(run, images)),
        "samples": [],
    }
    for num, sampler in {} if trained["diverged"] else contestant.samplers.items():
        sample = jax.jit(sampler)
        arguments = (key, train_state.ema_variables, contestant.constants)
        draw_samples(sample, arguments, _SAMPLE_BATCH)  # Compiles.
        started = time.process_time()
        pixels = draw_samples(sample, arguments, run.num_samples)
        seconds = round((time.process_time() - started) / run.num_samples, 6)
        row = {"evaluations": num, "cpu_seconds": seconds, **judge.figures(pixels)}
        result["samples"].append(row)
        np.savez_compressed(cache / samples_name(run, num), arr_0=pixels)
        _write_grid(cache / f"{run.data}-{run.method}-{run.budget:g}-{run.seed}-{num}.png", pixels)
    return result


def run_of(result: dict[str, Any]) -> Run:
    """Returns the run of a result."""
    return Run(**{key: result[key] for key in Run._fields})


def real_images(run: Run, images: Split) -> np.ndarray:
    """Returns as many random images of the contestants as a run has samples, uint8."""
    pixels = images.contestants.pixels
    return pixels[np.random.default_rng(run.seed).permutation(len(pixels))[: run.num_samples]]


def samples_name(run: Run, evaluations: int) -> str:
    """Returns the name of the file of a run's samples, `arr_0` uint8 [N, H, W, C].

    It has a digest of the run, because runs with other settings have other samples.
    """
    digest = sha256_of_json(run._asdict())[:8]
    return f"{run.data}-{run.method}-{run.budget:g}-{run.seed}-{evaluations}-{digest}.npz"


def draw_samples(sample: Sampler, arguments: tuple[Any, ...], num: int) -> np.ndarray:
    """Draws samples in batches, uint8 [num, H, W, C]; `num` is a multiple of 250.

    Args:
      sample: a compiled sampler.
      arguments: its key, variables and constants.
      num: number of samples.
    """
    starts = range(0, num, _SAMPLE_BATCH)
    parts = [sample(*arguments, start + jnp.arange(_SAMPLE_BATCH)) for start in starts]
    return to_uint8(np.concatenate(parts))


def train(
    contestant: Contestant, learning_rate: float, key: jax.Array, budget: float
) -> tuple[TrainState, dict[str, Any]]:
    """Trains until the process has used its CPU seconds; compilation does not count.

    The learning rate falls with the cosine of the share of the budget that is used. Each contestant
    therefore ends its schedule exactly with its budget, also on a busy machine.

    Args:
      contestant: what to train.
      learning_rate: after a short warm-up.
      key: root key of the run.
      budget: CPU seconds.

    Returns:
      The last state and the figures of the training. "diverged" means that the loss is not finite.
    """
    train_state, constants = contestant.train_state, contestant.constants
    step = jax.jit(contestant.train_step, donate_argnums=1)
    step = step.lower(key, train_state, constants).compile()
    started = time.process_time() - contestant.fit_seconds
    num_steps, loss, share = 0, 0.0, 0.0
    while share < 1.0 and math.isfinite(loss):
        warmup = min(1.0, (num_steps + 1) / _WARMUP_STEPS)
        rate = learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * share))
        hyperparams = {"learning_rate": jnp.float32(rate)}
        opt_state = train_state.opt_state._replace(hyperparams=hyperparams)
        train_state, metrics = step(key, train_state._replace(opt_state=opt_state), constants)
        loss = float(metrics["loss"])
        num_steps += 1
        share = (time.process_time() - started) / budget
    params = train_state.variables["params"]
    return train_state, {
        "steps": num_steps,
        "train_cpu_seconds": round(time.process_time() - started, 1),
        "loss": loss,
        "diverged": not math.isfinite(loss),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1_024,
    }


def _write_grid(file: Path, pixels: np.ndarray) -> None:
    """Writes the first 100 images as a square."""
    _, height, width, channels = pixels.shape
    grid = pixels[: _GRID**2].reshape(_GRID, _GRID, height, width, channels)
    grid = grid.transpose(0, 2, 1, 3, 4).reshape(_GRID * height, _GRID * width, channels)
    Image.fromarray(grid.squeeze()).save(file)
