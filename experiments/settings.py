"""All settings of a run, each declared once: default, meaning, limits, and when it may change."""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from experiments.errors import UserError
from fdrl_jax import bregman, divergences, networks
from fdrl_jax._checks import nearest

Scope = Literal["fixed", "flow", "free"]
# When a setting may differ from the value that the run was created with.
MAY_CHANGE: dict[Scope, str] = {
    "fixed": "Fixed when the run is created.",
    "flow": "Fixed for training; commands that draw samples may change it, and record it.",
    "free": "May change at any time.",
}
Verb = Literal["train", "sample"]
Flat = dict[str, Any]  # By dotted key, as values for JSON: {"flow.step_size": 0.1, ...}.
_MAX_FLOAT = 3.4e38
_MAX_INT = 2**31 - 1


class Declared(NamedTuple):
    """The declaration of a setting. Its values have the type of the default."""

    default: Any
    about: str
    scope: Scope = "fixed"
    low: float = -_MAX_FLOAT  # Of a number.
    high: float = _MAX_FLOAT
    choices: tuple[str, ...] = ()  # Of a text.
    words: str = ""  # What a value must be that is neither of these,
    check: Callable[[Any], object] = bool  # which this checks; it may raise a ValueError.

    @property
    def allowed(self) -> str:
        """Completes a sentence that starts with "must be"."""
        if self.words or self.choices:
            return self.words or f"one of {', '.join(self.choices)}"
        if isinstance(self.default, bool):
            return "True or False"
        if isinstance(self.default, str):
            return "a text of at most 1,000 printable characters"
        kind = "a whole number" if isinstance(self.default, int) else "a finite number"
        limits = [f"at least {self.low:,}", *[f"at most {self.high:,}"] * (self.high < _MAX_FLOAT)]
        return f"{kind}, {' and '.join(limits)}"

    def checked(self, value: Any) -> Any:
        """Returns a value in the type of the setting; a ValueError may say why it is refused."""
        kind = type(self.default)
        if kind is float and type(value) is int and abs(value) <= _MAX_FLOAT:
            value = float(value)  # Whole numbers are real numbers too.
        if type(value) is not kind:
            raise ValueError
        if self.words:
            is_allowed = self.check(value)
        elif kind is str:
            is_text = len(value) <= 1_000 and value.isprintable()  # Messages of one line quote it.
            is_allowed = value in self.choices if self.choices else is_text
        else:
            is_allowed = kind is bool or self.low <= value <= min(
                self.high, _MAX_INT if kind is int else _MAX_FLOAT
            )
        if not is_allowed:
            raise ValueError
        return value


def setting(default: Any, *, about: str, **limits: Any) -> Any:
    """Returns the field of a setting, with the other fields of `Declared`."""
    declared = Declared(default, about, **limits)
    return dataclasses.field(default=default, metadata={"declared": declared})


def _are(values: Any, low: int, high: int) -> bool:
    return all(type(value) is int and low <= value <= high for value in values)


def _are_blocks(values: Any) -> bool:
    return all(
        type(of) is tuple and len(of) == 2 and _are(of[:1], 1, 65_536) and _are(of[1:], 1, 8)
        for of in values
    )


# fmt: off
@dataclasses.dataclass(frozen=True)
class Data:
    """The data set and how its images are prepared."""

    name: str = setting("swissroll", about=
        "Data set: a built-in one (swissroll, 8gaussians, 25gaussians, digits), or images from a "
        "folder or zip (folder), an array (npz), two domains (pair) or TFDS (tfds:NAME).")
    dir: str = setting("", scope="free", about="Path of the images; --data_dir sets it, too.")
    num_held_out: int = setting(1_000, low=1, about=
        "Images to hold out of a set without a split test, validation or val; at most a tenth.")
    source_class: str = setting("", about="Class that a translation between classes starts from.")
    target_class: str = setting("", about="Class that a translation between classes leads to.")
    center_crop: int = setting(0, low=0, about=
        "Side in pixels of the square that is cut from the centre before resizing; 0: no crop.")
    resize: int = setting(0, low=0, about=
        "Length in pixels to which the shorter side is resized; 0: that of data.image_size.")
    image_size: int = setting(0, low=0, about=
        "Side in pixels of the square that is cut from the centre after resizing; 0: keeps the "
        "size after resizing, which must be the same for all images.")
    keep_aspect: bool = setting(True, about=
        "Keeps the aspect ratio when resizing; otherwise images are squeezed to a square.")
    channels: int = setting(3, words="0 (as stored), 1 (grey) or 3 (colour)",
        check=lambda number: number in (0, 1, 3), about=
        "Channels per image: 1 converts to grey, 3 to colour, 0 keeps what the files contain.")
    random_flip: bool = setting(False, about="Mirrors half of the training images, left to right.")
    dequantisation: float = setting(0.0, low=0.0, high=1.0, about=
        "Standard deviation of the Gaussian noise that is added to data in [-1, 1].")


