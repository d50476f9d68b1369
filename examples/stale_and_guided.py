"""The central claim of the paper on real images: stale or flow-guided, uniform or fitted prior.

    python -m examples.stale_and_guided
    python -m examples.stale_and_guided --data=mnist.zip --out=runs/stale_and_guided_mnist

A stale estimator is trained on samples of the prior and on data (section 3 of the paper), which is
the case `K = 0` of flow-guided training. The claim: it separates the two perfectly, most quickly
from a uniform prior, and is then useless for a flow. Flow-guided training keeps the problem hard,
and a prior with the mean and covariance of the data starts it closer to the data.

All four cases have the same network, optimizer, noise and step size. For each seed, the program
prints and draws the loss and the mean log-ratio `log q~/p` over training, on data and on flowed
samples, and the Fréchet distance of samples to held-out images at several lengths of the flow.
Length 0 is the prior. It takes minutes on one CPU core.
"""

import argparse
import io
import itertools
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from tqdm import tqdm

import fdrl_jax as fdrl
from fdrl_jax.training import rng, samplers, steps
from fdrl_jax.training.problem import Constants, Estimator, FlowParams, Problem

BATCH_SIZE, LEARNING_RATE, STEPS_PER_DISPATCH = 64, 5e-4, 10
NOISE_SCALE, DEQUANTISATION, JITTER = 0.007, 0.03, 3e-4  # As in `configs/base.py`.
NUM_HELD_OUT, NUM_SAMPLES, NUM_SHOWN = 300, 300, 6
COLOURS = {"uniform": "#8a8a8a", "data-dependent": "#d1602b"}
LINES = {"stale": ":", "flow-guided": "-"}


class Case(NamedTuple):
    """How the estimator is trained, and where the flow starts."""

    training: str  # "stale" or "flow-guided".
    prior: str  # "uniform" or "data-dependent".

    @property
    def name(self) -> str:
        """The name in legends and results."""
        return f"{self.training}, {self.prior}"


class Result(NamedTuple):
    """The training of a case with a seed, and samples at several lengths of the flow."""

    course: dict[str, list[float]]  # At every step: loss, and the mean log-ratio on both sides.
    frechet: list[float]  # By length.
    samples: np.ndarray  # [lengths, N, H, W, C].


CASES = tuple(itertools.starmap(Case, itertools.product(LINES, COLOURS)))
METRICS = {"loss": "loss", "on data": "output_real", "on samples": "output_flowed"}


def train(
    case: Case, images: np.ndarray, held_out: np.ndarray, seeds: list[int], options: Any
) -> list[Result]:
    """Trains a case with each seed. Images are in [-1, 1], [N, H, W, C]."""
    shape = images.shape[1:]
    if case.prior == "uniform":
        prior = fdrl.priors.uniform(shape)
    else:
        found = fdrl.priors.moments([images])
        factor = fdrl.priors.covariance_factor(found.covariance, JITTER)
        prior = fdrl.priors.gaussian(found.mean.reshape(shape), factor, clip=(-1.0, 1.0))
    halvings = math.ceil(math.log2(max(shape) / 4))
    spec = fdrl.networks.ResNetSpec(16, ((32, 2),) * halvings + ((64, 1),))
    net = fdrl.networks.resnet(spec, use_bias=True)
    # The distance from prior to data grows with the square root of the number of pixels.
    step_size = 2.75 * math.sqrt(math.prod(shape)) / 12
    in_training = options.flow_steps if case.training == "flow-guided" else 0
    problem = Problem(
        estimator=Estimator.from_network(net),
        bregman="lr",
        divergence="kl",
        flow=FlowParams(in_training, step_size, NOISE_SCALE),
        prior_sample=prior.sample,
    )

    def draw(arrays: Any, host_batch: Any, key: jax.Array, positions: jax.Array) -> dict[str, Any]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
        return {"real": arrays[jax.vmap(lambda k: jax.random.randint(k, (), 0, len(arrays)))(keys)]}

    optimizer = optax.adam(LEARNING_RATE)
    step = steps.make_train_step(
        problem,
        optimizer=optimizer,
        draw=draw,
        batch_size=BATCH_SIZE,
        ema_rate=0.99,
        ema_ramp=True,
        dequantisation=DEQUANTISATION,
        gradient_penalty=options.gradient_penalty,
    )
    take_steps = jax.jit(steps.repeat_steps(step, STEPS_PER_DISPATCH))
    lengths = lengths_of(options.flow_steps)
    longest = problem._replace(flow=FlowParams(lengths[-1], step_size, NOISE_SCALE))
    sample_path = jax.jit(samplers.make_path_sampler(longest))
    constants = Constants(jnp.asarray(images), prior.params)
    results = []
    for seed in seeds:
        variables = net.init(jax.random.key(seed), jnp.zeros((1, *shape)))
        state = fdrl.training.state.create(variables, optimizer)
        course: dict[str, list[float]] = {name: [] for name in METRICS}
        bar = tqdm(total=options.steps, unit="step", desc=f"{' '.join(case)}, seed {seed}")
        with bar:
            while state.step < options.steps:
                count = min(STEPS_PER_DISPATCH, options.steps - int(state.step))
                state, metrics = take_steps(rng.root_key(seed), state, constants, None, count)
                for name, key in METRICS.items():
                    course[name] += np.asarray(metrics[key])[:count].tolist()
                bar.update(count)
        batch = {"position": jnp.arange(NUM_SAMPLES)}
        path = sample_path(rng.root_key(seed), state.ema_variables, constants, batch)
        samples = np.clip(np.asarray(path)[list(lengths)], -1.0, 1.0)
        distances = [frechet(x, held_out) for x in samples]
        results.append(Result(course, distances, samples))
    return results


