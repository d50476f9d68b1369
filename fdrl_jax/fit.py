"""A generator of your data in one call, by the recipes that the configs of the program also use."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from fdrl_jax import _keys, networks, priors
from fdrl_jax._checks import check_count, check_images, check_number, count_classes
from fdrl_jax.method import FDRL
from fdrl_jax.pretrained import Sampler
from fdrl_jax.priors import Batch, Prior
from fdrl_jax.training import rng, state, steps
from fdrl_jax.training.problem import Constants, Estimator, Problem

__all__ = ["IMAGES", "POINTS", "Recipe", "blocks_for", "fit", "step_size_for"]
__dir__ = __all__.copy

Array = jax.Array
_LENGTH_PER_DIMENSION = 2.75  # Of the flow: its number of steps times their size.
_STEPS_PER_CALL = 50  # Of the compiled loop, after each of which `progress` is called.


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Numbers that train well on data of a kind, by the names of the settings of the program."""

    num_steps: int  # Of training.
    batch_size: int
    learning_rate: float
    num_flow_steps: int
    num_refine_steps: int
    noise_scale: float
    b1: float = 0.9
    warmup_steps: int = 0
    step_size: float = 0.0  # 0: by `step_size_for`.
    dequantisation: float = 0.0
    jitter: float = 1e-4
    gradient_penalty: float = 0.0
    gradient_penalty_fraction: float = 1.0
    width: int = 0  # Of a residual network.
    denoiser_width: int = 0


POINTS = Recipe(
    num_steps=1_000,
    batch_size=256,
    learning_rate=2e-3,
    num_flow_steps=50,
    num_refine_steps=20,
    step_size=0.1,
    noise_scale=0.01,
)
# What keeps training on small images stable and short: a gradient penalty, few long steps instead
# of 100, and equal noise in samples and data: `jitter + K nu^2` is about the variance of the
# dequantisation. A denoiser then removes this noise from samples.
IMAGES = Recipe(
    num_steps=2_000,
    batch_size=64,
    learning_rate=5e-4,
    b1=0.5,
    warmup_steps=100,
    num_flow_steps=12,
    num_refine_steps=6,
    noise_scale=0.007,
    dequantisation=0.03,
    jitter=3e-4,
    gradient_penalty=1.0,
    gradient_penalty_fraction=0.25,
    width=32,
    denoiser_width=32,
)


def step_size_for(event_shape: tuple[int, ...], num_steps: int) -> float:
    """Returns a step size by the distance from prior to data, which grows with the root of D."""
    length = _LENGTH_PER_DIMENSION * math.sqrt(math.prod(event_shape))
    return round(length / max(num_steps, 1), 1) or 0.1


