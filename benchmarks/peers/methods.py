"""The contestants. Each is a training step of the library, a state and samplers.

Times run from the data at `t = 0` to noise at `t = 1`: `x_t = (1 - t) x + t ε`, with the velocity
`v = ε - x`.

References: Lipman et al., "Flow Matching for Generative Modeling", ICLR 2023. Tong et al.,
"Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport", TMLR
2024. Geng et al., "Mean Flows for One-step Generative Modeling", 2025. Huang et al., "The GAN is
dead; long live the GAN!", NeurIPS 2024 (R3GAN).
"""

import functools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from benchmarks.peers.data import Images, draw, draw_noise
from benchmarks.peers.networks import Generator, UNet
from experiments.data.decode import to_unit
from experiments.experiment import in_turn
from fdrl_jax import networks, priors
from fdrl_jax.method import penalised_outputs
from fdrl_jax.priors import Batch, Prior
from fdrl_jax.training import rng, samplers, state, steps
from fdrl_jax.training.problem import Constants, Estimator, FlowParams, Problem
from fdrl_jax.training.state import TrainState, Variables

Array = jax.Array
Settings = dict[str, Any]
Sampler = Callable[[Array, Variables, Constants, Array], Array]
# `(variables, key of the step, batch of "real", "label" and "start") -> (gradients, metrics)`.
LossAndGrads = Callable[[Variables, Array, Batch], tuple[Any, dict[str, Array]]]

DEQUANTISATION = 0.03  # Noise in FDRL's data, which a denoiser removes from samples.
_SHORT = 1_200.0  # CPU seconds.


class Contestant(NamedTuple):
    """A method that is ready to train.

    Attributes:
      constants: the images and the arrays of the prior.
      train_state: the state before the first step. Its optimizer state has the learning rate in
        `hyperparams["learning_rate"]`, for the caller to set.
      train_step: one update.
      samplers: by network evaluations (for FDRL, gradients of the network) per sample:
        `(key, averaged variables, constants, positions [B]) -> images [B, H, W, C]`.
      fit_seconds: CPU seconds that its prior took, which count as training.
    """

    constants: Constants
    train_state: TrainState
    train_step: steps.TrainStep
    samplers: Mapping[int, Sampler]
    fit_seconds: float = 0.0
    # Of FDRL: variables, images [B, H, W, C] and their positions [B] to `log q~/p` [B].
    log_ratio: Callable[[Variables, Array, Array], Array] | None = None
    # Of FDRL with a denoiser: variables and samples after the flow to those without noise.
    denoise: Callable[[Variables, Array], Array] | None = None
    labels: Callable[[Any], Any] | None = None  # With labels: positions [B] to classes [B].