def lengths_of(flow_steps: int) -> tuple[int, ...]:
    """Returns the lengths of the flow at which samples are drawn."""
    return (0, flow_steps // 2, flow_steps, 2 * flow_steps, 4 * flow_steps)


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the Fréchet distance of images in the features of fixed random convolutions.

    It is NaN if some samples are not finite.
    """
    if not np.isfinite(x).all():
        return math.nan
    features = fdrl.metrics.random_conv_features
    return fdrl.metrics.frechet_distance(features(x), features(y))


def read_images(path: Path | None, num: int) -> np.ndarray:
    """Returns images in [-1, 1], [N, H, W, C]: scikit-learn's digits, or some of those of a zip."""
    random = np.random.default_rng(0)
    if path is None:
        from sklearn.datasets import load_digits

        pixels = random.permutation(load_digits().images[..., None] / 8.0 - 1.0)
    else:
        from PIL import Image

        with zipfile.ZipFile(path) as archive:
            files = [n for n in archive.namelist() if n.lower().endswith((".png", ".jpg", ".jpeg"))]
            chosen = random.permutation(sorted(files))[: num + NUM_HELD_OUT]
            read = [np.asarray(Image.open(io.BytesIO(archive.read(str(n))))) for n in chosen]
        pixels = np.stack(read) / 127.5 - 1.0
        pixels = pixels.reshape(*pixels.shape[:3], -1)
    return pixels.astype(np.float32)[: num + NUM_HELD_OUT]


def draw_figure(
    results: Mapping[Case, list[Result]], lengths: tuple[int, ...], real: float, file: Path
) -> None:
    """Draws the course of training with every seed, distances, and samples of the first seed."""
    figure, axes = plt.subplots(2, 4, figsize=(11.0, 6.0), layout="constrained", dpi=110)
    for ax, name in zip(axes[0], METRICS, strict=False):
        title = "loss" if name == "loss" else rf"mean $\log r$ {name}"
        ax.set(title=title, xlabel="training step", yscale="linear" if name == "loss" else "symlog")
        for case, found in results.items():
            for i, result in enumerate(found):
                draw_line(ax, case, range(1, len(result.course[name]) + 1), result.course[name], i)
    ax = axes[0, 3]
    for case, found in results.items():
        for i, result in enumerate(found):
            draw_line(ax, case, lengths, result.frechet, i)
    ax.axhline(real, color="#4878a8", label="real images")
    ax.set(title="Fréchet distance of samples", xlabel="length of the flow", yscale="log")
    figure.legend(
        *ax.get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False
    )
    for ax, (case, found) in zip(axes[1], results.items(), strict=True):
        shown = found[0].samples[:, :NUM_SHOWN]
        rows = np.pad(shown, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=1.0)
        sheet = np.concatenate([np.concatenate(list(row), axis=0) for row in rows], axis=1)
        grey = (np.nan_to_num(sheet) + 1.0) / 2.0
        ax.imshow(grey[..., 0] if grey.shape[-1] == 1 else grey, cmap="gray", vmin=0.0, vmax=1.0)
        title = f"{case.training},\n{case.prior} prior"
        ax.set(title=title, yticks=[], xlabel="length of the flow")
        pitch = sheet.shape[1] / len(lengths)
        ax.set_xticks([(i + 0.5) * pitch for i in range(len(lengths))], list(map(str, lengths)))
    figure.savefig(file)
    plt.close(figure)


def draw_line(ax: Axes, case: Case, x: Any, y: Any, seed_number: int) -> None:
    """Draws the values of one seed; only the first one is in the legend."""
    label = case.name if seed_number == 0 else None
    ax.plot(x, y, LINES[case.training], color=COLOURS[case.prior], lw=1.2, label=label)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the four cases; returns what it writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, help="a zip of images of one size; otherwise scikit-learn's digits")
    add("--num_images", type=int, default=3_000, help="training images to read")
    add("--steps", type=int, default=200, help="training steps")
    add("--flow_steps", type=int, default=12, help="K of flow-guided training")
    add("--gradient_penalty", type=float, default=0.0, help="the paper has none")
    add("--seeds", type=int, nargs="+", default=[0, 1])
    add("--out", type=Path, default=Path("runs/stale_and_guided"))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    images = read_images(options.data, options.num_images)
    held_out, images = images[:NUM_HELD_OUT], images[NUM_HELD_OUT:]
    lengths, real = lengths_of(options.flow_steps), frechet(images[:NUM_SAMPLES], held_out)
    results = {case: train(case, images, held_out, options.seeds, options) for case in CASES}
    print(f"Fréchet distance of real images: {real:.4f}")
    written: dict[str, Any] = {"real": real, "lengths": lengths, "seeds": options.seeds}
    for case, found in results.items():
        written[case.name] = [{"course": r.course, "frechet": r.frechet} for r in found]
        for seed, result in zip(options.seeds, found, strict=True):
            # Single steps scatter, so the end of training is the mean of some.
            end = {n: np.mean(values[-STEPS_PER_DISPATCH:]) for n, values in result.course.items()}
            at = ", ".join(f"{n}: {d:.4f}" for n, d in zip(lengths, result.frechet, strict=True))
            print(
                f"{case.name}, seed {seed}: loss {end['loss']:.3f}, "
                f"log ratio {end['on data']:.2f} on data and {end['on samples']:.2f} on samples; "
                f"Fréchet distance by length {at}"
            )
    (options.out / "stale_and_guided.json").write_text(json.dumps(written) + "\n")
    draw_figure(results, lengths, real, options.out / "stale_and_guided.png")
    print(f"written: {options.out}/stale_and_guided.png, stale_and_guided.json")
    return written


if __name__ == "__main__":
    main()