def blocks_for(event_shape: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Returns the blocks (channels, stride) that reduce an image to 4 to 8 pixels a side."""
    halvings = math.ceil(math.log2(max(event_shape[:2]) / 8))
    few = ((32, 1), (64, 2), (64, 1))
    return few if halvings < 2 else (*((64, 2),) * halvings, (128, 1))


def fit(
    key: Array,
    data: np.ndarray | Array,
    *,
    labels: np.ndarray | None = None,
    prior: Prior | np.ndarray | Array | None = None,
    network: nn.Module | None = None,
    method: FDRL | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    progress: Callable[[int, Mapping[str, float]], None] | None = None,
) -> Sampler:
    """Trains a generator of data (algorithm 1).

        sampler = fdrl.fit(jax.random.key(0), points)  # [N, D]
        samples = sampler(jax.random.key(1), 1_000)

    Points are standardised for training, and samples are in the unit of the data. The recipe for
    images is for sizes up to about 64 x 64. Checkpoints and several devices need the program or
    your own loop around `training.steps.make_train_step`.

    Args:
      key: a JAX key of the generator "threefry2x32". It determines everything.
      data: points, [N, D], or images in [-1, 1], [N, H, W, C].
      labels: the class of each example, [N] integers from 0, for a density ratio for each class.
      prior: where the flow starts: samples of another generator, in the unit of the data, which
        this one improves; or a prior in the unit that the network sees. By default Gaussians that
        are fitted to the data.
      network: a Flax module `x [B, ...] -> [B]`; with labels, `[B, C]`, an output per class.
      method: loss and flow, in the unit that the network sees.
      num_steps: training steps; by default 1,000 for points and 2,000 for images.
      batch_size: examples per step.
      learning_rate: of Adam, the largest one of a cosine schedule.
      progress: called with the number of completed steps and the metrics of the last one, about
        every 50 steps.

    Returns:
      The sampler, with averaged parameters.

    Raises:
      TypeError, ValueError: for a key, data, labels, a prior or numbers that are not as described.
      FloatingPointError: if training diverges.
    """
    root, (x, recipe) = _keys.typed(key), _checked(data)
    num_steps = recipe.num_steps if num_steps is None else num_steps
    batch_size = recipe.batch_size if batch_size is None else batch_size
    learning_rate = recipe.learning_rate if learning_rate is None else learning_rate
    check_count("num_steps", num_steps, 1)
    check_count("batch_size", batch_size, 1)
    check_number("learning_rate", learning_rate, above_zero=True)
    is_points, event_shape = x.ndim == 2, x.shape[1:]
    shift, scale = (x.mean(axis=0), x.std(axis=0)) if is_points else (0.0, 1.0)
    scale = np.where(scale > 0.0, scale, 1.0)
    x = ((x - shift) / scale).astype(np.float32)
    num_classes = None if labels is None else count_classes(labels, len(x))
    if isinstance(prior, Prior):
        start = prior
    elif prior is not None:
        start = _of_samples(prior, event_shape, shift, scale, recipe.dequantisation)
    else:
        start = priors.fit(
            x,
            num_components=1 if is_points else None,
            labels=labels,
            clip=None if is_points else (-1.0, 1.0),
            jitter=recipe.jitter,
        )
    if not isinstance(method, FDRL | None):
        raise TypeError(f"method must be an FDRL, got {method!r}")
    method = method or FDRL(
        num_steps=recipe.num_flow_steps,
        num_refine_steps=recipe.num_refine_steps,
        step_size=recipe.step_size or step_size_for(event_shape, recipe.num_flow_steps),
        noise_scale=recipe.noise_scale,
        gradient_penalty=recipe.gradient_penalty,
    )
    estimator, module, input_shape = _estimator(network, recipe, event_shape, num_classes)
    init_key, denoiser_key = jax.random.split(rng.stream_key(root, rng.Stream.INIT))
    variables = dict(jax.jit(module.init)(init_key, np.zeros((1, *input_shape), np.float32)))
    problem = Problem(method, estimator, start.sample)
    if recipe.denoiser_width:
        denoiser = networks.Denoiser(recipe.denoiser_width)
        variables = denoiser.add_params(variables, denoiser_key, event_shape)
        problem = problem._replace(denoise=denoiser.denoise)
    warmup = min(recipe.warmup_steps, num_steps // 4)
    first_rate = 0.0 if warmup else learning_rate
    rate = optax.warmup_cosine_decay_schedule(first_rate, learning_rate, warmup, num_steps)
    optimizer = optax.adam(rate, b1=recipe.b1)
    step = steps.make_train_step(
        problem,
        optimizer=optimizer,
        draw=_draw,
        batch_size=batch_size,
        ema_ramp=True,
        dequantisation=recipe.dequantisation,
        gradient_penalty_fraction=recipe.gradient_penalty_fraction,
    )
    run = jax.jit(steps.repeat_steps(step, _STEPS_PER_CALL), donate_argnums=1)
    arrays = {"real": x} if labels is None else {"real": x, "label": np.asarray(labels, np.int32)}
    constants = jax.device_put(Constants(arrays, start.params))
    trained = state.create(variables, optimizer)
    for first in range(0, num_steps, _STEPS_PER_CALL):
        count = min(_STEPS_PER_CALL, num_steps - first)
        trained, history = run(root, trained, constants, None, count)
        metrics = {name: float(values[count - 1]) for name, values in history.items()}
        if not math.isfinite(metrics["loss"]):
            raise FloatingPointError(
                f"training diverged before step {first + count}: use a smaller learning_rate, or a "
                "method with a larger gradient_penalty or a smaller step_size"
            )
        if progress is not None:
            progress(first + count, metrics)
    config = {
        "event_shape": event_shape,
        "network": {"num_outputs": num_classes},
        "prior": {"name": "mixture"},
        "settings": {"data.dequantisation": recipe.dequantisation},
    }
    return Sampler(problem, trained.ema_variables, start.params, config, shift, scale)


def _checked(data: np.ndarray | Array) -> tuple[np.ndarray, Recipe]:
    """Returns data as float64, and the recipe for their kind."""
    x = np.asarray(data)
    if x.ndim not in (2, 4) or not x.size or x.dtype.kind in "cOSU":
        raise ValueError(
            f"data must be numbers, points [N, D] or images [N, H, W, C], got {x.dtype} {x.shape}"
        )
    if x.ndim == 4:
        check_images("images", x, 1.0)
    x = x.astype(np.float64)
    if not np.abs(x).max() <= np.finfo(np.float32).max:
        raise ValueError("the data are not finite in float32")
    return x, POINTS if x.ndim == 2 else IMAGES


def _of_samples(
    samples: Any, event_shape: tuple[int, ...], shift: Any, scale: Any, noise: float
) -> Prior:
    """Returns the prior that draws one of the given samples, with the noise that data have."""
    is_other = (rows := np.asarray(samples)).dtype.kind in "cOSU" or rows.shape[1:] != event_shape
    if is_other or not len(rows) or not np.isfinite(rows).all():
        raise ValueError(
            f"a prior must be a Prior, or finite samples with the shape of the data, [M, "
            f"{', '.join(map(str, event_shape))}], got shape {rows.shape}"
        )
    params = {"rows": ((rows.astype(np.float64) - shift) / scale).astype(np.float32)}

    def sample(params: dict[str, Array], keys: Array, batch: Batch) -> Array:
        x = params["rows"][_choose(_keys.named(keys, "samples"), len(params["rows"]))]
        return x + noise * _keys.noise_like(_keys.named(keys, "noise"), x) if noise else x

    return Prior(params, sample)


def _estimator(
    network: nn.Module | None, recipe: Recipe, event_shape: tuple[int, ...], num_classes: int | None
) -> tuple[Estimator, nn.Module, tuple[int, ...]]:
    """Returns the estimator, its module, and the shape of one input of it."""
    if not (network is None or isinstance(network, nn.Module)):
        raise TypeError(f"network must be a Flax module, such as networks.MLP(), got {network!r}")
    if network is None and len(event_shape) == 1:
        network = networks.MLP()
        if num_classes is not None:
            apply = functools.partial(_apply_to_class, network, num_classes)
            return Estimator(apply, takes_labels=True), network, (event_shape[0] + num_classes,)
    elif network is None:
        spec = networks.ResNetSpec(recipe.width, blocks_for(event_shape), attention_after=1)
        network = networks.resnet(spec, num_outputs=num_classes, use_bias=True)
    estimator = Estimator.from_network(network, takes_labels=num_classes is not None)
    return estimator, network, event_shape


def _apply_to_class(mlp: nn.Module, num: int, variables: Any, x: Array, labels: Array) -> Any:
    return mlp.apply(variables, jnp.concatenate([x, jax.nn.one_hot(labels, num)], axis=-1))


def _draw(arrays: dict[str, Array], host_batch: Any, key: Array, positions: Array) -> Batch:
    """Draws rows at random, by the positions of the examples in the run."""
    rows = _choose(_keys.at_positions(key, positions), len(arrays["real"]))
    return {name: array[rows] for name, array in arrays.items()}


def _choose(keys: Array, num: int) -> Array:
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, num))(keys)