def defaults(shape: tuple[int, ...], budget: float) -> dict[str, Settings]:
    """Returns the settings of all methods for images of a shape, as tuned so far.

    Args:
      shape: of an image, [H, W, C].
      budget: CPU seconds. With few of them, FDRL has smaller batches of grey images.

    The prior of FDRL is a mixture of "num_components" Gaussians. With "by_class", a method learns
    from labels, its samples are of all classes in turn, and each class has as many Gaussians. With
    "from_prior", flow matching starts from this prior, too. With "denoiser_width", each step of
    FDRL also trains a denoiser of this width, which its samples pass after the flow.
    """
    is_grey = shape[-1] == 1
    shared: Settings = {"batch_size": 64, "flip": not is_grey, "b1": 0.9, "b2": 0.999}
    blocks = [[64, 2], [64, 2], [128, 1]] if is_grey else [[64, 2], [128, 1], [128, 2], [128, 1]]
    critic = {"width": 32, "blocks": blocks, "downsampling": "stride"}
    critic |= {"clip_norm": None, "ema_rate": 0.998}
    start = {"jitter": 3e-4, "prior_clip": [-1.0, 1.0], "num_components": 1, "prior_rank": 100}
    # The recipe for small images of configs/base.py, with the changes of configs/mnist.py and
    # configs/cifar10_small.py. Short trainings need more steps.
    num_steps, lengths = (12, [15, 18]) if is_grey else (6, [7])
    fdrl = critic | start
    fdrl |= {
        "num_components": 100,
        "prior_rank": 50,
        "batch_size": 64 if is_grey and budget >= _SHORT else 32,
        "learning_rate": 5e-4,
        "b1": 0.5,
        "num_steps": num_steps,
        "step_size": round(2.75 * math.sqrt(math.prod(shape)) / num_steps, 1),
        "noise_scale": 0.007 if is_grey else 0.01,
        "gradient_penalty": 1.0,
        "gradient_penalty_fraction": 0.25,
        "dequantisation": DEQUANTISATION,
        "denoiser_width": 0,
        "by_class": False,
        "evaluations": [0, *lengths],  # 0 is the prior.
    }
    # Rates, batches and the penalty of the GAN are from three minutes of MNIST, see
    # docs/results.jsonl.
    flow_matching = start | {
        "learning_rate": 4e-3,
        "batch_size": 32,
        "ema_rate": 0.999,
        "clip_norm": 1.0,
        "width": 32 if is_grey else 48,
        "num_blocks": 2,
        "pairing": False,
        "time_mean": 0.0,
        "interval_fraction": 0.0,
        "weight_power": 0.0,
        "by_class": False,
        "from_prior": False,
        "evaluations": [8, 18, 36],
    }
    meanflow = {"interval_fraction": 0.25, "weight_power": 1.0, "evaluations": [1, 2]}
    r3gan = critic | {
        "batch_size": 16,
        "learning_rate": 1e-3,
        "b1": 0.0,
        "b2": 0.99,
        "num_latents": 64,
        "gradient_penalty": 10.0,
        "gradient_penalty_fraction": 0.25,
        "evaluations": [1],
    }
    return {
        "fdrl": shared | fdrl,
        "flow_matching": shared | flow_matching,
        "ot_flow_matching": shared | flow_matching | {"pairing": True},
        "meanflow": shared | flow_matching | meanflow,
        "r3gan": shared | r3gan,
    }


def build(
    method: str, images: Images, settings: Settings, *, seed: int, dtype: DTypeLike
) -> Contestant:
    """Builds a contestant.

    Args:
      method: a name of `defaults`.
      images: on which it trains.
      settings: as from `defaults`.
      seed: of the first parameters.
      dtype: type of the convolutions.
    """
    builder = {"fdrl": _fdrl, "r3gan": _r3gan}.get(method, _flow_matching)
    key = rng.stream_key(rng.root_key(seed), rng.Stream.INIT)
    return builder(images, settings, key, dtype)


def _fdrl(images: Images, settings: Settings, key: Array, dtype: DTypeLike) -> Contestant:
    """Flow-guided density ratio learning from the data-dependent prior, with the library only."""
    shape, num_steps = images.pixels.shape[1:], settings["num_steps"]
    prior, fit_seconds = _data_dependent(images, settings)
    num_classes = _num_classes(images, settings)
    labels_at = in_turn(num_classes or 1)
    problem = fdrl_problem(
        network := make_critic(settings, dtype, num_classes),
        FlowParams(num_steps, settings["step_size"], settings["noise_scale"]),
        prior,
    )

    def of_images(arrays: Images, _: Any, data_key: Array, positions: Array) -> Batch:
        return draw(arrays, data_key, positions, flip=settings["flip"])

    def batch_at(positions: Array) -> Batch:
        return {"position": positions, "label": labels_at(positions)}

    def log_ratio(variables: Variables, x: Array, positions: Array) -> Array:
        return problem.estimator.of(variables, batch_at(positions))(x)

    def sampler(num_evaluations: int) -> Sampler:
        if 0 < num_evaluations < num_steps:
            raise ValueError(
                f"evaluations must be 0 or at least {num_steps=}, got {num_evaluations}"
            )
        flow = problem.flow._replace(num_refine_steps=num_evaluations - num_steps)
        start, sample = samplers.make_start_sampler(problem), None
        if num_evaluations:
            sample = samplers.make_sampler(problem._replace(flow=flow))

        def images(key: Array, variables: Variables, constants: Constants, at: Array) -> Array:
            arguments = (key, variables, constants, batch_at(at))
            return sample(*arguments).refined if sample else start(*arguments)

        return images

    variables, denoise = jax.jit(network.init)(key, jnp.zeros((1, *shape))), None
    if settings["denoiser_width"]:
        denoiser = networks.Denoiser(settings["denoiser_width"], dtype=dtype)
        variables = denoiser.add_params(variables, jax.random.fold_in(key, 1), shape)
        denoise = denoiser.denoise
    return Contestant(
        Constants(jax.tree.map(jnp.asarray, images), prior.params),
        state.create(variables, make_optimizer(settings)),
        fdrl_train_step(problem._replace(denoise=denoise), settings, of_images),
        {num: sampler(num) for num in settings["evaluations"]},
        fit_seconds,
        log_ratio,
        denoise,
        labels_at if num_classes else None,
    )


