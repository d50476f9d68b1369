"""From settings and data to a network, its training step and, for a density ratio, its flow."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import devices, prior
from experiments.data.source import Source, Take
from experiments.errors import UserError
from experiments.prior import FittedPrior
from experiments.settings import Settings
from fdrl_jax import FDRL, networks, priors
from fdrl_jax.fit import blocks_for, step_size_for
from fdrl_jax.priors import Prior
from fdrl_jax.training import parallel, rng, state, steps
from fdrl_jax.training.problem import Constants, Estimator, Problem
from fdrl_jax.training.state import TrainState
from fdrl_jax.training.steps import TrainStep

Network = networks.MLP | networks.ResNet
_NUM_PER_COMPONENT = 100  # Samples of each Gaussian that a classifier is applied to.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """A network, its data, and the arrays and functions of its training."""

    settings: Settings  # `devices.resolved` has replaced the precision "auto".
    source: Source
    network: Network
    constants: Constants
    output: str  # What the network returns: "ratio", "log_ratio" or "logits".
    make_step: Callable[[], TrainStep]  # Of one replica.
    denoiser: networks.Denoiser | None = None
    fitted: FittedPrior | None = None  # The data-dependent prior.

    @property
    def root_key(self) -> jax.Array:
        """The key that all random numbers of the run come from."""
        return rng.root_key(self.settings.seed)

    def init_state(self) -> TrainState:
        """Returns the state before the first step, which depends only on the seed."""
        shape = self.source.event_shape
        return init_state(self.settings, self.network, shape, self.denoiser)

    def state_shapes(self) -> TrainState:
        """Returns shapes and dtypes of the state: the template of a checkpoint."""
        return jax.eval_shape(self.init_state)

    def repeated_step(self) -> Callable[..., Any]:
        """Returns the function of one replica for up to `train.steps_per_dispatch` steps."""
        with explained():
            step = self.make_step()
        return steps.repeat_steps(step, self.settings.train.steps_per_dispatch)

    def open_feed(self, num_batches: int) -> AbstractContextManager[Take]:
        """Opens the host batches of this process, after the first `num_batches`."""
        if self.source.open_feed is None:
            return contextlib.nullcontext(lambda count: None)
        size = self.settings.train.batch_size // jax.process_count()
        dispatch = self.settings.train.steps_per_dispatch
        return self.source.open_feed(self.settings.seed, size, num_batches, dispatch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Training):
    """A density ratio, with everything that determines its samples except the parameters."""

    problem: Problem  # Estimator, loss, divergence, flow, prior and condition.
    # Name and arguments, without arrays, of the function of `priors` that builds the prior.
    prior_arguments: dict[str, Any]
    # Maps positions [B] to labels [B], for class-conditional samples. With a ratio for each class,
    # all samples are.
    labels: Callable[[np.ndarray], np.ndarray] | None = None


def build(
    settings: Settings,
    source: Source,
    fitted: FittedPrior | Callable[[int | None], FittedPrior] | None = None,
) -> Experiment:
    """Builds a density ratio; a UserError names settings that do not fit together.

    The prior may be fitted, by a function of the number of classes, after everything else was
    checked. Without it, a placeholder suffices to compile and time.
    """
    with explained():
        by_class = settings.network.by_class
        if by_class and source.starts is not None:
            raise ValueError("network.by_class is not for flows that start from images")
        num_of_classes = count_classes(settings, source, "network.by_class") if by_class else None
        network = make_network(settings, source.event_shape, num_of_classes)
        denoiser = None
        if width := settings.network.denoiser_width:
            if source.kind != "images" or not settings.data.dequantisation:
                raise ValueError(
                    "network.denoiser_width needs images and a data.dequantisation above 0"
                )
            denoiser = networks.Denoiser(width, dtype=_dtype(settings))
        method = FDRL(
            loss=settings.loss.name,
            divergence=settings.loss.divergence,
            gradient_penalty=settings.loss.gradient_penalty,
            **dataclasses.asdict(settings.flow),
        )
        of_run, prior_arguments, found = _prior(settings, source, fitted, num_of_classes)
        problem = Problem(
            method=method,
            estimator=Estimator.from_network(network),
            prior_sample=of_run.sample,
            denoise=denoiser.denoise if denoiser else None,
        )

    def make_step() -> TrainStep:
        return steps.make_train_step(
            problem,
            draw=source.draw,
            gradient_penalty_fraction=settings.loss.gradient_penalty_fraction,
            dequantisation=settings.data.dequantisation,
            **step_options(settings),
        )

    return Experiment(
        settings=settings,
        source=source,
        network=network,
        constants=Constants(source.arrays, of_run.params),
        output=method.output,
        make_step=make_step,
        problem=problem,
        prior_arguments=prior_arguments,
        denoiser=denoiser,
        fitted=found,
        labels=in_turn(num_of_classes) if num_of_classes else None,
    )


def in_turn(num: int) -> Callable[[Any], Any]:
    """Returns `positions [B] -> labels [B]`, of NumPy or JAX, of all classes again and again."""
    return lambda positions: (positions % num).astype(np.int32)


def for_shape(settings: Settings, event_shape: tuple[int, ...]) -> Settings:
    """Returns settings with the step size and the blocks that were left to the data's shape."""
    flow, network = settings.flow, settings.network
    if not flow.step_size:
        flow = dataclasses.replace(flow, step_size=step_size_for(event_shape, flow.num_steps))
    if network.name == "resnet" and not network.blocks:
        network = dataclasses.replace(network, blocks=blocks_for(event_shape))
    return dataclasses.replace(settings, flow=flow, network=network)


