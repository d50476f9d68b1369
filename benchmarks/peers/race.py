"""One run of the race: training for a number of CPU seconds, samples, and their figures."""

import math
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization
from PIL import Image
from tqdm import tqdm

from benchmarks.peers import methods
from benchmarks.peers.data import Images, Split
from benchmarks.peers.judge import Judge, load_or_train, training_share
from benchmarks.peers.methods import Contestant, Sampler
from experiments import files
from experiments.data.decode import to_uint8, to_unit
from experiments.pictures.images import square
from fdrl_jax import refinement
from fdrl_jax.training import rng
from fdrl_jax.training.state import TrainState

_WARMUP_STEPS, _SAMPLE_BATCH, _NUM_PILOT, _NUM_SHOWN = 100, 250, 1_000, 100
_CHECKPOINT_SECONDS = 600.0
# Redrawn at most once per second, because its CPU seconds count as well.
_BAR: dict[str, Any] = {
    "mininterval": 1.0,
    "bar_format": "{l_bar}{bar}| {n:.0f}/{total:.0f} CPU s [{elapsed}<{remaining}{postfix}]",
}

Denoise = Callable[[Any, jax.Array], jax.Array]


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


def judged(run: Run, images: Split, cache: Path, samples: np.ndarray) -> dict[str, Any]:
    """Returns the figures of samples, [N, H, W, C] uint8, and of as many real images."""
    judge = open_judge(run, images, cache)
    real = judge.figures(*real_images(run, images))
    return {"samples": judge.figures(samples), "real images": real}


def carry_out(run: Run, images: Split, cache: Path) -> dict[str, Any]:
    """Trains, draws and judges; returns the result, and writes the samples and pictures of 100."""
    key, train_images = rng.root_key(run.seed), images.contestants
    contestant = methods.build(
        run.method, train_images, run.settings, seed=run.seed, dtype=jnp.dtype(run.precision)
    )
    checkpoint = checkpoint_of(run, cache)
    train_state, trained = train(
        contestant,
        run.settings["learning_rate"],
        key,
        run.budget,
        checkpoint,
        description=f"{run.method}, seed {run.seed}",
    )
    judge = open_judge(run, images, cache)
    result = run._asdict() | trained
    result |= {
        "shape": train_images.pixels.shape[1:],
        "images": len(train_images.pixels),
        "jax": jax.__version__,
        "judge_accuracy": judge.accuracy,
        "real": judge.figures(*real_images(run, images)),
        "samples": [],
    }
    for num, sampler in {} if trained["diverged"] else contestant.samplers.items():
        sample, denoise = jax.jit(sampler), _as_it_is
        if num and contestant.denoise is not None:
            denoise = jax.jit(contestant.denoise)
        arguments = (key, train_state.ema_variables, contestant.constants)
        draw_samples(sample, arguments, _SAMPLE_BATCH, denoise)  # Compiles.
        started = time.process_time()
        pixels = draw_samples(sample, arguments, run.num_samples, denoise)
        seconds = _seconds_per_sample(started, run)
        first: dict[str, Any] = {"evaluations": num, "cpu_seconds": seconds}
        rows = [(pixels, np.arange(run.num_samples), first)]
        if num and contestant.log_ratio is not None:
            log_ratio = jax.jit(contestant.log_ratio)
            draw_kept(sample, arguments, log_ratio, 1, denoise)  # Compiles.
            started = time.process_time()
            kept, at, share = draw_kept(sample, arguments, log_ratio, run.num_samples, denoise)
            seconds = _seconds_per_sample(started, run)
            rows.append((kept, at, {"evaluations": num, "kept": share, "cpu_seconds": seconds}))
        for pixels, positions, row in rows:
            labels = contestant.labels(positions) if contestant.labels else None
            row |= judge.figures(pixels, labels)
            mirrored = run.settings["flip"]
            row["training_share"] = training_share(pixels, images, mirrored=mirrored)
            result["samples"].append(row)
            file = cache / samples_name(run, row)
            sheet = square(to_unit(pixels[:_NUM_SHOWN]))
            Image.fromarray(sheet.squeeze()).save(file.with_suffix(".png"))
            np.savez_compressed(file, arr_0=pixels)
    return result


