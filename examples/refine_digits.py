"""Refinement in latent space on digits (DGflow), with the discriminator of one generator or two.

    python -m examples.refine_digits

A small GAN learns the digits of scikit-learn, 8 x 8 pixels. Its latent vectors flow along the logit
`d = log p/q` of its own discriminator. Then the same discriminator refines another generator, which
has no discriminator: a linear one (principal components) with distribution `q_l`. A corrector
`c = log q/q_l` is trained on samples of both generators, and `d + c` replaces `d`.

The program writes a picture and the numbers. It takes about a minute on two CPU cores.
"""

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import fdrl_jax as fdrl
from examples import gan

Array = jax.Array
NUM_LATENTS, NUM_SHOWN = 16, 64
NUM_FLOW_STEPS, STEP_SIZE = 25, 0.1  # As in the paper of DGflow.
# Its factor `1 / (1 + e^-d)` stops vectors where the logit is certain of "fake": far from all
# samples its gradient has no useful direction.
DIVERGENCE = "js"


def linear_generator(images: np.ndarray) -> fdrl.compose.Estimator:
    """Returns `z -> μ + F z` by the leading principal components of images, [N, D]."""
    mean, (_, scales, directions) = images.mean(axis=0), np.linalg.svd(images - images.mean(axis=0))
    factor = scales[:NUM_LATENTS, None] * directions[:NUM_LATENTS] / len(images) ** 0.5
    return lambda z: jnp.asarray(mean) + z @ jnp.asarray(factor)


def learn_corrector(
    of_gan: fdrl.compose.Estimator, of_other: fdrl.compose.Estimator, num_steps: int
) -> fdrl.compose.Estimator:
    """Learns `log q/q_l` between samples of two generators, by the library's logistic loss."""
    net, loss = fdrl.networks.MLP((256, 256)), fdrl.bregman.get("lr")
    params = net.init(jax.random.key(0), jnp.zeros((1, 64)))
    optimizer = optax.adam(5e-4)

    def step(i: Array, carry: tuple) -> tuple:
        params, opt_state = carry
        z, other_z = (gan.latents(key, 256, NUM_LATENTS) for key in jax.random.split(key_at(i)))
        x, other_x = of_gan(z), of_other(other_z)

        def loss_of(params: dict) -> Array:
            return fdrl.bregman.loss(loss, net.apply(params, x), net.apply(params, other_x))[0]

        updates, opt_state = optimizer.update(jax.grad(loss_of)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    def key_at(i: Array) -> Array:
        return jax.random.fold_in(jax.random.key(1), i)

    run = jax.jit(lambda carry: jax.lax.fori_loop(0, num_steps, step, carry))
    params, _ = run((params, optimizer.init(params)))
    # The library learns the ratio of its second samples to its first: `log q_l/q`.
    return lambda x: -net.apply(params, x)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Trains, refines; returns Fréchet distances to real digits, in a classifier's decisions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3_000, help="updates of the GAN")
    parser.add_argument("--out", type=Path, default=Path("runs/refine_digits"))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images = (digits.data / 8.0 - 1.0).astype(np.float32)
    # The classifier is trained on half of the images. A quarter is the reference, and the last one
    # shows the distance of other real digits. The GAN is trained on all of them.
    reference, data = images[1::4], images[3::4]
    judge = SVC(C=10.0, gamma=0.03, decision_function_shape="ovo")
    judge.fit(images[::2], digits.target[::2])

    trained = gan.train(
        lambda key: jax.random.choice(key, jnp.asarray(images), (256,)),
        num_latents=NUM_LATENTS,
        num_steps=args.steps,
        num_last_steps=args.steps // 3,
        limit=1.0,
        hidden_sizes=(256, 256),
        penalty=2.0,
    )
    linear = linear_generator(images)
    corrector = learn_corrector(trained.generator, linear, num_steps=args.steps // 10)
    # Distances are comparable at equal numbers only.
    z = gan.latents(jax.random.key(3), len(data), NUM_LATENTS)

    def refined(generator: fdrl.compose.Estimator, corrector: object = None) -> Array:
        potential = fdrl.compose.refine(
            trained.discriminator, DIVERGENCE, generator=generator, corrector=corrector
        )
        return generator(gan.refine(potential, z, NUM_FLOW_STEPS, STEP_SIZE))

    columns = {
        "generator": trained.generator(z),
        "refined": refined(trained.generator),
        "linear generator": linear(z),
        "refined without a corrector": refined(linear),
        "refined with a corrector": refined(linear, corrector),
        "data": data,
    }
    columns = {name: np.clip(np.asarray(x), -1.0, 1.0) for name, x in columns.items()}
    decisions = judge.decision_function(reference)
    distances = {
        name: fdrl.metrics.frechet_distance(judge.decision_function(x), decisions)
        for name, x in columns.items()
    }
    (args.out / "refine_digits.json").write_text(json.dumps(distances, indent=2) + "\n")
    draw_figure(columns, distances, args.out / "refine_digits.png")
    for name, distance in distances.items():
        print(f"{name:28s} Fréchet distance {distance:.3f}")
    print(f"written: {args.out}/refine_digits.png, refine_digits.json")
    return distances


def draw_figure(columns: dict[str, np.ndarray], distances: dict[str, float], file: Path) -> None:
    """Draws a grid of digits of each kind: the same latent vectors in the same places."""
    figure, axes = plt.subplots(2, 3, figsize=(8.4, 6.2), dpi=110, layout="constrained")
    for ax, (title, images) in zip(axes.ravel(), columns.items(), strict=True):
        framed = np.pad(images[:NUM_SHOWN].reshape(8, 8, 8, 8), ((0, 0),) * 2 + ((0, 1),) * 2)
        ax.imshow(framed.swapaxes(1, 2).reshape(72, 72), cmap="gray", vmin=-1, vmax=1)
        ax.set_title(f"{title}\nFréchet distance {distances[title]:.2f}", fontsize=10)
        ax.set_axis_off()
    figure.savefig(file)
    plt.close(figure)


if __name__ == "__main__":
    main()
