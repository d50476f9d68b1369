"""The density chasm: where a stale density ratio fails, and flow-guided training does not.

    python -m examples.density_chasm
    python -m examples.density_chasm --seeds 0 1 2 3 4

Samples of `q' = N(0, 0.1 I)` should flow to `p = N((d, d), 0.1 I)`. A stale estimator is trained on
samples of `q'` and `p` and never sees the region between them. That suffices for `d = 1`. For
`d = 6` no samples are in between, and the flow strays (figure 2 of the paper). Flow-guided training
learns from flowed samples, so that ratio and samples improve together (figure 4). The stale
estimator is the case `K = 0`, so one function trains all three.

The program writes a picture and the numbers. It takes about a minute per seed on two CPU cores. The
KL at the end of flow-guided training varies a lot between seeds, and for one seed between
processors, whose rounding differs. Several seeds therefore give their median and range.
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
SHOWN_STEPS = (10, 40)  # Training steps whose samples are drawn, as in figure 4.
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


class Trained(NamedTuple):
    """The training of a case with one seed."""

    path: np.ndarray  # Of the samples under the last estimator, [steps + 1, N, 2].
    looks: list[Look]
    shown: dict[int, np.ndarray]  # Samples by training step, for `SHOWN_STEPS`.


def train(case: Case, num_train_steps: int, seeds: list[int]) -> list[Trained]:
    """Trains estimators with the training step of the library, and measures their flow regularly.

    The program is compiled once for all seeds.
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
    constants = Constants((), prior.params)
    step = fdrl.training.steps.make_train_step(
        problem, optimizer=optimizer, draw=draw, batch_size=BATCH_SIZE, ema_rate=0.98
    )
    take_steps = jax.jit(fdrl.training.steps.repeat_steps(step, STEPS_BETWEEN_LOOKS))
    shown = problem._replace(flow=FlowParams(case.shown_flow_steps, STEP_SIZE, NOISE_SCALE))
    sample_path = jax.jit(fdrl.training.samplers.make_path_sampler(shown))
    # Only the end of training is shown for a stale estimator.
    regular = {*range(0, num_train_steps, STEPS_BETWEEN_LOOKS), *SHOWN_STEPS}
    stops = {num_train_steps, *(regular if case.train_flow_steps else ())}
    batch = {"position": jnp.arange(NUM_SAMPLES)}

    def of_seed(seed: int) -> Trained:
        variables = net.init(jax.random.key(seed), jnp.zeros((1, 2)))
        state = fdrl.training.state.create(variables, optimizer)
        looks, shown = [], {}
        with tqdm(total=num_train_steps, unit="step", desc=f"{case.name}, seed {seed}") as bar:
            for stop in sorted(at for at in stops if at <= num_train_steps):
                while state.step < stop:
                    count = min(STEPS_BETWEEN_LOOKS, stop - int(state.step))
                    root = fdrl.training.rng.root_key(seed)
                    state, _ = take_steps(root, state, constants, None, count)
                    bar.update(count)
                root = fdrl.training.rng.root_key(seed + 1)
                path = np.asarray(sample_path(root, state.ema_variables, constants, batch))
                looks.append(look(stop, path[-1], case.distance))
                if stop in SHOWN_STEPS:
                    shown[stop] = path[-1]
        return Trained(path, looks, shown)

    return [of_seed(seed) for seed in seeds]


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