@dataclasses.dataclass(frozen=True)
class Network:
    """The network that estimates the ratio, or classifies."""

    name: str = setting("mlp", choices=("auto", "mlp", "resnet", *networks.SPECS), about=
        "Network: `mlp` for points; `auto` is the paper's network for the image size; `resnet` is "
        "built from network.blocks; the others are those of the paper's table 4.")
    hidden_sizes: tuple[int, ...] = setting((64, 64, 64, 64),
        words="one or more positive whole numbers such as (64, 64)",
        check=lambda sizes: sizes and _are(sizes, 1, 65_536), about=
        "Sizes of the hidden layers of `mlp`.")
    width: int = setting(0, low=0, about=
        "Channels of the first convolution, with which the others scale; 0: the paper's number.")
    blocks: tuple[tuple[int, int], ...] = setting((),
        words="pairs of channels and stride such as ((32, 1), (64, 2))", check=_are_blocks, about=
        "Channels and stride of each block of `resnet`; if empty, they follow from the image size "
        "when the run is created.")
    attention: bool = setting(False, about="Adds a self-attention layer to a residual network.")
    spectral_norm: bool = setting(False, about="Divides each kernel by its largest singular value.")
    use_bias: bool = setting(False, about=
        "Adds a bias per channel to the 3x3 convolutions of a residual network.")
    by_class: bool = setting(False, about=
        "Learns a density ratio for each class of labelled images, with a residual network. "
        "Samples are of all classes in turn, or of the class that --class names.")
    denoiser_width: int = setting(0, low=0, about=
        "Channels of a second network, which learns to remove noise of twice data.dequantisation "
        "from images and removes it from samples; 0: none.")
    remat: bool = setting(False, about=
        "Recomputes activations in the backward pass. Saves memory and takes longer.")


@dataclasses.dataclass(frozen=True)
class Prior:
    """The distribution that the flow starts from."""

    name: str = setting("normal", choices=("normal", "uniform", "data_dependent", "source"), about=
        "Distribution that the flow starts from; `source` is the source domain of a translation.")
    rank: int = setting(0, low=0, about=
        "Rank of the covariance of `data_dependent`; 0: full up to 12,288 dimensions, 50 for each "
        "of several clusters (at most half of their mean size), 100 for each class with one.")
    num_components: int = setting(1, low=0, about=
        "Number of Gaussians of `data_dependent`, one for each cluster of the data or of a class; "
        "0: one for each 70 examples, at most 100, or a single one below 2,100 examples.")
    jitter: float = setting(1e-4, low=0.0, about=
        "Variance that is added to the diagonal of this covariance, as in the authors' code.")


