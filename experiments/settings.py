"""All settings of a run: typed sections, each field with default, allowed values and meaning.

This is the only declaration: the defaults in `configs/base.py`, the checks, `--help=KEY` and the
reference page of the documentation follow from it. A config is converted once, by `from_config`.
"""

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from experiments.errors import UserError
from fdrl_jax import bregman, divergences, networks
from fdrl_jax._names import nearest

Scope = Literal["fixed", "training", "flow", "free"]
# When a setting may differ from the value that the run was created with.
MAY_CHANGE: dict[Scope, str] = {
    "fixed": "Fixed when the run is created.",
    "training": "Fixed when the run is created; samples depend on it only through the checkpoint.",
    "flow": "Fixed for training; commands that draw samples may change it, and record it.",
    "free": "May change at any time.",
}
Flat = dict[str, Any]  # By dotted key, as values for JSON: {"flow.step_size": 0.1, ...}.

_MAX_FLOAT32 = 3.4e38
_MIN_FLOAT32 = 1.2e-38  # The smallest positive normal number; smaller ones may become 0.
_MAX_INT32 = 2**31 - 1
_MAX_SHOWN = 300  # Characters of a value in a message.

# Scopes other than "fixed", which is that of a plain type.
T = TypeVar("T")
OfTraining = Annotated[T, "training"]
OfFlow = Annotated[T, "flow"]
Free = Annotated[T, "free"]


class _Check(NamedTuple):
    """A check that may raise a ValueError with the reason."""

    words: str  # The allowed values, which complete a sentence with "must be"; may be empty.
    is_allowed: Callable[[Any], object]


class _Limit(NamedTuple):
    """A limit of a number."""

    words: str
    holds: Callable[[Any, Any], bool]
    bound: float

    def is_allowed(self, value: Any) -> bool:
        return self.holds(value, self.bound)


Ge = functools.partial(_Limit, "at least", operator.ge)
Gt = functools.partial(_Limit, "above", operator.gt)
Le = functools.partial(_Limit, "at most", operator.le)
Lt = functools.partial(_Limit, "below", operator.lt)


def _is_normal(value: float) -> bool:
    if value and abs(value) < _MIN_FLOAT32:
        raise ValueError("it is too small for a float32")
    return True


def _is_text(value: str) -> bool:
    # No line breaks, because messages of one line quote texts. No NUL, because some are paths.
    return len(value) <= 1_000 and value.isprintable()


Real = Annotated[float, _Check("", _is_normal)]
Text = Annotated[str, _Check("a text of at most 1,000 printable characters", _is_text)]
Sizes = Annotated[
    tuple[int, ...],
    _Check(
        "one or more positive whole numbers such as (64, 64)",
        lambda sizes: sizes and all(0 < size <= 65_536 for size in sizes),
    ),
]
Blocks = Annotated[
    tuple[tuple[int, int], ...],
    _Check(
        "pairs of channels and stride such as ((32, 1), (64, 2))",
        lambda blocks: all(0 < size <= 65_536 and 0 < stride <= 8 for size, stride in blocks),
    ),
]
Divergence = Annotated[
    str, _Check("a divergence such as kl, pearson or alpha(0.5)", divergences.get)
]
Channels = Annotated[
    int, _Check("0 (as stored), 1 (grey) or 3 (colour)", lambda number: number in (0, 1, 3))
]
Increasing = Annotated[
    tuple[int, ...],
    _Check(
        "increasing whole numbers such as (0, 50, 100)",
        lambda v: list(v) == sorted(set(v)) and min(v, default=0) >= 0,
    ),
]
Length = Annotated[int, Ge(0), Le(65_536)]
Few = Annotated[int, Ge(1), Le(1_000)]
FlowSteps = Annotated[int, Ge(0), Le(100_000)]
Batch = Annotated[int, Ge(1), Le(2**20)]
Share = Annotated[Real, Gt(0.0), Le(1.0)]
Decay = Annotated[Real, Ge(0.0), Lt(1.0)]
Positive = Annotated[Real, Gt(0.0), Le(_MAX_FLOAT32)]
NotNegative = Annotated[Real, Ge(0.0), Le(_MAX_FLOAT32)]
Whole = Annotated[int, Ge(0), Le(_MAX_INT32)]
Count = Annotated[int, Ge(1), Le(_MAX_INT32)]
if TYPE_CHECKING:  # The names are known at run time.
    NetworkName: TypeAlias = str
    LossName: TypeAlias = str