def _data_dependent(images: Images, settings: Settings) -> tuple[Prior, float]:
    """Fits a Gaussian, a mixture, or a Gaussian for each class; also returns the CPU seconds."""
    started, jitter, clip = time.process_time(), settings["jitter"], settings["prior_clip"]
    by_class, num_components = settings["by_class"], settings["num_components"]
    if by_class or num_components > 1:
        examples = np.asarray(to_unit(images.pixels))
        labels = images.labels if by_class else None
        components = priors.clusters(examples, num_components, labels=labels)
        rank = min(settings["prior_rank"], math.prod(examples.shape[1:]))
        fitted = priors.fit_mixture(examples, components, rank, jitter, labels=labels)
        prior = priors.mixture(fitted, clip=clip)
    else:
        moments = priors.moments(to_unit(part) for part in np.array_split(images.pixels, 16))
        factor = priors.covariance_factor(moments.covariance, jitter)
        mean = moments.mean.reshape(images.pixels.shape[1:])
        prior = priors.gaussian(mean, factor, clip=clip)
    return prior, time.process_time() - started


def fdrl_problem(network: networks.ResNet, flow: FlowParams, prior: Prior) -> Problem:
    """Returns the problem of FDRL with the loss LR and the divergence KL."""
    return Problem(Estimator.from_network(network), "lr", "kl", flow, prior.sample)


def fdrl_train_step(
    problem: Problem, settings: Settings, draw: Callable[[Images, Any, Array, Array], Batch]
) -> steps.TrainStep:
    """Returns FDRL's training step on what `draw` draws, as for `steps.make_train_step`."""
    options = ("batch_size", "ema_rate", "dequantisation")
    penalty = ("gradient_penalty", "gradient_penalty_fraction")
    return steps.make_train_step(
        problem,
        optimizer=make_optimizer(settings),
        draw=draw,
        ema_ramp=True,
        **{name: settings[name] for name in (*options, *penalty)},
    )