def make_network(
    settings: Settings, event_shape: tuple[int, ...], num_outputs: int | None = None
) -> Network:
    """Builds the network of a run; `num_outputs` is a number of classes, `None` one ratio."""
    options, name, dtype = settings.network, settings.network.name, _dtype(settings)
    kind = "images" if len(event_shape) == 3 else "points"
    if name == "auto":
        size = max(event_shape[:2])  # The paper's networks are for images of 32, 64 and 128.
        of_images = "resnet32" if size <= 48 else "resnet64" if size <= 96 else "resnet128"
        name = "mlp" if kind == "points" else of_images
    if (name == "mlp") != (kind == "points"):
        fitting = "'mlp'" if kind == "points" else "a residual network such as 'resnet'"
        raise ValueError(f"network.name={name!r} does not fit {kind}; use {fitting}")
    if name == "mlp":
        return networks.MLP(options.hidden_sizes, options.spectral_norm, dtype)
    spec: str | networks.ResNetSpec = name
    if name == "resnet":
        if not (options.width and options.blocks):
            raise ValueError("network.name='resnet' needs network.width and images")
        spec = networks.ResNetSpec(options.width, options.blocks, attention_after=1)
    return networks.resnet(
        spec,
        width=options.width or None,
        spectral_norm=options.spectral_norm,
        attention=options.attention,
        dtype=dtype,
        remat=options.remat,
        num_outputs=num_outputs,
        use_bias=options.use_bias,
    )


def count_classes(settings: Settings, source: Source, user: str) -> int:
    """Returns the number of classes of the images; a UserError says that a `user` needs labels."""
    if source.labels is None or source.kind != "images":
        raise UserError(
            f"data.name={settings.data.name}: {user} needs labelled images: digits, "
            "sub-folders as classes, an npz with labels, or TFDS"
        )
    return len(source.classes)


def _dtype(settings: Settings) -> str:
    return "bfloat16" if settings.precision == "bfloat16" else "float32"


def init_state(
    settings: Settings,
    network: Network,
    event_shape: tuple[int, ...],
    denoiser: networks.Denoiser | None = None,
) -> TrainState:
    """Returns the state of a network, and of its denoiser if it has one, before the first step."""
    key = rng.stream_key(rng.root_key(settings.seed), rng.Stream.INIT)
    variables = jax.jit(network.init)(key, np.zeros((1, *event_shape), np.float32))
    if denoiser:
        variables = denoiser.add_params(variables, jax.random.fold_in(key, 1), event_shape)
    return state.create(dict(variables), _make_optimizer(settings))


