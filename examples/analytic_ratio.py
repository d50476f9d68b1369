"""The flow along a density ratio that is known in closed form: no network, no training.

    python -m examples.analytic_ratio

Samples of `q' = N(0, 0.1 I)` flow towards `p = N((1, 1), 0.1 I)` by the first variation of several
divergences. The ratio `r = q'/p` is stale: it belongs to the samples before the flow and does not
follow them. Under log D the drift fades where `r` is small, so the samples stop near the target.
Under KL the drift is the same everywhere, so the samples pass the target at full speed, and under
JS after a slow start. A ratio that is trained on the flowed samples does not have this problem: its
drift vanishes when the samples match the data.
"""

import jax
import jax.numpy as jnp

import fdrl_jax as fdrl

VARIANCE = 0.1


def log_ratio(x: jax.Array) -> jax.Array:
    """Returns the logarithm of samples over data, `log q'/p`, [B, 2] -> [B]."""
    squares = jnp.sum((x - 1.0) ** 2 - x**2, axis=-1)
    return squares / (2.0 * VARIANCE)


def main() -> dict[str, list[float]]:
    """Prints and returns where the mean of the samples ends, for each divergence."""
    x0 = VARIANCE**0.5 * jax.random.normal(jax.random.key(0), (1_000, 2))
    flow, means = jax.jit(fdrl.flow, static_argnums=2, static_argnames="num_steps"), {}
    print("target mean (1.00, 1.00); the ratio is stale, so only log D stops there")
    for name in ("logd", "js", "kl"):
        potential = fdrl.first_variation(log_ratio, name, output="log_ratio")
        x = flow(jax.random.key(1), x0, potential, num_steps=30, step_size=0.05, noise_scale=0.01)
        means[name] = x.mean(axis=0).tolist()
        print(f"{name:6s} mean ({means[name][0]:.2f}, {means[name][1]:.2f})")
    return means


if __name__ == "__main__":
    main()
