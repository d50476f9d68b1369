"""All settings of a run, each with its default, allowed values, meaning, and when it may change.

`SETTINGS` is the only declaration. The defaults in `configs/base.py`, the checks, `--help=KEY` and
the reference page of the documentation are derived from it. To add a setting, add it here and read
it where it is used.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self

from flax.traverse_util import flatten_dict, unflatten_dict

from experiments import divergence_formula
from experiments.data import registry
from experiments.errors import UserError
from fdrl_jax import bregman, networks
from fdrl_jax._names import nearest

Settings = dict[str, Any]  # Flat: {"flow.step_size": 0.1, ...}.

Scope = Literal["fixed", "training", "flow", "free"]
# When a setting may differ from the value that the run was created with.
MAY_CHANGE: dict[Scope, str] = {
    "fixed": "Fixed when the run is created.",
    "training": "Fixed when the run is created; samples depend on it only through the checkpoint.",
    "flow": "Fixed for training; commands that draw samples may change it, and record it.",
    "free": "May change at any time.",
}

_MAX_FLOAT32 = 3.4e38
_MIN_FLOAT32 = 1.2e-38  # The smallest positive normal number; smaller ones may become 0.
_MAX_TEXT = 1_000
_MAX_FILE_NAME = 200  # Bytes. File systems allow 255, and samples get suffixes.
_MAX_SHOWN = 300  # Characters of a value in a message.


class Rule(NamedTuple):
    """The allowed values of a setting."""

    accepts: Callable[[Any], bool]  # May raise a `ValueError` with the reason instead.
    allowed: str  # In words; completes a sentence that starts with "must be".
    names: tuple[str, ...] = ()  # Those of a choice.

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
    """One setting: its default, its allowed values, its `Scope`, and what it does, with units."""

    default: Any
    rule: Rule
    scope: Scope = "fixed"
    about: str = ""

    def means(self, about: str) -> Self:
        """Returns the setting with what it does."""
        return self._replace(about=about)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(low: int = 0, high: int = 2**31 - 1) -> Rule:
    return Rule(
        lambda value: _is_whole(value) and low <= value <= high,
        f"a whole number from {low:,} to {high:,}",
    )


def _real(high: float = _MAX_FLOAT32, *, above: bool = False, below: bool = False) -> Rule:
    """A float32 number from 0 to `high`; `above` and `below` exclude the limits themselves."""

    def accepts(value: Any) -> bool:
        # Only comparisons, because a whole number may be too large for a float.
        return (isinstance(value, float) or _is_whole(value)) and bool(
            (value >= _MIN_FLOAT32 or (value == 0 and not above))
            and (value < high if below else value <= high)
        )

    limits = f"{'above' if above else 'at least'} 0 and {'below' if below else 'at most'}"
    return Rule(accepts, f"a finite number {limits} {high:.3g}")


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


def _increasing(low: int, what: str) -> Rule:
    return Rule(
        lambda value: _is_list(value, _whole(low).accepts) and list(value) == sorted(set(value)),
        f"increasing {what}",
    )


def _is_block(value: Any) -> bool:
    return _SIZES.accepts(value) and len(value) == 2 and bool(value[1] <= 8)


_FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
_TEXT = Rule(_is_text, f"a text of at most {_MAX_TEXT:,} printable characters")
_FILE_NAME = Rule(_is_file_name, f"a file name without a folder, of at most {_MAX_FILE_NAME} bytes")
_LENGTH = _whole(0, 65_536)
_SIZES = Rule(
    lambda value: bool(value) and _is_list(value, _whole(1, 65_536).accepts),
    "one or more positive whole numbers such as (64, 64)",
)
_BLOCKS = Rule(
    lambda value: _is_list(value, _is_block),
    "pairs of channels and stride such as ((32, 1), (64, 2))",
)
_DIVERGENCE = Rule(
    lambda value: isinstance(value, str) and bool(divergence_formula.parse(value)),
    "a divergence such as kl, alpha(0.5) or 0.5*kl + 0.5*js",
)

SETTINGS: dict[str, Setting] = {
    "seed": Setting(0, _whole(), "flow").means(
        "Seed of the initial weights, the data order and the noise."
    ),
    "precision": Setting("float32", _choice("auto", "float32", "tensorfloat32", "bfloat16")).means(
        "Precision in which the network computes; parameters and flow are always float32. `auto` "
        "uses bfloat16 on devices that are fast in it, and float32 on all others. tensorfloat32 is "
        "faster on NVIDIA GPUs from Ampere on. bfloat16 is faster still and needs half the memory."
    ),
    "data.name": Setting(
        "swissroll", Rule(registry.is_known, f"one of {', '.join(registry.NAMES)}", registry.NAMES)
    ).means(
        "Data set: a built-in one (swissroll, 8gaussians, 25gaussians, digits), or images from a "
        "folder or zip (folder), an array (npz), LSUN (lsun), two domains (pair) or TFDS "
        "(tfds:NAME)."
    ),
    "data.dir": Setting("", _TEXT, "free").means(
        "Path of the images. If empty, the environment variable FDRL_DATA_DIR is used; the flag "
        "--data_dir overrides both. If none of the three is set, a run uses the --data_dir of the "
        "command that created it, if that still exists."
    ),
    "data.split": Setting("train", _TEXT).means("Split that the run trains on."),
    "data.held_out_split": Setting("test", _TEXT).means(
        "Split that the run is evaluated on, if the data have it."
    ),
    "data.num_held_out": Setting(1_000, _whole(1)).means(
        "Number of images to hold out of a set without such a split, at most a tenth of the set."
    ),
    "data.source_class": Setting("", _TEXT).means(
        "For a translation between classes: the class to start from."
    ),
    "data.target_class": Setting("", _TEXT).means(
        "For a translation between classes: the class to translate to."
    ),
    "data.center_crop": Setting(0, _LENGTH).means(
        "Side in pixels of the square that is cut from the centre before resizing; 0: no crop."
    ),
    "data.resize": Setting(0, _LENGTH).means(
        "Length in pixels to which the shorter side is resized; 0: that of data.image_size."
    ),
    "data.image_size": Setting(0, _LENGTH).means(
        "Side in pixels of the square that is cut from the centre after resizing; 0: keeps the "
        "size after resizing, which must be the same for all images."
    ),
    "data.keep_aspect": Setting(True, _FLAG).means(
        "True keeps the aspect ratio when resizing. False squeezes images to a square of "
        "data.resize, or data.image_size if that is 0."
    ),
    "data.channels": Setting(
        3, Rule(lambda v: _is_whole(v) and v in (0, 1, 3), "0 (as stored), 1 (grey) or 3 (colour)")
    ).means("Channels per image: 1 converts to grey, 3 to colour, 0 keeps what the files contain."),
    "data.random_flip": Setting(False, _FLAG).means(
        "Mirrors half of the training images, left to right."
    ),
    "data.dequantisation": Setting(0.0, _real(1.0)).means(
        "Standard deviation of the Gaussian noise that is added to data in [-1, 1]."
    ),
    "data.on_error": Setting("stop", _choice("stop", "skip"), "free").means(
        "Reaction to an unreadable file: stop, or skip it and report the number of such files."
    ),
    "data.in_memory_megabytes": Setting(256, _whole(0)).means(
        "Data sets of up to this many megabytes of pixels are kept in memory; larger ones are "
        "streamed."
    ),
    "data.num_workers": Setting(0, _whole(0, 1_000), "free").means(
        "Number of processes that decode streamed images; 0: threads of the main process."
    ),
    "data.num_threads": Setting(4, _whole(1, 1_000), "free").means(
        "Number of decoding threads per process."
    ),
    "data.prefetch_batches": Setting(8, _whole(1, 10_000), "free").means(
        "Number of batches that are decoded in advance."
    ),
    "network.name": Setting("mlp", _choice("auto", "mlp", "resnet", *networks.SPECS)).means(
        "Network: `mlp` for points; `auto` is the paper's network for the image size; `resnet` is "
        "built from network.blocks; the others are those of the paper's table 4."
    ),
    "network.hidden_sizes": Setting((64, 64, 64, 64), _SIZES).means(
        "Sizes of the hidden layers of `mlp`."
    ),
    "network.width": Setting(0, _LENGTH).means(
        "Channels of the first convolution of a residual network. Those of the blocks of the "
        "paper's networks scale with it; 0: the paper's number."
    ),
    "network.blocks": Setting((), _BLOCKS).means("Channels and stride of each block of `resnet`."),
    "network.attention": Setting(False, _FLAG).means(
        "Adds a self-attention layer to a residual network."
    ),
    "network.attention_after": Setting(1, _whole(1, 1_000)).means(
        "Number of the block of `resnet` that self-attention follows."
    ),
    "network.spectral_norm": Setting(False, _FLAG).means(
        "Divides each kernel by its largest singular value."
    ),
    "network.use_bias": Setting(False, _FLAG).means(
        "Adds a bias per channel to the 3x3 convolutions of a residual network."
    ),
    "network.remat": Setting(False, _FLAG, "training").means(
        "Recomputes activations in the backward pass. Saves memory and takes longer."
    ),
    "prior.name": Setting("normal", _choice("normal", "uniform", "data_dependent", "source")).means(
        "Distribution that the flow starts from; `source` is the source domain of a translation."
    ),
    "prior.scale": Setting(1.0, _real(above=True)).means("Standard deviation of `normal`."),
    "prior.rank": Setting(0, _whole(0, 2**20)).means(
        "Rank of the covariance of `data_dependent`; 0: the full covariance, up to 12,288 "
        "dimensions."
    ),
    "prior.jitter": Setting(1e-4, _real()).means(
        "Variance that is added to the diagonal of this covariance (eq. 8)."
    ),
    "flow.num_steps": Setting(100, _whole(1, 100_000), "flow").means(
        "K: number of flow steps in training, and of bridging steps in sampling."
    ),
    "flow.num_refine_steps": Setting(20, _whole(0, 100_000), "flow").means(
        "κ: number of refinement steps, which follow the K steps in sampling."
    ),
    "flow.step_size": Setting(3.0, _real(above=True), "flow").means(
        "η: step size, which multiplies the drift."
    ),
    "flow.step_size_decay": Setting(1.0, _real(1_000.0, above=True), "flow").means(
        "Step size at step K divided by the first one; it changes in geometric progression."
    ),
    "flow.noise_scale": Setting(0.01, _real(), "flow").means(
        "ν: standard deviation of the noise that each step adds."
    ),
    "loss.name": Setting("lr", _choice(*bregman.REGISTRY)).means(
        "Bregman loss that trains the density ratio."
    ),
    "loss.divergence": Setting("kl", _DIVERGENCE).means("f-divergence that the flow decreases."),
    "loss.gradient_penalty": Setting(0.0, _real(), "training").means(
        "Weight of the zero-centred gradient penalty on data and on flowed samples (R1 + R2)."
    ),
    "loss.gradient_penalty_fraction": Setting(1.0, _real(1.0, above=True), "training").means(
        "Fraction of the batch on which the penalty is computed; a smaller one is faster."
    ),
    "optimizer.learning_rate": Setting(1e-4, _real(10.0, above=True), "training").means(
        "Initial learning rate of Adam."
    ),
    "optimizer.b1": Setting(0.9, _real(1.0, below=True), "training").means(
        "Decay rate of Adam's first moment."
    ),
    "optimizer.b2": Setting(0.999, _real(1.0, below=True), "training").means(
        "Decay rate of Adam's second moment."
    ),
    "optimizer.schedule": Setting(
        "piecewise", _choice("constant", "piecewise", "cosine"), "training"
    ).means("Schedule of the learning rate; `cosine` decays it to 0 over train.num_steps."),
    "optimizer.boundaries": Setting(
        (80_000, 90_000), _increasing(1, "step numbers such as (80000, 90000)"), "training"
    ).means("Train steps at which `piecewise` multiplies the learning rate by optimizer.decay."),
    "optimizer.decay": Setting(0.1, _real(1.0, above=True), "training").means(
        "Factor on the learning rate at each of optimizer.boundaries."
    ),
    "optimizer.warmup_steps": Setting(0, _whole(), "training").means(
        "Number of train steps over which the learning rate grows linearly from 0."
    ),
    "optimizer.clip_norm": Setting(0.0, _real(), "training").means(
        "Gradients with a larger global norm are scaled down to this norm; 0: no clipping."
    ),
    "train.num_steps": Setting(100_000, _whole(1), "training").means(
        "Number of train steps. As an exception, it may change when training resumes, unless "
        "optimizer.schedule is cosine."
    ),
    "train.batch_size": Setting(64, _whole(1, 2**20), "training").means(
        "Examples per train step, in total over all devices."
    ),
    "train.ema_rate": Setting(0.998, _real(1.0, below=True), "training").means(
        "Decay per step of the exponential moving average of the parameters (EMA)."
    ),
    "train.ema_ramp": Setting(False, _FLAG, "training").means(
        "Uses the decay min(ema_rate, (1 + t) / (10 + t)) at step t, so that the average forgets "
        "the initial weights faster."
    ),
    "train.steps_per_dispatch": Setting(10, _whole(1, 10_000), "free").means(
        "Number of train steps that the device runs before it returns to the host."
    ),
    "train.num_micro_batches": Setting(1, _whole(1, 2**20), "training").means(
        "Number of equal parts of the batch per device, which are processed one after the other to "
        "save memory."
    ),
    "train.max_log_ratio": Setting(50.0, _real(above=True), "free").means(
        "A run has diverged if the absolute value of the mean log ratio exceeds this."
    ),
    "train.max_ratio": Setting(1e4, _real(above=True), "free").means(
        "The same limit for the mean ratio, under losses that learn the ratio itself (LSIF)."
    ),
    "train.on_divergence": Setting("stop", _choice("stop", "rollback"), "free").means(
        "What a diverged run does: stop, or return to the last checkpoint and skip the batches "
        "since then (rollback)."
    ),
    "train.rollback_lr_factor": Setting(0.5, _real(1.0, above=True), "free").means(
        "Factor on the learning rate at each rollback."
    ),
    "train.max_rollbacks": Setting(3, _whole(0, 1_000), "free").means(
        "Maximum number of rollbacks; after that a divergence stops the run."
    ),
    "log.every_steps": Setting(100, _whole(1), "free").means(
        "Number of train steps between lines of metrics.jsonl."
    ),
    "log.tensorboard": Setting(False, _FLAG, "free").means("Also writes TensorBoard event files."),
    "log.wandb": Setting("off", _choice("off", "offline", "online"), "free").means(
        "Also logs to Weights & Biases."
    ),
    "checkpoint.every_steps": Setting(5_000, _whole(1), "free").means(
        "Number of train steps between checkpoints."
    ),
    "checkpoint.keep": Setting(3, _whole(1, 1_000), "free").means(
        "Number of checkpoints to keep: the newest ones. The best one is kept as well."
    ),
    "snapshot.every_steps": Setting(5_000, _whole(1), "free").means(
        "Number of train steps between snapshots, the samples that the report shows over training."
    ),
    "snapshot.num_samples": Setting(64, _whole(1, 100_000), "free").means(
        "Number of samples per snapshot."
    ),
    "sample.weights": Setting("ema", _choice("ema", "raw"), "flow").means(
        "Parameters that draw samples: averaged (ema), or those of the last step (raw)."
    ),
    "sample.format": Setting("npz", _choice("npz", "folder", "zip"), "free").means(
        "Format of the samples: an .npz file, or PNG files in a folder or a zip."
    ),
    "sample.name": Setting("", _FILE_NAME, "free").means(
        "Name of the file or folder of samples; if empty, it follows from the checkpoint's step."
    ),
    "condition.label": Setting("", _TEXT, "free").means(
        "Class of the samples, by name or number; `all` draws all classes in turn. The flag "
        "--class sets it too."
    ),
    "condition.classifier": Setting("", _TEXT, "free").means(
        "Folder of a trained classifier, or a .pt file of the library `robustness`. The flag "
        "--classifier sets it too."
    ),
    "condition.weight": Setting(0.1, _real(), "free").means("φ: weight of the classifier."),
    "condition.num_refine_steps": Setting(10, _whole(0, 100_000), "free").means(
        "Number of refinement steps of class-conditional samples."
    ),
    "attack.epsilon": Setting(1.0, _real(), "training").means(
        "Maximum L2 distance of an adversarial image from the original, for pixels in [0, 1]."
    ),
    "attack.num_steps": Setting(7, _whole(0, 1_000), "training").means(
        "Number of steps of the attack; 0 trains a classifier without adversarial images."
    ),
    "augment.max_shift": Setting(0, _whole(0, 1_000), "training").means(
        "Maximum random shift of a classifier's training images, in pixels along each axis."
    ),
    "curve.over": Setting("length", _choice("length", "step"), "free").means(
        "Horizontal axis of mode curve: length of the flow, or train step."
    ),
    "curve.lengths": Setting(
        (), _increasing(0, "lengths of the flow such as (0, 50, 100)"), "free"
    ).means("Lengths of the flow in mode curve; if empty, some lengths from 0 to K + 50."),
    "evaluate.every_steps": Setting(0, _whole(), "free").means(
        "Number of train steps between evaluations of a cheap metric. The checkpoint with its best "
        "value is kept; 0: never."
    ),
    "evaluate.num_monitored_samples": Setting(1_000, _whole(2, 10_000_000), "free").means(
        "Number of samples of this cheap metric."
    ),
    "evaluate.num_samples": Setting(10_000, _whole(2, 10_000_000), "free").means(
        "Largest number of samples of an evaluation. At most 10,000 points, 1,000 translated "
        "images, or 5,000 images without Inception weights are drawn."
    ),
    "evaluate.batch_size": Setting(1_000, _whole(1, 2**20), "free").means(
        "Number of samples that are drawn at a time, in total over all devices."
    ),
    "evaluate.inception_weights": Setting("", _TEXT, "free").means(
        "Path of weights-inception-2015-12-05-6726825d.pth of torch-fidelity, for FID and similar "
        "metrics (extra `eval`); if empty, they are not computed."
    ),
    "evaluate.legacy_weights": Setting("", _TEXT, "free").means(
        "Path of torchvision's Inception weights, for the paper's protocol."
    ),
    "evaluate.inception_score": Setting(False, _FLAG, "free").means(
        "Also computes the Inception Score."
    ),
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
    return {k: v for k, v in settings.items() if json.dumps(v) != json.dumps(SETTINGS[k].default)}


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
    flat |= {key: float(flat[key]) for key, s in SETTINGS.items() if isinstance(s.default, float)}
    return dict(json.loads(json.dumps(with_home(flat))))


def with_home(flat: Mapping[str, Any]) -> Settings:
    """Returns settings with the home folder instead of `~` in paths."""
    return {k: os.path.expanduser(v) if k in PATHS else v for k, v in flat.items()}


def error_of(key: str, value: Any) -> str | None:
    """Returns what is wrong with the value of a known key, or `None`."""
    return SETTINGS[key].rule.error(value) if key in SETTINGS else None


def check(key: str, value: Any, prefix: str = "config: ") -> None:
    """Checks that a setting exists and that it may have this value.

    Raises:
      UserError: names the allowed values, the keys of the section, or the closest key.
    """
    if error := error_of(key, value):
        raise UserError(f"config: {key} {error}")
    if inside := [name for name in SETTINGS if name.startswith(f"{key}.")]:
        raise UserError(f"{prefix}{key} is a section; its keys are {', '.join(inside)}")
    if key not in SETTINGS:
        raise UserError(f"{prefix}{key}: unknown key{nearest(key, SETTINGS)}")


def completed(settings: Mapping[str, Any]) -> Settings:
    """Returns the settings of a run of an earlier version, with the present names and all keys.

    New keys get their default, which is what earlier versions did.
    """
    renamed = {_RENAMED.get(key, key): value for key, value in settings.items()}
    filled = {key: renamed.get(key, setting.default) for key, setting in SETTINGS.items()}
    return dict(json.loads(json.dumps(filled)))  # Tuples become lists, as in `checked`.


def of_scope(settings: Mapping[str, Any], *scopes: Scope) -> Settings:
    """Returns the settings whose scope is one of these, without those of later versions."""
    return {k: v for k, v in settings.items() if k in SETTINGS and SETTINGS[k].scope in scopes}


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
        raise UserError(f"{key}: unknown key{nearest(key, SETTINGS)}")
    return "\n".join(
        f"--config.{name}={_as_typed(SETTINGS[name].default)}\n"
        f"    {SETTINGS[name].about}\n"
        f"    Allowed: {SETTINGS[name].rule.allowed}. {MAY_CHANGE[SETTINGS[name].scope]}"
        for name in keys
    )


def _as_typed(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."