else:
    NetworkName = Literal[("auto", "mlp", "resnet", *networks.SPECS)]
    LossName = Literal[tuple(bregman.REGISTRY)]


class Section:
    """A group of settings. Texts below fields are their documentation."""


@dataclasses.dataclass(frozen=True)
class Data(Section):
    """The data set and how its images are prepared."""

    name: Text = "swissroll"
    """Data set: a built-in one (swissroll, 8gaussians, 25gaussians, digits), or images from a
    folder or zip (folder), an array (npz), two domains (pair) or TFDS (tfds:NAME)."""
    dir: Free[Text] = ""
    """Path of the images, which the flag --data_dir overrides. If neither is set, a run uses the
    --data_dir of the command that created it, if that still exists."""
    num_held_out: Count = 1_000
    """Number of images to hold out of a set without a split named test, validation or val, at most
    a tenth of the set."""
    source_class: Text = ""
    """For a translation between classes: the class to start from."""
    target_class: Text = ""
    """For a translation between classes: the class to translate to."""
    center_crop: Length = 0
    """Side in pixels of the square that is cut from the centre before resizing; 0: no crop."""
    resize: Length = 0
    """Length in pixels to which the shorter side is resized; 0: that of data.image_size."""
    image_size: Length = 0
    """Side in pixels of the square that is cut from the centre after resizing; 0: keeps the size
    after resizing, which must be the same for all images."""
    keep_aspect: bool = True
    """True keeps the aspect ratio when resizing. False squeezes images to a square of data.resize,
    or data.image_size if that is 0."""
    channels: Channels = 3
    """Channels per image: 1 converts to grey, 3 to colour, 0 keeps what the files contain."""
    random_flip: bool = False
    """Mirrors half of the training images, left to right."""
    dequantisation: Annotated[Real, Ge(0.0), Le(1.0)] = 0.0
    """Standard deviation of the Gaussian noise that is added to data in [-1, 1]."""


@dataclasses.dataclass(frozen=True)
class Network(Section):
    """The network that estimates the ratio, or classifies."""

    name: NetworkName = "mlp"
    """Network: `mlp` for points; `auto` is the paper's network for the image size; `resnet` is
    built from network.blocks; the others are those of the paper's table 4."""
    hidden_sizes: Sizes = (64, 64, 64, 64)
    """Sizes of the hidden layers of `mlp`."""
    width: Length = 0
    """Channels of the first convolution of a residual network. Those of the blocks of the paper's
    networks scale with it; 0: the paper's number."""
    blocks: Blocks = ()
    """Channels and stride of each block of `resnet`; if empty, they follow from the image size."""
    attention: bool = False
    """Adds a self-attention layer to a residual network."""
    spectral_norm: bool = False
    """Divides each kernel by its largest singular value."""
    use_bias: bool = False
    """Adds a bias per channel to the 3x3 convolutions of a residual network."""
    by_class: bool = False
    """Learns a density ratio for each class of labelled images, with a residual network. Samples
    are then of all classes in turn, or of the class that --class names, without a classifier."""
    denoiser_width: Length = 0
    """Channels of a second network, which learns to remove noise of twice data.dequantisation from
    images and removes it from samples; 0: none."""
    remat: OfTraining[bool] = False
    """Recomputes activations in the backward pass. Saves memory and takes longer."""