def _flow_matching(images: Images, settings: Settings, key: Array, dtype: DTypeLike) -> Contestant:
    """Flow matching and MeanFlow, with logit-normal times.

    The network learns the mean velocity over `[t - h, t]`. In flow matching, `h` is 0. In MeanFlow
    it is positive for a part of the batch, and only this part needs the derivative along the path.
    """
    shape = images.pixels.shape[1:]
    num_classes = _num_classes(images, settings)
    labels_at = in_turn(num_classes or 1)
    network = UNet(settings["width"], settings["num_blocks"], dtype, num_classes)
    if num_classes and settings["pairing"]:
        raise ValueError("optimal pairs with by_class would pair noise with classes")
    num_intervals = round(settings["interval_fraction"] * settings["batch_size"])
    prior, fit_seconds = priors.normal(shape), 0.0
    if settings["from_prior"]:
        prior, fit_seconds = _data_dependent(images, settings)

    def loss_and_grads(variables: Variables, key: Array, batch: Batch) -> tuple[Any, Any]:
        real, labels, noise = (batch[name] for name in ("real", "label", "start"))
        if settings["pairing"]:
            noise = paired(noise, real)
        logits = settings["time_mean"] + jax.random.normal(key, (2, len(real)))
        one, other = jax.nn.sigmoid(logits)
        is_interval = jnp.arange(len(real)) < num_intervals
        t = jnp.where(is_interval, jnp.maximum(one, other), one)
        h = jnp.where(is_interval, jnp.abs(one - other), 0.0)
        velocity = noise - real
        x = real + _per_image(t) * velocity
        target = velocity
        if num_intervals:
            x_, t_, h_, v_, y_ = (a[:num_intervals] for a in (x, t, h, velocity, labels))
            slope = directional_derivative(
                lambda *point: network.apply(variables, *point, y_),
                (x_, t_, h_),
                (v_, jnp.ones_like(t_), jnp.ones_like(h_)),
            )
            target = velocity.at[:num_intervals].add(-_per_image(h_) * slope)

        def loss_fn(params: Any) -> tuple[Array, Array]:
            errors = (network.apply({"params": params}, x, t, h, labels) - target) ** 2
            errors = jnp.mean(errors, axis=(1, 2, 3))
            weights = jax.lax.stop_gradient(errors + 1e-3) ** -settings["weight_power"]
            return jnp.mean(weights * errors), jnp.mean(errors)

        grads, error = jax.grad(loss_fn, has_aux=True)(variables["params"])
        return grads, {"loss": error}

    def sampler(num_evaluations: int) -> Sampler:
        # The midpoint rule for velocities, which needs two evaluations per step.
        per_step = 1 if num_intervals else 2
        num_steps = num_evaluations // per_step
        if num_steps < 1 or num_evaluations % per_step:
            raise ValueError(
                f"evaluations must be positive multiples of {per_step}, got {num_evaluations}"
            )
        length = 1.0 / num_steps

        def sample(
            key: Array, variables: Variables, constants: Constants, positions: Array
        ) -> Array:
            labels = labels_at(positions)

            def change(x: Array, t: Array, h: float, by: float) -> Array:
                times, lengths = (jnp.full((len(x),), value) for value in (t, h))
                return -by * network.apply(variables, x, times, lengths, labels)

            def step(k: int, x: Array) -> Array:
                t = 1.0 - k * length
                if num_intervals:
                    return x + change(x, t, length, length)
                middle = x + change(x, t, 0.0, 0.5 * length)
                return x + change(middle, t - 0.5 * length, 0.0, length)

            keys = rng.example_keys(key, rng.Stream.SAMPLE, positions)
            start = prior.sample(constants.prior, keys, {"label": labels})
            return jax.lax.fori_loop(0, num_steps, step, start)

        return sample

    times = jnp.zeros((1,))
    variables = jax.jit(network.init)(
        key, jnp.zeros((1, *shape)), times, times, jnp.zeros((1,), jnp.int32)
    )
    found = _rival(images, settings, variables, loss_and_grads, sampler, prior)
    return found._replace(fit_seconds=fit_seconds, labels=labels_at if num_classes else None)


def _r3gan(images: Images, settings: Settings, key: Array, dtype: DTypeLike) -> Contestant:
    """A relativistic GAN with zero-centred penalties on data and samples (R1 and R2).

    The critic is FDRL's network. Both players move at once, so that images are generated once. The
    penalties are on the first part of the batch if their fraction is below 1.
    """
    generator = Generator(images.pixels.shape[1:], settings["width"], dtype)
    critic = make_critic(settings, dtype)

    def loss_and_grads(variables: Variables, key: Array, batch: Batch) -> tuple[Any, Any]:
        params, real = variables["params"], batch["real"]
        z = jax.random.normal(key, (len(real), settings["num_latents"]))
        fake, pull_back = jax.vjp(lambda p: generator.apply({"params": p}, z), params["generator"])

        def scores(critic_params: Any, x: Array) -> tuple[Array, Array]:
            return critic.apply({"params": critic_params}, x)

        def critic_loss(critic_params: Any) -> tuple[Array, Array]:
            (of_real, of_fake), square_norm = penalised_outputs(
                functools.partial(scores, critic_params),
                (real,),
                (fake,),
                settings["gradient_penalty_fraction"],
                weights=None,
            )
            loss = jnp.mean(jax.nn.softplus(of_fake - of_real))
            return loss + settings["gradient_penalty"] / 2 * square_norm, loss

        def generator_loss(fake: Array) -> Array:
            of_real, of_fake = (scores(params["critic"], x) for x in (real, fake))
            return jnp.mean(jax.nn.softplus(of_real - of_fake))

        critic_grads, loss = jax.grad(critic_loss, has_aux=True)(params["critic"])
        (generator_grads,) = pull_back(jax.grad(generator_loss)(fake))
        return {"generator": generator_grads, "critic": critic_grads}, {"loss": loss}

    def sample(key: Array, variables: Variables, _: Constants, positions: Array) -> Array:
        z = draw_noise(key, rng.Stream.SAMPLE, positions, (settings["num_latents"],))
        return generator.apply({"params": variables["params"]["generator"]}, z)

    generator_key, critic_key = jax.random.split(key)
    z, x = jnp.zeros((1, settings["num_latents"])), jnp.zeros((1, *images.pixels.shape[1:]))
    params = {
        "generator": jax.jit(generator.init)(generator_key, z)["params"],
        "critic": jax.jit(critic.init)(critic_key, x)["params"],
    }
    return _rival(images, settings, {"params": params}, loss_and_grads, lambda _: sample)


