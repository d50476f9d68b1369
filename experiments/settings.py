"""Every setting of a run, declared once: default, allowed values, meaning, and when it may change.

From `SETTINGS` follow the defaults of `configs/base.py`, the checks, the help for a key and the
reference page of the documentation. To add a setting, add it here and read it where it is used.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from experiments import divergence_formula
from experiments.data import registry
from experiments.errors import UserError
from fdrl_jax import bregman, networks
from fdrl_jax.names import nearest

Settings = dict[str, Any]  # Flat: {"flow.step_size": 0.1, ...}.

# When a setting may differ from the value that the run was created with:
#   "fixed"     never;
#   "training"  not when the run resumes; samples do not depend on it beyond the checkpoint;
#   "flow"      not when the run resumes; a command that draws samples may set it, and records it;
#   "free"      at any time.
Scope = Literal["fixed", "training", "flow", "free"]

_MAX_FLOAT32 = 3.4e38
_MIN_FLOAT32 = 1.2e-38  # The smallest positive normal number: smaller ones may become 0.
_MAX_TEXT = 1_000
_MAX_FILE_NAME = 200  # Bytes: file systems allow 255, and samples get suffixes.
_MAX_SHOWN = 300  # Characters of a value in a message.


class Rule(NamedTuple):
    """What values a setting may have.

    Attributes:
      accepts: whether a value is allowed; a `ValueError` says in more detail why it is not.
      allowed: the allowed values in words, after "must be".
      names: the allowed names, if it is a choice.
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


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
      default: its value unless a config or the command line says otherwise.
      rule: its allowed values.
      about: what it does, with units.
      scope: when it may change, see `Scope`.
    """

    default: Any
    rule: Rule
    about: str
    scope: Scope


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(low: int = 0, high: int = 2**31 - 1) -> Rule:
    def accepts(value: Any) -> bool:
        return _is_whole(value) and low <= value <= high

    return Rule(accepts, f"a whole number from {low:,} to {high:,}")


def _real(
    low: float, high: float = _MAX_FLOAT32, *, above: bool = False, below: bool = False
) -> Rule:
    """A number that a float32 can hold, within limits; "above" and "below" leave the limit out."""

    def accepts(value: Any) -> bool:
        # Comparisons only: a whole number may be too large to become a float.
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
    # No line breaks: texts become parts of one-line messages. No NUL: texts become paths.
    return isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()


def _is_file_name(value: Any) -> bool:
    short = _is_text(value) and len(value.encode()) <= _MAX_FILE_NAME
    return short and "/" not in value and not value.startswith(".")


def _is_increasing(value: Any, low: int) -> bool:
    if not isinstance(value, (tuple, list)):
        return False
    return all(_whole(low).accepts(n) for n in value) and list(value) == sorted(set(value))


def _are_sizes(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and bool(value)
        and all(_whole(1, 65_536).accepts(size) for size in value)
    )


def _are_blocks(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and all(
        isinstance(block, (tuple, list))
        and len(block) == 2
        and _whole(1, 65_536).accepts(block[0])
        and _whole(1, 8).accepts(block[1])
        for block in value
    )


def _are_means(value: Any) -> bool:
    return (
        isinstance(value, (tuple, list))
        and len(value) <= 4
        and all(_real(-_MAX_FLOAT32).accepts(number) for number in value)
    )


def _is_divergence(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    divergence_formula.parse(value)
    return True


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
        "Precision of the network's computation; parameters and flow stay in float32. `auto` uses "
        "bfloat16 where the device is fast in it, and float32 elsewhere. Accelerators are faster "
        "in tensorfloat32 (NVIDIA, Ampere or newer) and, with half the memory, in bfloat16.",
        "fixed",
    ),
    # data
    "data.name": Setting(
        "swissroll",
        Rule(registry.is_known, f"one of {', '.join(registry.NAMES)}", registry.NAMES),
        "A built-in set (swissroll, 8gaussians, 25gaussians, digits) or images: folder (also a "
        "zip), npz, lsun, pair, tfds:NAME.",
        "fixed",
    ),
    "data.dir": Setting(
        "",
        _TEXT,
        "Where the images are. Empty: --data_dir, or the environment variable FDRL_DATA_DIR.",
        "free",
    ),
    "data.split": Setting("train", _TEXT, "Split of a TFDS set to train on.", "fixed"),
    "data.held_out_split": Setting(
        "test", _TEXT, "Split to evaluate on, where there is one.", "fixed"
    ),
    "data.num_held_out": Setting(
        1_000,
        _whole(1),
        "Images held out of a set without such a split, but at most a tenth of it.",
        "fixed",
    ),
    "data.source_class": Setting(
        "", _TEXT, "Paired domains: translate images of this class.", "fixed"
    ),
    "data.target_class": Setting("", _TEXT, "Paired domains: translate to this class.", "fixed"),
    "data.center_crop": Setting(
        0, _LENGTH, "Crops this square (pixels) from the centre first; 0: no crop.", "fixed"
    ),
    "data.resize": Setting(
        0, _LENGTH, "Resizes the shorter side to this length (pixels); 0: image_size.", "fixed"
    ),
    "data.image_size": Setting(
        0,
        _LENGTH,
        "Crops this square (pixels) from the centre; 0: all images already have one size.",
        "fixed",
    ),
    "data.keep_aspect": Setting(
        True, _FLAG, "False squeezes images to the square instead of cropping them.", "fixed"
    ),
    "data.channels": Setting(
        3,
        Rule(lambda v: _is_whole(v) and v in (0, 1, 3), "0 (as stored), 1 (grey) or 3 (colour)"),
        "Channels of an image: 1 (grey), 3 (colour), or 0 for what the files have.",
        "fixed",
    ),
    "data.random_flip": Setting(
        False, _FLAG, "Mirrors half of the images, left to right.", "fixed"
    ),
    "data.dequantisation": Setting(
        0.0,
        _real(0.0, 1.0),
        "Standard deviation of the Gaussian noise added to data, on the scale [-1, 1].",
        "fixed",
    ),
    "data.on_error": Setting(
        "stop",
        _choice("stop", "skip"),
        "What to do at an unreadable file; skip counts them.",
        "free",
    ),
    "data.in_memory_megabytes": Setting(
        256,
        _whole(0),
        "Sets up to this size are kept in memory, larger ones are streamed.",
        "fixed",
    ),
    "data.num_workers": Setting(
        0,
        _whole(0, 1_000),
        "Processes that decode streamed images; 0: threads of the main one.",
        "free",
    ),
    "data.num_threads": Setting(4, _whole(1, 1_000), "Decoding threads per process.", "free"),
    "data.prefetch_batches": Setting(8, _whole(1, 10_000), "Batches decoded in advance.", "free"),
    # network
    "network.name": Setting(
        "mlp",
        _choice("auto", "mlp", "resnet", *networks.SPECS),
        "`auto` uses the paper's network for the image size; `resnet` the one of network.blocks.",
        "fixed",
    ),
    "network.hidden_sizes": Setting(
        (64, 64, 64, 64),
        Rule(_are_sizes, "one or more positive whole numbers such as (64, 64)"),
        "Sizes of the hidden layers of `mlp`.",
        "fixed",
    ),
    "network.width": Setting(
        0,
        _LENGTH,
        "Stem channels of a residual network, blocks in proportion; 0: the paper's table.",
        "fixed",
    ),
    "network.blocks": Setting(
        (),
        Rule(_are_blocks, "pairs of channels and stride such as ((32, 1), (64, 2))"),
        "(channels, stride) of each block of `resnet`.",
        "fixed",
    ),
    "network.attention": Setting(False, _FLAG, "Adds self-attention.", "fixed"),
    "network.attention_after": Setting(
        1, _whole(1, 1_000), "Block of `resnet` that self-attention follows.", "fixed"
    ),
    "network.spectral_norm": Setting(
        False, _FLAG, "Divides kernels by their largest singular value.", "fixed"
    ),
    "network.input_mean": Setting(
        (),
        Rule(_are_means, "at most 4 finite numbers such as (-0.7,)"),
        "Subtracted from images by a residual network, one number per channel; (): none.",
        "fixed",
    ),
    "network.input_std": Setting(
        1.0,
        _real(0.0),
        "A residual network divides images by it. 0: mean and standard deviation of the training "
        "set, measured when the run is created.",
        "fixed",
    ),
    "network.remat": Setting(
        False, _FLAG, "Recomputes activations in the backward pass, to save memory.", "training"
    ),
    # prior
    "prior.name": Setting(
        "normal",
        _choice("normal", "uniform", "data_dependent", "source"),
        "Where the flow starts: a distribution, or the source domain of paired data.",
        "fixed",
    ),
    "prior.scale": Setting(1.0, _real(0.0, above=True), "Standard deviation of `normal`.", "fixed"),
    "prior.rank": Setting(
        0,
        _whole(0, 2**20),
        "Rank of the covariance of `data_dependent`; 0: full up to 12,288 dimensions.",
        "fixed",
    ),
    "prior.jitter": Setting(
        1e-4, _real(0.0), "Variance added to the diagonal of that covariance (eq. 8).", "fixed"
    ),
    # flow
    "flow.num_steps": Setting(
        100, _whole(1, 100_000), "K: steps in training, and bridging steps in sampling.", "flow"
    ),
    "flow.num_refine_steps": Setting(
        20, _whole(0, 100_000), "kappa: further steps in sampling.", "flow"
    ),
    "flow.step_size": Setting(3.0, _real(0.0, above=True), "eta: the step size.", "flow"),
    "flow.step_size_decay": Setting(
        1.0,
        _real(0.0, 1_000.0, above=True),
        "Factor on eta by the K-th step, in geometric progression.",
        "flow",
    ),
    "flow.noise_scale": Setting(
        0.01, _real(0.0), "nu: standard deviation of the noise per step.", "flow"
    ),
    # loss
    "loss.name": Setting("lr", _choice(*bregman.REGISTRY), "The Bregman loss.", "fixed"),
    "loss.divergence": Setting(
        "kl",
        Rule(_is_divergence, "a divergence such as kl, alpha(0.5) or 0.5*kl + 0.5*js"),
        "The f-divergence whose first variation drives the flow.",
        "fixed",
    ),
    "loss.gradient_penalty": Setting(
        0.0,
        _real(0.0),
        "Weight of the zero-centred gradient penalty on data and flowed samples (R1 + R2).",
        "training",
    ),
    "loss.gradient_penalty_fraction": Setting(
        1.0,
        _real(0.0, 1.0, above=True),
        "Share of the batch that the penalty is computed on; less is faster.",
        "training",
    ),
    # optimizer
    "optimizer.learning_rate": Setting(1e-4, _real(0.0, 10.0, above=True), "Of Adam.", "training"),
    "optimizer.b1": Setting(
        0.9, _real(0.0, 1.0, below=True), "First momentum of Adam.", "training"
    ),
    "optimizer.b2": Setting(
        0.999, _real(0.0, 1.0, below=True), "Second momentum of Adam.", "training"
    ),
    "optimizer.schedule": Setting(
        "piecewise", _choice("constant", "piecewise", "cosine"), "Of the learning rate.", "training"
    ),
    "optimizer.boundaries": Setting(
        (80_000, 90_000),
        Rule(lambda v: _is_increasing(v, 1), "increasing step numbers such as (80000, 90000)"),
        "Steps at which `piecewise` multiplies the learning rate by optimizer.decay.",
        "training",
    ),
    "optimizer.decay": Setting(0.1, _real(0.0, 1.0, above=True), "That factor.", "training"),
    "optimizer.warmup_steps": Setting(
        0, _whole(), "Steps over which the learning rate grows linearly from 0.", "training"
    ),
    "optimizer.clip_norm": Setting(
        0.0, _real(0.0), "Largest global norm of a gradient; 0: no limit.", "training"
    ),
    # train
    "train.num_steps": Setting(100_000, _whole(1), "Train steps.", "training"),
    "train.batch_size": Setting(
        64, _whole(1, 2**20), "Examples per step, over all devices.", "training"
    ),
    "train.ema_rate": Setting(
        0.998,
        _real(0.0, 1.0, below=True),
        "Decay of the moving average of the parameters.",
        "training",
    ),
    "train.ema_ramp": Setting(
        False,
        _FLAG,
        "Uses the decay min(ema_rate, (1 + t) / (10 + t)), which forgets the initial weights.",
        "training",
    ),
    "train.steps_per_dispatch": Setting(
        10, _whole(1, 10_000), "Train steps that the device runs without the host.", "free"
    ),
    "train.num_micro_batches": Setting(
        1,
        _whole(1, 2**20),
        "Equal parts of a replica's batch, one after the other, to save memory.",
        "training",
    ),
    "train.max_log_ratio": Setting(
        50.0,
        _real(0.0, above=True),
        "With a mean log ratio beyond this a run counts as diverged.",
        "free",
    ),
    "train.max_ratio": Setting(
        1e4, _real(0.0, above=True), "The same for a network that returns the ratio.", "free"
    ),
    "train.on_divergence": Setting(
        "stop",
        _choice("stop", "rollback"),
        "A diverged run stops, or returns to the last checkpoint and skips the batches since.",
        "free",
    ),
    "train.rollback_lr_factor": Setting(
        0.5, _real(0.0, 1.0, above=True), "Multiplies the learning rate at each rollback.", "free"
    ),
    "train.max_rollbacks": Setting(3, _whole(0, 1_000), "Rollbacks that a run may have.", "free"),
    # log, checkpoint, snapshot
    "log.every_steps": Setting(100, _whole(1), "Steps between lines of metrics.jsonl.", "free"),
    "log.tensorboard": Setting(False, _FLAG, "Also writes TensorBoard event files.", "free"),
    "log.wandb": Setting(
        "off", _choice("off", "offline", "online"), "Also logs to Weights & Biases.", "free"
    ),
    "checkpoint.every_steps": Setting(5_000, _whole(1), "Steps between checkpoints.", "free"),
    "checkpoint.keep": Setting(3, _whole(1, 1_000), "Newest checkpoints that are kept.", "free"),
    "snapshot.every_steps": Setting(
        5_000, _whole(1), "Steps between the samples for the picture of the course.", "free"
    ),
    "snapshot.num_samples": Setting(64, _whole(1, 100_000), "Samples per snapshot.", "free"),
    # sample, condition, attack, curve
    "sample.weights": Setting(
        "ema", _choice("ema", "raw"), "Samples from the averaged parameters or the newest.", "flow"
    ),
    "sample.format": Setting(
        "npz",
        _choice("npz", "folder", "zip"),
        "Files of mode sample; folder and zip hold PNG.",
        "free",
    ),
    "sample.name": Setting(
        "", _FILE_NAME, "Name of these files; empty: the checkpoint's step.", "free"
    ),
    "condition.label": Setting(
        "", _TEXT, "Class to draw, by name or number, or `all` in turn; also --class.", "free"
    ),
    "condition.classifier": Setting(
        "",
        _TEXT,
        "Workdir of a classifier, or a .pt file of the library `robustness`; also --classifier.",
        "free",
    ),
    "condition.weight": Setting(0.1, _real(0.0), "phi: weight of the class.", "free"),
    "condition.num_refine_steps": Setting(
        10, _whole(0, 100_000), "kappa of class-conditional samples.", "free"
    ),
    "attack.epsilon": Setting(
        1.0,
        _real(0.0),
        "L2 distance of adversarial images, on the scale [0, 1] of pixels.",
        "training",
    ),
    "attack.num_steps": Setting(
        7, _whole(0, 1_000), "Steps of the attack; 0 trains a classifier without one.", "training"
    ),
    "augment.max_shift": Setting(
        0,
        _whole(0, 1_000),
        "Shifts the training images of a classifier by at most this many pixels along each axis.",
        "training",
    ),
    "curve.over": Setting(
        "length",
        _choice("length", "step"),
        "Mode curve: against flow length or train step.",
        "free",
    ),
    "curve.lengths": Setting(
        (),
        Rule(lambda v: _is_increasing(v, 0), "increasing lengths of the flow such as (0, 50, 100)"),
        "Lengths of the flow; empty: a choice from 0 to K + 50.",
        "free",
    ),
    # evaluate
    "evaluate.every_steps": Setting(
        0,
        _whole(),
        "Steps between cheap metrics in training, whose best is kept; 0: never.",
        "free",
    ),
    "evaluate.num_monitored_samples": Setting(
        1_000, _whole(2, 10_000_000), "Samples of that metric.", "free"
    ),
    "evaluate.num_samples": Setting(10_000, _whole(2, 10_000_000), "Samples to evaluate.", "free"),
    "evaluate.batch_size": Setting(
        1_000, _whole(1, 2**20), "Samples drawn at a time, over all devices.", "free"
    ),
    "evaluate.inception_weights": Setting(
        "",
        _TEXT,
        "Weights for FID and similar (extra `eval`): weights-inception-2015-12-05-6726825d.pth of "
        "torch-fidelity; empty: no FID.",
        "free",
    ),
    "evaluate.legacy_weights": Setting(
        "", _TEXT, "torchvision's Inception weights, for the paper's protocol.", "free"
    ),
    "evaluate.inception_score": Setting(False, _FLAG, "Also computes the Inception Score.", "free"),
}

# Names of version 0.1, with those they have now.
_RENAMED = {"evaluate.num_judged_samples": "evaluate.num_monitored_samples"}


# Settings that hold paths of files on this machine, which nothing that is shared should show.
PATHS = (
    "data.dir",
    "condition.classifier",
    "evaluate.inception_weights",
    "evaluate.legacy_weights",
)


def defaults() -> dict[str, Any]:
    """Returns the default of every setting, nested by section."""
    return unflatten({key: setting.default for key, setting in SETTINGS.items()})


def flatten(config: Mapping[str, Any], prefix: str = "") -> Settings:
    """Flattens nested keys to dotted ones: {"flow": {"num_steps": 1}} -> {"flow.num_steps": 1}."""
    flat: Settings = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Reverses `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return nested


def section(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the settings of a section, without its name."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in settings.items() if k.startswith(prefix)}


def checked(config: Mapping[str, Any]) -> Settings:
    """Checks a nested or flat config and returns it flat, as JSON holds it.

    Real numbers become floats: JAX reads whole numbers as int32, which holds less than a setting
    may. Tuples become lists, so that settings equal those that were read back from a file.

    Raises:
      UserError: naming each key that is unknown, missing or has a value that is not allowed.
    """
    flat = flatten(config)
    errors = [f"unknown key {key!r}{nearest(key, SETTINGS)}" for key in flat if key not in SETTINGS]
    errors += [f"missing key {key!r}" for key in SETTINGS if key not in flat]
    errors += [f"{key} {error}" for key in flat if (error := error_of(key, flat[key]))]
    if errors:
        raise UserError("config: " + "; ".join(sorted(errors)))
    floats = {k: float(v) if SETTINGS[k].rule.is_real else v for k, v in flat.items()}
    return dict(json.loads(json.dumps(floats)))


def error_of(key: str, value: Any) -> str | None:
    """Returns what is wrong with the value of a known key, or `None`."""
    return SETTINGS[key].rule.error(value) if key in SETTINGS else None


def check_key(key: str, prefix: str = "") -> None:
    """Checks that a setting exists.

    Raises:
      UserError: with the keys of the section, or the nearest key.
    """
    if key in SETTINGS:
        return
    inside = [name for name in SETTINGS if name.startswith(f"{key}.")]
    if inside:
        raise UserError(f"{prefix}{key} is a section; its keys are {', '.join(inside)}")
    raise UserError(f"{prefix}{key}: unknown key{nearest(key, SETTINGS)}")


def completed(settings: Mapping[str, Any]) -> Settings:
    """Returns the settings of a run of an earlier version, with today's names and all keys.

    The default of a key that came later is what earlier versions did.
    """
    renamed = {_RENAMED.get(key, key): value for key, value in settings.items()}
    return {key: renamed.get(key, setting.default) for key, setting in SETTINGS.items()}


def of_scope(settings: Mapping[str, Any], *scopes: Scope) -> Settings:
    """Returns the settings of some scopes."""
    return {key: value for key, value in settings.items() if SETTINGS[key].scope in scopes}


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, str]:
    """Returns what differs between two flat settings: {"seed": "seed is 1 but was 0"}, in order."""
    return {
        key: f"{key} is {json.dumps(present.get(key))} but was {json.dumps(saved.get(key))}"
        for key in sorted(saved.keys() | present.keys())
        if saved.get(key) != present.get(key)
    }


def explain(key: str) -> str:
    """Returns what a person should know of a setting, or of all settings of a section.

    Raises:
      UserError: for an unknown key, with the nearest one.
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
    "training": "Fixed when the run is created; samples follow from the checkpoint only.",
    "flow": "Fixed for training; commands that draw samples may change it.",
    "free": "May change at any time.",
}


def _as_typed(value: Any) -> str:
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."
