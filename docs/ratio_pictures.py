"""Draws density ratios and densities of the page "Density ratios" next to their truths.

Command: python -m docs.ratio_pictures --out=runs/ratios
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import fdrl_jax as fdrl
from benchmarks.ratios import CHASMS, MODES, flow_densities, smooth_estimator
from experiments.pictures.style import DATA, PRIOR, SAMPLES, panels, save

NUM_SAMPLES = 10_000
# The points at which a ratio is drawn, and the smallest size of `log r` on the logarithmic axis.
RANGES = {
    "scale": (np.geomspace(1e-4, 4.0, 400), 10.0),
    "location": (np.linspace(-4.0, 12.0, 400), None),
    "two modes": (np.linspace(-2.0, 3.0, 400), None),
}
STEP_SIZE, NUM_STEPS = 0.1, 20
REACH, CELLS = 3.5, 120


def main() -> None:
    """Draws both pictures and prints their paths."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    folder = parser.parse_args().out
    print(save(chasms(), folder / "chasms.png"))
    print(save(densities(), folder / "densities.png"))


def chasms() -> Figure:
    """Draws `log r` of a single classifier and of a bridge over the truth, one chasm per panel."""
    figure, axes = panels(len(RANGES), size=2.8)
    for ax, (name, (x, threshold)) in zip(axes, RANGES.items(), strict=True):
        pair, rng = CHASMS[name], np.random.default_rng(0)
        sets = [mixture.sample(rng, NUM_SAMPLES) for mixture in pair]
        ax.plot(x, pair[0].log_density(x[:, None]) - pair[1].log_density(x[:, None]), color=PRIOR,
                linewidth=4.0, alpha=0.6, label="truth")  # fmt: skip
        for bridge, label, colour in (("none", "single", DATA), ("mixing", "bridge", SAMPLES)):
            ratio = fdrl.fit_ratio(jax.random.key(0), *sets, bridge=bridge)
            ax.plot(x, ratio.log_ratio(x), color=colour, linewidth=1.2, label=label)
        if threshold is not None:
            ax.set_xscale("log")
            ax.set_yscale("symlog", linthresh=threshold)
        ax.set(title=name, xlabel="x")
    axes[0].set_ylabel("log r (nats)")
    axes[0].legend()
    return figure


def densities() -> Figure:
    """Draws a density of four modes, and its estimates from a flow without noise."""
    axis = np.linspace(-REACH, REACH, CELLS)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    log_ratio = smooth_estimator(0, STEP_SIZE, NUM_STEPS)
    found = flow_densities(jnp.asarray(grid, jnp.float32), log_ratio, STEP_SIZE, NUM_STEPS)
    shown = {
        "truth": MODES.log_density(grid),
        "log_density(...).data": np.asarray(found.data),
        "log_density(...).flowed": np.asarray(found.flowed),
    }
    figure, axes = panels(len(shown), size=2.2)
    highest = np.exp(shown["truth"]).max()
    for ax, (title, log_p) in zip(axes, shown.items(), strict=True):
        image = np.exp(log_p).reshape(CELLS, CELLS)
        ax.imshow(image, origin="lower", cmap="viridis", vmin=0.0, vmax=highest)
        ax.set_title(title)
        ax.set_axis_off()
    return figure


if __name__ == "__main__":
    main()
