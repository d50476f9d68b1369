"""The flow along a density ratio that is known in closed form: no network, no training.

    python -m examples.analytic_ratio

Samples of `q' = N(0, 0.1 I)` flow towards `p = N((1, 1), 0.1 I)` by the first variation of several
divergences. The ratio is that of samples over data, `r = q'/p`, and the flow decreases it.

The ratio here is stale: it belongs to the samples before the flow and does not follow them. Under
log D the drift fades where `r` is small, so the samples stop near the target. Under KL the drift is
the same everywhere and never stops, so the samples pass the target at full speed; under JS they do
so after a slow start. An estimator that is trained on the flowed samples does not have this
problem: its drift vanishes when the samples match the data.
"""

import argparse
import functools

import jax
import jax.numpy as jnp

import fdrl_jax as fdrl

VARIANCE = 0.1


def log_normal(x: jax.Array, mean: jax.Array) -> jax.Array:
    """Returns the log-density of `N(mean, 0.1 I)` up to a constant, [B, 2] -> [B]."""
    return -jnp.sum((x - mean) ** 2, axis=-1) / (2.0 * VARIANCE)


def log_ratio(x: jax.Array) -> jax.Array:
    """Returns the logarithm of samples over data, `log q'/p`, [B, 2] -> [B]."""
    return log_normal(x, jnp.zeros(2)) - log_normal(x, jnp.ones(2))


def main(argv: list[str] | None = None) -> dict[str, list[float]]:
    """Prints and returns where the mean of the samples ends, for each divergence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="steps of the flow")
    num_steps = parser.parse_args(argv).steps
    x0 = VARIANCE**0.5 * jax.random.normal(jax.random.key(0), (1_000, 2))
    means = {}
    print("target mean (1.00, 1.00); the ratio is stale, so only log D stops there")
    for name in ("logd", "js", "kl"):
        potential = fdrl.first_variation(log_ratio, name, output="log_ratio")
        transport = functools.partial(
            fdrl.flow, num_steps=num_steps, step_size=0.05, noise_scale=0.01
        )
        x = jax.jit(transport, static_argnums=2)(jax.random.key(1), x0, potential)
        means[name] = x.mean(axis=0).tolist()
        note = "" if name == "logd" else "  past the target: the stale drift does not stop"
        print(f"{name:6s} mean ({means[name][0]:.2f}, {means[name][1]:.2f}){note}")
    return means


if __name__ == "__main__":
    main()
