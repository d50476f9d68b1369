"""What each key of a config may hold. Checked once, before anything is built."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments import divergence_formula
from experiments.data import registry
from experiments.errors import UserError
from fdrl_jax import bregman, divergences, networks
from fdrl_jax.names import nearest

# A rule takes a value and returns what is wrong with it, or nothing.
Rule = Callable[[Any], str | None]

_MAX_FLOAT32 = 3.4e38
_MAX_TEXT = 1_000
_MAX_FILE_NAME = 200  # Bytes: file systems take 255, with the suffixes that samples get.
_MAX_SHOWN = 300  # Characters of a value in a message.


def _whole(low: int = 0, high: int = 2**31 - 1) -> Rule:
    def rule(value: Any) -> str | None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return None if whole and low <= value <= high else f"a whole number from {low} to {high}"

    return rule


@dataclass(frozen=True)
class _Real:
    """A number that a float32 can hold, within limits."""

    low: float
    high: float = _MAX_FLOAT32
    above: bool = False
    below: bool = False

    def __call__(self, value: Any) -> str | None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Comparisons alone: a whole number may be too large to become a float.
        fits = (
            number
            and (value > self.low if self.above else value >= self.low)
            and (value < self.high if self.below else value <= self.high)
        )
        limits = f"{'above' if self.above else 'at least'} {self.low:g}"
        limits += f" and {'below' if self.below else 'at most'} {self.high:.3g}"
        return None if fits else f"a finite number {limits}"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "True or False"


def _channels(value: Any) -> str | None:
    fits = _whole(1, 3)(value) is None and value != 2
    return None if fits else "1 (grey) or 3 (colour)"


def _text(value: Any) -> str | None:
    # No line breaks: texts become parts of messages of one line. No NUL: of paths.
    fits = isinstance(value, str) and len(value) <= _MAX_TEXT and value.isprintable()
    return None if fits else f"a text of at most {_MAX_TEXT:,} printable characters"


def _file_name(value: Any) -> str | None:
    fits = _text(value) is None and "/" not in value and not value.startswith(".")
    fits = fits and len(value.encode()) <= _MAX_FILE_NAME
    return (
        None if fits else f"a name for a file, without a folder, of at most {_MAX_FILE_NAME} bytes"
    )


def _choice(*allowed: str) -> Rule:
    def rule(value: Any) -> str | None:
        return (
            None
            if value in allowed
            else f"one of {', '.join(allowed)}{nearest(str(value), allowed)}"
        )

    return rule


def _increasing(value: Any) -> str | None:
    steps: list[Any] = list(value) if isinstance(value, (tuple, list)) else [None]
    fits = all(_whole(1)(s) is None for s in steps) and steps == sorted(set(steps))
    return None if fits else "increasing step numbers such as (80000, 90000)"


def _lengths(value: Any) -> str | None:
    lengths: list[Any] = list(value) if isinstance(value, (tuple, list)) else [None]
    fits = all(_whole()(n) is None for n in lengths) and lengths == sorted(set(lengths))
    return None if fits else "increasing lengths of the flow such as (0, 50, 100, 120)"


def _sizes(value: Any) -> str | None:
    fits = (
        isinstance(value, (tuple, list))
        and value
        and all(_whole(1, 65_536)(s) is None for s in value)
    )
    return None if fits else "one or more positive whole numbers such as (64, 64)"


def _blocks(value: Any) -> str | None:
    fits = isinstance(value, (tuple, list)) and all(
        isinstance(block, (tuple, list))
        and len(block) == 2
        and _whole(1, 65_536)(block[0]) is None
        and _whole(1, 8)(block[1]) is None
        for block in value
    )
    return None if fits else "pairs of channels and stride such as ((32, 1), (64, 2))"


def _divergence(value: Any) -> str | None:
    try:
        divergence_formula.parse(value)
    except ValueError as error:
        return f"a divergence: {_cut(str(error))}"
    except TypeError:
        return f"a divergence: {', '.join(divergences.REGISTRY)}"
    return None


RULES: dict[str, Rule] = {
    "seed": _whole(),
    "precision": _choice("float32", "tensorfloat32", "bfloat16"),
    "data.name": registry.objection,
    "data.dir": _text,
    "data.split": _text,
    "data.held_out_split": _text,
    "data.num_held_out": _whole(1),
    "data.source_class": _text,
    "data.target_class": _text,
    "data.center_crop": _whole(0, 65_536),
    "data.resize": _whole(0, 65_536),
    "data.image_size": _whole(0, 65_536),
    "data.keep_aspect": _flag,
    "data.channels": _channels,
    "data.random_flip": _flag,
    "data.dequantisation": _Real(0.0, 1.0),
    "data.on_error": _choice("stop", "skip"),
    "data.in_memory_megabytes": _whole(0),
    "data.num_workers": _whole(0, 1_000),
    "data.num_threads": _whole(1, 1_000),
    "data.prefetch_batches": _whole(1, 10_000),
    "network.name": _choice("auto", "mlp", "resnet", *networks.SPECS),
    "network.hidden_sizes": _sizes,
    "network.width": _whole(0, 65_536),
    "network.blocks": _blocks,
    "network.attention": _flag,
    "network.attention_after": _whole(1, 1_000),
    "network.spectral_norm": _flag,
    "network.remat": _flag,
    "prior.name": _choice("normal", "uniform", "data_dependent", "source"),
    "prior.scale": _Real(0.0, above=True),
    "prior.jitter": _Real(0.0),
    "prior.rank": _whole(0, 2**20),
    "flow.num_steps": _whole(1, 100_000),
    "flow.num_refine_steps": _whole(0, 100_000),
    "flow.step_size": _Real(0.0, above=True),
    "flow.step_size_decay": _Real(0.0, 1_000.0, above=True),
    "flow.noise_scale": _Real(0.0),
    "loss.name": _choice(*bregman.REGISTRY),
    "loss.divergence": _divergence,
    "optimizer.learning_rate": _Real(0.0, 10.0, above=True),
    "optimizer.b1": _Real(0.0, 1.0, below=True),
    "optimizer.b2": _Real(0.0, 1.0, below=True),
    "optimizer.schedule": _choice("constant", "piecewise", "cosine"),
    "optimizer.boundaries": _increasing,
    "optimizer.decay": _Real(0.0, 1.0, above=True),
    "optimizer.clip_norm": _Real(0.0),
    "train.num_steps": _whole(1),
    "train.batch_size": _whole(1, 2**20),
    "train.ema_rate": _Real(0.0, 1.0, below=True),
    "train.steps_per_dispatch": _whole(1, 10_000),
    "train.num_micro_batches": _whole(1, 2**20),
    "train.max_log_ratio": _Real(0.0, above=True),
    "train.max_ratio": _Real(0.0, above=True),
    "train.on_divergence": _choice("stop", "rollback"),
    "train.rollback_lr_factor": _Real(0.0, 1.0, above=True),
    "train.max_rollbacks": _whole(0, 1_000),
    "log.every_steps": _whole(1),
    "log.tensorboard": _flag,
    "log.wandb": _choice("off", "offline", "online"),
    "checkpoint.every_steps": _whole(1),
    "checkpoint.keep": _whole(1, 1_000),
    "snapshot.every_steps": _whole(1),
    "snapshot.num_samples": _whole(1, 100_000),
    "sample.weights": _choice("ema", "raw"),
    "sample.format": _choice("npz", "folder", "zip"),
    "sample.name": _file_name,
    "condition.label": _text,
    "condition.classifier": _text,
    "condition.weight": _Real(0.0),
    "condition.num_refine_steps": _whole(0, 100_000),
    "attack.epsilon": _Real(0.0),
    "attack.num_steps": _whole(0, 1_000),
    "curve.over": _choice("length", "step"),
    "curve.lengths": _lengths,
    "evaluate.every_steps": _whole(),
    "evaluate.num_judged_samples": _whole(2, 10_000_000),
    "evaluate.num_samples": _whole(2, 10_000_000),
    "evaluate.batch_size": _whole(1, 2**20),
    "evaluate.inception_weights": _text,
    "evaluate.legacy_weights": _text,
    "evaluate.inception_score": _flag,
}

# Keys that runs of earlier versions lack, with the value that says what these runs did.
LATER_KEYS: dict[str, Any] = {"flow.step_size_decay": 1.0}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested keys to dotted ones: {"flow": {"num_steps": 1}} -> {"flow.num_steps": 1}."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `flatten`."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        target = nested
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return nested


def as_floats(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns checked values, with whole numbers turned into floats where a key holds a real one.

    JAX takes Python's whole numbers for int32, which would not hold all that such a key may.
    """
    return {
        key: float(value) if isinstance(RULES[key], _Real) else value for key, value in flat.items()
    }


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the flat settings of a run, of whatever version, with all keys that matter now."""
    return {**LATER_KEYS, **settings}


def differences(saved: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, str]:
    """Returns what differs between two flat settings: {"seed": "seed is 1 but was 0"}, in order."""
    return {
        key: f"{key} is {json.dumps(present.get(key))} but was {json.dumps(saved.get(key))}"
        for key in sorted(saved.keys() | present.keys())
        if saved.get(key) != present.get(key)
    }


def check(config: Mapping[str, Any]) -> None:
    """Checks every value of a config.

    Raises:
      UserError: naming each key that is unknown, missing or out of its range, and what is allowed.
    """
    flat = flatten(config)
    complaints = [f"unknown key {key!r}{nearest(key, RULES)}" for key in flat if key not in RULES]
    complaints += [f"missing key {key!r}" for key in RULES if key not in flat]
    for key in RULES.keys() & flat.keys():
        wrong = RULES[key](flat[key])
        if wrong:
            complaints.append(f"{key} must be {wrong}, got {_cut(repr(flat[key]))}")
    if complaints:
        raise UserError("config: " + "; ".join(sorted(complaints)))


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} ..."
