"""The density chasm: where a stale density ratio fails, and flow-guided training does not.

    python -m examples.density_chasm

Samples of `q' = N(0, 0.1 I)` should flow to `p = N((d, d), 0.1 I)`. A stale estimator is trained on
samples of `q'` and `p` and never sees the region between them. That suffices for `d = 1`. For
`d = 6` no samples are in between, and the flow strays (figure 2 of the paper). Flow-guided training
learns from flowed samples, so that ratio and samples improve together (figure 4). The stale
estimator is the case `K = 0`, so one function trains all three.

The program writes a picture and the numbers. It takes about a minute on two CPU cores.
"""

import argparse
import json
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
from fdrl_jax.training.problem import Constants, Estimator, FlowParams, Problem

STD = 0.1**0.5
STEP_SIZE, NOISE_SCALE = 0.1, 0.01
BATCH_SIZE, LEARNING_RATE = 256, 2e-3
NUM_SAMPLES, STEPS_BETWEEN_LOOKS = 1_000, 25
PRIOR, SAMPLES, DATA = "#8a8a8a", "#d1602b", "#4878a8"


class Case(NamedTuple):
    """A target `N((distance, distance), 0.1 I)`, `K` in training, and steps of the flow shown."""

    name: str
    distance: float
    train_flow_steps: int
    shown_flow_steps: int


CASES = (
    Case("stale, near", 1.0, 0, 15),
    Case("stale, far", 6.0, 0, 400),
    Case("flow-guided, far", 6.0, 100, 100),
)


class Look(NamedTuple):
    """The flowed samples after some training: mean, and distances to the target."""

    train_step: int
    mean: list[float]
    kl: float
    energy_distance: float


def train(case: Case, num_train_steps: int) -> tuple[np.ndarray, list[Look]]:
    """Trains an estimator with the training step of the library, and measures its flow regularly.

    Returns:
      The path of the samples under the last estimator, [steps + 1, N, 2], and the looks.
    """
    prior = fdrl.priors.normal((2,), STD)
    net = fdrl.networks.MLP()
    problem = Problem(
        estimator=Estimator.from_network(net),
        bregman="lr",
        divergence="logd",
        flow=FlowParams(case.train_flow_steps, STEP_SIZE, NOISE_SCALE),
        prior_sample=prior.sample,
    )

    def draw(arrays: Any, host_batch: Any, key: jax.Array, positions: jax.Array) -> dict[str, Any]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, positions)
        return {"real": case.distance + prior.sample((), keys, {})}

    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, num_train_steps))
    state = fdrl.training.state.create(net.init(jax.random.key(0), jnp.zeros((1, 2))), optimizer)
    constants = Constants((), prior.params)
    step = fdrl.training.steps.make_train_step(
        problem, optimizer=optimizer, draw=draw, batch_size=BATCH_SIZE, ema_rate=0.98
    )
    take_steps = jax.jit(fdrl.training.steps.repeat_steps(step, STEPS_BETWEEN_LOOKS))
    shown = problem._replace(flow=FlowParams(case.shown_flow_steps, STEP_SIZE, NOISE_SCALE))
    sample_path = jax.jit(fdrl.training.samplers.make_path_sampler(shown))
    # Only the end of training is shown for a stale estimator.
    guided = case.train_flow_steps > 0
    looks = []
    with tqdm(total=num_train_steps, unit="step", desc=case.name) as bar:
        while True:
            if guided or state.step == num_train_steps:
                batch = {"position": jnp.arange(NUM_SAMPLES)}
                path = np.asarray(
                    sample_path(
                        fdrl.training.rng.root_key(1), state.ema_variables, constants, batch
                    )
                )
                looks.append(look(int(state.step), path[-1], case.distance))
            if state.step == num_train_steps:
                return path, looks
            count = min(STEPS_BETWEEN_LOOKS, num_train_steps - int(state.step))
            state, _ = take_steps(fdrl.training.rng.root_key(0), state, constants, None, count)
            bar.update(count)


def look(train_step: int, samples: np.ndarray, distance: float) -> Look:
    """Measures samples against the target."""
    return Look(
        train_step,
        samples.mean(axis=0).tolist(),
        gaussian_kl(samples, distance),
        fdrl.metrics.energy_distance(samples, target_samples(distance)),
    )