@dataclasses.dataclass(frozen=True)
class Prior(Section):
    """The distribution that the flow starts from."""

    name: Literal["normal", "uniform", "data_dependent", "source"] = "normal"
    """Distribution that the flow starts from; `source` is the source domain of a translation."""
    rank: Annotated[int, Ge(0), Le(2**20)] = 0
    """Rank of the covariance of `data_dependent`; 0: the full covariance, up to 12,288 dimensions,
    50 for each of several clusters, at most half of the mean number of their examples, and 100 for
    each class with one Gaussian."""
    num_components: Annotated[int, Ge(0), Le(10_000)] = 1
    """Number of Gaussians of `data_dependent`, fitted to clusters of the training data, or of each
    class with network.by_class; 0: one for each 70 examples, at most 100, and a single one for
    fewer than 2,100 examples."""
    jitter: NotNegative = 1e-4
    """Variance that is added to the diagonal of this covariance, as in the authors' code."""


@dataclasses.dataclass(frozen=True)
class Flow(Section):
    """The flow from the prior to the data."""

    num_steps: OfFlow[FlowSteps] = 100
    """K: number of flow steps in training, and of bridging steps in sampling. With 0, the network
    learns the ratio of the prior over the data."""
    num_refine_steps: OfFlow[FlowSteps] = 20
    """κ: number of refinement steps, which follow the K steps in sampling."""
    step_size: OfFlow[NotNegative] = 3.0
    """η: step size, which multiplies the drift; 0: 2.75 / K times the root of the number of values
    of an example, when the run is created."""
    noise_scale: OfFlow[NotNegative] = 0.01
    """ν: standard deviation of the noise that each step adds."""


@dataclasses.dataclass(frozen=True)
class Loss(Section):
    """The loss of the ratio, and the divergence that the flow decreases."""

    name: LossName = "lr"
    """Bregman loss that trains the density ratio."""
    divergence: Divergence = "kl"
    """f-divergence that the flow decreases."""
    gradient_penalty: OfTraining[NotNegative] = 0.0
    """Weight of the zero-centred gradient penalty on data and on flowed samples (R1 + R2)."""
    gradient_penalty_fraction: OfTraining[Share] = 1.0
    """Fraction of the batch on which the penalty is computed; a smaller one is faster."""


@dataclasses.dataclass(frozen=True)
class Optimizer(Section):
    """Adam and its learning rate."""

    learning_rate: OfTraining[Annotated[Real, Gt(0.0), Le(10.0)]] = 1e-4
    """Initial learning rate of Adam. As an exception, it may change when training resumes."""
    b1: OfTraining[Decay] = 0.9
    """Decay rate of Adam's first moment."""
    schedule: OfTraining[Literal["constant", "piecewise", "cosine"]] = "piecewise"
    """Schedule of the learning rate; `cosine` decays it to 0 over train.num_steps."""
    boundaries: OfTraining[Increasing] = (80_000, 90_000)
    """Training steps at which `piecewise` divides the learning rate by 10."""
    warmup_steps: OfTraining[Whole] = 0
    """Number of training steps over which the learning rate grows linearly from 0."""
    clip_norm: OfTraining[NotNegative] = 0.0
    """Gradients with a larger global norm are scaled down to this norm; 0: no clipping."""


@dataclasses.dataclass(frozen=True)
class Train(Section):
    """Training: its length, the batch, the average of the weights, and divergence."""

    num_steps: OfTraining[Count] = 100_000
    """Number of training steps. As an exception, it may change when training resumes, unless
    optimizer.schedule is cosine."""
    batch_size: OfTraining[Batch] = 64
    """Examples per training step, in total over all devices."""
    ema_rate: OfTraining[Decay] = 0.998
    """Decay per step of the exponential moving average of the parameters (EMA). At step t it is at
    most (1 + t) / (10 + t), so that the average soon forgets the initial weights."""
    steps_per_dispatch: Free[Annotated[int, Ge(1), Le(10_000)]] = 10
    """Number of training steps that the device runs before it returns to the host."""
    max_log_ratio: Free[Positive] = 50.0
    """Training stops as diverged if the absolute value of the mean log ratio exceeds this, or if a
    mean ratio of a loss that learns the ratio itself (LSIF) exceeds 10,000."""