def learning_rate(settings: Settings) -> optax.Schedule:
    """Returns the learning rate as a function of the step."""
    options, warmup = settings.optimizer, settings.optimizer.warmup_steps
    if options.schedule == "cosine":
        schedule = optax.cosine_decay_schedule(options.learning_rate, settings.train.num_steps)
    elif options.schedule == "piecewise":
        factors = dict.fromkeys(options.boundaries, 0.1)
        schedule = optax.piecewise_constant_schedule(options.learning_rate, factors)
    else:
        schedule = optax.constant_schedule(options.learning_rate)
    if not warmup:
        return schedule
    return lambda step: schedule(step) * jnp.minimum(1.0, (step + 1) / warmup)


def _make_optimizer(settings: Settings) -> optax.GradientTransformation:
    options = settings.optimizer
    adam = optax.adam(learning_rate(settings), b1=options.b1)
    clip = optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else None
    return optax.chain(clip, adam) if clip else adam


def step_options(settings: Settings) -> dict[str, Any]:
    """Returns the options of `steps.from_gradients`, which all training steps have."""
    return {
        "optimizer": _make_optimizer(settings),
        "batch_size": devices.local_batch_size(settings.train.batch_size),
        "ema_rate": settings.train.ema_rate,
        "ema_ramp": True,
        "axis_name": parallel.AXIS,
    }


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns the library's ValueErrors, which explain invalid combinations, into UserErrors."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"config: {error}") from error


def with_class_weights(
    model: Experiment, classifier: Callable[[jax.Array], jax.Array]
) -> Experiment:
    """Returns the experiment with a prior that draws samples of a class, if it is a mixture.

    The weights of class `y` are `p(m|y) ∝ w_m p(y|m)`, where `p(y|m)` is the mean of `p(y|x)` over
    samples of the component. Priors with weights for each class stay as they are.
    """
    arrays = model.constants.prior
    if "weights" not in arrays or np.ndim(arrays["weights"]) > 1 or len(arrays["weights"]) == 1:
        return model
    num = len(arrays["weights"])
    of_component = {**arrays, "weights": np.eye(num, dtype=np.float32)}

    @jax.jit
    def probabilities(params: Any, component: jax.Array) -> jax.Array:
        positions = component * _NUM_PER_COMPONENT + jnp.arange(_NUM_PER_COMPONENT)
        keys = rng.example_keys(model.root_key, rng.Stream.PRIOR, positions)
        batch = {"label": jnp.full(_NUM_PER_COMPONENT, component)}
        x = model.problem.prior_sample(params, keys, batch)
        return jax.nn.softmax(classifier(x).astype(jnp.float32), axis=-1).mean(axis=0)

    found = np.asarray([probabilities(of_component, component) for component in range(num)])
    # A class that the classifier finds nowhere has the weights of the mixture, and not NaN.
    joint = arrays["weights"][:, None] * np.maximum(found, np.finfo(np.float32).tiny)
    weights = (joint / joint.sum(axis=0)).T.astype(np.float32)
    constants = model.constants._replace(prior={**arrays, "weights": weights})
    return dataclasses.replace(model, constants=constants)


def _prior(
    settings: Settings, source: Source, fitted: Any, num_of_classes: int | None
) -> tuple[Prior, dict[str, Any], FittedPrior | None]:
    """Returns the prior, and the fields `prior_arguments` and `fitted` of an `Experiment`."""
    name = settings.prior.name
    if source.starts is not None and name != "source":
        needed = "a translation starts from images, with prior.name='source'"
        raise ValueError(f"{needed}, not {name!r}")
    if name == "data_dependent":
        found = fitted(num_of_classes) if callable(fitted) else fitted
        found = found or prior.placeholder(settings.prior, source, num_of_classes)
        # Images are clipped to their range, as in the authors' code; points have no range.
        arguments: dict[str, Any] = {"clip": [-1.0, 1.0] if source.kind == "images" else None}
        made = priors.mixture(found, source.event_shape, **arguments)
        return made, {"name": "mixture", **arguments}, found
    if name == "source":
        if source.starts is None:
            needed = "data.name='pair', or data.source_class and data.target_class"
            raise ValueError(f"prior.name='source' needs images to start from: {needed}")
        arguments = {"field": "source", "dequantisation": settings.data.dequantisation}
        return priors.batch(**arguments), {"name": "batch", **arguments}, None
    shape: dict[str, Any] = {"event_shape": list(source.event_shape)}
    make = priors.uniform if name == "uniform" else priors.normal
    return make(**shape), {"name": name, **shape}, None