def checkpoint_of(run: Run, cache: Path) -> Path:
    """Returns the file of an interrupted training. It may go once the result is written."""
    return cache / f"{_stem(run, 'training')}.msgpack"


def run_of(result: dict[str, Any]) -> Run:
    """Returns the run of a result."""
    return Run(**{key: result[key] for key in Run._fields})


def real_images(run: Run, images: Split) -> Images:
    """Returns as many random images of the contestants as a run has samples."""
    pixels, labels = images.contestants
    chosen = np.random.default_rng(run.seed).permutation(len(pixels))[: run.num_samples]
    return Images(pixels[chosen], labels[chosen])


def samples_name(run: Run, row: dict[str, Any]) -> str:
    """Returns the name of the file of the samples of a row, `arr_0` uint8 [N, H, W, C]."""
    kind = f"{row['evaluations']}" + "-kept" * ("kept" in row)
    return f"{_stem(run, kind)}.npz"


def _stem(run: Run, kind: str) -> str:
    """Returns the name of a file of a run, without its ending.

    It has a digest of the run, because runs with other settings have other files.
    """
    digest = files.sha256_of_json(run._asdict())[:8]
    return f"{run.data}-{run.method}-{run.budget:g}-{run.seed}-{kind}-{digest}"


def _as_it_is(variables: Any, x: jax.Array) -> jax.Array:
    return x


def draw_samples(
    sample: Sampler, arguments: tuple[Any, ...], num: int, denoise: Denoise = _as_it_is
) -> np.ndarray:
    """Draws samples in batches, uint8 [num, H, W, C]; `num` is a multiple of 250.

    Args:
      sample: a compiled sampler.
      arguments: its key, variables and constants.
      num: number of samples.
      denoise: variables and samples to those that are returned, compiled.
    """
    positions = (start + jnp.arange(_SAMPLE_BATCH) for start in range(0, num, _SAMPLE_BATCH))
    parts = [denoise(arguments[1], sample(*arguments, at)) for at in positions]
    return to_uint8(np.concatenate(parts))