@dataclasses.dataclass(frozen=True)
class Log(Section):
    """Logs of metrics."""

    every_steps: Free[Count] = 100
    """Number of training steps between lines of metrics.jsonl."""
    tensorboard: Free[bool] = False
    """Also writes TensorBoard event files."""


@dataclasses.dataclass(frozen=True)
class Checkpoint(Section):
    """Checkpoints."""

    every_steps: Free[Count] = 5_000
    """Number of training steps between checkpoints."""
    keep: Free[Few] = 3
    """Number of checkpoints to keep: the newest ones. The best one is kept as well."""


@dataclasses.dataclass(frozen=True)
class Snapshot(Section):
    """Samples that the report shows over training."""

    every_steps: Free[Count] = 5_000
    """Number of training steps between snapshots. Steps 0, 10 and 50 have one as well."""


@dataclasses.dataclass(frozen=True)
class Condition(Section):
    """Class-conditional samples."""

    weight: Free[NotNegative] = 0.1
    """φ: weight of the classifier that guides samples."""


@dataclasses.dataclass(frozen=True)
class Attack(Section):
    """Adversarial images in the training of a classifier."""

    epsilon: OfTraining[NotNegative] = 1.0
    """Maximum L2 distance of an adversarial image from the original, for pixels in [0, 1]."""
    num_steps: OfTraining[Annotated[int, Ge(0), Le(1_000)]] = 7
    """Number of steps of the attack; 0 trains a classifier without adversarial images."""


@dataclasses.dataclass(frozen=True)
class Augment(Section):
    """Augmentation of a classifier's images."""

    max_shift: OfTraining[Annotated[int, Ge(0), Le(1_000)]] = 0
    """Maximum random shift of a classifier's training images, in pixels along each axis."""


@dataclasses.dataclass(frozen=True)
class Evaluate(Section):
    """Evaluations."""

    every_steps: Free[Whole] = 0
    """Number of training steps between evaluations of a cheap metric. The checkpoint with its best
    value is kept; 0: never."""
    num_samples: Free[Annotated[int, Ge(2), Le(10_000_000)]] = 10_000
    """Largest number of samples of an evaluation. At most 10,000 points, 1,000 translated images,
    or 5,000 images without Inception weights are drawn."""
    batch_size: Free[Batch] = 1_000
    """Number of samples that are drawn at a time, in total over all devices."""
    inception_weights: Free[Text] = ""
    """Path of weights-inception-2015-12-05-6726825d.pth of torch-fidelity, for the FID (extra
    `eval`); if empty, it is not computed."""


@dataclasses.dataclass(frozen=True)
class Settings(Section):
    """All settings of a run."""

    seed: OfFlow[Whole] = 0
    """Seed of the initial weights, the data order and the noise."""
    precision: Literal["auto", "float32", "tensorfloat32", "bfloat16"] = "float32"
    """Precision in which the network computes; parameters and flow are always float32. `auto` uses
    bfloat16 on devices that are fast in it, and float32 on all others. tensorfloat32 is faster on
    NVIDIA GPUs from Ampere on. bfloat16 is faster still and needs half the memory."""
    data: Data = Data()
    network: Network = Network()
    prior: Prior = Prior()
    flow: Flow = Flow()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    log: Log = Log()
    checkpoint: Checkpoint = Checkpoint()
    snapshot: Snapshot = Snapshot()
    condition: Condition = Condition()
    attack: Attack = Attack()
    augment: Augment = Augment()
    evaluate: Evaluate = Evaluate()


# Settings that contain paths on this machine. Files that are meant to be shared omit them.
PATHS = (
    "data.dir",
    "evaluate.inception_weights",
)