@dataclasses.dataclass(frozen=True)
class Flow:
    """The flow from the prior to the data."""

    num_steps: int = setting(100, low=0, scope="flow", about=
        "K: number of flow steps in training, and of bridging steps in sampling. With 0, the "
        "network learns the ratio of the prior over the data.")
    num_refine_steps: int = setting(20, low=0, scope="flow", about=
        "κ: number of refinement steps, which follow the K steps in sampling.")
    step_size: float = setting(3.0, low=0.0, scope="flow", about=
        "η: step size, which multiplies the drift; 0: 2.75 / K times the root of the number of "
        "values of an example, when the run is created.")
    noise_scale: float = setting(0.01, low=0.0, scope="flow", about=
        "ν: standard deviation of the noise that each step adds; with network.denoiser_width only "
        "in training.")


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of the ratio, and the divergence that the flow decreases."""

    name: str = setting("lr", choices=tuple(bregman.REGISTRY), about=
        "Bregman loss that trains the density ratio.")
    divergence: str = setting("kl", words="a divergence such as kl, pearson or alpha(0.5)",
        check=divergences.get, about="f-divergence that the flow decreases.")
    gradient_penalty: float = setting(0.0, low=0.0, about=
        "Weight of the zero-centred gradient penalty on data and on flowed samples (R1 + R2).")
    gradient_penalty_fraction: float = setting(1.0, low=1e-6, high=1.0, about=
        "Fraction of the batch on which the penalty is computed; a smaller one is faster.")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Adam and its learning rate."""

    learning_rate: float = setting(1e-4, low=1e-12, high=10.0, about=
        "Initial learning rate of Adam. As an exception, it may change when training resumes.")
    b1: float = setting(0.9, low=0.0, high=0.999999, about="Decay rate of Adam's first moment.")
    schedule: str = setting("piecewise", choices=("constant", "piecewise", "cosine"), about=
        "Schedule of the learning rate; `cosine` decays it to 0 over train.num_steps.")
    boundaries: tuple[int, ...] = setting((80_000, 90_000),
        words="increasing whole numbers such as (80000, 90000)",
        check=lambda steps: _are(steps, 0, _MAX_INT) and list(steps) == sorted(set(steps)), about=
        "Training steps at which `piecewise` divides the learning rate by 10.")
    warmup_steps: int = setting(0, low=0, about=
        "Number of training steps over which the learning rate grows linearly from 0.")
    clip_norm: float = setting(0.0, low=0.0, about=
        "Gradients with a larger global norm are scaled down to this norm; 0: no clipping.")


@dataclasses.dataclass(frozen=True)
class Train:
    """Training: its length, the batch, the average of the weights, and divergence."""

    num_steps: int = setting(100_000, low=1, about=
        "Number of training steps. As an exception, it may change when training resumes, unless "
        "optimizer.schedule is cosine.")
    batch_size: int = setting(64, low=1, about=
        "Examples per training step, in total over all devices.")
    ema_rate: float = setting(0.998, low=0.0, high=0.999999, about=
        "Decay per step of the exponential moving average of the parameters (EMA). At step t it "
        "is at most (1 + t) / (10 + t), so that the average soon forgets the initial weights.")
    steps_per_dispatch: int = setting(10, low=1, scope="free", about=
        "Number of training steps that the device runs before it returns to the host.")
    max_log_ratio: float = setting(50.0, low=0.0, scope="free", about=
        "Training stops as diverged if a mean log ratio exceeds this in absolute value, or the "
        "mean ratio of a loss that learns the ratio itself (LSIF) exceeds 10,000.")


@dataclasses.dataclass(frozen=True)
class Log:
    """Logs of metrics."""

    every_steps: int = setting(100, low=1, scope="free", about=
        "Number of training steps between lines of metrics.jsonl.")
    tensorboard: bool = setting(False, scope="free", about="Also writes TensorBoard event files.")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Checkpoints."""

    every_steps: int = setting(5_000, low=1, scope="free", about=
        "Number of training steps between checkpoints.")
    keep: int = setting(3, low=1, scope="free", about=
        "Number of checkpoints to keep: the newest ones. The best one is kept as well.")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Samples that the report shows over training."""

    every_steps: int = setting(5_000, low=1, scope="free", about=
        "Number of training steps between snapshots. Steps 0, 10 and 50 have one as well.")


@dataclasses.dataclass(frozen=True)
class Condition:
    """Class-conditional samples."""

    weight: float = setting(0.1, low=0.0, scope="free", about=
        "φ: weight of the classifier that guides samples.")


