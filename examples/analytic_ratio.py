"""The flow along a density ratio that is known in closed form: no network, no training.

    python -m examples.analytic_ratio

Samples of `N(0, 0.1 I)` flow to `N((1, 1), 0.1 I)` by the first variation of several divergences,
and, by multiplying ratios, to where two targets agree.
"""

import argparse

import jax
import jax.numpy as jnp

import fdrl_jax as fdrl

VARIANCE = 0.1


def log_normal(x: jax.Array, mean: tuple[float, float]) -> jax.Array:
    """Returns the log-density of `N(mean, 0.1 I)` up to a constant, [B, 2] -> [B]."""
    return -jnp.sum((x - jnp.array(mean)) ** 2, axis=-1) / (2.0 * VARIANCE)


def log_ratio(x: jax.Array) -> jax.Array:
    """Returns `log q'/p`, [B, 2] -> [B]."""
    return log_normal(x, (0.0, 0.0)) - log_normal(x, (1.0, 1.0))


def log_ratio_to_another(x: jax.Array) -> jax.Array:
    """Returns `log q'/p₂` for `p₂ = N((1, -1), 0.1 I)`, [B, 2] -> [B]."""
    return log_normal(x, (0.0, 0.0)) - log_normal(x, (1.0, -1.0))


def transport(potential: fdrl.compose.Estimator, num_steps: int) -> jax.Array:
    """Returns 1,000 samples of the prior after their flow."""
    x0 = VARIANCE**0.5 * jax.random.normal(jax.random.key(0), (1_000, 2))

    @jax.jit
    def run(key: jax.Array, x: jax.Array) -> jax.Array:
        return fdrl.flow(key, x, potential, num_steps=num_steps, step_size=0.02, noise_scale=0.01)

    return run(jax.random.key(1), x0)


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Prints where the mean of the samples ends, for each divergence and for the product."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200, help="steps of the flow")
    args = parser.parse_args(argv)
    means = {}
    for name in ("logd", "js"):
        potential = fdrl.first_variation(log_ratio, fdrl.divergences.get(name))
        means[name] = transport(potential, args.steps).mean(axis=0).tolist()
    both = fdrl.compose.product([log_ratio, log_ratio_to_another])
    potential = fdrl.first_variation(both, fdrl.divergences.get("logd"))
    means["product"] = transport(potential, args.steps).mean(axis=0).tolist()
    for name, mean in means.items():
        print(f"{name:8s} mean ({mean[0]:.2f}, {mean[1]:.2f})")
    return means


if __name__ == "__main__":
    main()