class Declared(NamedTuple):
    """The declaration of a setting."""

    default: Any
    allowed: str  # Completes a sentence that starts with "must be".
    names: tuple[str, ...]  # Those of a choice.
    about: str
    scope: Scope
    kind: Any  # The type of its values.
    checks: tuple[_Check | _Limit, ...]

    def checked(self, value: Any) -> Any:
        """Returns a value in the type of the setting; a ValueError may say why it is refused."""
        converted = _of_kind(value, self.kind)
        if not all(check.is_allowed(converted) for check in self.checks):
            raise ValueError
        return converted


def _of_kind(value: Any, kind: Any) -> Any:
    """Returns a value in a type; whole numbers are real numbers too, and nothing else converts."""
    of = get_args(kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            raise ValueError
        kinds = of[:1] * len(value) if of[-1] is ... else of
        if len(kinds) != len(value):
            raise ValueError
        return tuple(map(_of_kind, value, kinds))
    if get_origin(kind) is Literal:
        fits = isinstance(value, str) and value in of
    elif isinstance(value, bool) or kind is bool:
        fits = isinstance(value, bool) and kind is bool
    elif kind is float:  # NaN is not within the limit either.
        fits = isinstance(value, (int, float)) and abs(value) <= _MAX_FLOAT32
    else:
        fits = isinstance(value, kind)
    if not fits:
        raise ValueError
    return float(value) if kind is float else value


def _declaration(default: Any, annotation: Any, about: str) -> Declared:
    kind, *metadata = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    checks = tuple(item for item in metadata if isinstance(item, (_Check, _Limit)))
    worded = [check.words for check in checks if isinstance(check, _Check) and check.words]
    names: tuple[str, ...] = ()
    if get_origin(kind) is Literal:
        names = tuple(map(str, get_args(kind)))
        words = f"one of {', '.join(names)}"
    elif kind is bool:
        words = "True or False"
    elif worded:
        words = worded[0]
    else:
        limits = [
            f"{check.words} {check.bound:,}"
            for check in checks
            if isinstance(check, _Limit) and check != Le(_MAX_FLOAT32)
        ]
        number = "a whole number" if kind is int else "a finite number"
        words = f"{number} {' and '.join(limits)}"
    scope: Any = next((item for item in metadata if item in MAY_CHANGE), "fixed")
    return Declared(default, words, names, about, scope, kind, checks)


def _texts(section: type) -> dict[str, str]:
    """Returns the texts below the fields of a section, from its source."""
    body = ast.parse(inspect.getsource(section)).body[0]
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(getattr(body, "body", ()))
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }


def _declared(section: Any, prefix: str = "") -> Iterator[tuple[str, Declared]]:
    hints, texts = get_type_hints(section, include_extras=True), _texts(section)
    for field in dataclasses.fields(section):
        if isinstance(field.default, Section):
            yield from _declared(type(field.default), f"{field.name}.")
        else:
            about = texts.get(field.name, "")
            yield f"{prefix}{field.name}", _declaration(field.default, hints[field.name], about)


DECLARED: dict[str, Declared] = dict(_declared(Settings))


def defaults() -> dict[str, Any]:
    """Returns the default of every setting, nested by section."""
    return dataclasses.asdict(Settings())


def from_config(config: Mapping[str, Any]) -> Settings:
    """Returns the settings of a nested or flat config: the only conversion of a config.

    Keys that are left out have their default. `~` in a path becomes the home folder. A UserError
    names each key that is unknown or has a value that is not allowed.
    """
    found: dict[str, dict[str, Any]] = {}
    refused = set()
    for key, value in _flattened(config).items():
        if key not in DECLARED:
            refused.add(f"unknown key {key!r}{nearest(key, DECLARED)}")
            continue
        is_path = key in PATHS and isinstance(value, str)
        wanted = os.path.expanduser(value) if is_path else _as_tuples(value)
        section, _, name = key.rpartition(".")
        try:
            found.setdefault(section, {})[name] = DECLARED[key].checked(wanted)
        except ValueError as error:
            refused.add(_explained(key, value, str(error)))
    if refused:
        raise UserError("config: " + "; ".join(sorted(refused)))
    general = found.pop("", {})
    usual = Settings()
    sections = {n: dataclasses.replace(getattr(usual, n), **of) for n, of in found.items()}
    return dataclasses.replace(usual, **general, **sections)