def draw_kept(
    sample: Sampler,
    arguments: tuple[Any, ...],
    log_ratio: Callable[[Any, jax.Array, jax.Array], jax.Array],
    num: int,
    denoise: Denoise = _as_it_is,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Draws samples of FDRL until enough of them are kept by their ratio.

    The bound is that of the first 1,000 samples, of which some are then kept as well.

    Args:
      sample: a compiled sampler.
      arguments: its key, variables and constants.
      log_ratio: of FDRL: variables, images and their positions to `log q~/p`, compiled.
      num: number of samples.
      denoise: variables and samples to those that are returned, compiled. The ratio is that of
        samples before it.

    Returns:
      The kept samples, uint8 [num, H, W, C], their positions [num], and the share of samples that
      were kept.
    """
    key, variables, _ = arguments

    def proposals(start: int) -> tuple[np.ndarray, np.ndarray]:
        positions = start + jnp.arange(_SAMPLE_BATCH)
        x = sample(*arguments, positions)
        of_x = log_ratio(variables, x, positions)
        return np.asarray(denoise(variables, x)), np.asarray(of_x)

    pilot = [proposals(start) for start in range(0, _NUM_PILOT, _SAMPLE_BATCH)]
    bound = refinement.acceptance_bound(np.concatenate([of_x for _, of_x in pilot]))
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    start = 0
    while sum(len(at) for _, at in kept) < num:
        x, of_x = pilot.pop(0) if pilot else proposals(start)
        positions = start + np.arange(_SAMPLE_BATCH)
        keys = rng.example_keys(key, rng.Stream.ACCEPT, positions)
        accepted = np.asarray(refinement.accept(keys, of_x, bound, output="log_ratio"))
        kept.append((x[accepted], positions[accepted]))
        start += _SAMPLE_BATCH
    images, at = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    return to_uint8(images[:num]), at[:num], len(at) / start


def train(
    contestant: Contestant,
    learning_rate: float,
    key: jax.Array,
    budget: float,
    checkpoint: Path | None = None,
    *,
    description: str = "",
) -> tuple[TrainState, dict[str, Any]]:
    """Trains until the CPU seconds are used; compilation does not count.

    The learning rate falls with the cosine of the share of the budget that is used. Each contestant
    therefore ends its schedule exactly with its budget, also on a busy machine.

    Args:
      contestant: what to train.
      learning_rate: after a short warm-up.
      key: root key of the run.
      budget: CPU seconds.
      checkpoint: a file from which an interrupted training continues, with the seconds that it had
        used. It is written every ten CPU minutes and at the end.
      description: of the progress bar, which counts CPU seconds.

    Returns:
      The last state and the figures of the training. "diverged" means that the loss or
      parameters are not finite.
    """
    train_state, constants = contestant.train_state, contestant.constants
    used, saved, loss = 0.0, 0.0, 0.0
    if checkpoint and checkpoint.exists():
        found = serialization.msgpack_restore(checkpoint.read_bytes())
        restored = serialization.from_state_dict(train_state, found["state"])
        train_state = jax.tree.map(jnp.asarray, restored)
        used = saved = found["used"]
        loss = found["loss"]
    step = jax.jit(contestant.train_step, donate_argnums=1)
    step = step.lower(key, train_state, constants).compile()
    started = time.process_time() - max(used, contestant.fit_seconds)
    num_steps = int(train_state.step)
    with tqdm(total=budget, initial=min(used, budget), desc=description, **_BAR) as bar:
        while used < budget and math.isfinite(loss):
            warmup = min(1.0, (num_steps + 1) / _WARMUP_STEPS)
            rate = learning_rate * warmup * 0.5 * (1.0 + math.cos(math.pi * used / budget))
            hyperparams = {"learning_rate": jnp.float32(rate)}
            opt_state = train_state.opt_state._replace(hyperparams=hyperparams)
            train_state, metrics = step(key, train_state._replace(opt_state=opt_state), constants)
            loss = float(metrics["loss"])
            num_steps += 1
            used = time.process_time() - started
            if checkpoint and (used >= budget or used > saved + _CHECKPOINT_SECONDS):
                _write_checkpoint(checkpoint, train_state, used, loss)
                saved = used
            bar.set_postfix(steps=num_steps, loss=f"{loss:.3f}", refresh=False)
            bar.update(min(used, budget) - bar.n)
    params = train_state.variables["params"]
    # The loss is that before the last update, and samples are drawn with averaged parameters.
    kept = jax.tree.leaves((params, train_state.ema_variables))
    is_finite = math.isfinite(loss) and all(bool(jnp.isfinite(leaf).all()) for leaf in kept)
    return train_state, {
        "steps": num_steps,
        "train_cpu_seconds": round(used, 1),
        "loss": loss,
        "diverged": not is_finite,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "peak_megabytes": _peak_megabytes(),
    }


def _peak_megabytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():  # macOS, which counts bytes.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**20
    # On Linux, `getrusage` returns the parent's peak if that is larger, as programs inherit it.
    fields = dict(line.split(":") for line in status.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) // 1_024


def _write_checkpoint(file: Path, train_state: TrainState, used: float, loss: float) -> None:
    content = {"state": jax.tree.map(np.asarray, train_state), "used": used, "loss": loss}
    with files.replacing(file) as stream:
        stream.write(serialization.to_bytes(content))


def _seconds_per_sample(started: float, run: Run) -> float:
    return round((time.process_time() - started) / run.num_samples, 6)