def gaussian_kl(samples: np.ndarray, distance: float) -> float:
    """Returns `KL(N(m, S) || p)` of the Gaussian fitted to samples, in closed form, in nats."""
    offset, covariance = samples.mean(axis=0) - distance, np.cov(samples.T) / STD**2
    squared = np.trace(covariance) + offset @ offset / STD**2
    return float(0.5 * (squared - 2.0 - np.linalg.slogdet(covariance)[1]))


def target_samples(distance: float) -> np.ndarray:
    """Returns fixed samples of the target."""
    return distance + STD * np.random.default_rng(0).standard_normal((NUM_SAMPLES, 2))


def draw_figure(paths: list[np.ndarray], looks: list[list[Look]], file: Path) -> None:
    """Draws the flow of each case, and the metrics over the flow-guided training."""
    figure, panels = plt.subplots(2, 2, figsize=(7.4, 7.0), layout="constrained", dpi=120)
    axes = panels.ravel()
    for ax, case, path, seen in zip(axes, CASES, paths, looks, strict=False):
        draw_flow(ax, case, path, seen)
    (stale,), guided = looks[1], looks[-1]
    means = np.array([at.mean for at in guided])
    axes[2].plot(
        *means.T, "o-", color="black", lw=1, ms=2, label="mean of $\\tilde{q}$ in training"
    )
    for ax in axes[:3]:
        legend = ax.legend(loc="upper left", frameon=False, fontsize=9, markerscale=4)
        for handle in legend.legend_handles[:3]:  # The points; the path of means has its own size.
            handle.set_alpha(1.0)
    steps, ax = [at.train_step for at in guided], axes[3]
    for name, colour in (("kl", SAMPLES), ("energy_distance", DATA)):
        label = "KL of a Gaussian fit" if name == "kl" else "energy distance"
        values = [max(getattr(at, name), 1e-3) for at in guided]
        ax.semilogy(steps, values, color=colour, label=label)
        ax.axhline(getattr(stale, name), color=colour, ls=":", lw=1)
    ax.plot([], [], color="black", ls=":", lw=1, label="stale, far")
    ax.set(title="flow-guided: distance of $\\tilde{q}$ to $p$", xlabel="training step")
    ax.legend(frameon=False, loc="lower left", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
    plt.close(figure)


def draw_flow(ax: Axes, case: Case, path: np.ndarray, seen: list[Look]) -> None:
    """Draws the prior, the target, some paths and the flowed samples of a case."""
    ax.plot(*path[:, :40].transpose(2, 0, 1), color=SAMPLES, alpha=0.15, lw=0.6)
    columns = {"$q'$": (path[0], PRIOR), "$p$": (target_samples(case.distance), DATA)}
    for label, (points, colour) in {**columns, "$\\tilde{q}$": (path[-1], SAMPLES)}.items():
        ax.plot(*points.T, ".", ms=2.5, mew=0, color=colour, alpha=0.5, label=label)
    steps = case.shown_flow_steps
    ax.set(title=f"{case.name}: {steps} steps, KL {seen[-1].kl:.3g}", xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the three cases; returns what it writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000, help="training steps of each estimator")
    parser.add_argument("--out", type=Path, default=Path("runs/density_chasm"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    paths, looks = zip(*(train(case, args.steps) for case in CASES), strict=True)
    result = {
        case.name: {
            **case._asdict(),
            **seen[-1]._asdict(),
            "of_prior": look(0, path[0], case.distance)._asdict(),
            "course": [at._asdict() for at in seen],
        }
        for case, path, seen in zip(CASES, paths, looks, strict=True)
    }
    (args.out / "density_chasm.json").write_text(json.dumps(result, indent=2) + "\n")
    draw_figure(paths, looks, args.out / "density_chasm.png")
    for case, seen in zip(CASES, looks, strict=True):
        end = seen[-1]
        print(f"{case.name:18s} KL {end.kl:9.3f}   energy distance {end.energy_distance:8.3f}")
    print(f"written: {args.out}/density_chasm.png, density_chasm.json")
    return result


if __name__ == "__main__":
    main()