@dataclasses.dataclass(frozen=True)
class Classifier:
    """The training of a classifier."""

    epsilon: float = setting(1.0, low=0.0, about=
        "Maximum L2 distance of an adversarial image from the original, for pixels in [0, 1].")
    attack_steps: int = setting(7, low=0, about=
        "Number of steps of the attack; 0 trains a classifier without adversarial images.")
    max_shift: int = setting(0, low=0, about=
        "Maximum random shift of the training images, in pixels along each axis.")


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Evaluations."""

    every_steps: int = setting(0, low=0, scope="free", about=
        "Number of training steps between evaluations of a cheap metric. The checkpoint with its "
        "best value is kept; 0: never.")
    num_samples: int = setting(10_000, low=2, scope="free", about=
        "Largest number of samples of an evaluation. At most 10,000 points, 1,000 translated "
        "images, or 5,000 images without Inception weights are drawn.")
    batch_size: int = setting(1_000, low=1, scope="free", about=
        "Number of samples that are drawn at a time, in total over all devices.")
    inception_weights: str = setting("", scope="free", about=
        "Path of weights-inception-2015-12-05-6726825d.pth of torch-fidelity, for the FID (extra "
        "`eval`); if empty, it is not computed.")


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    seed: int = setting(0, low=0, scope="flow", about=
        "Seed of the initial weights, the data order and the noise.")
    precision: str = setting("float32", choices=("auto", "float32", "tensorfloat32", "bfloat16"),
        about=
        "Precision in which the network computes; parameters and flow are always float32. `auto` "
        "is bfloat16 on devices that are fast in it, and otherwise float32. tensorfloat32 is for "
        "NVIDIA GPUs from Ampere on; bfloat16 is faster still and needs half the memory.")
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
    classifier: Classifier = Classifier()
    evaluate: Evaluate = Evaluate()
# fmt: on


def _declared(section: Any, prefix: str = "") -> dict[str, Declared]:
    found: dict[str, Declared] = {}
    for field in dataclasses.fields(section):
        if "declared" in field.metadata:
            found[f"{prefix}{field.name}"] = field.metadata["declared"]
        else:
            found |= _declared(field.default, f"{field.name}.")
    return found


DECLARED = _declared(Settings)
# Settings that contain paths on this machine. Files that are meant to be shared omit them.
PATHS = ("data.dir", "evaluate.inception_weights")


def defaults() -> dict[str, Any]:
    """Returns the default of every setting, nested by section."""
    return dataclasses.asdict(Settings())


def from_config(config: Mapping[str, Any]) -> Settings:
    """Returns the settings of a nested or flat config, with defaults for what is left out.

    A UserError names each key that is unknown or has a value that is not allowed.
    """
    found: dict[str, dict[str, Any]] = {}
    refused = set()
    for key, value in _flattened(config).items():
        if key not in DECLARED:
            refused.add(f"unknown key {key!r}{nearest(key, DECLARED)}")
            continue
        is_path = key in PATHS and isinstance(value, str)
        section, _, name = key.rpartition(".")
        try:
            wanted = os.path.expanduser(value) if is_path else _as_tuples(value)
            found.setdefault(section, {})[name] = DECLARED[key].checked(wanted)
        except ValueError as error:
            because = f" ({error!s:.300})" if str(error) else ""
            got = f"{value!r:.300}{nearest(str(value), DECLARED[key].choices)}"
            refused.add(f"{key} must be {DECLARED[key].allowed}, got {got}{because}")
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
    """Returns the settings of these scopes."""
    return {k: v for k, v in to_flat(settings).items() if DECLARED[k].scope in scopes}


def shareable(settings: Settings) -> Flat:
    """Returns settings without the paths of this machine, as `to_flat`."""
    return {key: value for key, value in to_flat(settings).items() if key not in PATHS}


def changed(settings: Settings) -> Flat:
    """Returns the shareable settings that differ from the defaults."""
    usual = to_flat(Settings())
    return {key: value for key, value in shareable(settings).items() if value != usual[key]}


def differences(saved: Settings, wanted: Settings, verb: Verb) -> list[str]:
    """Describes, as "seed is 1 but was 0", how settings differ although the verb fixes them."""
    then, now = to_flat(saved), to_flat(wanted)
    allowed = {*of_scope(wanted, "free")}
    if verb == "sample":
        allowed.update(of_scope(wanted, "flow"))
    else:
        allowed.add("optimizer.learning_rate")
        if saved.optimizer.schedule != "cosine":  # Its length affects every step.
            allowed.add("train.num_steps")
    return [
        f"{key} is {json.dumps(now[key])} but was {json.dumps(then[key])}"
        for key in sorted(then.keys() - allowed)
        if then[key] != now[key]
    ]


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