def draw_figure(trained: list[list[Trained]], file: Path) -> None:
    """Draws the flow of each case with the first seed, and medians over the seeds."""
    figure, panels = plt.subplots(2, 3, figsize=(11.0, 7.0), layout="constrained", dpi=100)
    flows, (first, second, ax) = panels[0], panels[1]
    for panel, case, of_seeds in zip(flows, CASES, trained, strict=True):
        draw_flow(panel, case, of_seeds[0])
    guided, case = trained[-1], CASES[-1]
    means = np.median([[at.mean for at in of_seed.looks] for of_seed in guided], axis=0)
    flows[2].plot(
        *means.T, "o-", color="black", lw=1, ms=2, label="mean of $\\tilde{q}$ in training"
    )
    for panel in flows:
        legend = panel.legend(loc="upper left", frameon=False, fontsize=9, markerscale=4)
        for handle in legend.legend_handles[:3]:  # The points; the path of means has its own size.
            handle.set_alpha(1.0)
    for panel, (step, samples) in zip((first, second), guided[0].shown.items(), strict=False):
        draw_points(panel, case, guided[0].path[0], samples)
        panel.set(title=f"flow-guided, training step {step}")
    steps = [at.train_step for at in guided[0].looks]
    for name, colour in (("kl", SAMPLES), ("energy_distance", DATA)):
        label = "KL of a Gaussian fit" if name == "kl" else "energy distance"
        of_seeds = [[max(getattr(at, name), 1e-3) for at in run.looks] for run in guided]
        ax.semilogy(steps, np.median(of_seeds, axis=0), color=colour, label=label)
        ax.fill_between(
            steps, np.min(of_seeds, axis=0), np.max(of_seeds, axis=0), color=colour, alpha=0.2, lw=0
        )
        stale = np.median([getattr(run.looks[-1], name) for run in trained[1]])
        ax.axhline(stale, color=colour, ls=":", lw=1)
    ax.plot([], [], color="black", ls=":", lw=1, label="stale, far")
    ax.set(title="flow-guided: distance of $\\tilde{q}$ to $p$", xlabel="training step")
    ax.legend(frameon=False, loc="lower left", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
    plt.close(figure)


def draw_flow(ax: Axes, case: Case, trained: Trained) -> None:
    """Draws the prior, the target, some paths and the flowed samples of a case."""
    path = trained.path
    ax.plot(*path[:, :40].transpose(2, 0, 1), color=SAMPLES, alpha=0.15, lw=0.6)
    draw_points(ax, case, path[0], path[-1])
    steps, kl = case.shown_flow_steps, trained.looks[-1].kl
    ax.set(title=f"{case.name}: {steps} steps, KL {kl:.3g}")


def draw_points(ax: Axes, case: Case, starts: np.ndarray, samples: np.ndarray) -> None:
    """Draws the prior, the target and flowed samples."""
    columns = {"$q'$": (starts, PRIOR), "$p$": (target_samples(case.distance), DATA)}
    for label, (points, colour) in {**columns, "$\\tilde{q}$": (samples, SAMPLES)}.items():
        ax.plot(*points.T, ".", ms=2.5, mew=0, color=colour, alpha=0.5, label=label)
    ax.set(xticks=[], yticks=[])
    ax.set_aspect("equal", adjustable="datalim")


def summary(values: list[float]) -> str:
    """Returns the median, and the range if there are several values."""
    middle = f"{np.median(values):.3f}"
    return f"{middle} ({min(values):.3f} to {max(values):.3f})" if values[1:] else middle


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Runs the three cases; returns what it writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000, help="training steps of each estimator")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/density_chasm"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    trained = [train(case, args.steps, args.seeds) for case in CASES]
    result = {
        case.name: {
            **case._asdict(),
            **first.looks[-1]._asdict(),
            "of_prior": look(0, first.path[0], case.distance)._asdict(),
            "course": [at._asdict() for at in first.looks],
            "by_seed": {
                seed: run.looks[-1]._asdict()
                for seed, run in zip(args.seeds, (first, *others), strict=True)
            },
        }
        for case, (first, *others) in zip(CASES, trained, strict=True)
    }
    (args.out / "density_chasm.json").write_text(json.dumps(result, indent=2) + "\n")
    draw_figure(trained, args.out / "density_chasm.png")
    for case, of_seeds in zip(CASES, trained, strict=True):
        kl, energy = (
            summary([getattr(run.looks[-1], name) for run in of_seeds])
            for name in ("kl", "energy_distance")
        )
        print(f"{case.name:18s} KL {kl}   energy distance {energy}")
    print(f"written: {args.out}/density_chasm.png, density_chasm.json")
    return result


if __name__ == "__main__":
    main()
