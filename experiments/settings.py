"""All settings of a run, each with its default, allowed values, meaning, and when it may change.

`SETTINGS` is the only declaration. The defaults in `configs/base.py`, the checks, `--help=KEY` and
the reference page of the documentation are derived from it. To add a setting, add it here and read
it where it is used.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from flax.traverse_util import flatten_dict, unflatten_dict

from experiments import divergence_formula
from experiments.data import registry
from experiments.errors import UserError
from fdrl_jax import bregman, networks
from fdrl_jax.names import nearest

Settings = dict[str, Any]  # Flat: {"flow.step_size": 0.1, ...}.

# When a setting may differ from the value that the run was created with:
#   "fixed"     never;
#   "training"  not when the run resumes; samples depend on it only through the checkpoint;
#   "flow"      not when the run resumes; a command that draws samples may set it, and records it;
#   "free"      at any time.
Scope = Literal["fixed", "training", "flow", "free"]

_MAX_FLOAT32 = 3.4e38
_MIN_FLOAT32 = 1.2e-38  # The smallest positive normal number; smaller ones may become 0.
_MAX_TEXT = 1_000
_MAX_FILE_NAME = 200  # Bytes. File systems allow 255, and samples get suffixes.
_MAX_SHOWN = 300  # Characters of a value in a message.


class Rule(NamedTuple):
    """The allowed values of a setting.

    Attributes:
      accepts: returns whether a value is allowed, or raises a `ValueError` with the reason.
      allowed: the allowed values in words; completes a sentence that starts with "must be".
      names: the allowed names of a choice.
      is_real: whether the value is a real number, stored as a float.
    """

    accepts: Callable[[Any], bool]
    allowed: str
    names: tuple[str, ...] = ()
    is_real: bool = False

    def error(self, value: Any) -> str | None:
        """Returns what is wrong with a value, or `None` for an allowed one."""
        try:
            if self.accepts(value):
                return None
            reason = ""
        except ValueError as error:
            reason = f" ({_shortened(str(error))})"
        hint = nearest(str(value), self.names) if self.names else ""
        return f"must be {self.allowed}, got {_shortened(repr(value))}{hint}{reason}"


class Setting(NamedTuple):
    """One setting: its default, its allowed values, what it does, with units, and its `Scope`."""

    default: Any
    rule: Rule
    about: str
    scope: Scope = "fixed"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(low: int = 0, high: int = 2**31 - 1) -> Rule:
    def accepts(value: Any) -> bool:
        return _is_whole(value) and low <= value <= high

    return Rule(accepts, f"a whole number from {low:,} to {high:,}")


def _real(
    low: float, high: float = _MAX_FLOAT32, *, above: bool = False, below: bool = False
) -> Rule:
    """A float32 number within limits; `above` and `below` exclude the limits themselves."""

    def accepts(value: Any) -> bool:
        # Only comparisons, because a whole number may be too large for a float.
        is_number = isinstance(value, float) or _is_whole(value)
        return bool(
            is_number
            and (value > low if above else value >= low)
            and (value < high if below else value <= high)
            and (value == 0 or abs(value) >= _MIN_FLOAT32)
        )

    limits = f"{'above' if above else 'at least'} {low:g}"
    limits += f" and {'below' if below else 'at most'} {high:.3g}"
    return Rule(accepts, f"a finite number {limits}", is_real=True)


def _choice(*names: str) -> Rule:
    return Rule(lambda value: value in names, f"one of {', '.join(names)}", names)


def _is_text(value: Any) -> bool:
    # No line breaks, because messages of one line quote texts. No NUL, because some are paths.
    return isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()


def _is_file_name(value: Any) -> bool:
    short = _is_text(value) and len(value.encode()) <= _MAX_FILE_NAME
    return short and "/" not in value and not value.startswith(".")


def _is_list(value: Any, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, (tuple, list)) and all(map(accepts, value))


def _is_increasing(value: Any, low: int) -> bool:
    return _is_list(value, _whole(low).accepts) and list(value) == sorted(set(value))


def _is_block(value: Any) -> bool:
    is_pair = _is_list(value, _whole(1, 65_536).accepts) and len(value) == 2
    return is_pair and bool(value[1] <= 8)


_FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
_TEXT = Rule(_is_text, f"a text of at most {_MAX_TEXT:,} printable characters")
_FILE_NAME = Rule(_is_file_name, f"a file name without a folder, of at most {_MAX_FILE_NAME} bytes")
_LENGTH = _whole(0, 65_536)

SETTINGS: dict[str, Setting] = {
    "seed": Setting(
        0, _whole(), "Seed of the initial weights, the data order and the noise.", "flow"
    ),
    "precision": Setting(
        "float32",
        _choice("auto", "float32", "tensorfloat32", "bfloat16"),
        "Precision in which the network computes; parameters and flow are always float32. `auto` "
        "uses bfloat16 on devices that are fast in it, and float32 on all others. tensorfloat32 is "
        "faster on NVIDIA GPUs from Ampere on. bfloat16 is faster still and needs half the memory.",
    ),
    # data
    "data.name": Setting(
        "swissroll",
        Rule(registry.is_known, f"one of {', '.join(registry.NAMES)}", registry.NAMES),
        "Data set: a built-in one (swissroll, 8gaussians, 25gaussians, digits), or images from a "
        "folder or zip (folder), an array (npz), LSUN (lsun), two domains (pair) or TFDS "
        "(tfds:NAME).",
    ),
    "data.dir": Setting(
        "",
        _TEXT,
        "Path of the images. If empty, the environment variable FDRL_DATA_DIR is used; the flag "
        "--data_dir overrides both.",
        "free",
    ),
    "data.split": Setting("train", _TEXT, "Split that the run trains on."),
    "data.held_out_split": Setting(
        "test", _TEXT, "Split that the run is evaluated on, if the data have it."
    ),
    "data.num_held_out": Setting(
        1_000,
        _whole(1),
        "Number of images to hold out of a set without such a split, at most a tenth of the set.",
    ),
    "data.source_class": Setting(
        "", _TEXT, "For a translation between classes: the class to start from."
    ),
    "data.target_class": Setting(
        "", _TEXT, "For a translation between classes: the class to translate to."
    ),
    "data.center_crop": Setting(
        0,
        _LENGTH,
        "Side in pixels of the square that is cut from the centre before resizing; 0: no crop.",
    ),
    "data.resize": Setting(
        0,
        _LENGTH,
        "Length in pixels to which the shorter side is resized; 0: that of data.image_size.",
    ),
    "data.image_size": Setting(
        0,
        _LENGTH,
        "Side in pixels of the square that is cut from the centre after resizing; 0: keeps the "
        "stored size, which must be the same for all images.",
    ),
    "data.keep_aspect": Setting(
        True,
        _FLAG,
        "True crops images to a square. False squeezes them to data.image_size instead.",
    ),
    "data.channels": Setting(
        3,
        Rule(lambda v: _is_whole(v) and v in (0, 1, 3), "0 (as stored), 1 (grey) or 3 (colour)"),
        "Channels per image: 1 converts to grey, 3 to colour, 0 keeps what the files contain.",
    ),
    "data.random_flip": Setting(
        False, _FLAG, "Mirrors half of the training images, left to right."
    ),
    "data.dequantisation": Setting(
        0.0,
        _real(0.0, 1.0),
        "Standard deviation of the Gaussian noise that is added to data in [-1, 1].",
    ),
    "data.on_error": Setting(
        "stop",
        _choice("stop", "skip"),
        "Reaction to an unreadable file: stop, or skip it and report the number of such files.",
        "free",
    ),
    "data.in_memory_megabytes": Setting(
        256,
        _whole(0),
        "Data sets of up to this many megabytes of pixels are kept in memory; larger ones are "
        "streamed.",
    ),
    "data.num_workers": Setting(
        0,
        _whole(0, 1_000),
        "Number of processes that decode streamed images; 0: threads of the main process.",
        "free",
    ),
    "data.num_threads": Setting(
        4, _whole(1, 1_000), "Number of decoding threads per process.", "free"
    ),
    "data.prefetch_batches": Setting(
        8, _whole(1, 10_000), "Number of batches that are decoded in advance.", "free"
    ),
    # network
    "network.name": Setting(
        "mlp",
        _choice("auto", "mlp", "resnet", *networks.SPECS),
        "Network: `mlp` for points; `auto` is the paper's network for the image size; `resnet` is "
        "built from network.blocks; the others are those of the paper's table 4.",
    ),
    "network.hidden_sizes": Setting(
        (64, 64, 64, 64),
        Rule(
            lambda v: bool(v) and _is_list(v, _whole(1, 65_536).accepts),
            "one or more positive whole numbers such as (64, 64)",
        ),
        "Sizes of the hidden layers of `mlp`.",
    ),
    "network.width": Setting(
        0,
        _LENGTH,
        "Channels of the first convolution of a residual network. Those of the blocks of the "
        "paper's networks scale with it; 0: the paper's number.",
    ),
    "network.blocks": Setting(
        (),
        Rule(
            lambda v: _is_list(v, _is_block),
            "pairs of channels and stride such as ((32, 1), (64, 2))",
        ),
        "Channels and stride of each block of `resnet`.",
    ),
    "network.attention": Setting(
        False, _FLAG, "Adds a self-attention layer to a residual network."
    ),
    "network.attention_after": Setting(
        1, _whole(1, 1_000), "Number of the block of `resnet` that self-attention follows."
    ),
    "network.spectral_norm": Setting(
        False, _FLAG, "Divides each kernel by its largest singular value."
    ),
    "network.use_bias": Setting(
        False, _FLAG, "Adds a bias per channel to the 3x3 convolutions of a residual network."
    ),
    "network.remat": Setting(
        False,
        _FLAG,
        "Recomputes activations in the backward pass. Saves memory and takes longer.",
        "training",
    ),
    # prior
    "prior.name": Setting(
        "normal",
        _choice("normal", "uniform", "data_dependent", "source"),
        "Distribution that the flow starts from; `source` is the source domain of a translation.",
    ),
    "prior.scale": Setting(1.0, _real(0.0, above=True), "Standard deviation of `normal`."),
    "prior.rank": Setting(
        0,
        _whole(0, 2**20),
        "Rank of the covariance of `data_dependent`; 0: the full covariance, up to 12,288 "
        "dimensions.",
    ),
    "prior.jitter": Setting(
        1e-4, _real(0.0), "Variance that is added to the diagonal of this covariance (eq. 8)."
    ),
    # flow
    "flow.num_steps": Setting(
        100,
        _whole(1, 100_000),
        "K: number of flow steps in training, and of bridging steps in sampling.",
        "flow",
    ),
    "flow.num_refine_steps": Setting(
        20,
        _whole(0, 100_000),
        "κ: number of refinement steps, which follow the K steps in sampling.",
        "flow",
    ),
    "flow.step_size": Setting(
        3.0, _real(0.0, above=True), "η: step size, which multiplies the drift.", "flow"
    ),
    "flow.step_size_decay": Setting(
        1.0,
        _real(0.0, 1_000.0, above=True),
        "Step size at step K divided by the first one; it changes in geometric progression.",
        "flow",
    ),
    "flow.noise_scale": Setting(
        0.01, _real(0.0), "ν: standard deviation of the noise that each step adds.", "flow"
    ),
    # loss
    "loss.name": Setting(
        "lr", _choice(*bregman.REGISTRY), "Bregman loss that trains the density ratio."
    ),
    "loss.divergence": Setting(
        "kl",
        Rule(
            lambda v: isinstance(v, str) and bool(divergence_formula.parse(v)),
            "a divergence such as kl, alpha(0.5) or 0.5*kl + 0.5*js",
        ),
        "f-divergence that the flow decreases.",
    ),
    "loss.gradient_penalty": Setting(
        0.0,
        _real(0.0),
        "Weight of the zero-centred gradient penalty on data and on flowed samples (R1 + R2).",
        "training",
    ),
    "loss.gradient_penalty_fraction": Setting(
        1.0,
        _real(0.0, 1.0, above=True),
        "Fraction of the batch on which the penalty is computed; a smaller one is faster.",
        "training",
    ),
    # optimizer
    "optimizer.learning_rate": Setting(
        1e-4, _real(0.0, 10.0, above=True), "Initial learning rate of Adam.", "training"
    ),
    "optimizer.b1": Setting(
        0.9, _real(0.0, 1.0, below=True), "Decay rate of Adam's first moment.", "training"
    ),
    "optimizer.b2": Setting(
        0.999, _real(0.0, 1.0, below=True), "Decay rate of Adam's second moment.", "training"
    ),
    "optimizer.schedule": Setting(
        "piecewise",
        _choice("constant", "piecewise", "cosine"),
        "Schedule of the learning rate; `cosine` decays it to 0 over train.num_steps.",
        "training",
    ),
    "optimizer.boundaries": Setting(
        (80_000, 90_000),
        Rule(lambda v: _is_increasing(v, 1), "increasing step numbers such as (80000, 90000)"),
        "Train steps at which `piecewise` multiplies the learning rate by optimizer.decay.",
        "training",
    ),
    "optimizer.decay": Setting(
        0.1,
        _real(0.0, 1.0, above=True),
        "Factor on the learning rate at each of optimizer.boundaries.",
        "training",
    ),
    "optimizer.warmup_steps": Setting(
        0,
        _whole(),
        "Number of train steps over which the learning rate grows linearly from 0.",
        "training",
    ),
    "optimizer.clip_norm": Setting(
        0.0,
        _real(0.0),
        "Gradients with a larger global norm are scaled down to this norm; 0: no clipping.",
        "training",
    ),
    # train
    "train.num_steps": Setting(100_000, _whole(1), "Number of train steps.", "training"),
    "train.batch_size": Setting(
        64, _whole(1, 2**20), "Examples per train step, in total over all devices.", "training"
    ),
    "train.ema_rate": Setting(
        0.998,
        _real(0.0, 1.0, below=True),
        "Decay per step of the exponential moving average of the parameters (EMA).",
        "training",
    ),
    "train.ema_ramp": Setting(
        False,
        _FLAG,
        "Uses the decay min(ema_rate, (1 + t) / (10 + t)) at step t, so that the average forgets "
        "the initial weights faster.",
        "training",
    ),
    "train.steps_per_dispatch": Setting(
        10,
        _whole(1, 10_000),
        "Number of train steps that the device runs before it returns to the host.",
        "free",
    ),
    "train.num_micro_batches": Setting(
        1,
        _whole(1, 2**20),
        "Number of equal parts of the batch per device, which are processed one after the other to "
        "save memory.",
        "training",
    ),
    "train.max_log_ratio": Setting(
        50.0,
        _real(0.0, above=True),
        "A run has diverged if the absolute value of the mean log ratio exceeds this.",
        "free",
    ),
    "train.max_ratio": Setting(
        1e4,
        _real(0.0, above=True),
        "The same limit for the mean ratio, under losses that learn the ratio itself (LSIF).",
        "free",
    ),
    "train.on_divergence": Setting(
        "stop",
        _choice("stop", "rollback"),
        "What a diverged run does: stop, or return to the last checkpoint and skip the batches "
        "since then (rollback).",
        "free",
    ),
    "train.rollback_lr_factor": Setting(
        0.5, _real(0.0, 1.0, above=True), "Factor on the learning rate at each rollback.", "free"
    ),
    "train.max_rollbacks": Setting(
        3,
        _whole(0, 1_000),
        "Maximum number of rollbacks; after that a divergence stops the run.",
        "free",
    ),
    # log, checkpoint, snapshot
    "log.every_steps": Setting(
        100, _whole(1), "Number of train steps between lines of metrics.jsonl.", "free"
    ),
    "log.tensorboard": Setting(False, _FLAG, "Also writes TensorBoard event files.", "free"),
    "log.wandb": Setting(
        "off", _choice("off", "offline", "online"), "Also logs to Weights & Biases.", "free"
    ),
    "checkpoint.every_steps": Setting(
        5_000, _whole(1), "Number of train steps between checkpoints.", "free"
    ),
    "checkpoint.keep": Setting(
        3,
        _whole(1, 1_000),
        "Number of checkpoints to keep: the newest ones. The best one is kept as well.",
        "free",
    ),
    "snapshot.every_steps": Setting(
        5_000,
        _whole(1),
        "Number of train steps between snapshots, the samples that the report shows over training.",
        "free",
    ),
    "snapshot.num_samples": Setting(
        64, _whole(1, 100_000), "Number of samples per snapshot.", "free"
    ),
    # sample, condition, attack, curve
    "sample.weights": Setting(
        "ema",
        _choice("ema", "raw"),
        "Parameters that draw samples: averaged (ema), or those of the last step (raw).",
        "flow",
    ),
    "sample.format": Setting(
        "npz",
        _choice("npz", "folder", "zip"),
        "Format of the samples: an .npz file, or PNG files in a folder or a zip.",
        "free",
    ),
    "sample.name": Setting(
        "",
        _FILE_NAME,
        "Name of the file or folder of samples; if empty, it follows from the checkpoint's step.",
        "free",
    ),
    "condition.label": Setting(
        "",
        _TEXT,
        "Class of the samples, by name or number; `all` draws all classes in turn. The flag "
        "--class sets it too.",
        "free",
    ),
    "condition.classifier": Setting(
        "",
        _TEXT,
        "Folder of a trained classifier, or a .pt file of the library `robustness`. The flag "
        "--classifier sets it too.",
        "free",
    ),
    "condition.weight": Setting(0.1, _real(0.0), "φ: weight of the classifier.", "free"),
    "condition.num_refine_steps": Setting(
        10, _whole(0, 100_000), "Number of refinement steps of class-conditional samples.", "free"
    ),
    "attack.epsilon": Setting(
        1.0,
        _real(0.0),
        "Maximum L2 distance of an adversarial image from the original, for pixels in [0, 1].",
        "training",
    ),
    "attack.num_steps": Setting(
        7,
        _whole(0, 1_000),
        "Number of steps of the attack; 0 trains a classifier without adversarial images.",
        "training",
    ),
    "augment.max_shift": Setting(
        0,
        _whole(0, 1_000),
        "Maximum random shift of a classifier's training images, in pixels along each axis.",
        "training",
    ),
    "curve.over": Setting(
        "length",
        _choice("length", "step"),
        "Horizontal axis of mode curve: length of the flow, or train step.",
        "free",
    ),
    "curve.lengths": Setting(
        (),
        Rule(lambda v: _is_increasing(v, 0), "increasing lengths of the flow such as (0, 50, 100)"),
        "Lengths of the flow in mode curve; if empty, some lengths from 0 to K + 50.",
        "free",
    ),
    # evaluate
    "evaluate.every_steps": Setting(
        0,
        _whole(),
        "Number of train steps between evaluations of a cheap metric. The checkpoint with its best "
        "value is kept; 0: never.",
        "free",
    ),
    "evaluate.num_monitored_samples": Setting(
        1_000, _whole(2, 10_000_000), "Number of samples of this cheap metric.", "free"
    ),
    "evaluate.num_samples": Setting(
        10_000, _whole(2, 10_000_000), "Number of samples of an evaluation.", "free"
    ),
    "evaluate.batch_size": Setting(
        1_000,
        _whole(1, 2**20),
        "Number of samples that are drawn at a time, in total over all devices.",
        "free",
    ),
    "evaluate.inception_weights": Setting(
        "",
        _TEXT,
        "Path of weights-inception-2015-12-05-6726825d.pth of torch-fidelity, for FID and similar "
        "metrics (extra `eval`); if empty, they are not computed.",
        "free",
    ),
    "evaluate.legacy_weights": Setting(
        "", _TEXT, "Path of torchvision's Inception weights, for the paper's protocol.", "free"
    ),
    "evaluate.inception_score": Setting(False, _FLAG, "Also computes the Inception Score.", "free"),
}

# Names in version 0.1, and their present names.
_RENAMED = {"evaluate.num_judged_samples": "evaluate.num_monitored_samples"}


# Settings that contain paths on this machine. Files that are meant to be shared omit them.
PATHS = (
    "data.dir",
    "condition.classifier",
    "evaluate.inception_weights",
    "evaluate.legacy_weights",
)


def defaults() -> dict[str, Any]:
    """Returns the default of every setting, nested by section."""
    return unflatten_dict({k: s.default for k, s in SETTINGS.items()}, sep=".")


def flatten(config: Mapping[str, Any]) -> Settings:
    """Flattens nested keys to dotted ones: {"flow": {"num_steps": 1}} -> {"flow.num_steps": 1}."""
    return flatten_dict(config, sep=".")


def section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the settings of a section, without its name."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}


def changed(settings: Mapping[str, Any]) -> Settings:
    """Returns the settings that differ from the defaults."""
    defaults = {key: json.dumps(setting.default) for key, setting in SETTINGS.items()}
    return {key: value for key, value in settings.items() if json.dumps(value) != defaults[key]}


def shareable(settings: Mapping[str, Any]) -> Settings:
    """Returns settings without the paths of this machine."""
    return {key: value for key, value in settings.items() if key not in PATHS}


def checked(config: Mapping[str, Any]) -> Settings:
    """Checks a nested or flat config and returns it flat, as JSON stores it.

    Real numbers become floats, because JAX converts whole numbers to int32, whose range is too
    small. Tuples become lists, so that settings equal those that are read from a file. `~` in a
    path becomes the home folder.

    Raises:
      UserError: names each key that is unknown, missing or has a value that is not allowed.
    """
    flat = flatten(config)
    errors = [f"unknown key {key!r}{nearest(key, SETTINGS)}" for key in flat if key not in SETTINGS]
    errors += [f"missing key {key!r}" for key in SETTINGS if key not in flat]
    errors += [f"{key} {error}" for key in flat if (error := error_of(key, flat[key]))]
    if errors:
        raise UserError("config: " + "; ".join(sorted(errors)))
    flat |= {key: float(flat[key]) for key in SETTINGS if SETTINGS[key].rule.is_real}
    flat |= {key: os.path.expanduser(flat[key]) for key in PATHS}
    return dict(json.loads(json.dumps(flat)))


def error_of(key: str, value: Any) -> str | None:
    """Returns what is wrong with the value of a known key, or `None`."""
    return SETTINGS[key].rule.error(value) if key in SETTINGS else None


def check_value(key: str, value: Any) -> None:
    """Checks the value of a known key.

    Raises:
      UserError: if it is not allowed.
    """
    if error := error_of(key, value):
        raise UserError(f"config: {key} {error}")


def check_key(key: str, prefix: str = "") -> None:
    """Checks that a setting exists.

    Raises:
      UserError: lists the keys of the section, or suggests the closest key.
    """
    if key in SETTINGS:
        return
    inside = [name for name in SETTINGS if name.startswith(f"{key}.")]
    if inside:
        raise UserError(f"{prefix}{key} is a section; its keys are {', '.join(inside)}")
    raise UserError(f"{prefix}{key}: unknown key{nearest(key, SETTINGS)}")


def completed(settings: Mapping[str, Any]) -> Settings:
    """Returns the settings of a run of an earlier version, with the present names and all keys.

    New keys get their default, which is what earlier versions did.
    """
    renamed = {_RENAMED.get(key, key): value for key, value in settings.items()}
    filled = {key: renamed.get(key, setting.default) for key, setting in SETTINGS.items()}
    return dict(json.loads(json.dumps(filled)))  # Tuples become lists, as in `checked`.


def of_scope(settings: Mapping[str, Any], *scopes: Scope) -> Settings:
    """Returns the settings whose scope is one of these."""
    return {key: value for key, value in settings.items() if SETTINGS[key].scope in scopes}


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, str]:
    """Describes how two flat settings differ, in order: {"seed": "seed is 1 but was 0"}."""
    return {
        key: f"{key} is {json.dumps(present.get(key))} but was {json.dumps(saved.get(key))}"
        for key in sorted(saved.keys() | present.keys())
        if saved.get(key) != present.get(key)
    }


def explain(key: str) -> str:
    """Returns the help text of a setting, or of all settings of a section.

    Raises:
      UserError: if the key does not exist; suggests the closest one.
    """
    keys = [name for name in SETTINGS if name == key or name.startswith(f"{key}.")]
    if not keys:
        check_key(key)
    return "\n".join(
        f"--config.{name}={_as_typed(SETTINGS[name].default)}\n"
        f"    {SETTINGS[name].about}\n"
        f"    Allowed: {SETTINGS[name].rule.allowed}. {MAY_CHANGE[SETTINGS[name].scope]}"
        for name in keys
    )


MAY_CHANGE: dict[Scope, str] = {
    "fixed": "Fixed when the run is created.",
    "training": "Fixed when the run is created; samples depend on it only through the checkpoint.",
    "flow": "Fixed for training; commands that draw samples may change it.",
    "free": "May change at any time.",
}


def _as_typed(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."