def _rival(
    images: Images,
    settings: Settings,
    variables: Variables,
    loss_and_grads: LossAndGrads,
    sampler: Callable[[int], Sampler],
    prior: Prior | None = None,
) -> Contestant:
    """Adds batches, the optimizer and the average of the parameters to a loss.

    With a prior, batches have its samples under "start".
    """

    def of_positions(
        variables: Variables, key: Array, constants: Constants, _: Any, positions: Array
    ) -> tuple[Any, dict[str, Array]]:
        data_key = rng.stream_key(key, rng.Stream.DATA)
        batch = draw(constants.data, data_key, positions, flip=settings["flip"])
        if prior:
            keys = rng.example_keys(key, rng.Stream.PRIOR, positions)
            batch["start"] = prior.sample(constants.prior, keys, batch)
        step_key = jax.random.fold_in(rng.stream_key(key, rng.Stream.FLOW), positions[0])
        return loss_and_grads(variables, step_key, batch)

    optimizer = make_optimizer(settings)
    train_step = steps.from_gradients(
        of_positions,
        optimizer=optimizer,
        batch_size=settings["batch_size"],
        ema_rate=settings["ema_rate"],
        ema_ramp=True,
    )
    return Contestant(
        Constants(jax.tree.map(jnp.asarray, images), prior.params if prior else ()),
        state.create(variables, optimizer),
        train_step,
        {num: sampler(num) for num in settings["evaluations"]},
    )


def paired(noise: Array, real: Array) -> Array:
    """Reorders noise so that the sum of its squared distances to the images is smallest."""
    rows, columns = (a.reshape(len(a), -1) for a in (real, noise))
    # The squared norms are the same for every pairing.
    images, partners = optax.assignment.hungarian_algorithm(-rows @ columns.T)
    return jnp.zeros_like(noise).at[images].set(noise[partners])


def directional_derivative(
    function: Callable[..., Array], point: tuple[Array, ...], direction: tuple[Array, ...]
) -> Array:
    """Computes a forward-mode derivative by reverse mode, which the convolutions support.

    The pullback is linear in its cotangent, and its transpose is the derivative.
    """
    value, pull_back = jax.vjp(function, *point)
    _, transposed = jax.vjp(pull_back, jnp.zeros_like(value))
    (derivative,) = transposed(direction)
    return derivative


def make_critic(
    settings: Settings, dtype: DTypeLike, num_outputs: int | None = None
) -> networks.ResNet:
    """Returns the residual network of FDRL and of the GAN, with an output per class if wanted."""
    blocks = tuple((channels, stride) for channels, stride in settings["blocks"])
    return networks.resnet(
        networks.ResNetSpec(settings["width"], blocks),
        use_bias=True,
        dtype=dtype,
        num_outputs=num_outputs,
        downsampling=settings["downsampling"],
    )


def _num_classes(images: Images, settings: Settings) -> int | None:
    """Returns the number of classes if the method learns from labels."""
    return int(np.max(images.labels)) + 1 if settings["by_class"] else None


def make_optimizer(settings: Settings) -> optax.GradientTransformation:
    def adam(learning_rate: Array) -> optax.GradientTransformation:
        found = optax.adam(learning_rate, b1=settings["b1"], b2=settings["b2"])
        norm = settings["clip_norm"]
        return found if norm is None else optax.chain(optax.clip_by_global_norm(norm), found)

    return optax.inject_hyperparams(adam)(learning_rate=0.0)


def _per_image(values: Array) -> Array:
    return values[:, None, None, None]