def replace(settings: Settings, changes: Mapping[str, Any]) -> Settings:
    """Returns settings with other values, by dotted key; raises as `from_config`."""
    return from_config({**to_flat(settings), **changes})


def to_flat(settings: Settings) -> Flat:
    """Returns settings by dotted key, as values for JSON. `from_config` is the inverse."""
    return _flattened(json.loads(json.dumps(dataclasses.asdict(settings))))


def of_scope(settings: Settings, *scopes: Scope) -> Flat:
    """Returns the settings whose scope is one of these, as `to_flat`."""
    return {k: v for k, v in to_flat(settings).items() if DECLARED[k].scope in scopes}


def as_resumed(saved: Settings, wanted: Settings) -> Settings:
    """Returns the `saved` settings of a run, changed where training may change when it resumes.

    The run may resume with what is `wanted` if this returns the same.
    """
    allowed = of_scope(wanted, "free")
    allowed["optimizer.learning_rate"] = wanted.optimizer.learning_rate
    if wanted.optimizer.schedule != "cosine":  # Its length affects every step.
        allowed["train.num_steps"] = wanted.train.num_steps
    return replace(saved, allowed)


def changed(settings: Settings) -> Flat:
    """Returns the settings that differ from the defaults, as `to_flat`."""
    usual = to_flat(Settings())
    return {key: value for key, value in to_flat(settings).items() if value != usual[key]}


def shareable(settings: Settings) -> Flat:
    """Returns settings without the paths of this machine, as `to_flat`."""
    return {key: value for key, value in to_flat(settings).items() if key not in PATHS}


def differences(saved: Settings, present: Settings) -> dict[str, str]:
    """Describes how two settings differ, in order: {"seed": "seed is 1 but was 0"}."""
    then, now = to_flat(saved), to_flat(present)
    return {
        key: f"{key} is {json.dumps(now[key])} but was {json.dumps(then[key])}"
        for key in sorted(then)
        if then[key] != now[key]
    }


def check_key(key: str) -> None:
    """Checks that a setting exists."""
    if inside := [name for name in DECLARED if name.startswith(f"{key}.")]:
        raise UserError(f"--config.{key} is a section; its keys are {', '.join(inside)}")
    if key not in DECLARED:
        raise UserError(f"--config.{key}: unknown key{nearest(key, DECLARED)}")


def explain(topic: str) -> str:
    """Returns the help of a setting, of a section, or of all settings that contain a word."""
    keys = [name for name in DECLARED if name == topic or name.startswith(f"{topic}.")]
    keys = keys or [k for k, d in DECLARED.items() if topic.lower() in f"{k} {d.about}".lower()]
    if not keys:
        raise UserError(f"--help={topic}: no setting contains this{nearest(topic, DECLARED)}")
    return "\n".join(
        f"--config.{name}={str(DECLARED[name].default).replace(' ', '')}\n"
        f"    {DECLARED[name].about}\n"
        f"    Allowed: {DECLARED[name].allowed}. {MAY_CHANGE[DECLARED[name].scope]}"
        for name in keys
    )


def _explained(key: str, value: Any, reason: str) -> str:
    declared = DECLARED[key]
    hint = nearest(str(value), declared.names) if declared.names else ""
    because = f" ({_shortened(reason)})" if reason else ""
    return f"{key} must be {declared.allowed}, got {_shortened(repr(value))}{hint}{because}"


def _flattened(config: Mapping[str, Any], prefix: str = "") -> Flat:
    flat: Flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple)) else value


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."
